"""What there is to furnish with: models with a kind, a size and a licence, loaded when they are first used.

The models are those of Sweet Home 3D's furniture libraries, of a folder of OBJ files, or, with no assets, the built-in
ones. Kinds are told from the libraries' names by the table `RULES`.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from marigold_jax.rooms import builtin
from marigold_jax.rooms.assets import Entry, open_folder
from marigold_jax.rooms.objects import load_object
from marigold_jax.rooms.scene import Mesh, Vector

SPLITS = ("train", "val", "test")

KINDS = (
    *("bed", "sofa", "armchair", "chair", "table", "low_table", "desk", "shelf", "cabinet", "wardrobe", "chest"),
    *("wall_unit", "kitchen_unit", "bath", "toilet", "washbasin", "lamp", "table_lamp", "ceiling_lamp", "plant"),
    *("picture", "mirror", "rug", "curtain", "door", "window", "screen", "ornament", "floor_item", "piano"),
    *("person", "animal", "vehicle", "tree", "street_item", "building"),
)
ENOUGH = 8  # a kind of fewer models than this is topped up with the built-in ones

# What a library's "category/name" says of the kind, in lower case; the first row that matches decides, and what matches
# none is left out. None leaves out: fittings, marks on the road, pools, machines that stand in no room.
RULES: tuple[tuple[str, str | None], ...] = (
    (r"street light|street lamp|park light|lamppost", "street_item"),
    (r"lights/hanging", "ceiling_lamp"),
    (
        r"plug|socket|switch|detector|cctv|surveillance|intercom|emergency|number lock|bell|speech|bill |thermometer",
        None,
    ),
    (r"radiator|water heater|air conditioning|chimney|furnace|hanger|ceiling fan|white board|dart", None),
    (
        r"/arrow|parking|crossing|rails|pool$|swimming|jacuzzi|stairs|staircase|escalator|elevator|tatami|mezzanine",
        None,
    ),
    (r"shower|faucet|towel rack|toilet brush|paper dispenser|urinal|hood$|light$|strip$|spotlight|artwork|track", None),
    (
        r"/towel|flashlight|garage|shutter|camping tent|child hut|child swing|diving|hammock|sandpit|trampoline|barnum",
        None,
    ),
    (
        r"children game|basketball net|football goal|garden faucet|concrete sidewalk|letters box|stroller|/lying|/sit",
        None,
    ),
    (r"doll house|treadmill|indoor bike|fitness|abdominal|flipper|workbench|wheelchair|clothes horse|tennis$", None),
    (r"kitchen tools|/tool$|blind|kitchen/towel|gaz|skirt|trousers|/short$|/dress$|jacket|suit$", None),
    (r"fireplace|iron railing|open(ed)? convertible|technical table|chest freezer|propane|umbrella|contemporary", None),
    (r"exterior/.*(bench|bank)|hydrant|park trashcan|residential|fence|railing$|mailbox|cone$|fountain", "street_item"),
    (r"stone lantern|/rock$|flower box|seesaw|snowman|recycling|porch column|pallet|barrel|dog house", "street_item"),
    (r"garden hut|shipping container", "building"),
    (r"exterior/.*(tree|acacia|bamboo|pine|bush|beech|cypress|ficus|hedge|maple|blossom|poplar)", "tree"),
    (r"vehicles/.*(skateboard|tricycle)", "floor_item"),
    (r"vehicles/", "vehicle"),
    (r"motorbike|rowboat|mower|wheelbarrow", "vehicle"),
    (r"characters/.*(dog|cat|chicken|rabbit)", "animal"),
    (r"characters/.*(horse)", None),
    (r"characters/", "person"),
    (r"doors and windows/.*(window)", "window"),
    (r"doors and windows/.*(door)", "door"),
    (r"curtain", "curtain"),
    (r"rug$|carpet|doormat|bathmat", "rug"),
    (r"miscellaneous/screen", None),
    (r"tv stand|television cabinet|television", "cabinet"),
    (r"wall flat tv|/tv( 16:9)?$|imac", "screen"),
    (r"grand piano|upright piano", "piano"),
    (r"bench|ottoman$|puff|stool|rocking horse", "floor_item"),
    (r"toilets unit|bidet", "toilet"),
    (r"corner bathtub|island bath|bathroom/bath$", "bath"),
    (r"washbasin|lavatory|vanity", "washbasin"),
    (r"bedside table", "chest"),
    (r"changing table|chest$|dresser|dressing table|trunck", "chest"),
    (r"bed$|crib|futon$", "bed"),
    (r"sofa|couch", "sofa"),
    (r"armchair|relax chair|deck chair|pool lounge|beach chair", "armchair"),
    (r"chair|class seat", "chair"),
    (r"coffee table|children table|rattan table", "low_table"),
    (r"office/.*(desk|table)", "desk"),
    (r"desk lamp", "lamp"),
    (r"football table|pool table|table tennis$", "table"),
    (r"table fan|table tennis bat", "ornament"),
    (r"table$|table (on|with)|/island", "table"),
    (r"bookcase|shelves$", "shelf"),
    (r"wardrobe|bedroom/cupboard", "wardrobe"),
    (r"upper|glass door cabinet|range hood", "wall_unit"),
    (
        r"lower (corner )?cabinet|drawers cabinet|kitchen/(high|sink|double oven|(large )?fridge|refrig|oven|large st)",
        "kitchen_unit",
    ),
    (r"washing machine|dryer machine", "kitchen_unit"),
    (r"filing cabinet|/safe$|office/box|living room/box", "cabinet"),
    (r"lights/.*candle|camping lamp|lantern", "ornament"),
    (r"lamp|lights/hanging", "lamp"),
    (r"christmas tree|bonsai|cactus|plant|ficus|flowers|orchids|tulips|lily|yucca|spathiphyllum|bamboo", "plant"),
    (r"pedestal|aquarium", "ornament"),
    (
        r"basket|dustbin|trash|suitcase|backpack|cardboard|crate|/box$|extinguisher|broom|hose|wood logs|water cooler",
        "floor_item",
    ),
    (
        r"step ladder|guitar|speaker|clothes rack|punching|soccer ball|basketball|locker|potty|air mattress",
        "floor_item",
    ),
    (r"folder/floor|sleeping|slippers|sneakers|shoes|briefcase|handbag|electric|mower", "floor_item"),
    (r"^(folder|kitchen|bathroom|bedroom|living room|office|miscellaneous)/", "ornament"),
)
# Rows above that name a family, which size divides: (kind, condition on size and elevation, the kind that it is then).
DIVISIONS: tuple[tuple[str, Callable[[Vector, float], bool], str], ...] = (
    ("lamp", lambda size, elevation: elevation > 1.2, "ceiling_lamp"),
    ("lamp", lambda size, elevation: size[1] < 1.0, "table_lamp"),
    ("table", lambda size, elevation: size[1] < 0.6, "low_table"),
    ("ornament", lambda size, elevation: max(size) > 0.62, "floor_item"),
)
TINY = 0.05  # metres: what is smaller is not worth a ray
BYTES = 6 << 20  # of an OBJ file: some 150,000 triangles, and more are not worth the wait
HOLLOW = "sink"
STANDS_ON_IT = {"table", "low_table", "desk", "chest", "cabinet", "shelf", "kitchen_unit"}


@dataclass(frozen=True)
class Model:
    """A piece of furniture, or what else may stand in a scene.

    Attributes:
        name: unique.
        kind: one of `KINDS`.
        size: width x, height y and depth z in metres.
        elevation: how high above the floor it hangs, in metres; 0 for what stands.
        top: how high above its own foot ornaments may stand on it, in metres; None where they may not.
        licence, creator: as its library says.
        load: its mesh, centred in x and z, standing on y = 0, its front towards +z, as large as `size`. Loaded once.
    """

    name: str
    kind: str
    size: Vector
    elevation: float
    top: float | None
    licence: str
    creator: str
    load: Callable[[], Mesh] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Catalogue:
    """The models of one split."""

    split: str
    by_kind: dict[str, tuple[Model, ...]]

    def models(self, kind: str) -> tuple[Model, ...]:
        """Those of a kind, sorted by name. Raises KeyError for what is not in `KINDS`."""
        return self.by_kind[kind]

    def licences(self) -> dict[str, dict[str, int]]:
        """How many models there are of each licence and creator."""
        counts: dict[str, Counter[str]] = {}
        for models in self.by_kind.values():
            for model in models:
                counts.setdefault(model.licence, Counter())[model.creator] += 1
        return {licence: dict(sorted(counts[licence].items())) for licence in sorted(counts)}


def open_catalogue(assets: Path | None, split: str) -> Catalogue:
    """The models for a split, from a folder of assets (see `assets.open_folder`) or, with None, the built-in ones.

    About 80 % of the models are for training and 10 % each for validation and test, by a checksum of their names, so
    that no model is seen in two splits. Every kind has a model in every split: where chance left a split empty, it gets
    one from the fullest; and a kind of fewer than three models shows all of them in all splits. Kinds of which the
    assets have few are topped up with built-in models.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    models = [] if assets is None else [model for entry in open_folder(assets) if (model := from_entry(entry))]
    by_kind = {kind: [model for model in models if model.kind == kind] for kind in KINDS}
    for model in _builtin_models():
        if len([own for own in by_kind[model.kind] if own.creator != builtin.CREATOR]) < ENOUGH:
            by_kind[model.kind].append(model)
    return Catalogue(split, {kind: _share(by_kind[kind])[split] for kind in KINDS})


def from_entry(entry: Entry) -> Model | None:
    """The model of a library's entry; None where the table leaves it out."""
    kind = kind_of(f"{entry.category}/{entry.title}".lower(), entry.size, entry.elevation)
    if kind is None or entry.bytes > BYTES or max(entry.size) < TINY or min(entry.size) <= 0:
        return None
    return Model(
        name=entry.name,
        kind=kind,
        size=entry.size,
        elevation=entry.elevation,
        top=None if HOLLOW in entry.title.lower() else _top(kind, entry.size, entry.drop),
        licence=entry.licence,
        creator=entry.creator,
        load=partial(load_object, entry, glass=kind not in ("window", "door")),
    )


def kind_of(title: str, size: Vector, elevation: float) -> str | None:
    """What a "category/name" in lower case is, by `RULES` and `DIVISIONS`."""
    kind = next((kind for pattern, kind in RULES if re.search(pattern, title)), None)
    for family, condition, divided in DIVISIONS:
        if kind == family and condition(size, elevation):
            return divided
    return kind


def _top(kind: str, size: Vector, drop: float | None) -> float | None:
    """`drop` is where the library puts what is dropped on it: None for its full height, negative for nowhere."""
    height = size[1] if drop is None or kind == "shelf" else drop
    # Much lower than the whole, it is a board under others or before a mirror: little room is known to be free.
    return height if kind in STANDS_ON_IT and 0.8 * size[1] <= height < 1.4 else None


def _share(models: Iterable[Model]) -> dict[str, tuple[Model, ...]]:
    """The three splits of one kind's models."""
    models = sorted(models, key=lambda model: model.name)
    if len(models) < 3:
        return dict.fromkeys(SPLITS, tuple(models))
    shares: dict[str, list[Model]] = {split: [] for split in SPLITS}
    for model in models:
        checksum = zlib.crc32(model.name.encode()) % 10
        shares["val" if checksum == 8 else "test" if checksum == 9 else "train"].append(model)
    for split in SPLITS:
        if not shares[split]:
            fullest = max(SPLITS, key=lambda other: len(shares[other]))
            shares[split].append(shares[fullest].pop())
    return {split: tuple(shares[split]) for split in SPLITS}


def _builtin_models() -> list[Model]:
    return [
        Model(
            *(piece.name, piece.kind, piece.size, piece.elevation, piece.top),
            licence="Apache-2.0",
            creator=builtin.CREATOR,
            load=piece.load,
        )
        for piece in builtin.pieces()
    ]

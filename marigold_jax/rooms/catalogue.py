"""The catalogue of furniture models, each with a kind, a size and a licence; meshes are loaded when first used.

The models come from Sweet Home 3D's furniture libraries, from a folder of OBJ files, or, without assets, from the
built-in ones. The table `RULES` derives the kind of a model from its name in the library.
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
ENOUGH = 8  # kinds with fewer models than this are supplemented with built-in ones

# From a library's "category/name", in lower case, to a kind: the first row that matches decides. Models that match no
# row are left out, and so are those whose kind is None: fittings, road markings, pools, outdoor machines.
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
# Kinds that are divided by size: (kind, condition on size and elevation, the kind if the condition holds).
DIVISIONS: tuple[tuple[str, Callable[[Vector, float], bool], str], ...] = (
    ("lamp", lambda size, elevation: elevation > 1.2, "ceiling_lamp"),
    ("lamp", lambda size, elevation: size[1] < 1.0, "table_lamp"),
    ("table", lambda size, elevation: size[1] < 0.6, "low_table"),
    ("ornament", lambda size, elevation: max(size) > 0.62, "floor_item"),
)
TINY = 0.05  # metres; smaller models are left out
BYTES = 6 << 20  # of an OBJ file, about 150,000 triangles; larger models are left out, as they load slowly
HOLLOW = "sink"
STANDS_ON_IT = {"table", "low_table", "desk", "chest", "cabinet", "shelf", "kitchen_unit"}


@dataclass(frozen=True)
class Model:
    """A piece of furniture, or another object that can be placed in a scene.

    Attributes:
        name: unique.
        kind: one of `KINDS`.
        size: width x, height y and depth z in metres.
        elevation: height above the floor at which it hangs, in metres; 0 if it stands.
        top: height above its own base at which ornaments may stand on it, in metres; None if they may not.
        licence, creator: from its library.
        load: returns the mesh, scaled to `size`, centred in x and z, standing on y = 0, front towards +z. Cached.
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
    """The models of one split, by kind."""

    split: str
    by_kind: dict[str, tuple[Model, ...]]

    def models(self, kind: str) -> tuple[Model, ...]:
        """The models of a kind, sorted by name. Raises KeyError for a kind that is not in `KINDS`."""
        return self.by_kind[kind]

    def licences(self) -> dict[str, dict[str, int]]:
        """The number of models of each licence and creator."""
        counts: dict[str, Counter[str]] = {}
        for models in self.by_kind.values():
            for model in models:
                counts.setdefault(model.licence, Counter())[model.creator] += 1
        return {licence: dict(sorted(counts[licence].items())) for licence in sorted(counts)}


def open_catalogue(assets: Path | None, split: str) -> Catalogue:
    """The models of a split, from a folder of assets (see `assets.open_folder`), or built-in ones if that is None.

    A checksum of their names assigns about 80 % of the models to training and 10 % each to validation and test, so no
    model appears in two splits. Every kind has a model in every split: an empty split gets one from the fullest, and a
    kind with fewer than three models uses all of them in all splits. Kinds with few models in the assets are
    supplemented with built-in ones.
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
    """The model of a library entry; None if it is left out."""
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
    """The kind of a "category/name" in lower case, by `RULES` and `DIVISIONS`; None if it is left out."""
    kind = next((kind for pattern, kind in RULES if re.search(pattern, title)), None)
    for family, condition, divided in DIVISIONS:
        if kind == family and condition(size, elevation):
            return divided
    return kind


def _top(kind: str, size: Vector, drop: float | None) -> float | None:
    """`drop` is the height at which the library places objects: None for the full height, negative for nowhere."""
    height = size[1] if drop is None or kind == "shelf" else drop
    # Much lower than the whole model, it is a board below others or before a mirror, with little free space above.
    return height if kind in STANDS_ON_IT and 0.8 * size[1] <= height < 1.4 else None


def _share(models: Iterable[Model]) -> dict[str, tuple[Model, ...]]:
    """Divides the models of one kind among the three splits."""
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

"""Rendered rooms as a kind of raw data for `prepare`: the help text, the flags, and the frames that they ask for."""

import argparse
import hashlib
from pathlib import Path

from marigold_jax.data.depth_format import DEPTH_FORMATS
from marigold_jax.data.raw_kinds import RawKind, RawSplit
from marigold_jax.runtime import extras, terminal


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--scenes", type=int, required=True, help="number of scenes")
    add("--views", type=int, default=8, help="images per scene (default: %(default)s)")
    add("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    size = {"nargs": 2, "type": int, "default": (240, 320), "metavar": ("HEIGHT", "WIDTH")}
    add("--size", **size, help="of the images, in pixels (default: 240 320)")
    add("--assets", metavar="DIR", help="a folder of furniture: Sweet Home 3D's .sh3f libraries, or OBJ files")
    add(
        "--fetch_assets",
        action="store_true",
        help="download 820 furniture models (120 MB, CC0 and CC-BY) to --assets, or to DATA_DIR/assets, if missing",
    )


def _open(args: argparse.Namespace) -> RawSplit:
    with extras.needed("prepare"):
        from marigold_jax.rooms import assets, frames  # needs trimesh and embreex

    if args.scenes < 1 or args.views < 1 or args.seed < 0 or min(args.size) < 16:
        raise ValueError("wanted --scenes and --views of at least 1, --seed of at least 0, --size of at least 16 16")
    folder = args.assets or (Path(args.data_dir) / "assets" if args.fetch_assets else None)
    if args.fetch_assets:
        assets.fetch(Path(folder))
    elif folder is None:
        terminal.say("neither --assets nor --fetch_assets is given: using the few plain built-in models of furniture")
    settings = frames.SplitSettings(
        args.split, args.seed, args.views, tuple(args.size), None if folder is None else str(folder)
    )
    return RawSplit(
        frames=frames.list_frames(settings, args.scenes),
        read=frames.read_frame,
        depth_format=DEPTH_FORMATS["rooms"],
        maps=("normals",),
        flags={
            "--scenes": str(args.scenes),
            "--views": str(args.views),
            "--seed": str(args.seed),
            "--size": f"{args.size[0]} {args.size[1]}",
            "--assets": "the built-in models" if folder is None else _inventory(Path(folder)),
        },
        card=frames.card(settings),
    )


def _inventory(folder: Path) -> str:
    """Identifies the contents of a folder, wherever it is, by the names and sizes of its files."""
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    return f"{len(files)} files ({hashlib.sha256(repr(files).encode()).hexdigest()[:8]})"


ROOMS = RawKind(
    summary="rooms, still lifes and streets, rendered from a seed",
    layout="""Renders furnished rooms, still lifes and streets with exact depth and normals. Only the furniture has
to be downloaded, once (--fetch_assets). The same flags always give the same bytes. The splits train, val
and test share no scenes and no furniture.""",
    add_flags=_add_flags,
    open=_open,
)

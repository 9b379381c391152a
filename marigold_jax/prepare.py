"""Converts downloaded RGB-D data into datasets that `train` and `evaluate` read.

    python -m marigold_jax.prepare hypersim        --raw_dir HYPERSIM --data_dir DATA --split train
    python -m marigold_jax.prepare virtual_kitti_2 --raw_dir VKITTI   --data_dir DATA --split train
    python -m marigold_jax.prepare folder          --raw_dir MINE     --data_dir DATA --unit mm
    python -m marigold_jax.prepare rooms           --scenes 100       --data_dir DATA --fetch_assets

Each command writes DATA/rgbd/NAME, a TFDS dataset of ArrayRecord files (TensorFlow is not needed), which configurations
refer to as NAME/SPLIT. Every file is checked. Frames that cannot be used, and files that no frame uses, are counted by
reason and listed in DATA/rgbd/NAME/report-SPLIT.jsonl; contact-SPLIT.png shows some of the frames. To resume a run that
was interrupted, give the same command again. A different command for an existing split is refused.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from marigold_jax.data import contact_sheet
from marigold_jax.runtime import extras, terminal
from marigold_jax.runtime.files import printable

with extras.needed("prepare", __name__):
    from marigold_jax.data.prepare_split import prepare_split
    from marigold_jax.data.prepared import dataset_folder
    from marigold_jax.data.raw_kinds import RAW_KINDS, TRAIN, VALIDATION
    from marigold_jax.data.rgbd.rgbd_dataset_builder import RgbdConfig
    from marigold_jax.rooms.raw_kind import ROOMS

KINDS = {**RAW_KINDS, "rooms": ROOMS}
ALL = "all"  # TFDS's name for all splits of a dataset together
RAW_FOLDERS = ("rgb", "depth", "mask", "normals")  # where images inside RAW_DIR are searched


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = terminal.Parser("python -m marigold_jax.prepare", description=__doc__, formatter_class=raw)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="|".join(KINDS))
    for name, kind in KINDS.items():
        sub = kinds.add_parser(name, help=kind.summary, description=kind.layout, formatter_class=raw)
        sub.add_argument("-o", "--data_dir", required=True, help="the folder of all prepared datasets")
        sub.add_argument(
            "--name", help="name of the dataset (default: its kind; for `folder`, the last part of RAW_DIR)"
        )
        sub.add_argument(
            "--split", default=TRAIN, help="the split to prepare; others can be added later (default: %(default)s)"
        )
        sub.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
        sub.add_argument("--limit", type=int, help="prepare only the first LIMIT frames")
        kind.add_flags(sub)
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> RgbdConfig:
    """The dataset that the flags describe. Raises ValueError, in one line, for flags and folders that make no sense."""
    for flag in ("workers", "limit"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} must be at least 1; got {value}")
    raw_dir = getattr(args, "raw_dir", None)
    if raw_dir is not None and not Path(raw_dir).is_dir():
        raise ValueError(f"--raw_dir {raw_dir} is not a folder")
    given, args.name = args.name, args.name or (Path(raw_dir).resolve().name if args.kind == "folder" else args.kind)
    for flag in ("name", "split"):
        if not re.fullmatch(r"\w[\w-]*", value := getattr(args, flag)) or value == ALL:
            hint = "; the folder's name cannot be used: give a --name" if flag == "name" and not given else ""
            raise ValueError(f"--{flag} must consist of letters, digits, _ and -; got {printable(value)!r}{hint}")
    refuse_to_write_into(raw_dir, args)
    raw = KINDS[args.kind].open(args)
    frames = raw.frames[: args.limit]
    if not frames:
        raise ValueError(f"{raw_dir} holds no frames of the {args.split} split")
    splits = {args.split: frames}
    if share := getattr(args, "validation", 0):
        from marigold_jax.data.folder import hold_out

        splits = dict(zip((TRAIN, VALIDATION), hold_out(frames, share, args.seed), strict=True))
        terminal.say(f"held out {len(splits[VALIDATION])} of {len(frames)} frames for {args.name}/{VALIDATION}")
    settings = {item.name: getattr(raw, item.name) for item in dataclasses.fields(raw)}
    settings["flags"] = raw.flags | {"--limit": str(len(frames)) if len(frames) < len(raw.frames) else "none"}
    return RgbdConfig(name=args.name, **settings | {"frames": splits})


def refuse_to_write_into(raw_dir: str | None, args: argparse.Namespace) -> None:
    """Raises ValueError if the dataset's own images would be found among the raw ones by the next run."""
    made = dataset_folder(args.data_dir, args.name).resolve()
    for name in RAW_FOLDERS if raw_dir else ():
        if made.is_relative_to(inside := Path(raw_dir, name).resolve()):
            raise ValueError(f"--data_dir {args.data_dir} is inside {inside}: choose a folder outside of the raw data")


def draw_sheet(examples: Sequence[dict[str, np.ndarray]]) -> bytes:
    return contact_sheet.png(contact_sheet.contact_sheet(examples))


def main(argv: list[str] | None = None) -> int:
    args = parse_flags(argv)
    try:
        config = configure(args)
        return max(prepare_split(config, split, args.data_dir, args.workers, draw_sheet) for split in config.frames)
    except extras.MissingExtra as error:
        problem, status = str(error), 1
    except OSError as error:
        problem, status = f"{error.filename}: {error.strerror}" if error.filename else error, 2
    except (ValueError, BrokenProcessPool) as error:
        problem, status = error, 2
    except KeyboardInterrupt:
        problem, status = "stopped; run the same command again to continue", 130
    terminal.say(f"prepare: {problem}", sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(terminal.run(main))

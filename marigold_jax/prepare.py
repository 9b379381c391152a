"""Turns RGB-D data as people download it into datasets that `train` and `evaluate` read.

    python -m marigold_jax.prepare hypersim        --raw_dir HYPERSIM --data_dir DATA --split train
    python -m marigold_jax.prepare virtual_kitti_2 --raw_dir VKITTI   --data_dir DATA --split train
    python -m marigold_jax.prepare folder          --raw_dir MINE     --data_dir DATA --unit mm
    python -m marigold_jax.prepare rooms           --scenes 100       --data_dir DATA --fetch_assets

Each makes DATA/rgbd/NAME (a TFDS dataset over ArrayRecord; TensorFlow is not needed), which configurations call
DATA/NAME/SPLIT. Every file is checked; frames that cannot be used are left out, counted by reason, and listed in
DATA/rgbd/NAME/report-SPLIT.jsonl; contact-SPLIT.png beside it shows some of the others. A run that was stopped goes on
where it was when the same command is given again.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax.data import panels
from marigold_jax.data.records import read_index
from marigold_jax.data.rgbd.rgbd_dataset_builder import Builder, RgbdConfig, features_of
from marigold_jax.data.shards import Shard, begin, discard, open_builder, publish, write_shard
from marigold_jax.data.sources import METADATA, SOURCES, PreparedSplit, Source, source_from
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.runtime.files import read_json, write

SHOWN = 24  # frames on the contact sheet
UNITS_PER_METRE = {"m": 1.0, "cm": 100.0, "mm": 1000.0}


# ------------------------------------------------------------------------------------- what to prepare: flags to frames


def _hypersim(args: argparse.Namespace) -> RgbdConfig:
    from marigold_jax.data import hypersim  # needs h5py

    frames = hypersim.list_frames(args.raw_dir, args.split, args.filename_list)
    return RgbdConfig(
        name=args.name,
        source=SOURCES["hypersim"],
        normals=args.normals,
        frames={args.split: frames},
        read=partial(hypersim.read_frame, normals=args.normals),
    )


def _virtual_kitti_2(args: argparse.Namespace) -> RgbdConfig:
    from marigold_jax.data import virtual_kitti_2

    frames = virtual_kitti_2.list_frames(args.raw_dir, args.split, args.filename_list)
    complete = virtual_kitti_2.FRAMES.get(args.split)
    if not args.filename_list and len(frames) != complete:
        print(f"{args.raw_dir} has {len(frames)} of the {complete} frames of the paper's {args.split} split")
    return RgbdConfig(
        name=args.name,
        source=SOURCES["virtual_kitti_2"],
        normals=args.normals,
        frames={args.split: frames},
        read=partial(virtual_kitti_2.read_frame, normals=args.normals),
    )


def _folder(args: argparse.Namespace) -> RgbdConfig:
    from marigold_jax.data import folder

    units_per_metre = UNITS_PER_METRE[args.unit] if args.unit else args.depth_scale
    if not (units_per_metre > 0 and 0 <= args.min_depth < args.max_depth):
        raise ValueError("want --depth_scale above 0, and --min_depth from 0 to below --max_depth")
    source = Source(units_per_metre, args.min_depth, args.max_depth)
    frames = folder.list_frames(args.raw_dir, args.filename_list)
    encoding = folder.depth_encoding(frames)
    return RgbdConfig(
        name=args.name,
        source=source,
        depth_encoding=encoding,
        mask=frames[0].mask is not None,
        normals=frames[0].normals is not None,
        frames={args.split: frames},
        read=partial(folder.read_frame, source=source, encoding=encoding),
    )


def _rooms(args: argparse.Namespace) -> RgbdConfig:
    from marigold_jax.data.rooms import assets, frames  # needs trimesh and embreex

    if args.scenes < 1 or args.views < 1 or args.seed < 0 or min(args.size) < 16:
        raise ValueError("want --scenes and --views of at least 1, --seed of at least 0, --size of at least 16 16")
    folder = args.assets or (Path(args.data_dir) / "assets" if args.fetch_assets else None)
    if args.fetch_assets:
        assets.fetch(Path(folder))
    elif folder is None:
        print("no --assets, no --fetch_assets: furnishing with the built-in models, which are plain and few")
    film = frames.Film(args.split, args.seed, args.views, tuple(args.size), None if folder is None else str(folder))
    return RgbdConfig(
        name=args.name,
        source=SOURCES["rooms"],
        normals=True,
        frames={args.split: frames.list_frames(film, args.scenes)},
        read=frames.read_frame,
        card=frames.card(film),
    )


def _add_rooms_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--scenes", type=int, required=True, help="how many rooms and streets")
    add("--views", type=int, default=8, help="pictures of each (default: %(default)s)")
    add("--seed", type=int, default=0, help="another seed, other scenes (default: %(default)s)")
    size = {"nargs": 2, "type": int, "default": (240, 320), "metavar": ("HEIGHT", "WIDTH")}
    add("--size", **size, help="of the pictures (default: 240 320)")
    add("--assets", metavar="DIR", help="a folder of furniture: .sh3f libraries of Sweet Home 3D, or OBJ files")
    add(
        "--fetch_assets",
        action="store_true",
        help="download 820 models (120 MB, CC0 and CC-BY) to --assets, or DATA_DIR/assets, if they are not there",
    )


def _add_raw_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw_dir", required=True, help="where the downloaded data is")
    parser.add_argument("--filename_list", help="take the frames of this list, in the official repository's format")


def _add_normals_flags(parser: argparse.ArgumentParser) -> None:
    _add_raw_flags(parser)
    parser.add_argument("--normals", action="store_true", help="store surface normals too, to train on them")


def _add_folder_flags(parser: argparse.ArgumentParser) -> None:
    _add_raw_flags(parser)
    unit = parser.add_mutually_exclusive_group(required=True)
    unit.add_argument("--unit", choices=UNITS_PER_METRE, help="the unit of the stored depth")
    unit.add_argument(
        "--depth_scale", type=float, help="or stored values per metre: 256 for KITTI's PNG files, 5000 for TUM's"
    )
    parser.add_argument("--min_depth", type=float, default=1e-5, help="metres; less is invalid (default: %(default)s)")
    parser.add_argument(
        "--max_depth", type=float, default=float("inf"), help="metres; more is invalid (default: none is)"
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    summary: str
    layout: str
    configure: Callable[[argparse.Namespace], RgbdConfig]
    add_flags: Callable[[argparse.ArgumentParser], None] = _add_raw_flags


KINDS = {
    "hypersim": Kind(
        summary="Hypersim's HDF5 files, tone-mapped, with planar depth",
        layout="""RAW_DIR holds the unpacked scenes and the list of splits from github.com/apple/ml-hypersim:

  RAW_DIR/metadata_images_split_scene_v1.csv                 (not needed with --filename_list)
  RAW_DIR/ai_001_001/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5
  RAW_DIR/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5
  RAW_DIR/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.render_entity_id.hdf5
  RAW_DIR/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.normal_cam.hdf5        (with --normals)

--split is train, val or test.""",
        configure=_hypersim,
        add_flags=_add_normals_flags,
    ),
    "virtual_kitti_2": Kind(
        summary="Virtual KITTI 2 archives, or folders unpacked from them",
        layout="""RAW_DIR holds vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar, or what is in them:

  .../Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg
  .../Scene01/clone/frames/depth/Camera_0/depth_00000.png

--split is train (scenes 2, 6, 18, 20) or val (scene 1), six variations and both cameras each.
--normals are computed from depth.""",
        configure=_virtual_kitti_2,
        add_flags=_add_normals_flags,
    ),
    "folder": Kind(
        summary="any folder of RGB images and depth maps",
        layout="""RAW_DIR holds files that belong together if they have the same path in these folders, extension aside:

  RAW_DIR/rgb/a/1.jpg        any picture
  RAW_DIR/depth/a/1.png      16-bit PNG, .npy, .exr or .pfm, along the optical axis; 0, NaN and infinity are invalid
  RAW_DIR/mask/a/1.png       optional: PNG or .npy, not 0 where the depth is valid
  RAW_DIR/normals/a/1.npy    optional: .npy, .exr or .pfm in [-1, 1], or 8-bit PNG; x right, y up, z to the viewer

Or --filename_list names the pairs, each line an RGB path and a depth path below RAW_DIR.""",
        configure=_folder,
        add_flags=_add_folder_flags,
    ),
    "rooms": Kind(
        summary="rooms, still lifes and streets, rendered here from a seed",
        layout="""Renders furnished rooms, still lifes and streets, with perfect depth and normals: nothing to download
but, once, the furniture (--fetch_assets). The same flags always give the same bytes. The splits train, val and test
share no scene and no furniture.""",
        configure=_rooms,
        add_flags=_add_rooms_flags,
    ),
}


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m marigold_jax.prepare", description=__doc__, formatter_class=raw)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="|".join(KINDS))
    for name, kind in KINDS.items():
        sub = kinds.add_parser(name, help=kind.summary, description=kind.layout, formatter_class=raw)
        sub.add_argument("--data_dir", required=True, help="where prepared datasets are kept")
        sub.add_argument(
            "--name", help="what to call the dataset (default: its kind; for a folder, the name of RAW_DIR)"
        )
        sub.add_argument(
            "--split", default="train", help="which split to make; others can be added (default: %(default)s)"
        )
        sub.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
        sub.add_argument("--limit", type=int, help="take only so many frames")
        kind.add_flags(sub)
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> RgbdConfig:
    """Raises ValueError, in one line, for flags and folders that make no sense."""
    for flag in ("workers", "limit"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ValueError(f"--{flag} must be at least 1; got {value}")
    raw = getattr(args, "raw_dir", None)
    if raw is not None and not Path(raw).is_dir():
        raise ValueError(f"--raw_dir {raw} is not a folder")
    args.name = args.name or (Path(raw).resolve().name if args.kind == "folder" else args.kind)
    for flag in ("name", "split"):
        if not re.fullmatch(r"\w[\w-]*", getattr(args, flag)):
            raise ValueError(f"--{flag} must consist of letters, digits, _ and -; got {getattr(args, flag)!r}")
    config = KINDS[args.kind].configure(args)
    frames = config.frames[args.split][: args.limit]
    if not frames:
        raise ValueError(f"{raw} holds no frames of the {args.split} split")
    return dataclasses.replace(config, frames={args.split: frames})


# ------------------------------------------------------------------------------------------------------------- the work


def run_shards(tasks: list[tuple[Path, Any]], config: RgbdConfig, workers: int) -> Iterator[tuple[int, Shard]]:
    """Writes the shards, giving the number of each as it is finished. Raises BrokenProcessPool if a process dies."""
    write = partial(write_shard, config=dataclasses.replace(config, frames={}, card=""))
    if workers == 1:
        yield from ((number, write(*task)) for number, task in enumerate(tasks))
        return
    # Workers die of Ctrl-C without a word: what they were at is begun again by the next run.
    silent = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn, **silent) as pool:
        futures = {pool.submit(write, *task): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            problem = "a worker process died, perhaps for lack of memory; go on with fewer --workers"
            raise BrokenProcessPool(problem) from None
        finally:
            pool.shutdown(cancel_futures=True)


def summary(remarks: list[dict[str, Any]], total: int, report: Path) -> str:
    """One line on what was left out, by reason."""
    if not remarks:
        return f"all {total} frames can be used"
    reasons = Counter(remark["reason"] for remark in remarks if remark["left_out"])
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    notes = len(remarks) - reasons.total()
    return (
        f"left out {reasons.total()} of {total} frames"
        + (f" ({counts})" if counts else "")
        + (f", kept {notes} with a note" if notes else "")
        + f": see {report}"
    )


def typical_range(split: PreparedSplit) -> str:
    """Metres between which the depth of a middling frame lies; a few are read back. A wrong unit shows here."""
    some = np.unique(np.linspace(0, len(split) - 1, 16).astype(int))
    valid = [example["depth"][example["mask"]] for example in map(split.__getitem__, some)]
    limits = [np.quantile(depth, PERCENTILES) for depth in valid if depth.size]
    if not limits:
        return "none of those read back has valid depth"
    near, far = np.median(limits, axis=0)
    return f"a typical one has depth from {near:.3g} to {far:.3g} m"


def prepare(config: RgbdConfig, split: str, data_dir: str, workers: int) -> int:
    """Makes the split; returns 0 if a dataset came out. Raises ValueError if it cannot join what is there."""
    path = f"{data_dir}/{config.name}/{split}"
    builder = open_builder(data_dir, config)
    folder = Path(builder.data_dir)
    if split in builder.info.splits:
        frames = builder.info.splits[split].num_examples
        print(f"{path} is prepared already: {frames} frames. To make it again, delete {folder} first")
        describe(config, split, path, folder.parent)  # what a kill may have left out
        return 0
    refuse_other_format(builder)

    tasks = begin(builder, split)
    total = len(config.frames[split])
    shards: list[Shard | None] = [None] * len(tasks)
    with tqdm(total=total, desc=path, unit=" frames", disable=None) as bar:
        for number, shard in run_shards(tasks, config, workers):
            shards[number] = shard
            bar.update(len(tasks[number][1]))

    remarks = [remark for shard in shards for remark in shard.remarks]
    report = folder.parent / f"report-{split}.jsonl"
    write(report, "".join(json.dumps(remark) + "\n" for remark in remarks).encode())
    print(summary(remarks, total, report))
    if not any(shard.records for shard in shards):
        discard(builder, split)
        print(f"no dataset was made: not one of the {total} frames can be used", file=sys.stderr)
        return 1
    for old in descriptions(folder.parent, split):
        old.unlink(missing_ok=True)
    publish(builder, split, shards)
    describe(config, split, path, folder.parent)
    prepared = PreparedSplit(path)
    print(f"{path}: {len(prepared)} frames; {typical_range(prepared)}")
    return 0


def descriptions(folder: Path, split: str) -> tuple[Path, Path]:
    """The contact sheet and the card beside a prepared split."""
    return folder / f"contact-{split}.png", folder / f"card-{split}.md"


def describe(config: RgbdConfig, split: str, path: str, folder: Path) -> None:
    """Makes the descriptions that are missing; not every dataset has a card."""
    sheet, card = descriptions(folder, split)
    if not sheet.exists():
        prepared = PreparedSplit(path)
        some = [prepared[int(index)] for index in np.unique(np.linspace(0, len(prepared) - 1, SHOWN).astype(int))]
        write(sheet, panels.png(panels.contact_sheet(some)))
    if config.card and not card.exists():
        write(card, config.card.encode())


def refuse_other_format(builder: Builder) -> None:
    """A second split must be like the first."""
    if not builder.info.splits:
        return
    folder, config = Path(builder.data_dir), builder.builder_config
    source = source_from(read_json(folder / METADATA), folder / METADATA)
    if source != config.source or read_index(folder).features != features_of(config):
        raise ValueError(f"{builder.data_dir} has another unit, depth range or kind of files: choose another --name")


def main(argv: list[str] | None = None) -> int:
    args = parse_flags(argv)
    try:
        return prepare(configure(args), args.split, args.data_dir, args.workers)
    except ModuleNotFoundError as error:
        problem, status = f"{error}; pip install 'marigold_jax[prepare]'", 2
    except (ValueError, BrokenProcessPool, OSError) as error:
        problem, status = str(error), 2
    except KeyboardInterrupt:
        problem, status = "stopped; the same command goes on from here", 130
    print(f"prepare: {problem}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

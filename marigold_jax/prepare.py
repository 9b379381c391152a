"""Turns RGB-D data as people download it into datasets that `train` and `evaluate` read.

    python -m marigold_jax.prepare hypersim        --raw_dir HYPERSIM --data_dir DATA --split train
    python -m marigold_jax.prepare virtual_kitti_2 --raw_dir VKITTI   --data_dir DATA --split train
    python -m marigold_jax.prepare folder          --raw_dir MINE     --data_dir DATA --unit mm
    python -m marigold_jax.prepare rooms           --scenes 100       --data_dir DATA --fetch_assets

Each makes DATA/rgbd/NAME (a TFDS dataset over ArrayRecord; TensorFlow is not needed), which configurations call
NAME/SPLIT. Every file is checked; frames that cannot be used, and files that no frame uses, are counted by reason and
listed in DATA/rgbd/NAME/report-SPLIT.jsonl; contact-SPLIT.png beside it shows some of the others. A run that was
stopped goes on where it was when the same command is given again; another command for the same split is refused.
"""

import argparse
import dataclasses
import hashlib
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

from marigold_jax.data.array_record import read_index
from marigold_jax.data.prepared import METADATA, SOURCES, PreparedSplit, Source, dataset_folder, source_from
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.evaluation import figures
from marigold_jax.runtime import extras, terminal
from marigold_jax.runtime.files import printable, read_json, write

with extras.needed("prepare", __name__):
    from marigold_jax.data.rgbd.rgbd_dataset_builder import Builder, RgbdConfig, features_of
    from marigold_jax.data.shards import Shard, begin, discard, open_builder, origin, origin_of, publish, write_shard

SHOWN = 24  # frames on the contact sheet
NAMED = 5  # files that are not used, of each reason, on the terminal
TRAIN, VALIDATION = "train", "val"
ALL = "all"  # what TFDS calls all splits of a dataset together
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
        flags={"--normals": str(args.normals)},
    )


def _virtual_kitti_2(args: argparse.Namespace) -> RgbdConfig:
    from marigold_jax.data import virtual_kitti_2

    frames = virtual_kitti_2.list_frames(args.raw_dir, args.split, args.filename_list)
    complete = virtual_kitti_2.FRAMES.get(args.split)
    if not args.filename_list and len(frames) != complete:
        terminal.say(f"{args.raw_dir} has {len(frames)} of the {complete} frames of the paper's {args.split} split")
    return RgbdConfig(
        name=args.name,
        source=SOURCES["virtual_kitti_2"],
        normals=args.normals,
        frames={args.split: frames},
        read=partial(virtual_kitti_2.read_frame, normals=args.normals),
        flags={"--normals": str(args.normals)},
    )


def _folder(args: argparse.Namespace) -> RgbdConfig:
    from marigold_jax.data import folder

    units_per_metre = UNITS_PER_METRE[args.unit] if args.unit else args.depth_scale
    if not (np.float32(units_per_metre) > 0 and units_per_metre < np.inf and 0 <= args.min_depth < args.max_depth):
        raise ValueError("want --depth_scale above 0, and --min_depth from 0 to below --max_depth")
    if not 0 <= args.validation < 1 or args.seed < 0:
        raise ValueError(f"want --validation from 0 to below 1 and --seed from 0; got {args.validation:g}, {args.seed}")
    if args.validation and args.split != TRAIN:
        raise ValueError(f"--validation makes the splits {TRAIN} and {VALIDATION}; leave out --split {args.split}")
    source = Source(units_per_metre, args.min_depth, args.max_depth)
    unused: list[tuple[str, str]] = []
    frames = folder.list_frames(args.raw_dir, args.filename_list, unused)
    encoding = folder.depth_encoding(frames)
    return RgbdConfig(
        name=args.name,
        source=source,
        depth_encoding=encoding,
        mask=frames[0].mask is not None,
        normals=frames[0].normals is not None,
        frames={args.split: frames},
        read=partial(folder.read_frame, source=source, encoding=encoding),
        flags={
            "--unit or --depth_scale": f"{units_per_metre:g} a metre",
            "--min_depth": f"{args.min_depth:g}",
            "--max_depth": f"{args.max_depth:g}",
            "--validation": f"{args.validation:g}",
            "--seed": str(args.seed if args.validation else 0),
        },
        unused=unused,
    )


def _rooms(args: argparse.Namespace) -> RgbdConfig:
    with extras.needed("prepare"):
        from marigold_jax.rooms import assets, frames  # needs trimesh and embreex

    if args.scenes < 1 or args.views < 1 or args.seed < 0 or min(args.size) < 16:
        raise ValueError("want --scenes and --views of at least 1, --seed of at least 0, --size of at least 16 16")
    folder = args.assets or (Path(args.data_dir) / "assets" if args.fetch_assets else None)
    if args.fetch_assets:
        assets.fetch(Path(folder))
    elif folder is None:
        terminal.say("no --assets, no --fetch_assets: furnishing with the built-in models, which are plain and few")
    film = frames.Film(args.split, args.seed, args.views, tuple(args.size), None if folder is None else str(folder))
    return RgbdConfig(
        name=args.name,
        source=SOURCES["rooms"],
        normals=True,
        frames={args.split: frames.list_frames(film, args.scenes)},
        read=frames.read_frame,
        card=frames.card(film),
        flags={
            "--scenes": str(args.scenes),
            "--views": str(args.views),
            "--seed": str(args.seed),
            "--size": f"{args.size[0]} {args.size[1]}",
            "--assets": "the built-in models" if folder is None else _inventory(Path(folder)),
        },
    )


def _inventory(folder: Path) -> str:
    """The contents of a folder, which may move, by the names and sizes of its files."""
    files = sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())
    return f"{len(files)} files ({hashlib.sha256(repr(files).encode()).hexdigest()[:8]})"


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
    parser.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="hold out this share of the frames as the split val: whole folders where RAW_DIR/rgb has several "
        "(default: none)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, others held out (default: %(default)s)")


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

  RAW_DIR/rgb/a/1.jpg        any picture that predict reads; turned as its EXIF says
  RAW_DIR/depth/a/1.png      16-bit PNG or TIFF, 32-bit TIFF, .npy, .npz or .h5 (one array), .exr or .pfm, along the
                             optical axis; 0, NaN and infinity are invalid
  RAW_DIR/mask/a/1.png       optional: PNG, TIFF, BMP or an array, not 0 where the depth is valid
  RAW_DIR/normals/a/1.npy    optional: array, .exr or .pfm in [-1, 1], or 8-bit PNG; x right, y up, z to the viewer

Or --filename_list names the pairs, each line an RGB path and a depth path below RAW_DIR; names with blanks are quoted,
or apart by tabs.""",
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
    parser = terminal.Parser("python -m marigold_jax.prepare", description=__doc__, formatter_class=raw)
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
    given, args.name = args.name, args.name or (Path(raw).resolve().name if args.kind == "folder" else args.kind)
    for flag in ("name", "split"):
        if not re.fullmatch(r"\w[\w-]*", value := getattr(args, flag)) or value == ALL:
            hint = "; the folder's name will not do: give a --name" if flag == "name" and not given else ""
            raise ValueError(f"--{flag} must consist of letters, digits, _ and -; got {printable(value)!r}{hint}")
    refuse_to_write_into(raw, args)
    config = KINDS[args.kind].configure(args)
    every = config.frames[args.split]
    frames = every[: args.limit]
    if not frames:
        raise ValueError(f"{raw} holds no frames of the {args.split} split")
    splits = {args.split: frames}
    if share := getattr(args, "validation", 0):
        from marigold_jax.data import folder

        splits = dict(zip((TRAIN, VALIDATION), folder.hold_out(frames, share, args.seed), strict=True))
        terminal.say(f"held out {len(splits[VALIDATION])} of {len(frames)} frames for {config.name}/{VALIDATION}")
    flags = config.flags | {"--limit": str(len(frames)) if len(frames) < len(every) else "none"}
    return dataclasses.replace(config, frames=splits, flags=flags)


def refuse_to_write_into(raw: str | None, args: argparse.Namespace) -> None:
    """The dataset's own pictures would be found among the raw ones by the next run."""
    made = dataset_folder(args.data_dir, args.name).resolve()
    for name in ("rgb", "depth", "mask", "normals") if raw else ():
        if made.is_relative_to(inside := Path(raw, name).resolve()):
            raise ValueError(f"--data_dir {args.data_dir} is inside {inside}: choose a folder outside of the raw data")


# ------------------------------------------------------------------------------------------------------------- the work


def _begin_worker() -> None:
    """A worker dies of Ctrl-C without a word: what it was at is begun again by the next run."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    terminal.quieten()


def run_shards(tasks: list[tuple[Path, Any]], config: RgbdConfig, workers: int) -> Iterator[tuple[int, Shard]]:
    """Writes the shards, giving the number of each as it is finished. Raises BrokenProcessPool if a process dies."""
    write = partial(write_shard, config=dataclasses.replace(config, frames={}, card="", unused=[]))
    if workers == 1:
        yield from ((number, write(*task)) for number, task in enumerate(tasks))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn, initializer=_begin_worker) as pool:
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


def tell(unused: list[tuple[str, str]]) -> str:
    """One line on files that no frame makes use of, by reason; the first of each by name."""
    reasons: dict[str, list[str]] = {}
    for name, why in unused:
        reasons.setdefault(why, []).append(printable(name))
    return "; ".join(
        f"{len(names)} {why} ({', '.join([*names[:NAMED], *['...'] * (len(names) > NAMED)])})"
        for why, names in reasons.items()
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
        refuse_other_flags(builder, split, path)
        frames = builder.info.splits[split].num_examples
        terminal.say(f"{path} is prepared already: {frames} frames. To make it again, delete {folder} first")
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
    unused = config.unused if split == next(iter(config.frames)) else []
    not_used = [{"frame": name, "left_out": True, "reason": "not used", "detail": why} for name, why in unused]
    report = folder.parent / f"report-{split}.jsonl"
    write(report, "".join(json.dumps(remark) + "\n" for remark in remarks + not_used).encode())
    terminal.say(summary(remarks, total, report))
    if unused:
        terminal.say(f"files not used: {tell(unused)}: see {report}")
    if not any(shard.records for shard in shards):
        discard(builder, split)
        terminal.say(f"no dataset was made: not one of the {total} frames can be used", sys.stderr)
        return 1
    for old in descriptions(folder.parent, split):
        old.unlink(missing_ok=True)
    publish(builder, split, shards)
    describe(config, split, path, folder.parent)
    prepared = PreparedSplit(path)
    terminal.say(f"{path}: {len(prepared)} frames; {typical_range(prepared)}")
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
        write(sheet, figures.png(figures.contact_sheet(some)))
    if config.card and not card.exists():
        write(card, config.card.encode())


def refuse_other_flags(builder: Builder, split: str, path: str) -> None:
    """What is there already must be what is asked for. Raises ValueError that says what differs."""
    there, now = origin_of(builder, split), origin(builder.builder_config, split)
    again = f"To make it again, delete {builder.data_dir} first, or choose another --name"
    if there is None:  # made before flags were kept
        refuse_other_format(builder)
        if builder.info.splits[split].num_examples > now["frames"]:
            raise ValueError(f"{path} is prepared already, from more frames than the {now['frames']} here. {again}")
        return
    flags = [
        f"{flag} was {printable(there['flags'].get(flag, 'absent'))}, is {now['flags'].get(flag, 'absent')}"
        for flag in dict.fromkeys((*there["flags"], *now["flags"]))
        if there["flags"].get(flag) != now["flags"].get(flag)
    ]
    if flags:
        raise ValueError(f"{path} is prepared already, with other flags: {'; '.join(flags)}. {again}")
    if there.get("files") != now["files"]:
        counts = f"{printable(there.get('frames'))} frames then, {now['frames']} now"
        raise ValueError(f"{path} is prepared already, from files of other names or sizes: {counts}. {again}")


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
        config = configure(args)
        return max(prepare(config, split, args.data_dir, args.workers) for split in config.frames)
    except extras.MissingExtra as error:
        problem, status = error, 1
    except OSError as error:
        problem, status = f"{error.filename}: {error.strerror}" if error.filename else error, 2
    except (ValueError, BrokenProcessPool) as error:
        problem, status = error, 2
    except KeyboardInterrupt:
        problem, status = "stopped; the same command goes on from here", 130
    terminal.say(f"prepare: {problem}", sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(terminal.run(main))

"""The kinds of raw data that `prepare` understands, one row each in `RAW_KINDS`.

A row holds the help text of a kind, its flags, and a function that turns the flags into the frames to prepare. Rendered
rooms have the same kind of row in `rooms.frames`. To add a kind, write a reader like `data.hypersim` and a row here.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from marigold_jax.data.depth_format import DEPTH_FORMATS, DepthFormat
from marigold_jax.data.record import Record
from marigold_jax.runtime import terminal

TRAIN, VALIDATION = "train", "val"  # the splits that --validation makes
UNITS_PER_METRE = {"m": 1.0, "cm": 100.0, "mm": 1000.0}


@dataclass(frozen=True)
class RawSplit:
    """The frames of one split of raw data, and how to read them.

    Attributes:
        frames: in any form that `read` accepts.
        read: reads a frame into a record; raises BadFrame for one that cannot be used.
        depth_format: unit, valid range and crop of the depth.
        depth_encoding: how depth is stored, "png16" or "float32".
        maps: what records hold besides name, rgb and depth, such as "normals".
        flags: the flags that decide the result, as text; another run for the same split must have equal ones.
        unused: files that no frame uses: (path, reason).
        card: Markdown about the origin of the data, such as authors and licences; may be empty.
    """

    frames: Sequence[Any]
    read: Callable[[Any], Record]
    depth_format: DepthFormat
    depth_encoding: str = "png16"
    maps: tuple[str, ...] = ()
    flags: dict[str, str] = field(default_factory=dict)
    unused: list[tuple[str, str]] = field(default_factory=list)
    card: str = ""


@dataclass(frozen=True)
class RawKind:
    """One kind of raw data.

    Attributes:
        summary: one line, for the list of kinds in the help text.
        layout: which files are expected where, for the help text of the kind.
        add_flags: adds the flags of the kind to a parser.
        open: turns the flags into a split. Raises ValueError, in one line, for flags and folders that make no sense.
    """

    summary: str
    layout: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    open: Callable[[argparse.Namespace], RawSplit]


# --------------------------------------------------------------------------------------------------------------- flags


def add_raw_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every kind that reads files."""
    parser.add_argument("-i", "--raw_dir", required=True, help="the folder of the downloaded data")
    parser.add_argument(
        "--filename_list", help="prepare only the frames of this list, in the format of the official repository"
    )


def _add_normals_flags(parser: argparse.ArgumentParser) -> None:
    add_raw_flags(parser)
    parser.add_argument("--normals", action="store_true", help="store surface normals too, for training on normals")


def _add_folder_flags(parser: argparse.ArgumentParser) -> None:
    add_raw_flags(parser)
    unit = parser.add_mutually_exclusive_group(required=True)
    unit.add_argument("--unit", choices=UNITS_PER_METRE, help="the unit of the stored depth")
    unit.add_argument(
        "--depth_scale",
        type=float,
        help="or the number of stored units per metre: 256 for KITTI's PNG files, 5000 for TUM's",
    )
    parser.add_argument(
        "--min_depth", type=float, default=1e-5, help="metres; smaller depth is invalid (default: %(default)s)"
    )
    parser.add_argument(
        "--max_depth", type=float, default=float("inf"), help="metres; larger depth is invalid (default: no limit)"
    )
    parser.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="hold out this share of the frames as the split val; whole folders if RAW_DIR/rgb has several "
        "(default: none)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random choice of held-out frames (default: %(default)s)"
    )


# -------------------------------------------------------------------------------------------------- flags to the frames


def _open_with_normals(reader: ModuleType, kind: str, args: argparse.Namespace, frames: Sequence[Any]) -> RawSplit:
    """For readers whose one option is whether to store normals."""
    return RawSplit(
        frames=frames,
        read=partial(reader.read_frame, normals=args.normals),
        depth_format=DEPTH_FORMATS[kind],
        maps=("normals",) if args.normals else (),
        flags={"--normals": str(args.normals)},
    )


def _open_hypersim(args: argparse.Namespace) -> RawSplit:
    from marigold_jax.data import hypersim  # needs h5py

    frames = hypersim.list_frames(args.raw_dir, args.split, args.filename_list)
    return _open_with_normals(hypersim, "hypersim", args, frames)


def _open_virtual_kitti_2(args: argparse.Namespace) -> RawSplit:
    from marigold_jax.data import virtual_kitti_2

    frames = virtual_kitti_2.list_frames(args.raw_dir, args.split, args.filename_list)
    complete = virtual_kitti_2.FRAMES.get(args.split)
    if not args.filename_list and len(frames) != complete:
        terminal.say(f"{args.raw_dir} has {len(frames)} of the {complete} frames of the paper's {args.split} split")
    return _open_with_normals(virtual_kitti_2, "virtual_kitti_2", args, frames)


def _open_folder(args: argparse.Namespace) -> RawSplit:
    from marigold_jax.data import folder

    units_per_metre = UNITS_PER_METRE[args.unit] if args.unit else args.depth_scale
    if not (np.float32(units_per_metre) > 0 and units_per_metre < np.inf and 0 <= args.min_depth < args.max_depth):
        raise ValueError("wanted --depth_scale above 0, and --min_depth from 0 to below --max_depth")
    if not 0 <= args.validation < 1 or args.seed < 0:
        got = f"{args.validation:g}, {args.seed}"
        raise ValueError(f"wanted --validation from 0 to below 1 and --seed from 0; got {got}")
    if args.validation and args.split != TRAIN:
        raise ValueError(f"--validation makes the splits {TRAIN} and {VALIDATION}; leave out --split {args.split}")
    depth_format = DepthFormat(units_per_metre, args.min_depth, args.max_depth)
    unused: list[tuple[str, str]] = []
    frames = folder.list_frames(args.raw_dir, args.filename_list, unused)
    encoding = folder.depth_encoding(frames)
    return RawSplit(
        frames=frames,
        read=partial(folder.read_frame, depth_format=depth_format, encoding=encoding),
        depth_format=depth_format,
        depth_encoding=encoding,
        maps=tuple(name for name in folder.OPTIONAL_FOLDERS if getattr(frames[0], name) is not None),
        flags={
            "--unit or --depth_scale": f"{units_per_metre:g} a metre",
            "--min_depth": f"{args.min_depth:g}",
            "--max_depth": f"{args.max_depth:g}",
            "--validation": f"{args.validation:g}",
            "--seed": str(args.seed if args.validation else 0),
        },
        unused=unused,
    )


RAW_KINDS = {
    "hypersim": RawKind(
        summary="Hypersim's HDF5 files: tone-mapped images, planar depth",
        layout="""RAW_DIR holds the unpacked scenes, and the list of splits from github.com/apple/ml-hypersim:

  RAW_DIR/metadata_images_split_scene_v1.csv                 (not needed with --filename_list)
  RAW_DIR/ai_001_001/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5
  RAW_DIR/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5
  RAW_DIR/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.render_entity_id.hdf5
  RAW_DIR/ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.normal_cam.hdf5        (with --normals)

--split is train, val or test.""",
        add_flags=_add_normals_flags,
        open=_open_hypersim,
    ),
    "virtual_kitti_2": RawKind(
        summary="Virtual KITTI 2 archives, or the folders unpacked from them",
        layout="""RAW_DIR holds vkitti_2.0.3_rgb.tar and vkitti_2.0.3_depth.tar, or their contents:

  .../Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg
  .../Scene01/clone/frames/depth/Camera_0/depth_00000.png

--split is train (scenes 2, 6, 18, 20) or val (scene 1), each with six variations and both cameras.
--normals computes normals from the depth.""",
        add_flags=_add_normals_flags,
        open=_open_virtual_kitti_2,
    ),
    "folder": RawKind(
        summary="any folder of RGB images and depth maps",
        layout="""RAW_DIR holds the files of a frame at the same path in each of these folders, whatever its extension:

  RAW_DIR/rgb/a/1.jpg        any image format that predict reads; rotated as its EXIF says
  RAW_DIR/depth/a/1.png      16-bit PNG or TIFF, 32-bit TIFF, .npy, .npz or .h5 (one array), .exr or .pfm: depth along
                             the optical axis; 0, NaN and infinity are invalid
  RAW_DIR/mask/a/1.png       optional: PNG, TIFF, BMP or an array; nonzero where the depth is valid
  RAW_DIR/normals/a/1.npy    optional: an array, .exr or .pfm in [-1, 1], or 8-bit PNG; x right, y up, z to the viewer

Or --filename_list names the pairs: each line holds an RGB path and a depth path, relative to RAW_DIR. Names with blanks
are quoted, or the two paths are separated by a tab.""",
        add_flags=_add_folder_flags,
        open=_open_folder,
    ),
}

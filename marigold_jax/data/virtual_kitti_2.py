"""Reads Virtual KITTI 2 in its published form: tar archives, or the folders extracted from them.

    SCENE/VARIATION/frames/rgb/CAMERA/rgb_00000.jpg
    SCENE/VARIATION/frames/depth/CAMERA/depth_00000.png       16 bits, centimetres; 65535 is the sky

Images and depth maps are stored unchanged; the crop to the KITTI benchmark's window is applied when they are read.
Normals, if requested, are computed from depth: see `data.normals`.
"""

import io
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from marigold_jax.data.depth_format import DEPTH_FORMATS
from marigold_jax.data.filename_list import read_filename_list
from marigold_jax.data.folder import read_frame as read_pair
from marigold_jax.data.normals import normals_from_depth
from marigold_jax.data.raw_frame import Frame, Part
from marigold_jax.data.record import Record, quantise
from marigold_jax.runtime.files import printable, regular

# The splits of the reference (arXiv 2312.02145, section 4.1): scenes, weather and viewpoint variations, both cameras.
SCENES = {"train": ("Scene02", "Scene06", "Scene18", "Scene20"), "val": ("Scene01",)}
VARIATIONS = ("clone", "morning", "overcast", "sunset", "15-deg-left", "15-deg-right")
FRAMES = {"train": 20148, "val": 5364}
FOCAL_LENGTH = 725.0087  # pixels; the optical axis runs through the middle of 1242 x 375
SKY = 65535

FILE = re.compile(r"(Scene\d\d/[^/]+/frames)/(rgb|depth)/(Camera_\d)/(?:rgb|depth)_(\d{5})\.(?:jpg|png)$")
ARCHIVE = re.compile(r"^(vkitti\.tar|.*_(rgb|depth)\.tar)$")


def list_frames(raw_dir: str, split: str, filename_list: str | None) -> list[Frame]:
    """Lists the frames of a split that exist, or all those of an official filename list.

    Args:
        raw_dir: is searched with all its subfolders, and with the archives *_rgb.tar, *_depth.tar and vkitti.tar in it.
            A frame is listed even if only its image or only its depth is found.
        split: "train" or "val".
        filename_list: path of the list, or None.

    Raises:
        ValueError: the split is unknown, or the list holds other names.
    """
    parts = _index(raw_dir)
    if filename_list:
        wanted = [_key(columns[0], filename_list) for columns in read_filename_list(filename_list)]
    elif split in SCENES:
        wanted = sorted(
            key for key in parts if key[0].split("/")[0] in SCENES[split] and key[0].split("/")[1] in VARIATIONS
        )
    else:
        raise ValueError(f"Virtual KITTI 2 has the splits {', '.join(SCENES)}; got {split!r}")
    frames = []
    for key in wanted:
        folder, camera, number = key
        names = {"rgb": f"rgb/{camera}/rgb_{number}.jpg", "depth": f"depth/{camera}/depth_{number}.png"}
        rgb, depth = (parts[key].get(kind, Part(f"{raw_dir}/{folder}/{names[kind]}")) for kind in ("rgb", "depth"))
        frames.append(Frame(f"{folder}/{names['rgb']}", rgb, depth))
    return frames


def read_frame(frame: Frame, normals: bool = False) -> Record:
    """Reads a frame into a record, with normals computed from depth if requested.

    Raises BadFrame if a file is missing or damaged, or if the sizes differ.
    """
    record = read_pair(frame, DEPTH_FORMATS["virtual_kitti_2"], "png16")
    if normals:
        stored = np.asarray(Image.open(io.BytesIO(record["depth"]), formats=["PNG"]))[..., None].astype(np.float64)
        record["normals"] = quantise(normals_from_depth(stored, (stored > 0) & (stored < SKY), FOCAL_LENGTH))
    return record


def _key(path: str, filename_list: str) -> tuple[str, str, str]:
    match = FILE.search(path)
    if not match:
        raise ValueError(
            f"{filename_list}: wanted names such as Scene02/clone/frames/rgb/Camera_0/rgb_00000.jpg; "
            f"got {printable(path)}"
        )
    return match[1], match[3], match[4]


def _index(raw_dir: str) -> dict[tuple[str, str, str], dict[str, Part]]:
    parts = defaultdict(dict)
    for path, part in _files(raw_dir):
        if match := FILE.search(path):
            parts[match[1], match[3], match[4]].setdefault(match[2], part)
    return parts


def _files(raw_dir: str) -> Iterator[tuple[str, Part]]:
    """Every file in the folders and archives of `raw_dir`: its path, and where to read it."""
    for folder, folders, names in os.walk(raw_dir):
        folders.sort()  # so that the same one of two files of a frame is taken on every machine
        for name in sorted(names):
            yield f"{folder}/{name}", Part(f"{folder}/{name}")
    for archive in sorted(Path(raw_dir).glob("*.tar")):
        if ARCHIVE.match(archive.name):
            for member in _members(archive):
                yield member.name, Part(str(archive), member.name, member.offset_data, member.size)


def _members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an archive. Frames beyond the end of a truncated archive count as missing."""
    try:
        with tarfile.open(regular(archive), "r:") as file:
            yield from file
    except (tarfile.TarError, ValueError):  # ValueError: not a regular file
        return

"""Reads Hypersim in its published form: HDF5 files of colour, distance and entity ids for each scene and camera.

    SCENE/images/scene_CAM_final_hdf5/frame.0000.color.hdf5                   linear colour
    SCENE/images/scene_CAM_geometry_hdf5/frame.0000.depth_meters.hdf5         distance to the camera's centre, metres
    SCENE/images/scene_CAM_geometry_hdf5/frame.0000.render_entity_id.hdf5     -1 where there is no surface
    SCENE/images/scene_CAM_geometry_hdf5/frame.0000.normal_cam.hdf5           normals, if requested
    metadata_images_split_scene_v1.csv                                        which frames are released, and their split

Tone mapping follows the Hypersim toolkit. Depth is along the optical axis, in whole millimetres, rounded down, as in
the data that Marigold was trained on (arXiv 2312.02145, section 4.1). Normals are x right, y up, z towards the viewer.
Some surfaces were modelled inside out; their normals are flipped towards the camera.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8, UInt16

from marigold_jax.data.depth_format import DEPTH_FORMATS
from marigold_jax.data.filename_list import read_filename_list
from marigold_jax.data.hdf5 import read_dataset
from marigold_jax.data.normals import towards_camera
from marigold_jax.data.raw_frame import (
    BadFrame,
    Part,
    check_depth,
    check_sizes,
)
from marigold_jax.data.record import Record, quantise, to_png
from marigold_jax.runtime.files import printable, regular

SPLIT_FILE = "metadata_images_split_scene_v1.csv"
SPLITS = ("train", "val", "test")
FOCAL_LENGTH = 886.81  # pixels, at 1024 x 768
MAX_STORED = np.iinfo(np.uint16).max  # 65.535 m: just beyond the 65 m that count as valid
BRIGHTNESS_WEIGHTS = np.array([0.3, 0.59, 0.11])
GAMMA = 1 / 2.2


@dataclass(frozen=True)
class HypersimFrame:
    raw_dir: str
    scene: str
    camera: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.scene}/rgb_{self.camera}_fr{self.number:04d}.png"

    @property
    def parts(self) -> list[Part]:
        files = (("final", "color"), ("geometry", "depth_meters"), ("geometry", "render_entity_id"))
        return [Part(str(self.file(*file))) for file in files]

    def file(self, folder: str, kind: str) -> Path:
        images = Path(self.raw_dir, self.scene, "images")
        return images / f"scene_{self.camera}_{folder}_hdf5" / f"frame.{self.number:04d}.{kind}.hdf5"


def list_frames(raw_dir: str, split: str, filename_list: str | None) -> list[HypersimFrame]:
    """The released frames of `split` ("train", "val" or "test"), or those of an official filename list.

    Raises ValueError if the list of splits is missing, or if the filename list is not one of Hypersim.
    """
    if filename_list:
        return [_parse(raw_dir, columns[0], filename_list) for columns in read_filename_list(filename_list)]
    if split not in SPLITS:
        raise ValueError(f"Hypersim's splits are {', '.join(SPLITS)}; got {split!r}")
    path = Path(raw_dir, SPLIT_FILE)
    if not path.exists():
        raise ValueError(
            f"{path} is missing: copy it from evermotion_dataset/analysis/ of https://github.com/apple/ml-hypersim, "
            f"or give a --filename_list"
        )
    try:
        with open(regular(path), newline="", encoding="utf-8-sig") as file:
            return [
                _frame(raw_dir, row["scene_name"], row["camera_name"], int(row["frame_id"]))
                for row in csv.DictReader(file)
                if row["included_in_public_release"] == "True" and row["split_partition_name"] == split
            ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: wanted the table of ml-hypersim; it cannot be read ({printable(error)})") from None


def read_frame(frame: HypersimFrame, normals: bool = False) -> Record:
    """Reads a frame into a record.

    Args:
        frame: from `list_frames`.
        normals: whether the record holds normals.

    Raises:
        BadFrame: a file is missing or damaged, sizes differ, a surface has no depth (or no normals, if requested), or
            an entity id is 0.
    """
    colour = _read(frame.file("final", "color")).astype(np.float64)
    distance = _read(frame.file("geometry", "depth_meters")).astype(np.float64)
    entity = _read(frame.file("geometry", "render_entity_id"))
    check_sizes([("colour", colour.shape[:2]), ("distance", distance.shape[:2]), ("entity ids", entity.shape[:2])])
    if (entity == 0).any():
        raise BadFrame("entity id 0", frame.name)
    surface = entity != -1
    if not np.isfinite(colour).all():
        raise BadFrame("NaN colour", f"{frame.name}: {np.count_nonzero(~np.isfinite(colour).all(axis=-1))} pixels")
    if np.isnan(distance[surface]).any():
        raise BadFrame("NaN depth", f"{frame.name}: {np.count_nonzero(np.isnan(distance[surface]))} pixels of surfaces")
    depth, beyond = millimetres(np.where(surface, planar_depth(np.where(surface, distance, 0)), 0))
    check_depth(depth[..., None], None, DEPTH_FORMATS["hypersim"], frame.name)
    record = {"name": frame.name, "rgb": to_png(tone_map(colour, surface)), "depth": to_png(depth)}
    if normals:
        vectors = _read(frame.file("geometry", "normal_cam")).astype(np.float64)
        check_sizes([("depth", depth.shape), ("normals", vectors.shape[:2])])
        if np.isnan(vectors[surface]).any():
            raise BadFrame("NaN normals", f"{frame.name}: {np.isnan(vectors[surface]).any(axis=-1).sum()} pixels")
        vectors = np.where(surface[..., None], vectors, 0)
        record["normals"] = quantise(towards_camera(vectors, FOCAL_LENGTH))
    if beyond:
        record["note"] = f"{beyond} pixels beyond 65.535 m are stored as 65.535 m, which is not valid"
    return record


def tone_map(colour: Float[np.ndarray, "h w 3"], surface: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Tone-maps linear colour: scales it so that the 90th percentile of brightness becomes 0.8, with gamma 2.2.

    Args:
        colour: linear RGB, 0 and above.
        surface: True where there is a surface; only those pixels count for the percentile.
    """
    scale = 1.0
    if surface.any():
        bright = np.percentile((colour @ BRIGHTNESS_WEIGHTS)[surface], 90)
        scale = 0.8 ** (1 / GAMMA) / bright if bright >= 1e-4 else 0.0
    return (np.clip(np.maximum(scale * colour, 0) ** GAMMA, 0, 1) * 255).astype(np.uint8)


def planar_depth(distance: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Converts the distance to the camera centre to depth along the optical axis, in the same unit.

    The ray of a pixel passes through its centre, and the optical axis through the middle of the image.
    """
    height, width = distance.shape
    x = np.arange(width) - (width - 1) / 2
    y = np.arange(height) - (height - 1) / 2
    return distance / np.sqrt(x**2 + y[:, None] ** 2 + FOCAL_LENGTH**2) * FOCAL_LENGTH


def millimetres(depth: Float[np.ndarray, "h w"]) -> tuple[UInt16[np.ndarray, "h w"], int]:
    """Converts metres to whole millimetres in 16 bits, rounded down and clipped.

    Returns:
        The millimetres, and the number of pixels that were clipped at 65.535 m.
    """
    values = depth * 1000
    return np.clip(values, 0, MAX_STORED).astype(np.uint16), int(np.count_nonzero(values >= MAX_STORED + 1))


def _frame(raw_dir: str, scene: str, camera: str, number: int) -> HypersimFrame:
    if not re.fullmatch(r"ai_\d{3}_\d{3}", scene) or not re.fullmatch(r"cam_\d{2}", camera) or number < 0:
        raise ValueError(f"wanted scenes such as ai_001_001 and cameras such as cam_00; got {scene!r}, {camera!r}")
    return HypersimFrame(str(raw_dir), scene, camera, number)


def _parse(raw_dir: str, name: str, filename_list: str) -> HypersimFrame:
    match = re.search(r"(ai_\d{3}_\d{3})/rgb_(cam_\d{2})_fr(\d{4})\.png$", name)
    if not match:
        raise ValueError(
            f"{filename_list}: wanted names such as ai_001_001/rgb_cam_00_fr0000.png; got {printable(name)}"
        )
    return HypersimFrame(str(raw_dir), match[1], match[2], int(match[3]))


def _read(path: Path) -> Shaped[np.ndarray, "..."]:
    if not path.exists():
        raise BadFrame("missing file", path)
    try:
        return read_dataset(path, str(path), "dataset")
    except ValueError as error:
        raise BadFrame("unreadable HDF5", error) from None

"""What is known of a picture's depth, in metres: a whole map, or a few points. It gives affine-invariant depth a scale.

REFERENCES/NAME.npy    (height, width), metres; NaN, infinity, 0 or less where unknown
REFERENCES/NAME.png    16-bit, millimetres; 0 where unknown
REFERENCES/NAME.csv    a line for each point: column, row, metres; pixels count from 0 at the top left
"""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32
from PIL import Image

from marigold_jax.metrics import align_least_squares

MILLIMETRES = 1000
FEWEST = 2  # points that fix a scale and a shift


def read_reference(
    folder: Path, stem: str, size: tuple[int, int]
) -> tuple[Float32[np.ndarray, "h w 1"], Bool[np.ndarray, "h w 1"]]:
    """Metres, and where they are known, of the picture of that name and `size` (height, width).

    Raises ValueError, in one line, where there is no reference, or none that is understood.
    """
    found = [path for suffix in READERS if (path := folder / f"{stem}{suffix}").exists()]
    if len(found) != 1:
        raise ValueError(f"{folder / stem}: wanted one reference, {', '.join(READERS)}; found {len(found)}")
    path = found[0]
    try:
        depth = READERS[path.suffix](path, size)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: {error}") from None
    if depth.shape[:2] != size:
        raise ValueError(f"{path}: has {depth.shape[0]} x {depth.shape[1]} pixels, the picture {size[0]} x {size[1]}")
    known = np.isfinite(depth) & (depth > 0)
    return np.where(known, depth, np.float32(0)), known


def to_metres(
    prediction: Float[np.ndarray, "h w 1"], depth: Float[np.ndarray, "h w 1"], known: Bool[np.ndarray, "h w 1"]
) -> tuple[Float32[np.ndarray, "h w 1"], dict[str, int | float]]:
    """The prediction in metres, at least 0, and the `scale` and `shift` that fit it best to the known `points`.

    Raises ValueError where the points fix no scale, or one that turns near into far.
    """
    points = int(np.count_nonzero(known))
    if points < FEWEST:
        raise ValueError(f"the reference knows {points} points, wanted {FEWEST} or more")
    scale, shift = align_least_squares(prediction, depth, known)
    if scale <= 0:
        raise ValueError(
            f"the best scale is {scale:.3g}: the reference has near and far the other way round, or too few points"
        )
    metres = np.maximum(scale * prediction + shift, 0).astype(np.float32)
    return metres, {"scale": scale, "shift": shift, "points": points}


def _map(path: Path, size: tuple[int, int]) -> np.ndarray:
    values = np.load(path)
    return values.reshape(*values.shape[:2], 1).astype(np.float32)


def _millimetres(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path, formats=["PNG"]) as image:
        if not image.mode.startswith("I"):
            raise ValueError(f"wanted a 16-bit grey PNG in millimetres, got Pillow mode {image.mode}")
        return np.asarray(image, np.float32)[..., None] / MILLIMETRES


def _points(path: Path, size: tuple[int, int]) -> np.ndarray:
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    if rows.shape[1] != 3:
        raise ValueError(f"wanted lines of column, row, metres; got {rows.shape[1]} numbers in a line")
    column, row = np.rint(rows[:, :2]).astype(int).T
    height, width = size
    if not ((0 <= column) & (column < width) & (0 <= row) & (row < height)).all():
        raise ValueError(f"a point lies outside of the picture, which is {width} wide and {height} high")
    depth = np.zeros((height, width, 1), np.float32)
    depth[row, column, 0] = rows[:, 2]
    return depth


READERS = {".npy": _map, ".png": _millimetres, ".csv": _points}

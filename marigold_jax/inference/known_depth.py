"""Known depth of a picture, in metres: a whole map or a few points. It turns affine-invariant depth into metres.

REFERENCES/NAME.npy    (height, width), metres; NaN, infinity, 0 or less where unknown; or NAME.npz, of one such array
REFERENCES/NAME.png    16-bit, millimetres; 0 where unknown
REFERENCES/NAME.csv    a line for each point: column, row, metres; pixels count from 0 at the top left

A map of another size is resized without mixing depths: of the known depths that fall into a pixel, it takes the one
closest to its centre. The numbers of a point are separated by commas, semicolons or blanks. A heading is ignored, and
so are points without a positive depth.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32

from marigold_jax.data.affine_fit import fit_robustly
from marigold_jax.data.saved_maps import check_shape, read_map
from marigold_jax.runtime.files import printable, regular

MILLIMETRES = 1000.0
FEWEST = 2  # points that fix a scale and a shift
DOUBTFUL = 0.1  # share of outliers, or relative residual, above which there is a warning
SHORTEST, LONGEST = 1e-6, 1e9  # metres of a point
LARGEST_LIST = 2**28  # bytes

Say = Callable[[str], None]


def read_reference(
    folder: Path, stem: str, size: tuple[int, int], say: Say = lambda line: None
) -> tuple[Float32[np.ndarray, "h w 1"], Bool[np.ndarray, "h w 1"]]:
    """Reads the known depth of one picture.

    Args:
        folder: the folder of references.
        stem: the picture's name.
        size: (height, width) of the picture.
        say: called with one line about what is ignored in the file.

    Returns:
        Metres (h, w, 1), and a mask of where they are known.

    Raises:
        ValueError: there is no reference, more than one, or one that cannot be read.
    """
    found = [path for suffix in READERS if os.path.lexists(path := folder / f"{stem}{suffix}")]
    if len(found) != 1:
        raise ValueError(f"{printable(folder / stem)}: wanted one reference, {', '.join(USUAL)}; found {len(found)}")
    path = found[0]
    try:
        depth = READERS[path.suffix](path, size, say)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{printable(path)}: {' '.join(reason.split()).removeprefix(f'{path}: ')}") from None
    known = np.isfinite(depth) & (depth > 0)
    return np.where(known, depth, np.float32(0)), known


def to_metres(
    prediction: Float[np.ndarray, "h w 1"], depth: Float[np.ndarray, "h w 1"], known: Bool[np.ndarray, "h w 1"]
) -> tuple[Float32[np.ndarray, "h w 1"], dict[str, int | float]]:
    """Fits scale and shift to the known depth, robustly.

    Args:
        prediction: depth in [0, 1].
        depth: metres.
        known: where they are known.

    Returns:
        The prediction in metres, at least 0; and the fit: `scale`, `shift`, the number of known `points`, the number of
        `inliers` that were fitted, and their `residual`, the mean relative error.

    Raises:
        ValueError: the points do not determine a scale, or it would swap near and far.
    """
    points = int(np.count_nonzero(known))
    if points < FEWEST:
        raise ValueError(f"the reference knows {points} points, wanted {FEWEST} or more")
    x, y = prediction[known], depth[known]
    if x.min() == x.max():
        raise ValueError(
            f"the prediction is the same at all {points} points of the reference: wanted near and far ones"
        )
    if y.min() == y.max():
        raise ValueError(f"the best scale is 0: all {points} points of the reference are {y.min():g} m away")
    scale, shift, near = fit_robustly(x, y)
    if not (scale > 0 and math.isfinite(scale) and math.isfinite(shift)):
        raise ValueError(
            f"the best scale is {scale:.3g}: the reference has near and far the other way round, or too few points"
        )
    metres = np.maximum(scale * prediction + shift, 0).astype(np.float32)
    residual = np.mean(np.abs(scale * x[near].astype(np.float64) + shift - y[near]) / y[near])
    inliers = int(np.count_nonzero(near))
    return metres, {"scale": scale, "shift": shift, "points": points, "inliers": inliers, "residual": float(residual)}


def doubt(fit: dict[str, int | float]) -> str | None:
    """A warning where more than a tenth of the points are outliers, or the residual is above a tenth; else None."""
    outliers = fit["points"] - fit["inliers"]
    if max(outliers / fit["points"], fit["residual"]) <= DOUBTFUL:
        return None
    return (
        f"doubtful metres: {outliers} of {fit['points']} known points are outliers, the others are off by "
        f"{fit['residual']:.0%} on average"
    )


def at_size(depth: Float32[np.ndarray, "h w 1"], size: tuple[int, int]) -> Float32[np.ndarray, "height width 1"]:
    """Resizes a depth map to `size` (height, width).

    Of the known depths that fall into a pixel, it takes the one closest to its centre; NaN where there is none. Raises
    ValueError for a map whose shape does not fit the picture.
    """
    check_shape(depth.shape[:2], size)
    for axis, new in enumerate(size):
        if (old := depth.shape[axis]) < new:
            depth = np.take(depth, (np.arange(new) * 2 + 1) * old // (2 * new), axis=axis)
    if depth.shape[:2] == size:
        return depth
    known = np.isfinite(depth) & (depth > 0)
    places = [(index + 0.5) * new / old for index, new, old in zip(np.nonzero(known), size, depth.shape, strict=False)]
    order = np.argsort(-sum((place % 1 - 0.5) ** 2 for place in places), kind="stable")  # the nearest is written last
    resized = np.full((*size, 1), np.nan, np.float32)
    row, column = (place[order].astype(int) for place in places)
    resized[row, column, 0] = depth[known][order]
    return resized


def _map(path: Path, size: tuple[int, int], say: Say) -> Float32[np.ndarray, "h w 1"]:
    depth = read_map(path, png_unit=MILLIMETRES)
    if depth.shape[2] != 1:
        raise ValueError(f"wanted depth, (height, width), found {depth.shape[2]} channels")
    return at_size(depth, size)


def _points(path: Path, size: tuple[int, int], say: Say) -> Float32[np.ndarray, "h w 1"]:
    height, width = size
    if (weight := regular(path).stat().st_size) > LARGEST_LIST:
        raise ValueError(f"{weight} bytes, wanted a list of points of at most {LARGEST_LIST}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError("wanted lines of column, row, metres; this is no text") from None
    depth, points, passed, doubled = np.full((height, width, 1), np.nan, np.float32), 0, 0, 0
    written = [
        (number, line.strip())
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    for position, (number, line) in enumerate(written):
        where, words = f"line {number}, {printable(line)[:60]!r}", _words(line)
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            if position == 0 and len(written) > 1:
                continue  # a heading
            raise ValueError(f"{where}: could not convert this to column, row, metres") from None
        if len(numbers) != 3:
            raise ValueError(f"{where}: wanted column, row, metres; got {len(numbers)} numbers in a line")
        column, row, metres = numbers
        if not (-0.5 <= column <= width - 0.5 and -0.5 <= row <= height - 0.5):
            raise ValueError(f"{where}: lies outside of the picture, which is {width} wide and {height} high")
        points += 1
        if not SHORTEST <= metres <= LONGEST:  # NaN, too
            passed += 1
            continue
        place = min(round(row), height - 1), min(round(column), width - 1)
        doubled += bool(np.isfinite(depth[place]).any())
        depth[place] = metres
    if not points:
        raise ValueError("no point in it: wanted lines of column, row, metres")
    if passed:
        say(f"{printable(path)}: {passed} of {points} points have no positive depth and are left out")
    if doubled:
        say(f"{printable(path)}: {doubled} points lie on the pixel of another: of such the last counts")
    return depth


def _words(line: str) -> list[str]:
    """The numbers of a line, with any separator. In "3;4;1,5", the comma is the decimal point."""
    if ";" in line:
        return [word.strip().replace(",", ".") for word in line.split(";") if word.strip()]
    return [word for word in re.split(r"[,\s]+", line) if word]


READERS = {".npy": _map, ".png": _map, ".csv": _points, ".npz": _map}
USUAL = (".npy", ".png", ".csv")

"""What is known of a picture's depth, in metres: a whole map, or a few points. It gives affine-invariant depth a scale.

REFERENCES/NAME.npy    (height, width), metres; NaN, infinity, 0 or less where unknown; or NAME.npz, of one such array
REFERENCES/NAME.png    16-bit, millimetres; 0 where unknown
REFERENCES/NAME.csv    a line for each point: column, row, metres; pixels count from 0 at the top left

A map of another size than the picture is brought to it without mixing depths: each pixel takes the nearest known one
among those that fall into it. Numbers of a point are separated by commas, semicolons or blanks; a heading is passed
over, and so are points without a positive depth.
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
DOUBTFUL = 0.1  # of the points are outliers, or of the depth is the residual: more than that is said
SHORTEST, LONGEST = 1e-6, 1e9  # metres of a point
LARGEST_LIST = 2**28  # bytes

Say = Callable[[str], None]


def read_reference(
    folder: Path, stem: str, size: tuple[int, int], say: Say = lambda line: None
) -> tuple[Float32[np.ndarray, "h w 1"], Bool[np.ndarray, "h w 1"]]:
    """Metres, and where they are known, of the picture of that name and `size` (height, width).

    `say` is told, in one line, what was passed over. Raises ValueError, in one line, where there is no reference, or
    none that is understood.
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
    """The prediction in metres, at least 0, and what is to be known of the fit to the known `points`.

    That is `scale` and `shift`, robust against outliers; `inliers`, the number of points that they were fitted to; and
    `residual`, the mean error at those, as a share of the known depth. Raises ValueError where the points fix no
    scale, or one that turns near into far.
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
    """What is to be said of a fit of `to_metres` that more than a tenth of the points, or of the depth, contradicts."""
    outliers = fit["points"] - fit["inliers"]
    if max(outliers / fit["points"], fit["residual"]) <= DOUBTFUL:
        return None
    return (
        f"doubtful metres: {outliers} of {fit['points']} known points are outliers, the others are off by "
        f"{fit['residual']:.0%} on average"
    )


def at_size(depth: Float32[np.ndarray, "h w 1"], size: tuple[int, int]) -> Float32[np.ndarray, "height width 1"]:
    """A depth map at another size, (height, width): where several known depths fall into a pixel, that nearest to its
    middle; NaN where none does. Raises ValueError for a map that cannot be of the same picture."""
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
    """The numbers of a line, however they are separated: "3;4;1,5" has a comma for the decimal point."""
    if ";" in line:
        return [word.strip().replace(",", ".") for word in line.split(";") if word.strip()]
    return [word for word in re.split(r"[,\s]+", line) if word]


READERS = {".npy": _map, ".png": _map, ".csv": _points, ".npz": _map}
USUAL = (".npy", ".png", ".csv")

"""Curves of depth scores over one choice: their points, a CSV file and a figure."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marigold_jax.evaluation.quantities import Scores
from marigold_jax.evaluation.scoring import mean_scores


class Point(NamedTuple):
    """One choice and its scores, a row of the CSV file.

    Attributes:
        series: the curve that the point belongs to.
        x: the choice, a number or a name.
        images: the number of images scored.
        abs_rel: the mean AbsRel over images.
        abs_rel_error: its standard error, the standard deviation over images divided by √images.
        delta1: the mean δ1 over images.
    """

    series: str
    x: int | float | str
    images: int
    abs_rel: float
    abs_rel_error: float
    delta1: float


def point(series: str, x: int | float | str, scores: Mapping[int, Scores]) -> Point:
    """The point of one choice, from the scores of each image."""
    errors, mean = [one["abs_rel"] for one in scores.values()], mean_scores(scores)
    standard_error = float(np.std(errors) / len(errors) ** 0.5)
    return Point(series, x, len(scores), mean["abs_rel"], standard_error, mean["delta1"])


def to_csv(points: Sequence[Point]) -> bytes:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([Point._fields, *points])
    return lines.getvalue().encode()


def draw(xlabel: str, points: Sequence[Point], log_x: bool) -> dict[str, bytes]:
    """Draws AbsRel on the left and δ1 on the right. Returns the content of a "png" and an "svg" file."""
    from matplotlib.figure import Figure  # here, because it is slow to import

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    titles = {"abs_rel": "AbsRel, lower is better", "delta1": "δ1, higher is better"}
    for axes, (column, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for series in dict.fromkeys(one.series for one in points):
            _draw_curve(axes, [one for one in points if one.series == series], column)
        axes.set(xlabel=xlabel, title=title)
        if log_x:
            axes.set_xscale("log")
            ticks = sorted({one.x for one in points})
            axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    files = {}
    for kind, metadata in (("png", None), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
        files[kind] = buffer.getvalue()
    return files


def _draw_curve(axes: Any, curve: Sequence[Point], column: str) -> None:
    named = any(isinstance(one.x, str) for one in curve)  # a line between names would mean nothing
    axes.errorbar(
        [one.x.replace(" ", "\n") if named else one.x for one in curve],
        [getattr(one, column) for one in curve],
        yerr=[one.abs_rel_error for one in curve] if column == "abs_rel" else None,
        fmt="o" if named else "o-",
        capsize=3,
        label=curve[0].series,
    )

"""What is written and printed about scores: per_sample.csv, metrics.json, worst.png and tables."""

import contextlib
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marigold_jax.data.contact_sheet import png
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation.depth_alignment import REMARKS
from marigold_jax.evaluation.estimators import Estimator
from marigold_jax.evaluation.quantities import Scores
from marigold_jax.evaluation.scoring import Result, Task, aligned, mean_scores, score_all, score_all_pixels
from marigold_jax.evaluation.splits import read_example, read_name
from marigold_jax.runtime.files import write

NUM_WORST = 10


@dataclass(frozen=True)
class Summary:
    """The scores of one estimator.

    Attributes:
        title: the estimator's name in tables.
        result: the scores of each image.
        means: the means over images.
        all_pixels: the scores over all pixels together; empty if papers do not report these.
    """

    title: str
    result: Result
    means: Scores
    all_pixels: Scores

    @property
    def as_published(self) -> Scores:
        """The scores that compare with the papers': over all pixels where papers report these, otherwise the means."""
        return self.all_pixels or self.means

    def rows(self, dataset: str) -> list[list[Any]]:
        """The rows of the table: dataset, estimator, number of images, scores."""
        count = len(self.result.scores)
        rows = [[dataset, self.title, count, *self.means.values()]]
        if self.all_pixels:
            rows.append([dataset, f"{self.title}, all pixels together", count, *self.all_pixels.values()])
        return rows

    def remarks(self, total: int) -> list[str]:
        """Lines below the table, about images left out of `total` and about resized predictions."""
        count, lines = len(self.result.scores), []
        if count < total:
            lines.append(f"{self.title}: {total - count} of {total} images are left out: {self.result.left_out()}")
        if resized := self.result.resized:
            lines.append(f"{self.title}: {resized} of {count} predictions were resized to the truth's size")
        return lines

    def as_json(self) -> dict[str, Any]:
        """What metrics.json says about the scores."""
        left_out = {
            "unusable": len(self.result.unusable),
            "without_valid_pixels": self.result.without_valid_pixels,
        }
        whole = {"images": len(self.result.scores), **self.means}
        whole |= {"all_pixels": self.all_pixels} if self.all_pixels else {}
        return whole | {"left_out": left_out, "resized": self.result.resized}


def summarise(title: str, estimator: Estimator, task: Task) -> Summary:
    """Scores an estimator. Raises ValueError as `score_all` does."""
    result = score_all(estimator, task)
    scored = Task(task.split, list(result.scores), task.quantity, task.alignment)
    return Summary(title, result, mean_scores(result.scores), score_all_pixels(estimator, scored))


def write_scores(folder: Path, task: Task, summary: Summary, settings: Mapping[str, Any]) -> None:
    """Writes per_sample.csv with the scores of each image, and metrics.json with the means and the `settings`."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["name", *task.quantity.metrics])
    scores = summary.result.scores
    writer.writerows([read_name(task.split, index), *map(repr, one.values())] for index, one in scores.items())
    write(folder / "per_sample.csv", lines.getvalue().encode(errors="backslashreplace"))
    metrics = summary.as_json() | {"settings": settings}
    metrics |= {"remark": REMARKS[task.alignment]} if task.alignment in REMARKS else {}
    write(folder / "metrics.json", json.dumps(metrics, indent=2, default=str).encode() + b"\n")


def draw_worst(file: Path, estimator: Estimator, task: Task, scores: Mapping[int, Scores]) -> str | None:
    """Draws the images with the worst scores, of those that can be read; without any, there is no file.

    Returns one line about what prevented the drawing, or None. Scores are valid without the figure.
    """
    file.unlink(missing_ok=True)  # one from an earlier run would show other scores
    try:
        _draw_worst(file, estimator, task, scores)
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _draw_worst(file: Path, estimator: Estimator, task: Task, scores: Mapping[int, Scores]) -> None:
    quantity, examples = task.quantity, {}
    for index in sorted(scores, key=lambda index: -scores[index][quantity.headline[0]]):
        with contextlib.suppress(BadFrame):  # scoring read the truth alone
            examples[index] = read_example(task.split, index)
        if len(examples) == NUM_WORST:
            break
    if examples:
        shown = list(examples.values())
        predictions = [aligned(estimator(index), example, task) for index, example in examples.items()]
        images, truths = ([example[key] for example in shown] for key in ("rgb", quantity.name))
        panel = quantity.panel(images, truths, predictions, [quantity.valid(example) for example in shown])
        write(file, png(panel))


def score_table(dataset: str, task: Task, summary: Summary, others: Sequence[Summary]) -> list[str]:
    """The table of scores, with the estimator in question in its last rows, and the lines below it."""
    rows = [row for one in (*others, summary) for row in one.rows(dataset)]
    lines = [table(["dataset", "estimator", "images", *task.quantity.metrics], rows)]
    lines += [line for one in (summary, *others) for line in one.remarks(len(task.indices))]
    return lines + ([f"{task.alignment}: {REMARKS[task.alignment]}"] if task.alignment in REMARKS else [])


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligns cells in columns. Floats have four decimals."""
    cells = [list(header)] + [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)

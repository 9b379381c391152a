"""Reports the progress of training: lines on the terminal, records in metrics.jsonl, events for TensorBoard."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from tqdm import tqdm

from marigold_jax.hardware.chips import peak_flops
from marigold_jax.hardware.operations import flops
from marigold_jax.runtime import extras, terminal
from marigold_jax.runtime.files import append_lines, regular, write

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
FEW = 10  # numbers in a message


def flops_counter(function: Callable) -> Callable[..., float]:
    """Returns a function that counts the floating-point operations in one call of `function`, over all devices.

    It returns 0 on devices whose peak is unknown, and counts only once for arguments of the same shapes.
    """
    known: dict[tuple, float] = {}

    def count(*arguments) -> float:
        if peak_flops(jax.devices()[0].device_kind) is None:
            return 0.0
        shapes = tuple(x.shape for x in jax.tree.leaves(arguments))
        if shapes not in known:
            known[shapes] = flops(function, *arguments)
        return known[shapes]

    return count


@contextlib.contextmanager
def counting(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Shows the progress of a longer task: a bar on a terminal, one line elsewhere. Yields `done(count)`."""
    is_main_process = jax.process_index() == 0
    if is_main_process and not sys.stderr.isatty():
        terminal.say(f"{what} {total} {unit}")
    options = {"desc": what, "unit": f" {unit}", "leave": False, "disable": None if is_main_process else True}
    with tqdm(total=total, **options) as bar:
        yield bar.update


class Progress:
    """Writes one record per logged step, if this is the main process.

    A resumed run first removes the records of the steps that it is about to repeat.
    """

    def __init__(self, workdir: Path, first: int, last: int, samples_per_step: int, is_main_process: bool = True):
        self.last, self.samples_per_step, self.is_main_process = last, samples_per_step, is_main_process
        self._since, self._step, self._file, self._events = time.perf_counter(), first, None, None
        if is_main_process:
            with extras.needed("train"):
                from tensorboardX import SummaryWriter  # here, because it is slow to load

            self._file = _continue(workdir / METRICS, first)
            self._events = SummaryWriter(str(workdir / EVENTS), purge_step=first + 1)
            if 0 < first < last:
                terminal.say(f"continuing after step {first}")

    def record(self, step: int, metrics: Mapping[str, Any], flops_per_step: float = 0.0) -> None:
        """Writes the scalars of this step. `flops_per_step` is for all devices together, or 0 if unknown."""
        rate = (step - self._step) / (time.perf_counter() - self._since) if step > self._step else None
        values = {name: float(value) for name, value in metrics.items()}
        if rate:
            values["samples_per_second"] = rate * self.samples_per_step
        peak = peak_flops(jax.devices()[0].device_kind)
        if rate and peak and flops_per_step:
            values["mfu"] = rate * flops_per_step / (peak * jax.device_count())
        if self.is_main_process:
            # JSON has no NaN.
            finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
            line = memoryview(json.dumps({"step": step} | finite).encode() + b"\n")
            while line:  # on a full disk, the first write is short and the next one raises
                line = line[self._file.write(line) :]
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()
            terminal.say(self._line(step, values, rate))
        self._since, self._step = time.perf_counter(), step

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Writes an image (h, w, 3) uint8 to TensorBoard."""
        if self.is_main_process:
            self._events.add_image(name, image, step, dataformats="HWC")

    @contextlib.contextmanager
    def paused(self, pending: Any) -> Iterator[None]:
        """Stops the clock while something other than training runs, so that the speed is that of training.

        `pending`: arrays of the last step. The clock is stopped when they are computed: otherwise the rest of that step
        would not be timed, and the step would seem faster than it is.
        """
        jax.block_until_ready(pending)
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def restart(self, step: int) -> None:
        """Restarts the clock, to leave out the time spent compiling."""
        self._since, self._step = time.perf_counter(), step

    def close(self) -> None:
        if self.is_main_process:
            self._file.close()
            self._events.close()

    def _line(self, step: int, values: Mapping[str, float], rate: float | None) -> str:
        parts = [f"step {step}/{self.last}"]
        parts += [f"{name} {values[name]:.4g}" for name in ("loss", "abs_rel", "delta1") if name in values]
        if rate:
            left = timedelta(seconds=round((self.last - step) / rate))
            parts += [f"{values['samples_per_second']:.1f} images/s", f"{left} left"]
        if "mfu" in values:
            parts.append(f"MFU {values['mfu']:.0%}")
        return "  ".join(parts)


def _continue(file: Path, step: int) -> BinaryIO:
    """Opens the file for appending, after removing records later than `step` and broken lines.

    A kill or a full disk may have cut a line short, so that the next one continues on the same line.
    """
    kept, broken = [], []
    lines = regular(file).read_bytes().splitlines() if file.exists() else []
    for number, line in enumerate(lines, 1):
        if (found := _step_of(line)) is None:
            broken.append(number)
        elif found <= step:
            kept.append(line + b"\n")
    if broken:
        where = ", ".join(map(str, broken[:FEW])) + (", ..." if len(broken) > FEW else "")
        terminal.say(f"{file}: dropping {len(broken)} line(s) that cannot be read as records: {where}")
    write(file, b"".join(kept))
    return append_lines(file)  # unbuffered: a line is written at once


def _step_of(line: bytes) -> int | None:
    """Returns the step of a record, or None for a line that is not a record."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):  # not text, not JSON, no object, without a step
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None

"""What a run tells while it goes on: a line for people, metrics.jsonl for programs, events for TensorBoard."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marigold_jax.hardware.chips import peak_flops
from marigold_jax.hardware.operations import flops

METRICS, EVENTS = "metrics.jsonl", "tensorboard"


def flops_counter(function: Callable) -> Callable[..., float]:
    """Returns a function that tells the arithmetic in one call of `function`, over all devices.

    It answers 0 on devices whose peak is not known, and looks only once at arguments of the same shapes.
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


class Progress:
    """Writes one record a logged step. Only the process that is to `speak` should have one that does.

    A resumed run first drops the records of the steps that it is about to repeat.
    """

    def __init__(self, workdir: Path, first: int, last: int, samples_per_step: int, speak: bool = True):
        self.last, self.samples_per_step, self.speak = last, samples_per_step, speak
        self._since, self._step, self._file, self._events = time.perf_counter(), first, None, None
        if speak:
            from tensorboardX import SummaryWriter  # here, because it is slow to load

            self._file = _continue(workdir / METRICS, first)
            self._events = SummaryWriter(str(workdir / EVENTS), purge_step=first + 1)
            if first:
                print(f"continuing after step {first}", flush=True)

    def record(self, step: int, metrics: Mapping[str, Any], flops_per_step: float = 0.0) -> None:
        """Write the scalars of this step. `flops_per_step`: of all devices together; 0 where it is not known."""
        rate = (step - self._step) / (time.perf_counter() - self._since) if step > self._step else None
        values = {name: float(value) for name, value in metrics.items()}
        if rate:
            values["samples_per_second"] = rate * self.samples_per_step
        peak = peak_flops(jax.devices()[0].device_kind)
        if rate and peak and flops_per_step:
            values["mfu"] = rate * flops_per_step / (peak * jax.device_count())
        if self.speak:
            # JSON knows no NaN.
            finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
            self._file.write(json.dumps({"step": step} | finite).encode() + b"\n")
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()
            print(self._line(step, values, rate), flush=True)
        self._since, self._step = time.perf_counter(), step

    def picture(self, name: str, step: int, image: np.ndarray) -> None:
        """Show an image (h, w, 3) uint8 in TensorBoard."""
        if self.speak:
            self._events.add_image(name, image, step, dataformats="HWC")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not training, and does not count as slow training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def restart(self, step: int) -> None:
        """Measure speed from here: what came before was compiling."""
        self._since, self._step = time.perf_counter(), step

    def close(self) -> None:
        if self.speak:
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


def _continue(file: Path, step: int):
    """The file, open for appending, without the lines after `step` and without one that a kill cut short."""
    kept = []
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else []:
        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    partial = file.with_suffix(".partial")
    partial.write_bytes(b"".join(kept))
    partial.replace(file)
    return open(file, "ab", buffering=0)  # a line is written at once or not at all

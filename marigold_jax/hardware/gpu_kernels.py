"""Seconds of a program on a GPU, from the operations and bytes of each of its kernels."""

from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.executed import Executed, executed

LAUNCH = 2.5e-6  # seconds from the start of a kernel to that of the next, if both are short


def kernels(text: str) -> list[Executed]:
    """Returns the kernels of a program compiled for a GPU.

    Args:
        text: the result of `compiled.as_text()`.
    """
    return executed(text)


def seconds(row: Executed, chip: Chip) -> float:
    """Returns the seconds of all runs of a kernel: the longer of arithmetic and memory, and its launch."""
    return row.times * (max(row.operations / chip.peak_flops, row.hbm / chip.bandwidth) + LAUNCH)

"""Seconds of a program on a TPU, from the cycles that its compiler estimates for each instruction."""

from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.executed import Executed, executed


def instructions(text: str) -> list[Executed]:
    """Returns what a program compiled for a TPU executes, with cycles.

    Args:
        text: the result of `compiled.as_text()`.
    """
    return executed(text)


def seconds(row: Executed, chip: Chip) -> float:
    """Returns the seconds of all runs of an instruction on a TPU.

    The compiler states no cycles for kernels that are written by hand (Pallas attention): they are assumed to run at
    the peak of the chip, which is less than they will take. Copies that run beside others have no cycles either, and
    count as none.
    """
    if row.cycles is not None:
        return row.times * row.cycles / chip.clock
    return row.times * row.operations / chip.peak_flops

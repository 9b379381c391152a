"""Seconds of a program on a TPU, from the cycles that its compiler estimates for each instruction."""

from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.executed import Executed, executed

NO_ESTIMATE = 2**63 - 1  # cycles that libtpu (0.0.42.1) states where its estimate fails


def clocked(row: Executed) -> bool:
    """Whether the compiler estimates the cycles of an instruction."""
    return row.cycles is not None and row.cycles < NO_ESTIMATE


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
    count as none. Where the compiler's estimate fails, the bytes at the bandwidth of the memory count if they take
    longer.
    """
    if clocked(row):
        return row.times * row.cycles / chip.clock
    at_peak = row.operations / chip.peak_flops
    return row.times * (at_peak if row.cycles is None else max(at_peak, row.hbm / chip.bandwidth))

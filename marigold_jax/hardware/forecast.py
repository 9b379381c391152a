"""How long a compiled program takes on a chip: by the TPU compiler's clock, or by a roofline of each GPU kernel."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from marigold_jax.hardware import gpu_kernels, tpu_clock
from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.executed import Executed

CLOCK = (
    "clock: cycles that the TPU compiler estimates for each instruction, loops times their lengths. It states none\n"
    "  for attention's kernels, which are counted at the chip's peak and will take longer, and none for copies\n"
    "  between the main memory and the chip that run beside other instructions. Where an estimate fails, the\n"
    "  memory's bandwidth counts as well"
)
KERNELS = (
    "kernels: each takes the longer of operations / peak and bytes / memory bandwidth, and\n"
    f"  {gpu_kernels.LAUNCH * 1e6:.1f} us to launch. Without a GPU, cuDNN's algorithms and workspaces are not chosen"
)


class Share(NamedTuple):
    """Executed instructions that are alike, together.

    Attributes:
        name: the kind, or shape and line of what they are.
        times: how often they run.
        seconds: of all runs.
        cycles: likewise, as the TPU compiler estimates them; 0 where it states none.
        hbm: bytes of all runs in the main memory.
        operations: of all runs.
    """

    name: tuple[str, ...]
    times: int
    seconds: float
    cycles: int
    hbm: int
    operations: float


def statement(chip: Chip) -> str:
    """Returns how the figures for this chip come about, in words."""
    return CLOCK if chip.clock else KERNELS


def seconds(row: Executed, chip: Chip) -> float:
    """Returns the seconds of all runs of an instruction."""
    return (tpu_clock if chip.clock else gpu_kernels).seconds(row, chip)


def cycles(rows: Sequence[Executed]) -> int:
    """Returns the cycles that the TPU compiler estimates for a program; 0 for another chip."""
    return sum(row.times * row.cycles for row in rows if tpu_clock.clocked(row))


def by_kind(rows: Sequence[Executed], chip: Chip) -> list[Share]:
    """Returns convolutions, matrix products, and so on, the dearest first."""
    return _grouped(rows, chip, lambda row: (row.kind,))


def dearest(rows: Sequence[Executed], chip: Chip, count: int = 10) -> list[Share]:
    """Returns the dearest instructions. Those of one kind and shape that come from one line are one row."""
    return _grouped(rows, chip, lambda row: (row.kind, row.shape, row.source, row.op_name))[:count]


def _grouped(rows: Sequence[Executed], chip: Chip, key: Callable[[Executed], tuple[str, ...]]) -> list[Share]:
    groups: dict[tuple[str, ...], list[Executed]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    shares = [
        Share(
            name=name,
            times=sum(row.times for row in group),
            seconds=sum(seconds(row, chip) for row in group),
            cycles=cycles(group),
            hbm=sum(row.times * row.hbm for row in group),
            operations=sum(row.times * row.operations for row in group),
        )
        for name, group in groups.items()
    ]
    return sorted(shares, key=lambda share: -share.seconds)

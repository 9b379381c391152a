"""How long a program takes at least: the arithmetic, the memory and the links of a chip each set a bound."""

from typing import NamedTuple

from marigold_jax.hardware.chips import Chip

STATEMENT = (
    "roofline: operations / peak, bytes / memory bandwidth (a loop's body counted once), bytes sent / that of its\n"
    "  links. The longest of them is the least time there can be, at full speed and all overlapped; their sum, the\n"
    "  time with no overlap. MFU: operations of the model, nothing computed twice, over peak x time"
)


class Work(NamedTuple):
    """What one chip does: operations (`useful`: without what is computed again), bytes of memory, bytes sent."""

    flops: float
    useful: float
    memory: float
    sent: float

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Work":
        return Work(*(count * x for x in self))


class Estimate(NamedTuple):
    """Seconds that each resource needs, and what follows: see `STATEMENT`."""

    compute: float
    memory: float
    links: float
    least: float
    most: float
    bound: str
    mfu: float  # of `least`
    mfu_without_overlap: float  # of `most`


def estimate(work: Work, chip: Chip) -> Estimate:
    """Returns what the work takes of one chip, at least and at most."""
    seconds = {
        "compute": work.flops / chip.peak_flops,
        "memory": work.memory / chip.bandwidth,
        "links": work.sent / chip.links,
    }
    bound = max(seconds, key=seconds.get)
    least, most = seconds[bound], sum(seconds.values())
    useful = work.useful / chip.peak_flops
    return Estimate(
        **seconds, least=least, most=most, bound=bound, mfu=useful / least, mfu_without_overlap=useful / most
    )

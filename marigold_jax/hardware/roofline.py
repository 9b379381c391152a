"""Lower and upper estimates of run time, from the arithmetic, memory traffic and communication of a program."""

from typing import NamedTuple

from marigold_jax.hardware.chips import Chip

STATEMENT = (
    "roofline: operations / peak, bytes of main memory / its bandwidth, bytes sent / link bandwidth. The longest of\n"
    "  the three is the shortest possible time: full speed, everything overlapped. Their sum is the time without\n"
    "  overlap. MFU: operations of the model, without recomputation, over peak x time"
)


class Work(NamedTuple):
    """The work of one chip.

    Attributes:
        flops: operations.
        useful: operations without those that rematerialisation repeats.
        memory: bytes read from and written to the main memory of the chip.
        sent: bytes sent to other chips.
    """

    flops: float
    useful: float
    memory: float
    sent: float

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> "Work":
        return Work(*(count * x for x in self))


class Estimate(NamedTuple):
    """Seconds that each resource needs, and the estimates that follow from them; see `STATEMENT`."""

    compute: float
    memory: float
    links: float
    least: float
    most: float
    bound: str
    mfu: float  # of `least`
    mfu_without_overlap: float  # of `most`


def estimate(work: Work, chip: Chip) -> Estimate:
    """Returns the shortest and the longest time that one chip needs for the work."""
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

"""How long a program takes at least: the arithmetic, the memory and the links of a chip each set a bound."""

from typing import NamedTuple

STATEMENT = (
    "roofline: operations / peak, bytes / HBM bandwidth (a loop's body counted once), bytes sent / ICI bandwidth. The\n"
    "  longest of them is the least time there can be, at full speed and all overlapped; their sum, the time with no\n"
    "  overlap. MFU: operations of the model, nothing computed twice, over peak x time"
)


class Work(NamedTuple):
    """What one chip does: operations (`useful`: without what is computed again), bytes of HBM, bytes sent."""

    flops: float
    useful: float
    hbm: float
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


def estimate(work: Work, peak_flops: float, hbm_bandwidth: float, ici: float) -> Estimate:
    """Returns the estimate for a chip of so many operations a second, and bytes a second of HBM and of links."""
    seconds = {"compute": work.flops / peak_flops, "memory": work.hbm / hbm_bandwidth, "links": work.sent / ici}
    bound = max(seconds, key=seconds.get)
    least, most = seconds[bound], sum(seconds.values())
    useful = work.useful / peak_flops
    return Estimate(
        **seconds, least=least, most=most, bound=bound, mfu=useful / least, mfu_without_overlap=useful / most
    )

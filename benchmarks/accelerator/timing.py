"""Times calls, and reports a failure as a result: what both sides share."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Case = dict[str, Any]
MOST_CALLS = 20
LITTLE_GAIN = 1.03  # of a larger batch: below it, none larger is tried
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "OutOfMemory")


def timed(call: Callable[[], Any], seconds: float) -> Case:
    """Returns the time of the first call, which compiles, and the median of the others.

    Args:
        call: waits for the device before it returns.
        seconds: for which it is repeated; at least twice, at most `MOST_CALLS` times.
    """
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - began - taken[0] < seconds and len(taken) <= MOST_CALLS):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return {"first_s": taken[0], "seconds": statistics.median(taken[1:]), "calls": len(taken) - 1}


def attempt(case: Case, measure: Callable[[], Case]) -> Case:
    """Returns the case with what `measure` found, or with its error in one line."""
    try:
        return case | measure()
    except Exception as error:  # of any kind: a failure is a result, and the next case may work
        lines = str(error).splitlines() or [""]
        line = next((line for line in lines if any(word in line for word in OUT_OF_MEMORY)), lines[0])
        return case | {"error": f"{type(error).__name__}: {line.strip()[:300]}"}


def first_that_fits(cases: Iterable[Case]) -> Iterator[Case]:
    """Yields cases from large to small, until one has fitted into memory."""
    for case in cases:
        yield case
        if not any(word in case.get("error", "") for word in OUT_OF_MEMORY):
            return


def while_it_gains(cases: Iterable[Case]) -> Iterator[Case]:
    """Yields cases from small to large batches, until one fails or is hardly faster for each picture."""
    best = float("inf")
    for case in cases:
        yield case
        if "error" in case or case["seconds"] / case["batch"] * LITTLE_GAIN > best:
            return
        best = case["seconds"] / case["batch"]

"""Reads a trace of JAX's profiler: which kernels took the most time."""

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

KERNELS = 15
AROUND = ("ThunkExecutor::",)  # on a CPU: the time in which kernels run, and that spent waiting for them
# (start of the process's name, start of the thread's name): where the device's work is in a trace. The first row that
# matches anything is used. A TPU's other threads repeat the same time by module and by step.
PLACES = (
    ("/device:TPU", "XLA Ops"),
    ("/device:GPU", "Stream"),
    ("/host:CPU", "tf_XLA"),
)


def dearest(folder: Path) -> list[dict[str, Any]]:
    """Returns the kernels with the most time: name, milliseconds in all, times run, share of all kernels' time.

    Args:
        folder: as given to `jax.profiler.trace`.

    Raises:
        FileNotFoundError: there is no trace in it.
        ValueError: no device's work is in the trace.
    """
    file = next(folder.glob("**/*.trace.json.gz"), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: wanted a *.trace.json.gz, found none")
    with gzip.open(file) as stream:
        events = json.load(stream)["traceEvents"]
    found = _by_name(events)
    if not found:
        raise ValueError("the trace has no work of a device")
    total = sum(sum(durations) for durations in found.values())
    first = sorted(found.items(), key=lambda item: -sum(item[1]))[:KERNELS]
    return [
        {"name": name, "ms": sum(durations) / 1e3, "runs": len(durations), "share": sum(durations) / total}
        for name, durations in first
    ]


def _by_name(events: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Name -> durations in microseconds of the events of the device."""
    processes, threads = {}, {}
    for event in events:
        if event.get("name") == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event.get("name") == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    for process, thread in PLACES:
        found = defaultdict(list)
        for event in events:
            place = processes.get(event.get("pid"), ""), threads.get((event.get("pid"), event.get("tid")), "")
            if event.get("ph") != "X" or event["name"].startswith(AROUND):
                continue
            if place[0].startswith(process) and place[1].startswith(thread):
                found[event["name"]].append(event.get("dur", 0.0))
        if found:
            return found
    return {}

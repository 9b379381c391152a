"""The Markdown page of a run: tables of what was timed, and the ratio of ours to the peer."""

from collections.abc import Iterator
from typing import Any

from rows import ROWS

Report = dict[str, Any]
Case = dict[str, Any]
PAIRS = {  # title -> (row of ours, row of the peer)
    "Latency": ("latency", "latency, diffusers"),
    "Ensemble": ("ensemble", "ensemble, diffusers"),
    "Throughput": ("throughput", "throughput, diffusers"),
    "Training, latents encoded in advance": ("training, latents", "training, latents, PyTorch"),
    "Training, images encoded in the step": ("training, images", "training, images, PyTorch"),
}
VARIANTS = {  # of ours -> the row with everything on automatic
    "latency, no cuDNN attention": "latency",
    "latency, strips": "latency",
    "latency, no strips": "latency",
    "training, latents, no cuDNN attention": "training, latents",
}
PROFILES = ("profile", "profile, training")
GIB = 2**30


def markdown(report: Report) -> str:
    parts = (_head, _comparisons, _variants, _profiles, _left_out)
    return "\n".join(line for part in parts for line in part(report))


def _head(report: Report) -> Iterator[str]:
    device, peak, (height, width) = report["device"], report["device"].get("peak_flops"), report["picture"]
    like = (
        "the size of Stable Diffusion 2" if report["size"] == "full" else "the size of a test, so times mean nothing,"
    )
    against = f"{peak / 1e12:.0f} TFLOP/s" if peak else "the peak of the device, which is not known here"
    yield f"# Timed on {device['kind']}"
    yield ""
    yield f"{report['date']}, `{report['command']}`, {report['elapsed_s']:.0f} of {report['budget_s']:.0f} s used."
    yield ""
    yield "All figures were timed on this device; none is a forecast. The networks have"
    yield f"{like} and random weights, in bfloat16."
    yield f"Predictions have {width}x{height} pixels, training {report['training'][1]}x{report['training'][0]}."
    yield "Seconds are the median of the calls after the first. The first one compiles, unless a row before it did."
    yield "The ratio is the speed of ours divided by that of the peer: above 1, ours is faster."
    yield "MFU counts the operations of our program, without those that are repeated to save memory, against"
    yield f"{against}."
    yield ""
    yield "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + "."


def _cases(report: Report, name: str) -> list[Case]:
    return report["rows"].get(name, {}).get("cases", [])


def _same(case: Case, others: list[Case]) -> Case | None:
    """The measured case of another row with the same steps, members and batch."""
    keys = ("steps", "members", "batch")
    wanted = [case.get(key) for key in keys]
    return next((other for other in others if "seconds" in other and [other.get(k) for k in keys] == wanted), None)


def _samples(case: Case) -> float:
    return case["batch"] / case["seconds"]


def _cells(case: Case, operations: float | None, peak: float | None) -> list[str]:
    """Seconds, pictures per second, MFU, peak memory, first call."""
    if "seconds" not in case:
        return [case.get("error", "not measured").replace("|", "\\|"), "", "", "", ""]
    mfu = f"{operations / case['seconds'] / peak:.1%}" if operations and peak else ""
    memory = f"{case['peak_bytes'] / GIB:.2f}"
    return [f"{case['seconds']:.4g}", f"{_samples(case):.4g}", mfu, memory, f"{case['first_s']:.1f}"]


def _label(case: Case) -> str:
    words = []
    if "steps" in case:
        words.append(f"{case['steps']} step{'s' * (case['steps'] > 1)}")
    if case.get("members", 1) > 1:
        words.append(f"ensemble of {case['members']}")
    return ", ".join([*words, f"batch {case['batch']}"])


HEADER = ("", "", "seconds", "samples/s", "MFU", "peak, GiB", "first call, s", "ratio")


def _table(header: tuple[str, ...], lines: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def _comparisons(report: Report) -> Iterator[str]:
    peak = report["device"].get("peak_flops")
    for title, (ours, theirs) in PAIRS.items():
        both = [(name, case) for name in (ours, theirs) for case in _cases(report, name)]
        if not both:
            continue
        lines = []
        for name, case in both:
            per_sample = _operations_per_sample(case, _cases(report, ours))
            side = "ours" if name == ours else name.rpartition(", ")[2]
            ratio = ""
            if name == ours and "seconds" in case:
                other = _same(case, _cases(report, theirs))
                ratio = f"{_samples(case) / _samples(other):.2f}" if other else ""
            operations = per_sample and per_sample * case["batch"]
            lines.append([_label(case), side, *_cells(case, operations, peak), ratio])
        yield from ("", f"## {title}", "")
        yield from _table(HEADER, lines)
        if best := _best(report, ours, theirs):
            yield from ("", best)


def _operations_per_sample(case: Case, ours: list[Case]) -> float | None:
    """Of the same work in our program, which is also what the peer is measured by."""
    if "operations" in case:
        return case["operations"] / case["batch"]
    keys = ("steps", "members")
    same = (other for other in ours if "operations" in other and all(other.get(key) == case.get(key) for key in keys))
    return next((other["operations"] / other["batch"] for other in same), None)


def _best(report: Report, ours: str, theirs: str) -> str:
    """The fastest of each side, where several batches were measured or each side has another."""
    speeds = [[_samples(case) for case in _cases(report, name) if "seconds" in case] for name in (ours, theirs)]
    if not all(speeds) or not ours.startswith(("throughput", "training")):
        return ""
    fastest = [max(each) for each in speeds]
    return (
        f"At the best batch of each: {fastest[0]:.4g} and {fastest[1]:.4g} samples/s, ratio "
        f"{fastest[0] / fastest[1]:.2f}."
    )


def _variants(report: Report) -> Iterator[str]:
    lines = []
    for name, plain in VARIANTS.items():
        for case in _cases(report, name):
            other = _same(case, _cases(report, plain))
            ratio = f"{_samples(case) / _samples(other):.2f}" if other and "seconds" in case else ""
            cells = _cells(case, case.get("operations"), report["device"].get("peak_flops"))
            lines.append([name, _label(case), *cells, ratio])
    if lines:
        yield from ("", "## Choices of ours", "", "The ratio is the speed compared with the automatic choice.", "")
        yield from _table(HEADER, lines)


def _profiles(report: Report) -> Iterator[str]:
    for name in PROFILES:
        for case in _cases(report, name):
            yield from ("", f"## {name.capitalize()}: {_label(case)}", "")
            if "kernels" not in case:
                yield case.get("error", "not measured")
                continue
            yield f"Time on the device in {case['calls']} calls, the dearest kernels first."
            yield ""
            yield from _table(
                ("kernel", "ms", "times run", "share"),
                [
                    [f"`{kernel['name'][:100]}`", f"{kernel['ms']:.3g}", str(kernel["runs"]), f"{kernel['share']:.1%}"]
                    for kernel in case["kernels"]
                ],
            )


def _left_out(report: Report) -> Iterator[str]:
    lines = [f"- {name}: {row['note']}" for name, row in report["rows"].items() if row.get("note")]
    waiting = [name for name in ROWS if name not in report["rows"]]
    if waiting:
        lines.append(f"- not reached when this page was written: {'; '.join(waiting)}")
    if lines:
        yield from ("", "## Not measured", "", *lines)
    yield ""

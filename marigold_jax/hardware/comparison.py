"""Figures of compiled programs, and those of two runs of `aot` side by side."""

from typing import Any

from marigold_jax.hardware import forecast
from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.compiled import Compiled

# Name of a figure -> what it is divided by in the table, and the unit that this gives.
FIGURES = {
    "samples": (1, ""),
    "seconds to compile": (1, "s"),
    "bytes": (2**30, "GiB"),
    "operations": (1e12, "TFLOP"),
    "memory traffic": (2**30, "GiB"),
    "traffic inside the chip": (2**30, "GiB"),
    "sent": (2**30, "GiB"),
    "instructions": (1, ""),
    "cycles": (1e6, "M"),
    "seconds": (1e-3, "ms"),
}
A_SAMPLE = ("memory traffic", "cycles", "seconds")  # also shown divided by the samples of a call


def figures(program: Compiled, chip: Chip | None) -> dict[str, Any]:
    """Returns the figures of one call of a program on one chip; seconds are left out if the chip is unknown."""
    rows = program.executed
    found = {
        "name": program.name,
        "samples": program.samples,
        "seconds to compile": program.seconds,
        "bytes": sum(program.bytes.values()),
        "operations": program.work.flops,
        "memory traffic": program.work.memory,
        "traffic inside the chip": sum(row.times * row.on_chip for row in rows),
        "sent": program.work.sent,
        "instructions": sum(row.times for row in rows),
        "cycles": forecast.cycles(rows),
    }
    if chip is None:
        return found
    return found | {
        "seconds": sum(forecast.seconds(row, chip) for row in rows),
        "kinds": [share._asdict() for share in forecast.by_kind(rows, chip)],
        "dearest": [share._asdict() for share in forecast.dearest(rows, chip, 100)],
    }


def is_of_aot(values: dict[str, Any]) -> bool:
    """Whether the values are a target and the figures of its programs, as `aot --json` writes them."""
    programs = values.get("programs")
    return "target" in values and isinstance(programs, list) and all("name" in program for program in programs)


def compare(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Returns a table of the figures of two results of `load`, with ratios, for the programs that both have."""
    others = {_kind(program): program for program in before["programs"]}
    lines = [f"{before['target']} before, {after['target']} now"]
    for program in after["programs"]:
        if other := others.get(_kind(program)):
            lines += [_heading(other, program), *_rows(other, program)]
    return "\n".join(lines if len(lines) > 1 else [*lines, "  no program is in both"])


def _kind(program: dict[str, Any]) -> str:
    return program["name"].partition(" ")[0]


def _heading(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = before["name"], after["name"]
    what = names[1] if names[0] == names[1] else f"{names[0]}  ->  {names[1]}"
    return f"{what}\n  {'':<32} {'before':>12} {'now':>12}         ratio"


def _rows(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = []
    for name, (scale, unit) in FIGURES.items():
        old, new = (program.get(name) for program in (before, after))
        if old or new:
            lines.append(_row(name, old, new, scale, unit))
        if old and new and before["samples"] != after["samples"] and name in A_SAMPLE:
            lines.append(_row("  a sample", old / before["samples"], new / after["samples"], scale, unit))
    shares = [{tuple(share["name"]): share for share in program.get("kinds", [])} for program in (before, after)]
    for name in sorted({*shares[0], *shares[1]}, key=lambda name: -shares[-1].get(name, {}).get("seconds", 0)):
        times = [share.get(name, {}).get("times") for share in shares]
        seconds = [share.get(name, {}).get("seconds") for share in shares]
        lines.append(_row(f"{name[0]} ({times[0] or 0}, {times[1] or 0})", *seconds, 1e-3, "ms"))
    return lines


def _row(name: str, old: int | float | None, new: int | float | None, scale: int | float, unit: str) -> str:
    numbers = (f"{value / scale:.4g}" if value is not None else "-" for value in (old, new))
    ratio = f"{new / old:.3f}" if old and new is not None else "-"
    return f"  {name:<32} {next(numbers):>12} {next(numbers):>12} {unit:<5} {ratio:>8}"

"""What a compiled program needs, as lines of text."""

from marigold_jax.hardware import forecast, roofline, tpu_clock
from marigold_jax.hardware.chips import Chip
from marigold_jax.hardware.compiled import Compiled
from marigold_jax.hardware.units import in_seconds, in_words


def report(program: Compiled, chip: Chip | None) -> str:
    """Returns the needs of one program. How long it takes is left out if the chip is unknown."""
    total = sum(program.bytes.values())
    sizes = ", ".join(f"{name} {in_words(size)}" for name, size in program.bytes.items() if size)
    of = (
        f" of {in_words(chip.memory)} ({total / chip.memory:.1%}{'' if total <= chip.memory else ': DOES NOT FIT'})"
        if chip
        else ""
    )
    inside = sum(row.times * row.on_chip for row in program.executed)
    lines = [
        f"  compiled in {program.seconds:.1f} s",
        f"  bytes a chip   {in_words(total)}{of}: {sizes}",
        f"  traffic        {in_words(program.work.memory)} of main memory, "
        f"{f'{in_words(inside)} inside the chip, ' if inside else ''}{in_words(program.work.sent)} sent",
    ]
    lines += [
        f"  collectives    {row.count:.0f} {row.kind}, {in_words(row.bytes)} in all, {in_words(row.sent)} sent"
        for row in program.collectives
    ]
    return "\n".join(lines + (_times(program, chip) if chip else []))


def _times(program: Compiled, chip: Chip) -> list[str]:
    rows = program.executed
    seconds = sum(forecast.seconds(row, chip) for row in rows)
    if not seconds:
        return []
    useful = program.work.useful
    total = f"{in_seconds(seconds)} in all" + (f", MFU {useful / chip.peak_flops / seconds:.1%}" if useful else "")
    if chip.clock:
        cycles = forecast.cycles(rows)
        by_clock = f"{cycles / 1e6:.4g} M cycles at {chip.clock / 1e9:.3g} GHz, {in_seconds(cycles / chip.clock)}"
        beside = sum(forecast.seconds(row, chip) for row in rows if not tpu_clock.clocked(row))
        unclocked = f"; not clocked: {in_seconds(beside)} at the chip's peak" if beside else ""
        head = f"  clock          {by_clock}{unclocked}; {total}"
    else:
        head = f"  kernels        {sum(row.times for row in rows)}; {total}"
    unit = "M cycles" if chip.clock else "us"
    columns = f"  {'share':>6} {unit:>9} {'times':>6} {'memory':>10} {'TFLOP':>8}"
    lines = [head, f"{columns}  by kind"]
    lines += [_line(share, seconds, chip) for share in forecast.by_kind(rows, chip)]
    lines.append(f"{columns}  dearest, and where they come from")
    return lines + [_line(share, seconds, chip) for share in forecast.dearest(rows, chip)]


def _line(share: forecast.Share, seconds: float, chip: Chip) -> str:
    spent = f"{share.cycles / 1e6:.3f}" if share.cycles else "-" if chip.clock else f"{share.seconds * 1e6:.1f}"
    unclocked = ("not clocked, at peak",) if chip.clock and share.seconds and not share.cycles else ()
    return (
        f"  {share.seconds / seconds:6.1%} {spent:>9} {share.times:>6} {in_words(share.hbm):>10} "
        f"{share.operations / 1e12:8.3f}  {', '.join(part for part in (*share.name, *unclocked) if part)}"
    )


def timing(what: str, programs: list[tuple[Compiled, int]], chip: Chip, samples: int) -> str:
    """Returns the estimates for a training step or a prediction, and the samples per second of all chips.

    Args:
        what: as in "a step".
        programs: that it runs, and how often each.
        chip: that they run on.
        samples: on all chips together.
    """
    work, seconds = roofline.Work(0.0, 0.0, 0.0, 0.0), 0.0
    for program, count in programs:
        work += program.work.times(count)
        seconds += count * sum(forecast.seconds(row, chip) for row in program.executed)
    found = roofline.estimate(work, chip)
    lines = [
        f"{what}: compute {in_seconds(found.compute)}, memory {in_seconds(found.memory)}, links "
        f"{in_seconds(found.links)}",
        f"  at least {in_seconds(found.least)}, bound by {found.bound}: {samples / found.least:.4g} samples/s, "
        f"MFU {found.mfu:.1%}",
        f"  with no overlap {in_seconds(found.most)}: {samples / found.most:.4g} samples/s, "
        f"MFU {found.mfu_without_overlap:.1%}",
    ]
    if seconds:
        lines.append(
            f"  {'by the clock' if chip.clock else 'by the kernels'} {in_seconds(seconds)}, without what is sent: "
            f"{samples / seconds:.4g} samples/s, MFU {work.useful / chip.peak_flops / seconds:.1%}"
        )
    return "\n".join(lines)

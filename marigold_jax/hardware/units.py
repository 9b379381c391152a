"""Figures with their units, as text."""

MIB, GIB = 2**20, 2**30


def in_words(count: int | float) -> str:
    """Returns a number of bytes in GiB or MiB."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.2f} MiB"


def in_seconds(seconds: float) -> str:
    """Returns a duration in seconds or milliseconds."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1e3:.3g} ms"

"""Filename lists in the format of the official repository: one line per frame, with an RGB path and a depth path."""

import codecs
import re
from pathlib import Path

from marigold_jax.runtime.files import below, printable, regular

NO_DEPTH = "None"  # in the second column of official lists
SURROGATES = "surrogateescape"  # as in Python's names of files that are not UTF-8
COLUMN = re.compile(r"""(?:"[^"]*"|'[^']*'|\S+)(?=\s|$)""")
QUOTED = re.compile(r"""^(["'])(.*)\1$""")


def filename_lines(path: str | Path) -> list[list[str]]:
    """The columns of every line of a filename list: `rgb depth ...`, as relative paths.

    Columns are separated by tabs if the line has any, and by blanks otherwise; names with blanks may be quoted. Lines
    that begin with # are comments. Names that are not UTF-8 are returned with surrogate characters.

    Raises:
        ValueError: the list is missing, empty, or has a line of one column; or a name is absolute or contains "..".
    """
    try:
        content = regular(path).read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes it
        text = content.decode("utf-16") if utf16 else content.removeprefix(codecs.BOM_UTF8).decode(errors=SURROGATES)
    except (OSError, ValueError) as error:
        reason = printable(getattr(error, "strerror", None) or error)
        raise ValueError(f"{path}: cannot read this filename list ({reason})") from None
    found = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        columns = _columns(line)
        if len(columns) < 2:
            raise ValueError(
                f"{path}: every line must hold an RGB path and a depth path; line {number} is {printable(line)!r}"
            )
        for name in columns:
            try:
                below(Path(path).parent, name)
            except ValueError:
                raise ValueError(
                    f"{path}: line {number}: wanted relative names, without '..'; got {printable(name)!r}"
                ) from None
        found.append(columns)
    if not found:
        raise ValueError(f"{path}: the filename list is empty")
    return found


def read_filename_list(path: str | Path) -> list[list[str]]:
    """The lines of a filename list (see `filename_lines`) that have a depth map."""
    return [columns for columns in filename_lines(path) if columns[1] != NO_DEPTH]


def is_utf8(name: str) -> bool:
    """Whether a name from a filename list or the file system was valid UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _columns(line: str) -> list[str]:
    parts = map(str.strip, line.split("\t")) if "\t" in line else (match[0] for match in COLUMN.finditer(line))
    return [QUOTED.sub(r"\2", part) for part in parts if part]

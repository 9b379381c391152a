"""Files that others made, and files that others will read: every program opens and writes them through here.

Nothing from outside is trusted: only regular files are opened, a name from a file never leaves its folder, and JSON is
an object of a sane size or one line that says what was found. Whatever is written appears whole, by rename.
"""

import contextlib
import json
import os
import stat
import threading
from collections.abc import Mapping
from io import IOBase
from pathlib import Path
from typing import Any

LARGEST_JSON = 2**26  # bytes; the largest that a checkpoint has, tokenizer.json, is a twentieth of it


def regular(path: str | Path) -> Path:
    """Returns `path` if it is a regular file, or a link to one.

    Opening a FIFO waits for ever, and a device may never end. Raises FileNotFoundError, or ValueError that says what
    the path is.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name that is too long, or that holds a null character
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path}: wanted a file, found a folder")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: wanted a regular file, found a {_kind(mode)}")
    return path


def _kind(mode: int) -> str:
    tests = {stat.S_ISFIFO: "FIFO", stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISBLK: "device"}
    return next((name for test, name in tests.items() if test(mode)), "special file")


def below(folder: Path, name: str) -> Path:
    """The path `folder / name` for a name that stands in a file: relative, and without a way out.

    Raises ValueError for an absolute name, one with "..", or an empty one.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"{printable(name)!r}: wanted a relative name below {folder}, without '..'")
    return folder / path


def read_json(file: str | Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError or ValueError, each with one line that begins with the file."""
    file = regular(file)
    if (size := file.stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{file}: {size} bytes, wanted a JSON file of at most {LARGEST_JSON}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not text, not JSON, or nested too deeply
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: wanted a JSON object, found {type(values).__name__}")
    return values


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes `path` whole or not at all, by renaming. Raises OSError, and then leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object as `write` does."""
    write(path, json.dumps(dict(values), indent=2).encode() + b"\n")


def append_lines(path: Path) -> IOBase:
    """Opens a file of lines for appending, unbuffered. A last line that a full disk or a kill cut short is ended first,
    so that the next one does not run on from it."""
    file = open(path, "a+b", buffering=0)
    if size := file.seek(0, os.SEEK_END):
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def append(file: IOBase, lines: bytes) -> None:
    """Adds whole lines to a file that `append_lines` opened. Raises OSError, and then leaves none of them behind.

    The system may write a part, and say so with no error: a disk that is nearly full.
    """
    before, rest = os.fstat(file.fileno()).st_size, memoryview(lines)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # what another program has added meanwhile stays
            if os.fstat(file.fileno()).st_size == before + len(lines) - len(rest):
                file.truncate(before)
        raise


def printable(text: object) -> str:
    """Text for a terminal or a log, on one line: characters that control either, and undecodable bytes, are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in str(text)
    )

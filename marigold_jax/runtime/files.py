"""Reads files from untrusted sources, and writes files atomically.

Only regular files are opened. A name that is stored in a file cannot point out of its folder. A JSON file must be an
object of a reasonable size. Files are written under a temporary name and then renamed, so no reader sees half a file.
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

LARGEST_JSON = 2**26  # bytes; about 20 times the size of tokenizer.json, the largest in a checkpoint


def regular(path: str | Path) -> Path:
    """Returns `path` if it is a regular file, or a link to one.

    To open a FIFO could block forever, and to read a device might never end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is something else, which the error names.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name that is too long, or that has a null character
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
    """Returns `folder / name` for a name that was read from a file.

    Raises:
        ValueError: the name is empty, absolute, or contains "..".
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"{printable(name)!r}: wanted a relative name below {folder}, without '..'")
    return folder / path


def read_json(file: str | Path) -> dict[str, Any]:
    """Returns a JSON object. Raises FileNotFoundError or ValueError with one line that starts with the file name."""
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
    """Writes a file completely or not at all, by renaming. If it raises OSError, no temporary file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def writable(path: Path) -> None:
    """Makes the folder of a file that will be written. Raises ValueError, with one line, if the file cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path}: its folder cannot be made: {error.strerror}") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: wanted the name of a file, in a folder that can be written to")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON object as `write` does."""
    write(path, json.dumps(dict(values), indent=2).encode() + b"\n")


def append_lines(path: Path) -> IOBase:
    """Opens a file of lines for appending, unbuffered.

    If the last line is incomplete, because the disk was full or the process was killed, a line break is added first.
    """
    file = open(path, "a+b", buffering=0)
    if size := file.seek(0, os.SEEK_END):
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def append(file: IOBase, lines: bytes) -> None:
    """Adds whole lines to a file that `append_lines` opened. If it raises OSError, none of them are left in the file.

    On a disk that is nearly full, the system may write only a part without an error.
    """
    before, rest = os.fstat(file.fileno()).st_size, memoryview(lines)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # lines that another program added meanwhile are kept
            if os.fstat(file.fileno()).st_size == before + len(lines) - len(rest):
                file.truncate(before)
        raise


def printable(text: object) -> str:
    """Returns one line for a terminal or a log, with control characters and undecodable bytes escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in str(text)
    )

"""Which pictures a command line names: files, folders and quoted globs, without what this program wrote itself."""

import glob
import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from marigold_jax.data.images import HEIF_EXTENSIONS, HEIF_HINT, extensions
from marigold_jax.inference.journal import is_journal
from marigold_jax.inference.outputs import is_output
from marigold_jax.runtime.files import printable

SIDECARS = frozenset("thumbs.db ehthumbs.db desktop.ini".split())  # that systems leave in folders of pictures
NAMED = 20  # files that are passed over, at most, in one line
LOOKED_AT = 1000  # folders, at most, that are searched before --recursive is suggested


def find_images(patterns: list[str], recursive: bool = False) -> tuple[list[Path], list[tuple[str, str]]]:
    """Finds the pictures that `patterns` name: files, folders and quoted globs.

    In a folder, those are the files with a known extension in any case, sorted by name. With `recursive`, those of its
    subfolders are found too, except for predictions of this program.

    Returns:
        The pictures in order, each once; and pairs (pattern, what is wrong with it in one line).
    """
    found, problems, real = {}, [], cache(os.path.realpath)
    for pattern in patterns:
        path = Path(pattern)
        try:
            if path.is_dir():
                matches, unreadable = _pictures_in([path], recursive)
                problem = "no pictures in this folder"
                if not matches and not recursive and _pictures_below(path):
                    problem += "; its subfolders hold some: add --recursive"
            elif os.path.lexists(path):
                matches, unreadable, problem = [path], [], ""
            else:
                matches = sorted(map(Path, _expand(pattern)))
                folders = [match for match in matches if match.is_dir()]
                below, unreadable = _pictures_in(folders, recursive) if recursive else ([], [])
                matches = [match for match in matches if not match.is_dir()] + below
                problem = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
                if folders and not recursive:
                    problem = "only folders match: name them without quotes, or add --recursive"
        except (OSError, ValueError) as error:  # ValueError: a null character
            matches, unreadable, problem = [], [], getattr(error, "strerror", None) or str(error)
        for match in matches:  # two spellings of one entry of a folder are one; a link to a picture is another
            found.setdefault((real(match.parent), match.name), match)
        problems += unreadable
        if not matches and not unreadable:
            problems.append((pattern, problem))
    return list(found.values()), problems


def passed_over(patterns: list[str], recursive: bool = False) -> list[str]:
    """One line for each folder among `patterns` with files that `find_images` does not take: how many, and which.

    Hidden files, and those that systems leave in folders of pictures, are not counted.
    """
    lines, known = [], extensions()
    for folder in filter(os.path.isdir, dict.fromkeys(patterns)):
        others, hinted = [], False
        for below in _folders(Path(folder), []) if recursive else [Path(folder)]:
            for entry in _entries(below, []):
                kind, is_folder = _kind(entry), _is_folder(entry)
                misnamed = is_folder and not recursive and kind in known
                if misnamed or not (is_folder or kind in known or _ignored(entry.name)):
                    name = printable((below / entry.name).relative_to(folder))
                    hint = "a folder" if misnamed else HEIF_HINT if kind in HEIF_EXTENSIONS and not hinted else ""
                    hinted |= hint == HEIF_HINT
                    others.append(f"{name} ({hint})" if hint else name)
        if others:
            named = others[:NAMED] + ([f"and {len(others) - NAMED} more"] if len(others) > NAMED else [])
            files = "1 file in {} was" if len(others) == 1 else f"{len(others)} files in {{}} were"
            lines.append(f"{files.format(printable(folder))} passed over: {', '.join(named)}")
    return lines


def _pictures_in(folders: list[Path], recursive: bool) -> tuple[list[Path], list[tuple[str, str]]]:
    """The files with the name of a picture, whether or not they are one; and the folders that cannot be read."""
    found, unreadable, known = [], [], extensions()
    for top in folders:
        for folder in _folders(top, unreadable) if recursive else [top]:
            found += [folder / entry.name for entry in _entries(folder, unreadable) if _like_one(entry, known)]
    return found, unreadable


def _pictures_below(folder: Path) -> bool:
    folders, known = islice(_folders(folder, []), LOOKED_AT), extensions()
    return any(_like_one(entry, known) for below in folders for entry in _entries(below, []))


def _like_one(entry: os.DirEntry, known: frozenset[str]) -> bool:
    """Whether an entry has the name of a picture. macOS keeps data about a file in another that begins with "._"."""
    return _kind(entry) in known and not entry.name.startswith("._") and not _is_folder(entry)


def _kind(entry: os.DirEntry) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in SIDECARS or is_journal(name)


def _folders(top: Path, unreadable: list[tuple[str, str]]) -> Iterator[Path]:
    """`top` and the folders below it, sorted, each once even where links lead to it.

    Hidden folders are left out, and those with predictions of this program.
    """
    seen, waiting = set(), [top]
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        yield folder
        below = [entry.name for entry in _entries(folder, []) if _is_folder(entry) and not entry.name.startswith(".")]
        waiting += [folder / name for name in reversed(below) if not is_output(folder, name)]


def _entries(folder: Path, unreadable: list[tuple[str, str]]) -> list[os.DirEntry]:
    """The entries of a folder, sorted. A folder that cannot be read has none and is added to `unreadable`."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        unreadable.append((str(folder), error.strerror))
        return []


def _expand(pattern: str) -> Iterator[str]:
    """As `glob.glob(pattern, recursive=True)`, but "**" visits each folder once and leaves out our predictions."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    for top in glob.glob(os.path.join(*parts[:at])) if at else ["."]:
        for folder in _folders(Path(top), []) if os.path.isdir(top) else ():
            yield from _expand(os.path.join(glob.escape(str(folder)), *rest))

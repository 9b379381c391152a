"""The user's cache folder, for files that can be computed again: compiled programs, the embedding of the empty prompt.

Compiled programs are run from there without a check. Anyone who can write into the folder, or replace it, can run code
as its owner. So it must belong to the user and must not be writable by others.
"""

import functools
import os
import stat
import sys
from pathlib import Path


def user_cache(name: str) -> Path:
    """Returns `$MARIGOLD_JAX_CACHE/name`, or else `name` in the user's cache folder. Creates it if necessary.

    Only the user can read and write a new folder. A user without a home folder, as in some containers, gets a path that
    cannot be created, so nothing is cached. The same holds if the folder belongs to another user or is writable by
    others; then one line on stderr gives the reason.
    """
    root = os.environ.get("MARIGOLD_JAX_CACHE")
    try:
        caches = Path(root or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marigold_jax")
    except RuntimeError:
        return Path(os.devnull) / name
    return caches / name if _private((caches / name).absolute()) else Path(os.devnull) / name


@functools.cache
def _private(folder: Path) -> bool:
    """Creates the folder if possible. Returns whether it is safe to use; if it is not, prints the reason once."""
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
        problem = next(filter(None, map(_problem, _deciding(folder))), None)
    except OSError:  # it cannot be created, for example in a read-only home: nothing is cached
        return True
    if problem:
        advice = "correct that, or set MARIGOLD_JAX_CACHE to another folder"
        print(f"{folder}: not used as a cache: {problem}; {advice}", file=sys.stderr)
    return not problem


def _deciding(folder: Path) -> list[tuple[Path, bool]]:
    """Returns the folders whose permissions matter, each with whether it is `folder` itself. Links are resolved too."""
    real = folder.resolve()
    return [(real, True), *((path, False) for path in dict.fromkeys((*folder.parents, *real.parents)))]


def _problem(place: tuple[Path, bool]) -> str | None:
    """Returns why another user could change the folder, or replace it, if the place is above it; None if not."""
    path, itself = place
    status, me = path.stat(), getattr(os, "geteuid", lambda: None)()
    if me is None:  # Windows has no such permissions
        return None
    if status.st_uid not in ((me,) if itself else (me, 0)):
        return f"{path} belongs to user {status.st_uid}, wanted {me}"
    # With the sticky bit, as in /tmp, users cannot replace the folders of others. The user's own group is trusted.
    safe = not itself and (status.st_mode & stat.S_ISVTX)
    others = stat.S_IWOTH | (stat.S_IWGRP if itself or status.st_gid != os.getegid() else 0)
    if status.st_mode & others and not safe:
        return f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}, wanted 700)"
    return None

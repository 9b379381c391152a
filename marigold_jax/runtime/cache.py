"""Where this program keeps what it can make again: compiled programs, the answer to the empty prompt.

Compiled programs are run as they lie there, so the folder must be its user's own: whoever else can write into it, or
put another in its place, runs code as its reader.
"""

import functools
import os
import stat
import sys
from pathlib import Path


def user_cache(name: str) -> Path:
    """`$MARIGOLD_JAX_CACHE/name`, else `name` in the user's own cache folder; made, for its user alone, if missing.

    Who has no home, as in a container with a user of its own, gets a folder that cannot be made: nothing is kept. So
    does, with a line on stderr, whose folder is somebody else's or can be written by others.
    """
    root = os.environ.get("MARIGOLD_JAX_CACHE")
    try:
        caches = Path(root or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marigold_jax")
    except RuntimeError:
        return Path(os.devnull) / name
    return caches / name if _private((caches / name).absolute()) else Path(os.devnull) / name


@functools.cache
def _private(folder: Path) -> bool:
    """Makes the folder, where it can be made, and says so, once, where it must not be used."""
    try:
        for path in (*reversed(folder.parents), folder):
            if not path.exists():
                path.mkdir(mode=0o700, exist_ok=True)
        problem = next(filter(None, map(_problem, _deciding(folder))), None)
    except OSError:  # nothing is there and nothing can be made: a read-only home costs time, nothing else
        return True
    if problem:
        advice = "correct that, or name another folder by MARIGOLD_JAX_CACHE"
        print(f"{folder}: not used to keep what was compiled or computed: {problem}; {advice}", file=sys.stderr)
    return not problem


def _deciding(folder: Path) -> list[tuple[Path, bool]]:
    """All folders that decide what is in `folder`, and whether it is that folder itself; links lead to two of each."""
    real = folder.resolve()
    return [(real, True), *((path, False) for path in dict.fromkeys((*folder.parents, *real.parents)))]


def _problem(place: tuple[Path, bool]) -> str | None:
    """Why somebody else could change what is in the folder; above it, that is who may put another in its place."""
    path, itself = place
    status, me = path.stat(), getattr(os, "geteuid", lambda: None)()
    if me is None:  # Windows has no such permissions
        return None
    if status.st_uid not in ((me,) if itself else (me, 0)):
        return f"{path} belongs to user {status.st_uid}, wanted {me}"
    # Where the sticky bit is set, as on /tmp, nobody replaces another's folder; a group of one's own is oneself.
    safe = not itself and (status.st_mode & stat.S_ISVTX)
    others = stat.S_IWOTH | (stat.S_IWGRP if itself or status.st_gid != os.getegid() else 0)
    if status.st_mode & others and not safe:
        return f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}, wanted 700)"
    return None

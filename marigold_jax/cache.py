"""Where this program keeps what it can make again: compiled programs, the answer to the empty prompt."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """`$MARIGOLD_JAX_CACHE/name`, else `name` in the user's own cache folder. Not created here.

    Who has no home, as in a container with a user of its own, gets a folder that cannot be made: nothing is kept.
    """
    root = os.environ.get("MARIGOLD_JAX_CACHE")
    if root:
        return Path(root) / name
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return Path(os.devnull) / name
    return caches / "marigold_jax" / name

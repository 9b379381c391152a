"""Where this program keeps what it can make again: compiled programs, the answer to the empty prompt."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """`$MARIGOLD_JAX_CACHE/name`, else `name` in the user's own cache folder. Not created here."""
    root = os.environ.get("MARIGOLD_JAX_CACHE")
    if root:
        return Path(root) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marigold_jax" / name

"""The persistent compilation cache, and a count of what it saved.

A program is compiled once for each geometry of image; on disk it survives the process. The folder belongs to one user
and must stay so: whoever can write into it can run code as its reader.
"""

import contextlib
from collections import Counter

import jax

from marigold_jax.runtime.cache import user_cache

_events: Counter[str] = Counter()
_HITS = "/jax/compilation_cache/cache_hits"
_MISSES = "/jax/compilation_cache/cache_misses"
_COMPILED = "/jax/core/compile/backend_compile_duration"
WORTH_KEEPING = 0.5  # seconds that a program took to compile; what took less is not worth a file


def enable_cache() -> None:
    """Keep compiled programs in a per-user folder, unless JAX_COMPILATION_CACHE_DIR or jax.config already chose one."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = user_cache("programs")
        with contextlib.suppress(OSError):  # a read-only home costs compile time, nothing else
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if not _events:
        _events.update({_HITS: 0, _MISSES: 0})
        jax.monitoring.register_event_listener(lambda event, **_: _events.update([event]))
        if jax.config.jax_compilation_cache_dir is None:  # nobody counts what misses a cache that there is not
            jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def _count_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and duration_secs > WORTH_KEEPING:
        _events.update([_MISSES])


def counts() -> tuple[int, int]:
    """Programs worth keeping so far: (compiled here, taken from the cache). Zero before `enable_cache`."""
    return _events[_MISSES], _events[_HITS]

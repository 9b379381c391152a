"""The persistent compilation cache, and a count of its hits and misses.

A program is compiled once for each image size. The cache on disk is used again by later processes. Its folder must be
writable only by its owner: anyone who can write into it can run code as the user who reads it.
"""

import contextlib
from collections import Counter

import jax

from marigold_jax.runtime.cache import user_cache

_events: Counter[str] = Counter()
_HITS = "/jax/compilation_cache/cache_hits"
_MISSES = "/jax/compilation_cache/cache_misses"
_COMPILED = "/jax/core/compile/backend_compile_duration"
WORTH_KEEPING = 0.5  # seconds to compile; faster programs are not cached


def enable_cache() -> None:
    """Caches compiled programs in a per-user folder, unless JAX_COMPILATION_CACHE_DIR or jax.config sets another."""
    if jax.config.jax_compilation_cache_dir is None:
        folder = user_cache("programs")
        with contextlib.suppress(OSError):  # in a read-only home, nothing is cached
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH_KEEPING)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    if not _events:
        _events.update({_HITS: 0, _MISSES: 0})
        jax.monitoring.register_event_listener(lambda event, **_: _events.update([event]))
        if jax.config.jax_compilation_cache_dir is None:  # without a cache, JAX counts no misses
            jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def _count_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and duration_secs > WORTH_KEEPING:
        _events.update([_MISSES])


def counts() -> tuple[int, int]:
    """Returns the number of cacheable programs so far: (compiled, read from the cache). Zero before `enable_cache`."""
    return _events[_MISSES], _events[_HITS]

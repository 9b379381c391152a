"""Stands in for the main module while the loader's worker processes start.

A spawned process imports the program that started it, and Grain imports JAX if it is installed. That costs seconds and
hundreds of megabytes per worker, and the loader's workers need neither.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

if __name__ == "__mp_main__":
    from absl import logging

    sys.modules["jax"] = None  # `import jax` now raises ImportError, which Grain handles with a warning
    logging.get_absl_logger().addFilter(lambda record: "jax profiler" not in record.msg)


@contextmanager
def as_main() -> Iterator[None]:
    """Processes that are spawned inside this block import this module instead of the running program."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = sys.modules[__name__]
    try:
        yield
    finally:
        sys.modules["__main__"] = program

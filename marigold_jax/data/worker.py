"""The first thing that a data worker process runs.

A spawned process imports the program that started it, and Grain imports JAX where it finds it: seconds and hundreds of
megabytes for each worker, and data workers need neither. While workers start, this module stands in for the program.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

if __name__ == "__mp_main__":
    from absl import logging

    sys.modules["jax"] = None  # `import jax` now raises ImportError, which Grain expects, but warns of
    logging.get_absl_logger().addFilter(lambda record: "jax profiler" not in record.msg)


@contextmanager
def as_main() -> Iterator[None]:
    """Processes that are spawned inside this block import this module in place of the running program."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = sys.modules[__name__]
    try:
        yield
    finally:
        sys.modules["__main__"] = program

"""Limits the memory that several threads use at the same time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """Makes threads wait while their amounts would add up to more than `most`. A larger amount runs alone."""

    def __init__(self, most: int):
        self._most = self._free = most
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()

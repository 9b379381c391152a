"""predictions.jsonl: the record of what was done, one line for each picture, with the counts and the progress bar."""

import contextlib
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from marigold_jax.runtime.files import append, append_lines, printable

JOURNAL = "predictions.jsonl"


def is_journal(name: str) -> bool:
    """Whether a file is such a record, by its name."""
    return name == JOURNAL or (name.startswith("predictions.") and name.endswith(".jsonl"))


def sources(folder: Path) -> dict[str, str]:
    """Which input each output was made from, by the record in `folder`. Outputs that it does not list are left out."""
    made = {}
    with contextlib.suppress(OSError), open(folder / JOURNAL, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a torn line, or not ours
                record = json.loads(line)
                made |= dict.fromkeys(record["outputs"], str(record["input"]))
    return made


class Journal:
    """predictions.jsonl (one line for each picture), the counts, the progress bar and the messages. Thread-safe.

    Several processes each write a `part`, numbered from 0, and the first process calls `gather` to join them. A record
    that is moved or removed during the run is started again. Every method that writes raises OSError, with the file's
    name, where the folder or the file cannot be written.

    Attributes:
        counts: how many pictures were "written", "skipped" and "failed".
        total: how many there are to do.
    """

    def __init__(self, folder: Path, part: int = 0):
        self.counts = Counter()
        self.total = 0
        self._path = folder / (f"predictions.{part}.jsonl" if part else JOURNAL)
        self._lock = threading.Lock()
        self._bar = None
        self._open()

    def start(self, total: int) -> None:
        """Shows a progress bar over `total` pictures, where standard error is a terminal."""
        self.total = total
        self._bar = tqdm(total=total, unit="image", disable=None, file=sys.stderr)

    def written(
        self, source: Path, files: list[str], size: tuple[int, int], seconds: float, **more: int | float
    ) -> None:
        record = {"input": str(source), "outputs": files, "size": size, "seconds": round(seconds, 3)}
        self._note("written", record | more)

    def failed(self, source: Path | str, reason: Exception | str) -> None:
        """Records a failure, and prints it to standard error in one line that begins with the file."""
        reason = printable(" ".join(str(reason).split()).removeprefix(f"{source}: "))
        self.say(f"{printable(source)}: {reason}")
        self._note("failed", {"input": str(source), "error": reason})

    def skipped(self) -> None:
        self._note("skipped", None)

    def lost(self, source: Path) -> None:
        """Counts a picture that was written as failed: its outputs are gone."""
        with self._lock:
            self.counts.subtract(["written"])
        self._note("failed", {"input": str(source), "error": "its outputs were written, and then removed or moved"})

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # standard error was closed at the other end
            tqdm.write(printable(line), file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._file.close()

    def _note(self, outcome: str, record: dict | None) -> None:
        with self._lock:
            if record:
                self._append(f"{json.dumps(record)}\n".encode())
            self.counts[outcome] += 1
            if self._bar is not None:
                with contextlib.suppress(OSError):
                    self._bar.update()

    def _append(self, line: bytes) -> None:
        try:
            there = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except OSError:
            there = False
        if not there:
            self._file.close()
            self._open()
        try:
            append(self._file, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = append_lines(self._path)


def gather(folder: Path) -> None:
    """Moves the lines of all parts into predictions.jsonl, including parts that an interrupted run left behind.

    Raises OSError, and then keeps the parts that were not moved.
    """
    for part in sorted(folder.glob("predictions.*.jsonl")):
        lines = part.read_bytes()
        with append_lines(folder / JOURNAL) as file:
            append(file, lines if lines.endswith(b"\n") or not lines else lines + b"\n")
        part.unlink()

"""A lock file that one process at a time can hold. The system releases it when the process ends or is killed."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from marigold_jax.runtime.files import printable

logger = logging.getLogger(__name__)

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # errors of file systems without locks
LONGEST_HOLDER = 200  # bytes


@contextlib.contextmanager
def lock(file: Path, held: str) -> Iterator[None]:
    """Holds the lock of `file` inside the block. The file is created if necessary and is not removed.

    If the file system does not support locks, logs a warning and continues without one.

    Args:
        file: the lock file.
        held: the beginning of the error.

    Raises:
        ValueError: another process holds the lock.
        OSError: the file cannot be opened.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            holder = printable(os.pread(handle, LONGEST_HOLDER, 0).decode(errors="replace").strip())
            raise ValueError(f"{held} ({holder or 'unknown process'}, which holds {file})") from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning("%s: this file system has no locks (%s): continuing without one", file, error.strerror)
        yield
    finally:
        os.close(handle)

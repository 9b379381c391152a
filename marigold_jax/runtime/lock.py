"""One process at a time: a lock on a file, which the system takes back when its process ends, however it ends."""

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

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # what file systems without locks answer
LONGEST_HOLDER = 200  # bytes


@contextlib.contextmanager
def lock(file: Path, held: str) -> Iterator[None]:
    """Holds the lock of `file`, which is made if missing and stays: nothing but a living process locks anything.

    Raises ValueError that begins with `held` where another process has it, and OSError where the file cannot be opened.
    Where the file system has no locks, a warning says so, and all goes on without.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            holder = printable(os.pread(handle, LONGEST_HOLDER, 0).decode(errors="replace").strip())
            raise ValueError(f"{held} ({holder or 'it does not say which process'}, which holds {file})") from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning("%s: this file system has no locks (%s): going on without", file, error.strerror)
        yield
    finally:
        os.close(handle)

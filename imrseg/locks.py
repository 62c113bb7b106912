"""One process at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

log = logging.getLogger(__name__)


def alone(path: Path, wait: str) -> AcquireReturnProxy:
    """Hold the lock file ``path``, in a ``with`` block; ``wait`` is logged where another process has it."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.warning(wait)
        return lock.acquire()


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder against others who ask for it so, without a file for it; where the system cannot, nothing is held."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some disks of other machines
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

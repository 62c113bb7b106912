"""One process at a time."""

from __future__ import annotations

import logging
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

"""glibc's allocator: how it treats what is freed, and how much of that it has. Nothing here does anything elsewhere."""

from __future__ import annotations

import ctypes
from typing import Any

# of its malloc.h; its manual says what these values do ("Malloc Tunable Parameters")
TRIM_THRESHOLD, MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


class _Totals(ctypes.Structure):
    """What mallinfo2 answers (glibc 2.33): bytes, all arenas together."""

    _fields_ = [("eight others", ctypes.c_size_t * 8), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def keep_freed_memory() -> None:
    """Has it keep what is freed for what is allocated next, in all of this process: as it comes, it gives large blocks
    back to the system, and a step of training then fetches all its memory anew, page by page."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, NEVER)
        mallopt(MMAP_MAX, NONE)


def freed_memory() -> int:
    """Bytes that were freed and not given back: the system counts them as used, and they can be allocated."""
    mallinfo2 = _function("mallinfo2")
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Totals
    return mallinfo2().fordblks


def _function(name: str) -> Any:
    """A function of the C library; None where it has no such."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # Windows has no name for all that is loaded
        return None

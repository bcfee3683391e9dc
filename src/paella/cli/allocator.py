"""How the C library allocates memory, in a process that is all ours."""

from __future__ import annotations

import ctypes

# of glibc's malloc.h; its manual says what these values do ("Malloc Tunable Parameters")
TRIM_THRESHOLD, MMAP_MAX = -1, -4
NEVER, NONE = -1, 0


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for what is allocated next: as it comes, it gives large blocks back to the system,
    and a step of training then fetches all its memory anew, page by page. Nothing changes under another C library."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # there is none, or (Windows) no name for all that is loaded
        return
    mallopt(TRIM_THRESHOLD, NEVER)
    mallopt(MMAP_MAX, NONE)

"""Let the C library keep the memory that training frees and takes again at every step."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
NEVER, LARGEST = -1, 2**31 - 1


def keep_memory() -> bool:
    """Tell glibc to give freed memory back to this process and not to the system; return whether it can be told.

    Else it returns large blocks at once, and the system hands them out again page by page, zeroed: a third of a CPU
    step at 160 pixels. The process keeps its largest size until it ends, and from here on: call it once, at the start
    of a program that trains on the CPU. Preloaded allocators (jemalloc, tcmalloc) do this by themselves.

    Source: mallopt(3), Linux man-pages.

    Example:
        >>> keep_memory() in (True, False)
        True
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, NEVER))

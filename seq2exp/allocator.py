"""How this process gets memory from the system, on the CPU."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """From now on this process keeps the memory that it frees, for the next allocation.

    Otherwise glibc maps every large tensor anew, and a part of every step goes into pages that the system hands out and
    clears. The resident set grows to about twice what is allocated. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mappings of single allocations
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back

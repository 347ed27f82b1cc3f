"""Keep freed memory in the process, in large pages: a step frees and asks again for the same large blocks.

glibc hands every block above 32 MB back to the kernel, which must then clear each page anew: a fifth of a step's time.
"""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 << 20  # <linux/mman.h>


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve large blocks from its heap and not to trim it; False on another C library."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20))
    is_kept = all([mallopt(option, value) == 1 for option, value in settings])
    if is_kept:
        _ask_for_huge_pages(library)
    return is_kept


def _ask_for_huge_pages(library: ctypes.CDLL) -> None:
    """Let the heap grow by addresses for half the memory, without memory, and ask the kernel for 2 MB a page there.

    Where it has none, or so many addresses are not allowed, all is as it was.
    """
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = library.malloc(size)
    if block:
        begin = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        library.madvise(begin, max(0, block + size - begin), _MADV_HUGEPAGE)
        library.free(block)

"""Keep freed memory in the process: a step frees and asks again for the same large blocks.

glibc hands every block above 32 MB back to the kernel, which must then clear each page anew: a fifth of a step's time.
"""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve large blocks from its heap and not to trim it; False on another C library."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20))
    return all([mallopt(option, value) == 1 for option, value in settings])

"""The C library's allocator, set for training on the CPU."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep what was freed instead of giving it back to the system; True if it will.

    A training step frees and takes the same activations again and again. Given back, each of their
    pages is fetched and zeroed anew. The process holds its peak until it ends. Nothing is done
    elsewhere than on Linux with glibc.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))

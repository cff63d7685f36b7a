"""How this process gives memory back to its operating system."""

import ctypes
import sys

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for the next step; returns whether it does. To be called before JAX has devices.

    XLA's CPU client allocates a program's scratch memory anew in every call. Above 32 MiB glibc takes it from the
    operating system each time and gives it back, which has to fill every page with zeros: up to a third of a small
    model's step. All threads share one arena, as those of other arenas are too small for large memory. At most 2 GiB
    are kept. Numbers do not change. Elsewhere than on Linux with glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    wanted = {_ARENA_MAX: 1, _MMAP_THRESHOLD: _MOST, _TRIM_THRESHOLD: _MOST}
    return mallopt is not None and all(mallopt(*parameter) for parameter in wanted.items())

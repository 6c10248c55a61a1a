"""The memory of a process that stays."""

from __future__ import annotations

import ctypes
import gc

LARGE_BYTES = 256 * 1024
_M_MMAP_THRESHOLD = -3  # malloc.h

YOUNG_OBJECTS_MAX = 50_000


def collect_seldom() -> None:
    """
    Leave what stands at the start alone, and look at the young objects less often.

    Tens of attempts in flight are thousands of objects that live for milliseconds. Python looks at the
    young ones after every 700: 0.22 ms of CPU a mail, against 0.19.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 50)


def return_large_pieces() -> None:
    """
    Let malloc give large pieces back to the system at once, where it is glibc's.

    Left alone it keeps them in a heap that bodies of many sizes tear to pieces: 80 webhooks of 0.1 to 12 MiB,
    16 at once, left a server with 160 to 280 MiB, against 90.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    except (AttributeError, OSError):  # another malloc, with ways of its own
        pass

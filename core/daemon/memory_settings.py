# SPDX-License-Identifier: GPL-2.0-or-later
"""How a process that follows many flows has its memory managed."""

import ctypes
import gc
from typing import Final

# A plugin may leave cycles. Looking through 20,000 objects takes a millisecond.
_COLLECTIONS: Final = (20_000, 50, 1000)
_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD of malloc.h
_LARGE: Final = 1 << 20


def tidy() -> None:
    """Free what reading a configuration has left, which are cycles for the most part.

    They are 200 KiB that would lie there until the collector's turn, which is a hundred
    configurations later. Only what is young is looked through: a millisecond at most.
    """
    gc.collect(0)


def settle() -> None:
    """Prepare for serving, once all is imported.

    What a flow leaves is freed without the collector's help, and to look through a
    hundred thousand flows for nothing holds packets up for a tenth of a second, again
    and again. And glibc learns from the first large table that is freed to put the next
    ones among all else, where each leaves a hole: so it is told from which size on, in
    bytes, memory is the kernel's to give and to have back.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another libc needs no telling
        mallopt(_MMAP_THRESHOLD, _LARGE)

# SPDX-License-Identifier: GPL-2.0-or-later
"""How long to wait before what happens again and again is seen to once more."""

from typing import Final

_LONGEST: Final = 60.0
# From one second they lead beyond the longest; without an end the float would overflow.
_DOUBLINGS: Final = 6


def pause(first: float, times: int) -> float:
    """Seconds to wait where it has happened so many times in a row, 1 or more.

    `first` the first time, and twice as long each time after it, up to six times; a
    minute at most.
    """
    return min(first * 2.0 ** min(times - 1, _DOUBLINGS), _LONGEST)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Sequence numbers of TCP, which begin again after 4 GiB (RFC 9293, section 3.4)."""

from typing import Final

MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31


def distance(start: int, stop: int) -> int:
    """From one sequence number to another, by the shorter way; negative: backwards."""
    return (stop - start + _HALF) % MODULUS - _HALF

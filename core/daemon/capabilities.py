# SPDX-License-Identifier: GPL-2.0-or-later
"""Capabilities of this thread, by capget(2), capset(2) and prctl(2).

Functions raise OSError. Numbers are those of linux/capability.h and linux/prctl.h.
"""

import ctypes
import enum
import os
from collections.abc import Iterable
from typing import Final, NamedTuple


class Capability(enum.IntEnum):
    """Those that are of matter here."""

    CAP_DAC_READ_SEARCH = 2
    CAP_KILL = 5
    CAP_SETGID = 6
    CAP_SETUID = 7
    CAP_SETPCAP = 8
    CAP_NET_ADMIN = 12


class Sets(NamedTuple):
    """What a thread may do now, could do, and hands on to programs; bits by number."""

    effective: int
    permitted: int
    inheritable: int


# _LINUX_CAPABILITY_VERSION_3 and this thread: the sets are 64 bits, in two halves.
_HEADER: Final = (ctypes.c_uint32 * 2)(0x20080522, 0)
_PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 8, 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 38, 47, 2
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def mask(capabilities: Iterable[Capability]) -> int:
    """The set that has these."""
    return sum(1 << each for each in set(capabilities))


def held() -> Sets:
    """The sets of this thread."""
    data = (ctypes.c_uint32 * 6)()
    _check(_LIBC.capget(_HEADER, data))
    low, high = data[:3], data[3:]
    return Sets(*(one | other << 32 for one, other in zip(low, high, strict=True)))


def has(capability: Capability) -> bool:
    """Whether it is effective."""
    return bool(held().effective >> capability & 1)


def hold(sets: Sets) -> None:
    """Have these sets. EPERM: they have what was not permitted."""
    halves = [each & 0xFFFFFFFF for each in sets] + [each >> 32 for each in sets]
    _check(_LIBC.capset(_HEADER, (ctypes.c_uint32 * 6)(*halves)))


def keep_only(
    capabilities: Iterable[Capability], handed_on: Iterable[Capability] = ()
) -> None:
    """Give up all others, for good, and hand on those to programs that are run.

    What root runs has them all. Of those named it keeps what it has. The bounding set,
    which is what a program that root runs may have, stays as it is without CAP_SETPCAP:
    call `no_new_privileges`.
    """
    wanted = mask(capabilities)
    if has(Capability.CAP_SETPCAP):
        number = 0
        while (bound := _prctl(_PR_CAPBSET_READ, number, missing=-1)) >= 0:
            if bound and not wanted >> number & 1:
                _prctl(_PR_CAPBSET_DROP, number)
            number += 1
    kept = held().permitted & wanted
    hold(Sets(kept, kept, 0))
    for each in handed_on:
        if kept >> each & 1:
            hand_on(each)


def keep_when_user_changes() -> None:
    """Keep what is permitted when no user id is root's any more; once."""
    _prctl(_PR_SET_KEEPCAPS, 1)


def no_new_privileges() -> None:
    """Have no program that is run get more than this process has."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hand_on(capability: Capability) -> None:
    """Have programs that are run keep one, though their user is not root."""
    sets = held()
    hold(sets._replace(inheritable=sets.inheritable | 1 << capability))
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _prctl(what: int, *arguments: int, missing: int | None = None) -> int:
    """What prctl(2) returns, or `missing` in the place of an error."""
    words = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = _LIBC.prctl(what, *words)
    if result < 0 and missing is not None:
        return missing
    _check(result)
    return result


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

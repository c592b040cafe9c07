# SPDX-License-Identifier: GPL-2.0-or-later
"""Landlock: what this process may do with files, whoever it is; it cannot be undone.

The kernel has it since 5.13 (landlock(7)). The three calls have the same numbers on all
machines; the constants are of include/uapi/linux/landlock.h. What is open stays open.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG: Final = 1
_PATH_BENEATH: Final = 1

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
MAKE_REG: Final = 1 << 8
# From REMOVE_DIR to MAKE_SYM; then what later versions have added: REFER, TRUNCATE,
# IOCTL_DEV.
_CHANGES: Final = 0x1FF0
_ADDED: Final = ((2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
# What may be allowed for a file that is no folder.
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE
# Since version 4 binding and connecting TCP ports, since 6 abstract sockets and signals
# of processes outside.
_NETWORK, _NETWORK_SINCE = 0b11, 4
_SCOPES, _SCOPES_SINCE = 0b11, 6

# landlock_ruleset_attr (files, network, scopes) and landlock_path_beneath_attr, packed.
_RULESET: Final = struct.Struct("=3Q")
_BENEATH: Final = struct.Struct("=Qi")

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The kernel's version of it, 0: it has none, or it is turned off."""
    try:
        return _call(_CREATE, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def changes(kernel: int) -> int:
    """The rights to change files and folders that a version knows."""
    return WRITE_FILE | _CHANGES | sum(bit for since, bit in _ADDED if kernel >= since)


def restrict(
    kernel: int, handled: int, allowed: Mapping[Path, int], *, alone: bool = False
) -> None:
    """Have no right of `handled` from now on, but to what `allowed` names.

    A path stands for all below it; one that is not there is left out. `kernel` is
    `version`, 1 or higher; no_new_privs must be set. With `alone` this process cannot
    use TCP, nor reach other processes by signals or abstract sockets, as far as that
    version knows it. Raises OSError.
    """
    network = _NETWORK if alone and kernel >= _NETWORK_SINCE else 0
    scopes = _SCOPES if alone and kernel >= _SCOPES_SINCE else 0
    # A kernel takes a longer structure than its own where the rest is zero.
    ruleset = _RULESET.pack(handled, network, scopes)
    end = _call(_CREATE, ruleset, ctypes.c_size_t(len(ruleset)), 0)
    try:
        for path, access in allowed.items():
            _allow(end, path, access & handled)
        _call(_RESTRICT, end, 0)
    finally:
        os.close(end)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return
        raise
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _OF_FILES
        if access:
            rule = _BENEATH.pack(access, place)
            _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(place)


def reading(paths: Iterable[Path]) -> dict[Path, int]:
    """What to allow, for these to be read."""
    return dict.fromkeys(paths, READ_FILE | READ_DIR)


def _call(number: int, *arguments: object) -> int:
    result: int = _LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result

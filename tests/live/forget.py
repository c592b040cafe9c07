# SPDX-License-Identifier: GPL-2.0-or-later
"""Have the kernel forget what it tracks in the calling thread's network namespace.

As `conntrack -F` and `conntrack -F expect` do, without a program that is started for
it, which takes an emulated machine long.
"""

import os
import socket
import struct
import sys
from typing import Final

# linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
_NETLINK_NETFILTER: Final = 12
_CTNETLINK, _CTNETLINK_EXP = 1, 2
_DELETE: Final = 2
# NLM_F_REQUEST and NLM_F_ACK, linux/netlink.h
_FLAGS: Final = 5
# struct nlmsghdr, and struct nfgenmsg with no family, which stands for all.
_MESSAGE: Final = struct.Struct("=IHHIIBBH")
_ERROR: Final = slice(16, 20)


def forget_entries() -> None:
    """Remove all conntrack entries. Raises OSError where that fails."""
    _delete_all(_CTNETLINK)


def forget_expectations() -> None:
    """Remove all expectations. Raises OSError where that fails."""
    _delete_all(_CTNETLINK_EXP)


def _delete_all(subsystem: int) -> None:
    """Send a deletion that names nothing, which is one of all."""
    kind = subsystem << 8 | _DELETE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as own:
        own.send(_MESSAGE.pack(_MESSAGE.size, kind, _FLAGS, 0, 0, 0, 0, 0))
        answer = own.recv(4096)
    code = -int.from_bytes(answer[_ERROR], sys.byteorder, signed=True)
    if code:
        raise OSError(code, f"cannot delete: {os.strerror(code)}")

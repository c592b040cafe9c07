# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of nf_tables (net/netfilter/nf_tables_api.c): has a table been touched?

What is in a table is nft's to say; here is told when it is worth asking.
"""

from contextlib import suppress
from typing import Final

from cthelper.core.errors import Truncated
from cthelper.core.netlink.decoding import walk
from cthelper.core.netlink.socket import (
    HEADERS,
    NETLINK_NETFILTER,
    Frame,
    NetlinkSocket,
)

# include/uapi/linux/netfilter/nfnetlink.h and netfilter.h
_GROUP_NFTABLES: Final = 7
_NFTABLES: Final = 10
_FAMILIES: Final = {"inet": 1, "ip": 2, "ip6": 10}

_FAMILY_AT: Final = 16  # behind nlmsghdr
# Of tables, chains, rules, sets and objects alike the first attribute names the table.
_TABLE: Final = 1


class TableEvents:
    """Follows what anybody does to one table, `name` such as ``inet filter``."""

    def __init__(self, name: str) -> None:
        family, _, table = name.partition(" ")
        self._family, self._table = _FAMILIES[family], table.encode()
        self._socket = NetlinkSocket(NETLINK_NETFILTER, groups=(_GROUP_NFTABLES,))
        self._overruns = 0

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def touched(self) -> bool:
        """Whether something was done to the table since the last call; never waits.

        It may have been where the kernel had to throw events away. Raises NetlinkError.
        """
        touched = any(map(self._is_ours, list(self._socket.events())))
        lost = self._socket.overruns != self._overruns
        self._overruns = self._socket.overruns
        return touched or lost

    def _is_ours(self, frame: Frame) -> bool:
        data = frame.data
        if frame.type >> 8 != _NFTABLES or len(data) < HEADERS:
            return False
        if data[_FAMILY_AT] != self._family:
            return False
        with suppress(Truncated):
            for kind, start, stop in walk(data, HEADERS, len(data)):
                if kind == _TABLE:
                    return data[start:stop].rstrip(b"\0") == self._table
        return False

# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that rules of nft log to a group (linux/netfilter/nfnetlink_log.h).

They come as copies: whoever reads them, or does not, keeps no packet waiting.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from cthelper.core.errors import Truncated
from cthelper.core.netlink.decoding import conntrack_entry, read, read_u32, walk
from cthelper.core.netlink.socket import (
    HEADERS,
    NETLINK_NETFILTER,
    Frame,
    NetlinkSocket,
)
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack, Direction

_ULOG: Final = 4 << 8  # NFNL_SUBSYS_ULOG
_PACKET: Final = _ULOG | 0
_CONFIG: Final = _ULOG | 1

# NFULA_CFG_*
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 5, 6
_BIND: Final = 1
_COPY_PACKET: Final = 2
_WHOLE: Final = 0xFFFF  # the kernel takes it down to what an attribute can hold
_SEQUENCE: Final = 0x1  # NFULNL_CFG_F_SEQ
_CONNTRACK: Final = 0x4  # NFULNL_CFG_F_CONNTRACK

# NFULA_*
_PACKET_HDR, _TIMESTAMP, _PAYLOAD, _SEQ, _CT, _CT_INFO = 1, 3, 9, 12, 18, 19
_HDR = struct.Struct("!HBx")
_TIME = struct.Struct("!QQ")
# enum ip_conntrack_info: from IP_CT_IS_REPLY to before IP_CT_NUMBER.
_REPLIES: Final = range(3, 6)
# NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT.
_FIRST_HOOKS: Final = frozenset({0, 3})

_BUFFER: Final = 16 << 20
_MODULO: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A packet as a rule has logged it.

    `number` counts a group's packets. `time` is in nanoseconds since 1970; None: the
    kernel has not said it, as on a packet's way out. `conntrack` is None where it has
    none that is TCP's or UDP's.
    """

    number: int
    hook: int
    time: int | None
    direction: Direction
    conntrack: Conntrack | None
    packet: bytes

    @property
    def enters(self) -> bool:
        """Whether it was logged where packets come in, or are made, or else later."""
        return self.hook in _FIRST_HOOKS


def read_logged(data: bytes) -> Logged:
    """The packet in a message. Raises Truncated."""
    number = hook = info = 0
    time = conntrack = None
    packet = b""
    for kind, start, stop in walk(data, HEADERS, len(data)):
        if kind == _PAYLOAD:
            packet = data[start:stop]
        elif kind == _PACKET_HDR:
            hook = read(_HDR, data, start, stop)[1]
        elif kind == _SEQ:
            number = read_u32(data, start, stop)
        elif kind == _TIMESTAMP:
            seconds, microseconds = read(_TIME, data, start, stop)
            time = (seconds * 1_000_000 + microseconds) * 1000
        elif kind == _CT:
            conntrack = conntrack_entry(data, start, stop)
        elif kind == _CT_INFO:
            info = read_u32(data, start, stop)
    return Logged(
        number=number,
        hook=hook,
        time=time,
        direction=REPLY if info in _REPLIES else ORIGINAL,
        conntrack=conntrack,
        packet=packet,
    )


class PacketLog:
    """What is logged to a group, which is nobody else's as long as this is open.

    Raises Busy or NotPermitted where somebody has it, and NetlinkError.
    """

    def __init__(self, group: int) -> None:
        self.group = group
        self._next = 0
        self._missing = 0
        self._socket = NetlinkSocket(NETLINK_NETFILTER, receive_buffer=_BUFFER)
        try:
            self._set(_CFG_CMD, struct.pack("!B", _BIND))
            self._set(_CFG_MODE, struct.pack("!IBx", _WHOLE, _COPY_PACKET))
            # Each comes at once: of most it is read here when that was.
            self._set(_CFG_QTHRESH, struct.pack("!I", 1))
            self._set(_CFG_FLAGS, struct.pack("!H", _SEQUENCE | _CONNTRACK))
            self._socket.follow()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of the group."""
        self._socket.close()

    @property
    def missing(self) -> int:
        """How many packets were logged and are not here (ENOBUFS), at least."""
        return max(self._missing, self._socket.overruns)

    def packets(self) -> Iterator[Logged]:
        """What was logged since the last call; never waits. Raises NetlinkError."""
        for frame in self._socket.events():
            if frame.type == _PACKET and (logged := self._read(frame)) is not None:
                yield logged

    def _read(self, frame: Frame) -> Logged | None:
        try:
            logged = read_logged(frame.data)
        except Truncated:
            self._missing += 1
            return None
        self._missing += (logged.number - self._next) % _MODULO
        self._next = (logged.number + 1) % _MODULO
        return logged

    def _set(self, attribute: int, value: bytes) -> None:
        size = 4 + len(value)
        self._socket.send(
            socket.AF_UNSPEC,
            struct.pack("=HH", size, attribute) + value + bytes(-size % 4),
            _CONFIG,
            0,
            f"bind log group {self.group}",
            self.group,
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""A netlink socket: requests with acknowledgement, dumps, events.

Messages are pyroute2's declarations; its own sockets run an event loop each, which
the daemon has no use for. An errno becomes a named error here and nowhere else.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from cthelper.core.errors import NetlinkError

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

# include/uapi/linux/netlink.h
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_DROP_MEMBERSHIP: Final = 2
_EXT_ACK: Final = 11
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST: Final = 0x001
_ACK: Final = 0x004
_DUMP: Final = 0x300
_CAPPED: Final = 0x100
_ACK_TLVS: Final = 0x200
_ERROR_MESSAGE: Final = 1
REPLACE: Final = 0x100
EXCLUSIVE: Final = 0x200
CREATE: Final = 0x400

SO_RCVBUFFORCE: Final = 33
_HEADER: Final = struct.Struct("=IHHII")
_NETFILTER: Final = struct.Struct("=IHHIIBBH")  # nlmsghdr and nfgenmsg
_ACKNOWLEDGEMENT: Final = struct.Struct("=IHHIIi")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERRNO: Final = struct.Struct("=i")
_RECEIVE: Final = 1 << 17
# No request here makes the kernel wait; a missing answer is a bug, not a delay.
_ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Frame:
    """One netlink message: its type, its flags, and all its bytes, header included."""

    type: int
    flags: int
    sequence: int
    data: bytes


def split(data: bytes) -> Iterator[Frame]:
    """The messages in one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return
        yield Frame(type_, flags, sequence, data[offset : offset + length])
        offset += length + 3 & ~3


class NetlinkSocket:
    """A bound netlink socket of one family, a member of `groups`.

    Use one for requests and another for events. Raises NetlinkError where the kernel
    has no such family.
    """

    def __init__(
        self,
        family: int,
        *,
        groups: Iterable[int] = (),
        receive_buffer: int | None = None,
    ) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
        except OSError as error:
            raise NetlinkError.of(error.errno or 0, "open netlink socket") from None
        seconds = _ANSWER_SECONDS
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            if receive_buffer is not None:
                self._socket.setsockopt(
                    socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer
                )
            for group in groups:
                self.join(group)
                seconds = 0.0
        except OSError as error:
            self._socket.close()
            raise NetlinkError.of(error.errno or 0, "set up netlink socket") from None
        self._socket.settimeout(seconds)
        self._sequence = 0
        self.overruns = 0

    def __enter__(self) -> "NetlinkSocket":
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
        """Close the socket."""
        self._socket.close()

    def request(
        self, message: Any, type_: int, flags: int, what: object
    ) -> list[Frame]:
        """Send a request and wait for its acknowledgement; what came before it.

        `what` names the request in the error, as a string. Raises NetlinkError.
        """
        self._send(message, type_, flags | _REQUEST | _ACK)
        return self._answers(what)

    def send(
        self, family: int, attributes: bytes, type_: int, flags: int, what: object
    ) -> list[Frame]:
        """Like `request`, for attributes of nfnetlink that are encoded already.

        `family` is AF_INET or AF_INET6.
        """
        self._sequence += 1
        header = _NETFILTER.pack(
            _NETFILTER.size + len(attributes),
            type_,
            flags | _REQUEST | _ACK,
            self._sequence,
            0,
            family,
            0,
            0,
        )
        self._socket.send(header + attributes)
        return self._answers(what)

    def dump(self, message: Any, type_: int, what: object) -> list[Frame]:
        """All the entries of a table. Raises NetlinkError."""
        self._send(message, type_, _REQUEST | _DUMP)
        return self._answers(what)

    def join(self, group: int) -> None:
        """Be a member of a group. Raises OSError."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        """Be a member no more; what was sent before is there. Raises OSError."""
        self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)

    def events(self) -> list[Frame]:
        """What the groups have sent since the last call; never waits.

        Where the kernel had to throw events away, `overruns` has grown.
        """
        frames: list[Frame] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return frames
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NetlinkError.of(error.errno or 0, "read events") from None
                self.overruns += 1
                continue
            frames += split(data)

    def _send(self, message: Any, type_: int, flags: int) -> None:
        self._sequence += 1
        header = message["header"]
        header["type"] = type_
        header["flags"] = flags
        header["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(message.data)

    def _answers(self, what: object) -> list[Frame]:
        frames: list[Frame] = []
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except TimeoutError:
                raise NetlinkError.of(errno.ETIMEDOUT, what) from None
            except OSError as error:
                raise NetlinkError.of(error.errno or 0, what) from None
            if not frames and _acknowledges(data, self._sequence):
                return frames
            for frame in split(data):
                if frame.sequence != self._sequence:
                    continue
                if frame.type not in (_NLMSG_ERROR, _NLMSG_DONE):
                    frames.append(frame)
                    continue
                (code,) = _ERRNO.unpack_from(frame.data, _HEADER.size)
                if code:
                    raise NetlinkError.of(-code, what, _explanation(frame))
                return frames


def _acknowledges(data: bytes, sequence: int) -> bool:
    """Whether it is an acknowledgement alone, of the request with this number."""
    if len(data) < _ACKNOWLEDGEMENT.size:
        return False
    length, type_, _, number, _, code = _ACKNOWLEDGEMENT.unpack_from(data)
    return (length, type_, number, code) == (len(data), _NLMSG_ERROR, sequence, 0)


def _explanation(frame: Frame) -> str:
    """What the kernel says of an error in words (extended ACK), or nothing."""
    if frame.type != _NLMSG_ERROR or not frame.flags & _ACK_TLVS:
        return ""
    start = _HEADER.size + _ERRNO.size
    (length,) = struct.unpack_from("=I", frame.data, start)
    offset = start + (_HEADER.size if frame.flags & _CAPPED else length + 3 & ~3)
    while offset + _ATTRIBUTE.size <= len(frame.data):
        size, kind = _ATTRIBUTE.unpack_from(frame.data, offset)
        if size < _ATTRIBUTE.size:
            break
        if kind == _ERROR_MESSAGE:
            text = frame.data[offset + _ATTRIBUTE.size : offset + size]
            return f" ({text.rstrip(bytes(1)).decode()})"
        offset += size + 3 & ~3
    return ""

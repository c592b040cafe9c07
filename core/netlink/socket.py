# SPDX-License-Identifier: GPL-2.0-or-later
"""A netlink socket: requests with acknowledgement, dumps, events.

Messages are pyroute2's declarations; its own sockets run an event loop each, which
the daemon has no use for. An errno becomes a named error here and nowhere else.
"""

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple

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
_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION: Final = struct.Struct("=HBBI")  # sock_filter
_PROGRAM: Final = struct.Struct("@HP")  # sock_fprog
_Instruction = tuple[int, int, int, int]
# BPF_LD and others of include/uapi/linux/bpf_common.h, with their sizes and modes.
_LOAD_HALF: Final = 0x28
_LOAD_WORD: Final = 0x20
_LOAD_NUMBER: Final = 0x00
_LOAD_INDEX: Final = 0x01
_LOAD_WORD_AT: Final = 0x40
_INDEX_IT: Final = 0x07
_IF_EQUAL: Final = 0x15
_IF_ANY: Final = 0x45
_RETURN: Final = 0x06
# SKF_AD_OFF + SKF_AD_NLATTR: where the attribute is, or 0.
_FIND_ATTRIBUTE: Final = 0xFFFFF000 + 12
_WHOLE: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("=IHHII")
_NETFILTER: Final = struct.Struct("=IHHIIBBH")
HEADERS: Final = 20
"""Bytes of nlmsghdr and nfgenmsg, before the attributes of a message of netfilter's."""
_ACKNOWLEDGEMENT: Final = struct.Struct("=IHHIIi")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERRNO: Final = struct.Struct("=i")
_RECEIVE: Final = 1 << 17
# No request here makes the kernel wait; a missing answer is a bug, not a delay.
_ANSWER_SECONDS: Final = 5
_ANSWER_TIME: Final = struct.pack("@ll", _ANSWER_SECONDS, 0)  # struct timeval


@dataclass(frozen=True, slots=True)
class Frame:
    """One netlink message: its type, its flags, and all its bytes, header included.

    `port` is the netlink port of whoever asked for it or caused it; 0: the kernel.
    """

    type: int
    flags: int
    sequence: int
    port: int
    data: bytes


class Filter(NamedTuple):
    """Of messages of a type lets those pass that have an attribute.

    `offset` is where the attributes begin. With `bits` the attribute must be a number
    of 32 bits in the network's order that has one of them.
    """

    type: int
    offset: int
    attribute: int
    bits: int = 0

    @property
    def instructions(self) -> list[_Instruction]:
        """It in classic BPF (linux/filter.h); what is of another type is behind it."""
        lookup = [
            (_LOAD_NUMBER, 0, 0, self.offset),
            (_LOAD_INDEX, 0, 0, self.attribute),
            (_LOAD_WORD, 0, 0, _FIND_ATTRIBUTE),
        ]
        if self.bits:
            test = [
                (_IF_EQUAL, 3, 0, 0),
                (_INDEX_IT, 0, 0, 0),
                (_LOAD_WORD_AT, 0, 0, _ATTRIBUTE.size),
                (_IF_ANY, 1, 0, self.bits),
            ]
        else:
            test = [(_IF_EQUAL, 0, 1, 0)]
        rest = [*lookup, *test, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _WHOLE)]
        return [
            # The type's bytes are in the host's order, and read in the network's.
            (_LOAD_HALF, 0, 0, 4),
            (_IF_EQUAL, 0, len(rest), socket.htons(self.type)),
            *rest,
        ]


def program(filters: Iterable[Filter]) -> bytes:
    """Filters in classic BPF, as the kernel takes it; other messages pass."""
    instructions = [each for filter_ in filters for each in filter_.instructions]
    instructions.append((_RETURN, 0, 0, _WHOLE))
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


Request = tuple[bytes, int, int]
"""Attributes of nfnetlink that are encoded already, type and flags."""


def split(data: bytes) -> Iterator[Frame]:
    """The messages in one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, type_, flags, sequence, port = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return
        yield Frame(type_, flags, sequence, port, data[offset : offset + length])
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
            raise _failure(error, "open netlink socket") from None
        waits = True
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            if receive_buffer is not None:
                self._socket.setsockopt(
                    socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer
                )
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
                waits = False
            # By itself Python would ask, before each request and each answer, whether
            # the socket is ready.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIME)
        except OSError as error:
            self._socket.close()
            raise _failure(error, "set up netlink socket") from None
        self._socket.setblocking(waits)
        self._filter: object = None
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

    @property
    def port(self) -> int:
        """The port that the kernel knows it by."""
        port: int = self._socket.getsockname()[0]
        return port

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
        self._send(message, type_, flags | _REQUEST | _ACK, what)
        return self._answers(what)

    def send(
        self,
        family: int,
        attributes: bytes,
        type_: int,
        flags: int,
        what: object,
        resource: int = 0,
    ) -> list[Frame]:
        """Like `request`, for attributes of nfnetlink that are encoded already.

        `family` is AF_INET or AF_INET6, `resource` nfgenmsg's res_id, such as the
        number of a group. Raises NetlinkError.
        """
        self._put(self._request(family, attributes, type_, flags, resource), what)
        return self._answers(what)

    def send_together(
        self, family: int, requests: Sequence[Request], what: object
    ) -> list[NetlinkError | None]:
        """Send requests in one message, which the kernel does one after the other.

        What came of each; one that fails does not keep the others. Raises NetlinkError
        where they cannot be sent, or an acknowledgement is missing.
        """
        first = self._sequence + 1
        together = [self._request(family, *request) for request in requests]
        self._put(b"".join(together), what)
        results: dict[int, NetlinkError | None] = {}
        while len(results) < len(requests):
            for frame in split(self._receive(what)):
                if frame.type == _NLMSG_ERROR and frame.sequence >= first:
                    results[frame.sequence] = _error(frame, what)
        return [results[first + index] for index in range(len(requests))]

    def dump(self, message: Any, type_: int, what: object) -> list[Frame]:
        """All the entries of a table. Raises NetlinkError."""
        self._send(message, type_, _REQUEST | _DUMP, what)
        return self._answers(what)

    def stream(self, message: Any, type_: int, what: object) -> Iterator[Frame]:
        """The same as they come, of a table that is too large to be held.

        Ask for nothing else before its end. Raises NetlinkError.
        """
        self._send(message, type_, _REQUEST | _DUMP, what)
        while True:
            for frame in split(self._receive(what)):
                if frame.sequence != self._sequence:
                    continue
                if frame.type not in (_NLMSG_ERROR, _NLMSG_DONE):
                    yield frame
                    continue
                error = _error(frame, what)
                if error is not None:
                    raise error
                return

    def filter(self, *filters: Filter) -> None:
        """Have only those events come that filters let pass. Raises NetlinkError."""
        instructions = program(filters)
        # Kept, since compiled code lets go of what it does not mention any more: what
        # the kernel is to read would be gone when it reads.
        buffer = self._filter = ctypes.create_string_buffer(instructions)
        count = len(instructions) // _INSTRUCTION.size
        value = _PROGRAM.pack(count, ctypes.addressof(buffer))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, value)
        except OSError as error:
            raise _failure(error, "filter netlink events") from None

    def follow(self) -> None:
        """Ask for nothing more: `events` gives what comes, without groups, too."""
        self._socket.setblocking(False)

    def join(self, group: int) -> None:
        """Be a member of a group. Raises NetlinkError."""
        self._set(_ADD_MEMBERSHIP, group, "join netlink group")

    def leave(self, group: int) -> None:
        """Be a member no more; what was sent before is there. Raises NetlinkError."""
        self._set(_DROP_MEMBERSHIP, group, "leave netlink group")

    def events(self, most: int = sys.maxsize) -> Iterator[Frame]:
        """What the groups have sent, of at most so many datagrams; never waits.

        A datagram is read when its first message is asked for. Where the kernel had to
        throw events away, `overruns` has grown. Raises NetlinkError.
        """
        for _ in range(most):
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise _failure(error, "read events") from None
                self.overruns += 1
                continue
            yield from split(data)

    def _request(
        self,
        family: int,
        attributes: bytes,
        type_: int,
        flags: int,
        resource: int = 0,
    ) -> bytes:
        self._sequence += 1
        header = _NETFILTER.pack(
            _NETFILTER.size + len(attributes),
            type_,
            flags | _REQUEST | _ACK,
            self._sequence,
            0,
            family,
            0,
            socket.htons(resource),
        )
        return header + attributes

    def _set(self, option: int, value: int, what: str) -> None:
        try:
            self._socket.setsockopt(_SOL_NETLINK, option, value)
        except OSError as error:
            raise _failure(error, what) from None

    def _send(self, message: Any, type_: int, flags: int, what: object) -> None:
        self._sequence += 1
        header = message["header"]
        header["type"] = type_
        header["flags"] = flags
        header["sequence_number"] = self._sequence
        message.encode()
        # pyroute2 makes a bytearray, which compiled code takes for no bytes.
        self._put(bytes(message.data), what)

    def _put(self, data: bytes, what: object) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise _failure(error, what) from None

    def _answers(self, what: object) -> list[Frame]:
        frames: list[Frame] = []
        while True:
            data = self._receive(what)
            if not frames and _acknowledges(data, self._sequence):
                return frames
            for frame in split(data):
                if frame.sequence != self._sequence:
                    continue
                if frame.type not in (_NLMSG_ERROR, _NLMSG_DONE):
                    frames.append(frame)
                    continue
                error = _error(frame, what)
                if error is not None:
                    raise error
                return frames

    def _receive(self, what: object) -> bytes:
        try:
            return self._socket.recv(_RECEIVE)
        except OSError as error:
            raise _failure(error, what) from None


def _failure(error: OSError, what: object) -> NetlinkError:
    """The named error; who waits in vain (SO_RCVTIMEO) is told EAGAIN."""
    late = isinstance(error, BlockingIOError)
    return NetlinkError.of(errno.ETIMEDOUT if late else error.errno or 0, what)


def _acknowledges(data: bytes, sequence: int) -> bool:
    """Whether it is an acknowledgement alone, of the request with this number."""
    if len(data) < _ACKNOWLEDGEMENT.size:
        return False
    length, type_, _, number, _, code = _ACKNOWLEDGEMENT.unpack_from(data)
    return (length, type_, number, code) == (len(data), _NLMSG_ERROR, sequence, 0)


def _error(frame: Frame, what: object) -> NetlinkError | None:
    """What an acknowledgement says; None: it is done."""
    if len(frame.data) < _HEADER.size + _ERRNO.size:
        return NetlinkError.of(errno.EBADMSG, what)
    (code,) = _ERRNO.unpack_from(frame.data, _HEADER.size)
    return NetlinkError.of(-code, what, _explanation(frame)) if code else None


def _explanation(frame: Frame) -> str:
    """What the kernel says of an error in words (extended ACK), or nothing."""
    if frame.type != _NLMSG_ERROR or not frame.flags & _ACK_TLVS:
        return ""
    start = _HEADER.size + _ERRNO.size
    if len(frame.data) < start + _HEADER.size:
        return ""
    (length,) = struct.unpack_from("=I", frame.data, start)
    offset = start + (_HEADER.size if frame.flags & _CAPPED else length + 3 & ~3)
    while offset + _ATTRIBUTE.size <= len(frame.data):
        size, kind = _ATTRIBUTE.unpack_from(frame.data, offset)
        if size < _ATTRIBUTE.size:
            break
        if kind == _ERROR_MESSAGE:
            text = frame.data[offset + _ATTRIBUTE.size : offset + size]
            return f" ({text.rstrip(bytes(1)).decode('ascii', 'replace')})"
        offset += size + 3 & ~3
    return ""

# SPDX-License-Identifier: GPL-2.0-or-later
"""A service agent of the Service Location Protocol, written to RFC 2608 and RFC 2165.

Debian has no SLP software. The agent has one service. It answers requests for services,
attributes and types, of versions 2 and 1, that reach it by a group or by unicast. Where
`overflow` is set it answers over UDP with nothing but the overflow flag, and with the
whole over TCP.
"""

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from types import TracebackType
from typing import Final, Literal, Self

from tests.live.world import ETH, SERVER, SERVER6, Namespace

PORT = 427
GROUP = "239.255.255.253"
GROUP_1 = "224.0.1.22"
GROUPS6 = ("ff02::116", "ff05::116", "ff02::1:1234")
"""For all requests on the link and on the site, and one of those by service type."""

TYPE: Final = b"service:test"
URL: Final = TYPE + b"://server"
ATTRIBUTES: Final = b"(colour=green)"

OVERFLOW: Final = 0x8000
_MULTICAST: Final = 0x2000
_OVERFLOW_1: Final = 0x80
_LANGUAGE: Final = b"en"
_SCOPES: Final = b"DEFAULT"
_LIFETIME: Final = 300
_ADDRESSES: Final = {SERVER.encode(), SERVER6.encode()}

Version = Literal[1, 2]


class Function(IntEnum):
    """Requests, and the answer to each."""

    SRV_RQST = 1
    SRV_RPLY = 2
    ATTR_RQST = 6
    ATTR_RPLY = 7
    SRV_TYPE_RQST = 9
    SRV_TYPE_RPLY = 10


ANSWERS: Final = {
    Function.SRV_RQST: Function.SRV_RPLY,
    Function.ATTR_RQST: Function.ATTR_RPLY,
    Function.SRV_TYPE_RQST: Function.SRV_TYPE_RPLY,
}


def request(
    function: Function, xid: int, *, version: Version = 2, responders: bytes = b""
) -> bytes:
    """A request to a group, for the agent's service, its attributes or its type."""
    if version == 1:
        strings = {
            Function.SRV_RQST: (responders, b"test///"),
            Function.ATTR_RQST: (responders, URL, b"", b""),
            Function.SRV_TYPE_RQST: (responders, b"", b""),
        }[function]
    else:
        strings = {
            Function.SRV_RQST: (responders, TYPE, _SCOPES, b"", b""),
            Function.ATTR_RQST: (responders, URL, _SCOPES, b"", b""),
            Function.SRV_TYPE_RQST: (responders, b"", _SCOPES),
        }[function]
    body = b"".join(map(_string, strings))
    return _message(version, function, _MULTICAST, xid, body)


def overflows(message: bytes) -> bool:
    """Whether a message of version 2 has the overflow flag."""
    return bool(int.from_bytes(message[5:7]) & OVERFLOW)


def receive(stream: socket.socket) -> bytes:
    """One message of version 2 out of a TCP connection; empty where it has ended."""
    head = _receive(stream, 5)
    return head + _receive(stream, int.from_bytes(head[2:5]) - 5) if head else b""


def answers(message: bytes, asked: bytes) -> bool:
    """Whether a message is the whole answer of the agent to a request."""
    kind = Function(asked[1])
    holds = {
        Function.SRV_RQST: URL,
        Function.ATTR_RQST: ATTRIBUTES,
        Function.SRV_TYPE_RQST: TYPE,
    }[kind]
    return (
        message[0] == asked[0]
        and message[1] == ANSWERS[kind]
        and _xid(message) == _xid(asked)
        and holds in message
    )


class Agent:
    """The agent, in a thread of its own; its attributes may change meanwhile."""

    def __init__(self, namespace: Namespace) -> None:
        self.source_port = PORT
        """The UDP port that answers come from."""

        self.overflow = False

        self._namespace = namespace
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._selector = selectors.DefaultSelector()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            with self._namespace.entered():
                scope = socket.if_nametoindex(ETH)
            for family in (socket.AF_INET, socket.AF_INET6):
                datagrams = stack.enter_context(self._bound(family))
                _join(datagrams, scope)
                self._selector.register(datagrams, selectors.EVENT_READ)
                kind = socket.SOCK_STREAM
                listener = stack.enter_context(self._bound(family, kind))
                listener.listen()
                self._selector.register(listener, selectors.EVENT_READ)
            self._stack = stack.pop_all()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._stack.close()

    def send(self, message: bytes, address: tuple[str | int, ...], port: int) -> None:
        """Send a datagram from a port of the agent's."""
        family = socket.AF_INET6 if len(address) > 2 else socket.AF_INET
        with self._bound(family, port=port) as sender:
            sender.sendto(message, address)

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.2):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready.type == socket.SOCK_STREAM:
                    self._serve(ready)
                else:
                    message, asker = ready.recvfrom(2048)
                    if reply := _reply(message, cut=self.overflow):
                        self.send(reply, asker, self.source_port)

    def _serve(self, listener: socket.socket) -> None:
        """Answer one connection, which holds one request."""
        stream, _ = listener.accept()
        with stream, suppress(OSError):
            stream.settimeout(5.0)
            if reply := _reply(receive(stream), cut=False):
                stream.sendall(reply)

    @contextmanager
    def _bound(
        self,
        family: socket.AddressFamily,
        kind: socket.SocketKind = socket.SOCK_DGRAM,
        port: int = PORT,
    ) -> Iterator[socket.socket]:
        with self._namespace.entered():
            opened = socket.socket(family, kind)
        with opened:
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Those who send share the port with the one who receives.
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                opened.setsockopt(socket.SOL_SOCKET, option, 1)
            opened.bind(("", port))
            yield opened


def _join(datagrams: socket.socket, scope: int) -> None:
    if datagrams.family == socket.AF_INET:
        for group in (GROUP, GROUP_1):
            joined = struct.pack("@4s4si", socket.inet_aton(group), bytes(4), scope)
            datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        return
    for group in GROUPS6:
        joined = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", scope)
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)


def _reply(asked: bytes, *, cut: bool) -> bytes:
    """The answer to a request; empty where none is due, as after an answer before."""
    if not asked or asked[1] not in ANSWERS:
        return b""
    version: Version = 1 if asked[0] == 1 else 2
    kind = Function(asked[1])
    offset = 12 if version == 1 else 14 + int.from_bytes(asked[12:14])
    length = int.from_bytes(asked[offset : offset + 2])
    if _ADDRESSES & set(asked[offset + 2 :][:length].split(b",")):
        return b""
    flags, body = (OVERFLOW, bytes(4)) if cut else (0, _results(kind, version))
    return _message(version, ANSWERS[kind], flags, _xid(asked), body)


def _results(kind: Function, version: Version) -> bytes:
    """No error, and what was asked for."""
    body = bytes(2)
    if kind is Function.ATTR_RQST:
        body += _string(ATTRIBUTES)
    elif kind is Function.SRV_TYPE_RQST:
        body += (struct.pack("!H", 1) if version == 1 else b"") + _string(TYPE)
    elif version == 1:
        body += struct.pack("!HH", 1, _LIFETIME) + _string(URL)
    else:
        body += struct.pack("!HBH", 1, 0, _LIFETIME) + _string(URL)
    # Version 2 has a count of authentication blocks.
    authenticated = version == 2 and kind is not Function.SRV_TYPE_RQST
    return body + (b"\0" if authenticated else b"")


def _message(
    version: Version, function: Function, flags: int, xid: int, body: bytes
) -> bytes:
    if version == 1:
        cut = _OVERFLOW_1 if flags & OVERFLOW else 0
        # Language, and the number of UTF-8 among encodings.
        rest = struct.pack("!BB2sHH", cut, 0, _LANGUAGE, 106, xid) + body
        return struct.pack("!BBH", version, function, len(rest) + 4) + rest
    rest = struct.pack("!HxxxH", flags, xid) + _string(_LANGUAGE) + body
    return bytes((version, function)) + (len(rest) + 5).to_bytes(3) + rest


def _xid(message: bytes) -> int:
    return int.from_bytes(message[10:12])


def _string(text: bytes) -> bytes:
    return struct.pack("!H", len(text)) + text


def _receive(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (chunk := stream.recv(size - len(data))):
            return b""
        data += chunk
    return data

# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for Oracle's listener and for the servers that it redirects clients to.

An Oracle Database cannot be had for tests. Real clients follow what is sent here as
they follow a listener; what they send once a session is accepted comes back to them.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import TracebackType
from typing import Final, Self

from tests.live.world import Namespace

CONTROL_PORT = 1521
ANSWER_SECONDS = 20.0

REDIRECTED: Final = 0x04
"""Flag in the header of a CONNECT that comes from a redirect."""

_CONNECT_DATA_FOLLOW: Final = 0x02
_VERSION: Final = 319
_HEADER: Final = struct.Struct("!HHBBH")
_CONNECT: Final = struct.Struct("!16xHH")
# Version, options, packet sizes, no data, and no service of the old negotiation.
_ACCEPTED: Final = struct.pack(
    "!8H8xII17x", _VERSION, 0x0841, 8192, 0xFFFF, 1, 0, 61, 0x0C0C, 8192, 8192
)
_TLS_HANDSHAKE: Final = 22
_SERVICE: Final = re.compile(rb"\(SERVICE_NAME=([^)]*)\)")

# Between two segments of an answer, so that the kernel does not join them.
_PAUSE: Final = 0.002


class Kind(IntEnum):
    """Types of packets."""

    CONNECT = 1
    ACCEPT = 2
    REFUSE = 4
    REDIRECT = 5
    DATA = 6
    RESEND = 11


class Form(Enum):
    """How a redirect carries the address."""

    INLINE = "in the REDIRECT"
    DATA = "in a DATA packet"
    ZERO_LENGTH = "in a DATA packet, and REDIRECT tells no length"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the client to an endpoint; without `host` to the address that it reached.

    `resend` asks for CONNECT once more first. `cut` is how many bytes a segment holds.
    """

    port: int
    host: str | None = None
    form: Form = Form.DATA
    resend: bool = False
    cut: int | None = None


@dataclass(frozen=True, slots=True)
class Accept:
    """Accept the session."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse the session with an error, ORA-12514 unless another one is given."""

    error: int = 12514


Answer = Redirect | Accept | Refuse


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as it was read, without its header."""

    kind: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A CONNECT that came."""

    host: str
    port: int
    service: str
    flags: int
    separate: bool
    """Whether the connect data came in a packet of their own."""


def encode(kind: Kind, body: bytes, flags: int = 0) -> bytes:
    """A packet of the time before a session is accepted, with its length in 16 bits."""
    return _HEADER.pack(_HEADER.size + len(body), 0, kind, flags, 0) + body


def encode_data(text: bytes) -> bytes:
    """A DATA packet of that time."""
    return encode(Kind.DATA, b"\0\0" + text)


def encode_connect(text: bytes, *, flags: int = 0, separate: bool = False) -> bytes:
    """A CONNECT with its connect data, or followed by a DATA packet that has them."""
    fields = struct.pack(
        *("!10H", _VERSION, 300, 1, 8192, 0xFFFF, 0x4F98, 0, 1),
        *(len(text), 74),
    )
    body = fields.ljust(74 - _HEADER.size, b"\0")
    if separate:
        return encode(Kind.CONNECT, body, flags) + encode_data(text)
    return encode(Kind.CONNECT, body + text, flags)


def receive(stream: socket.socket, count: int) -> bytes:
    """So many bytes; EOFError where the peer closes before."""
    data = bytearray()
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise EOFError("the peer has closed")
        data += more
    return bytes(data)


def receive_packet(stream: socket.socket) -> Packet:
    """The next packet with its length in 16 bits."""
    length, _, kind, flags, _ = _HEADER.unpack(receive(stream, _HEADER.size))
    return Packet(kind, flags, receive(stream, length - _HEADER.size))


class Listener:
    """Serves ports of a namespace, over IPv4 and IPv6: port > service > answer.

    A TLS client gets back what it sends.
    """

    def __init__(
        self, namespace: Namespace, answers: Mapping[int, Mapping[str, Answer]]
    ) -> None:
        self._answers = answers
        self.seen: list[Seen] = []
        with namespace.entered():
            self._sockets = [
                socket.create_server(
                    ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
                )
                for port in answers
            ]

    def __enter__(self) -> Self:
        for each in self._sockets:
            self._spawn(self._accept, each)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self._sockets:
            each.shutdown(
                socket.SHUT_RDWR
            )  # That ends accept(), which close() does not.
            each.close()

    def connects(self, service: str) -> list[Seen]:
        """The CONNECTs for a service that have come, in their order."""
        return [each for each in self.seen if each.service == service]

    def _spawn(
        self, target: Callable[[socket.socket], None], of: socket.socket
    ) -> None:
        threading.Thread(target=target, args=(of,), daemon=True).start()

    def _accept(self, port: socket.socket) -> None:
        with suppress(OSError):
            while True:
                self._spawn(self._serve, port.accept()[0])

    def _serve(self, stream: socket.socket) -> None:
        with stream, suppress(OSError, EOFError):
            stream.settimeout(ANSWER_SECONDS)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if stream.recv(1, socket.MSG_PEEK) != bytes((_TLS_HANDSHAKE,)):
                self._answer(stream)
            while data := stream.recv(1 << 18):
                stream.sendall(data)

    def _answer(self, stream: socket.socket) -> None:
        """Take CONNECT, and send what the table has for its service."""
        text, seen = _receive_connect(stream)
        self.seen.append(seen)
        answer = self._answers[seen.port][seen.service]
        if isinstance(answer, Redirect) and answer.resend:
            stream.sendall(encode(Kind.RESEND, b""))
            _receive_connect(stream)
        for segment in _segments(answer, seen.host, text):
            stream.sendall(segment)
            time.sleep(_PAUSE)


def _receive_connect(stream: socket.socket) -> tuple[bytes, Seen]:
    """The connect data of the next CONNECT, and what it says."""
    packet = receive_packet(stream)
    length, start = _CONNECT.unpack_from(packet.body)
    text = packet.body[start - _HEADER.size :]
    separate = not text
    if separate:
        text = receive_packet(stream).body[2:]
    if packet.kind != Kind.CONNECT or len(text) != length:
        raise OSError("no CONNECT")
    service = _SERVICE.search(text)
    host, port = stream.getsockname()[:2]
    seen = Seen(
        host=host.removeprefix("::ffff:"),
        port=port,
        service=service[1].decode() if service else "",
        flags=packet.flags,
        separate=separate,
    )
    return text, seen


def _segments(answer: Answer, host: str, text: bytes) -> list[bytes]:
    """An answer to a CONNECT with connect data `text` that came to `host`."""
    match answer:
        case Accept():
            return [encode(Kind.ACCEPT, _ACCEPTED)]
        case Refuse():
            reason = f"(DESCRIPTION=(TMP=)(VSNNUM=318767104)(ERR={answer.error}))"
            length = struct.pack("!BBH", 34, 0, len(reason))
            return [encode(Kind.REFUSE, length + reason.encode())]
        case Redirect():
            packets = _redirect(answer, answer.host or host, text)
    if answer.cut is None:
        return packets
    whole = b"".join(packets)
    return [whole[at : at + answer.cut] for at in range(0, len(whole), answer.cut)]


def _redirect(answer: Redirect, host: str, text: bytes) -> list[bytes]:
    """The packets of a redirect to an endpoint of `host`."""
    address = f"(ADDRESS=(PROTOCOL=tcp)(HOST={host})(PORT={answer.port}))"
    data = address.encode() + b"\0" + text
    length = 0 if answer.form is Form.ZERO_LENGTH else len(data)
    body = struct.pack("!H", length)
    if answer.form is Form.INLINE:
        return [encode(Kind.REDIRECT, body + data, _CONNECT_DATA_FOLLOW)]
    return [encode(Kind.REDIRECT, body, _CONNECT_DATA_FOLLOW), encode_data(data)]

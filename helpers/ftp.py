# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP (RFC 959, RFC 2428): commands and replies name the endpoint of the data flow.

::

    the server opens the data flow      the client opens the data flow
    client: PORT 192,0,2,1,156,64       client: PASV
    client: EPRT |2|2001:db8::1|40000|  server: 227 Entering (198,51,100,2,156,64)
                                        client: EPSV
                                        server: 229 Entering (|||40000|)

Both sides send lines, which may come several to a segment or in pieces. The server
speaks first. A reply of several lines (``227-...``) ends with a line of the same code
and a blank; what stands between belongs to users and announces nothing, and neither
does a 227 or 229 that nobody asked for. LPRT and LPSV (RFC 1639) are not served.

A client that does not speak FTP, such as a browser that was made to send these lines in
a form (NAT slipstreaming), ends the reading at its first line of another protocol. Once
a security exchange has succeeded (RFC 2228, RFC 4217: AUTH TLS) the rest is encrypted,
and reading ends as well; a return to clear text (CCC) is not followed.

NAT: the endpoint stands in text of variable length, so rewriting may change the length
of a segment.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    TCP,
    Address,
    Done,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Malformed,
    Message,
    Policy,
    Rewrite,
    expect,
)

# Telnet's IP and Synch may go before a command (RFC 959, section 4.1.3, ABOR).
_COMMAND: Final = re.compile(
    rb"(?:\xff[\xf2\xf4])*(?P<verb>[A-Za-z][A-Za-z0-9]{2,7})"
    rb"(?: (?P<argument>.*))?\r?\n",
    re.DOTALL,
)
_REPLY: Final = re.compile(rb"(?P<code>[1-5]\d\d)(?P<more>[ -]|(?=\r?\n))")
_SIX: Final = rb"(?P<six>\d{1,3}(?:,\d{1,3}){5})"
_PORT: Final = re.compile(_SIX + rb"[ \t]*\r?\n")
# RFC 1123, section 4.1.2.6: the parentheses may be missing.
_PASSIVE: Final = re.compile(rb"(?<![\d,])" + _SIX + rb"(?![\d,])")
_EXTENDED: Final = re.compile(rb"\(([!-~])\1\1(?P<port>\d{1,5})\1\)")
_EPRT: Final = re.compile(
    rb"(?P<whole>([!-~])(?P<family>\d{1,5})\2(?P<address>(?:(?!\2).)+)"
    rb"\2(?P<port>\d{1,5})\2)[ \t]*\r?\n"
)

_METHODS: Final = frozenset(
    {
        *(b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST"),
        *(b"PUT", b"TRACE"),
    }
)
_PASSIVE_REPLY: Final = {b"PASV": b"227", b"EPSV": b"229"}
_READY: Final = b"220"
# Security data exchange complete, with and without further data (RFC 2228).
_SECURED: Final = frozenset({b"234", b"235"})


@dataclass(frozen=True, slots=True)
class Announced:
    """An endpoint, the slice of the line that holds it, and what writes another one."""

    endpoint: Endpoint
    span: tuple[int, int]
    emit: Callable[[Endpoint], bytes]


class Ftp(Helper):
    """FTP's data flows, active and passive, IPv4 and IPv6."""

    name = "ftp"
    transports = frozenset({TCP})
    ports = (21,)
    # As nf_conntrack_ftp has it: a transfer may begin long after its announcement. Two,
    # for the server's own address and another one that it announces.
    policies = (Policy("data", max_expected=2, timeout=300),)

    def __init__(self) -> None:
        self._ready = False
        # The code of the reply of several lines that has not ended.
        self._unfinished: bytes | None = None
        # How many 227 and 229 the client has asked for and not been given.
        self._awaited = {b"227": 0, b"229": 0}

    def frame(self, data: memoryview) -> int | None:
        """A message is a line."""
        return bytes(data).find(b"\n") + 1 or None

    def on_message(self, message: Message) -> Effects:
        """Expect what PORT, EPRT, 227 and 229 announce."""
        if message.direction is ORIGINAL:
            yield from self._on_command(message)
        else:
            yield from self._on_reply(message)

    def _on_command(self, message: Message) -> Effects:
        if not self._ready:
            raise Malformed("the client speaks before the server is ready")
        verb, argument = parse_command(message.payload)
        if verb == b"PORT":
            yield from _open(parse_port(message.payload, argument))
        elif verb == b"EPRT":
            announced = parse_eprt(message.payload, argument)
            if announced is not None:
                yield from _open(announced)
        elif verb in _PASSIVE_REPLY:
            self._awaited[_PASSIVE_REPLY[verb]] += 1

    def _on_reply(self, message: Message) -> Effects:
        code = self._code(message.payload)
        if code == _READY:
            self._ready = True
        elif code in _SECURED:
            yield Done("what follows is encrypted")
        elif code in self._awaited:
            if not self._awaited[code]:
                raise ExpectationRefused(
                    "unasked", f"{code.decode()} without a command"
                )
            self._awaited[code] -= 1
            if code == b"227":
                yield from _open_passive(parse_passive(message.payload), message)
            else:
                server = message.source.address
                yield from _open(parse_extended_passive(message.payload, server))

    def _code(self, line: bytes) -> bytes | None:
        """The reply's code, where this is its last line."""
        if self._unfinished is not None:
            if not line.startswith(self._unfinished + b" "):
                return None
            self._unfinished = None
        code, more = parse_reply(line)
        if more:
            self._unfinished = code
            return None
        return code

    def describe(self, message: Message) -> dict[str, str]:
        """Command or code, and no argument: it may be a password."""
        if message.direction is ORIGINAL:
            return {"command": parse_command(message.payload)[0].decode()}
        if self._unfinished is not None:
            return {"reply": f"{self._unfinished.decode()}, a further line"}
        return {"reply": parse_reply(message.payload)[0].decode()}


def _open(announced: Announced) -> Effects:
    """Expect the data flow, and write what was granted where that differs.

    There are several ways to write one endpoint: what stands there stays if it can.
    """
    grant = yield from expect(announced.endpoint, policy="data")
    if grant.endpoint != announced.endpoint:
        yield Rewrite(announced.span, announced.emit(grant.endpoint))


def _open_passive(announced: Announced, message: Message) -> Effects:
    """As `_open`, where clients may take the port alone, as curl and ftplib do.

    A server announces another address than its own where it has several, or where it
    does not know what its NAT makes of it.
    """
    server, known = message.source.address, message.original.destination.address
    endpoint = announced.endpoint
    if endpoint.address in (server, known):
        yield from _open(announced)
        return
    grant = yield from expect(Endpoint(server, endpoint.port), policy="data")
    try:
        grant = yield from expect(endpoint, policy="data", alternative=True)
    except ExpectationRefused:
        # Where the server is not translated the client needs no other word.
        if server == known:
            return
    if grant.endpoint != endpoint:
        yield Rewrite(announced.span, announced.emit(grant.endpoint))


def parse_command(line: bytes) -> tuple[bytes, int]:
    """The verb in upper case, and where in the line its argument begins.

    Raises Malformed for what is no command of FTP.
    """
    found = _COMMAND.fullmatch(line)
    if found is None:
        raise Malformed(f"no command: {line[:40]!r}")
    verb = found["verb"].upper()
    if verb in _METHODS:
        raise Malformed(f"the client speaks HTTP: {verb.decode()}")
    start = found.start("argument")
    return verb, start if start >= 0 else found.end("verb")


def parse_reply(line: bytes) -> tuple[bytes, bool]:
    """The code, and whether more lines follow. Raises Malformed."""
    found = _REPLY.match(line)
    if found is None:
        raise Malformed(f"no reply: {line[:40]!r}")
    return found["code"], found["more"] == b"-"


def parse_port(line: bytes, start: int) -> Announced:
    """The endpoint in PORT's argument, which begins at `start`. Raises Malformed."""
    found = _PORT.match(line, start)
    if found is None:
        raise Malformed(f"PORT without six numbers: {line[start : start + 40]!r}")
    return Announced(_six(found["six"]), found.span("six"), emit_six)


def parse_passive(line: bytes) -> Announced:
    """The endpoint in a 227 reply. Raises Malformed."""
    found = _PASSIVE.search(line, 4)
    if found is None:
        raise Malformed(f"227 without six numbers: {line[:60]!r}")
    return Announced(_six(found["six"]), found.span("six"), emit_six)


def parse_extended_passive(line: bytes, server: Address) -> Announced:
    """The endpoint in a 229 reply, which holds a port alone. Raises Malformed."""
    found = _EXTENDED.search(line, 4)
    if found is None:
        raise Malformed(f"229 without a port: {line[:60]!r}")
    endpoint = Endpoint(server, int(found["port"]))
    return Announced(endpoint, found.span("port"), emit_port)


def parse_eprt(line: bytes, start: int) -> Announced | None:
    """The endpoint in EPRT's argument, which begins at `start`.

    None: of a protocol other than IPv4 and IPv6, which the server will refuse. Raises
    Malformed.
    """
    found = _EPRT.match(line, start)
    if found is None:
        raise Malformed(f"EPRT without an endpoint: {line[start : start + 60]!r}")
    family, text = int(found["family"]), found["address"].decode("latin-1")
    address: Address
    try:
        if family == 1:
            address = IPv4Address(text)
        elif family == 2:
            address = IPv6Address(text)
        else:
            return None
    except AddressValueError as error:
        raise Malformed(f"EPRT: {error}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Malformed(f"EPRT with a zone: {text!r}")
    endpoint = Endpoint(address, int(found["port"]))
    return Announced(endpoint, found.span("whole"), emit_extended)


def _six(text: bytes) -> Endpoint:
    """The endpoint that six numbers mean. Raises Malformed."""
    numbers = [int(each) for each in text.split(b",")]
    # Three digits hold up to 999. An octet must not spill into the next.
    if max(numbers) > 0xFF:
        raise Malformed(f"{max(numbers)} is over 255 in {text.decode()}")
    packed = bytes(numbers)
    return Endpoint(IPv4Address(packed[:4]), int.from_bytes(packed[4:]))


def emit_six(endpoint: Endpoint) -> bytes:
    """The six numbers of PORT and 227."""
    packed = endpoint.address.packed + endpoint.port.to_bytes(2)
    return b",".join(b"%d" % each for each in packed)


def emit_extended(endpoint: Endpoint) -> bytes:
    """The argument of EPRT."""
    family = 1 if endpoint.address.version == 4 else 2
    return f"|{family}|{endpoint.address}|{endpoint.port}|".encode()


def emit_port(endpoint: Endpoint) -> bytes:
    """The port of 229."""
    return b"%d" % endpoint.port

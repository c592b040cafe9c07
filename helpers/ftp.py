# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP (RFC 959, RFC 2428): commands and replies name the endpoint of the data flow.

::

    the server opens the data flow      the client opens the data flow
    client: PORT 192,0,2,1,156,64       client: PASV
    client: EPRT |2|2001:db8::1|40000|  server: 227 Entering (198,51,100,2,156,64)
                                        client: EPSV
                                        server: 229 Entering (|||40000|)

Both sides send lines, which may come several to a segment or in pieces; clients may
send many commands before they read a reply, and before the server's 220. Nothing opens
until that has come. A reply of several lines (``227-...``) ends with a line of the same
code and a blank; what stands between belongs to users and announces nothing, and
neither does a 227 or 229 that nobody asked for. One that names another address than the
server's has the port opened at the server's own, where clients go. After ``EPSV ALL``
nothing opens but by EPSV, until ``REIN``. LPRT and LPSV (RFC 1639) are refused (reason
``unserved``), and so is an announcement that cannot be read (``unreadable``); what else
is odd passes.

An announcement is taken back where it or its transfer is refused or aborted, or where
another follows before it was used; not where the transfer has succeeded, since that may
be heard of before the data flow begins.

A client that does not speak FTP, such as a browser that was made to send these lines in
a form (NAT slipstreaming), ends the reading at its first line of another protocol. Once
a security exchange has succeeded (RFC 2228, RFC 4217: AUTH TLS) the rest is encrypted,
and reading ends as well, unless the option `ccc` has it wait for a return to clear
text.

NAT: the endpoint stands in text of variable length, so rewriting may change the length
of a segment.

The kernel has a helper of this name, too (nf_conntrack_ftp). Where its module is loaded
this one is known as ``ftp-u``, and whichever a rule attaches to a flow reads it.
"""

import re
from collections import deque
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
    Option,
    Policy,
    Rewrite,
    Withdraw,
    expect,
)

# Telnet's commands may go before one (RFC 959, section 4.1.3, ABOR; RFC 854).
_COMMAND: Final = re.compile(
    rb"(?:\xff(?:[\xfb-\xfe].|[^\xfb-\xfe]))*(?P<verb>[A-Za-z][A-Za-z0-9]{2,7})"
    rb"(?: (?P<argument>.*))?\r?\n",
    re.DOTALL,
)
_REPLY: Final = re.compile(rb"(?P<code>[1-5]\d\d)(?P<more>[ -]|(?=\r?\n))")
_SIX: Final = rb"(?P<six>\d{1,3}(?:,\d{1,3}){5})"
_PORT: Final = re.compile(_SIX + rb"[ \t]*\r?\n")
# RFC 1123, section 4.1.2.6: the parentheses may be missing.
_PASSIVE: Final = re.compile(rb"(?<![\d,])" + _SIX + rb"(?![\d,])")
# RFC 2428, section 2: any delimiter, which a digit could not be told from.
_DELIMITER: Final = rb"([!-/:-~])"
_EXTENDED: Final = re.compile(rb"\(" + _DELIMITER + rb"\1\1(?P<port>\d{1,5})\1\)")
_EPRT: Final = re.compile(
    rb"(?P<whole>" + _DELIMITER + rb"(?P<family>\d{1,5})\2(?P<address>(?:(?!\2).)+)"
    rb"\2(?P<port>\d{1,5})\2)[ \t]*\r?\n"
)

_METHODS: Final = frozenset(
    {
        *(b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST"),
        *(b"PUT", b"TRACE"),
    }
)
_ALL: Final = b"EPSV ALL"
_ANNOUNCING: Final = frozenset({b"PORT", b"EPRT"})
_TRANSFERS: Final = frozenset(
    {b"RETR", b"STOR", b"STOU", b"APPE", b"LIST", b"NLST", b"MLSD"}
)
_ABORT: Final = b"ABOR"
# It sets all parameters back (RFC 959, section 4.1.1).
_ANEW: Final = b"REIN"
# Either may be answered as the other.
_PASSIVE_VERBS: Final = frozenset({b"PASV", b"EPSV"})
_PASSIVE_CODES: Final = frozenset({b"227", b"229"})
_READY: Final = b"220"
_TLS: Final = b"234"
# Why nothing more is announced: the session's end, or security data exchange complete,
# without further data and by ADAT (RFC 2228).
_LAST: Final = {
    b"221": "the server's 221",
    b"421": "the server's 421",
    _TLS: "what follows is encrypted",
    b"235": "what follows is encrypted",
}
# The first byte of a TLS record: its type (RFC 8446, section 5.1). No line begins so.
_RECORDS: Final = frozenset(range(0x14, 0x18))
_RECORD_HEADER: Final = 5
_LARGEST_RECORD: Final = _RECORD_HEADER + 2**14 + 2048  # RFC 5246, section 6.2.3

# Commands of which the replies are awaited, announcements that may be taken back, and
# odd lines after which there is nothing that could be FTP.
_AWAITED: Final = 32
_UNUSED: Final = 8
_ODD: Final = 16
# What an instance and what it awaits take, in bytes.
_INSTANCE: Final = 900
_ITEM: Final = 120

_CCC: Final = Option(
    "ccc",
    default=False,
    meaning="true: after AUTH TLS wait for a return to clear text (CCC, RFC 4217), and "
    "queue the encrypted flow until then",
)


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
    options = (_CCC,)
    api = (1, 2)
    message_limit = _LARGEST_RECORD

    def __init__(self) -> None:
        self._ready = False
        self._encrypted = False
        self._extended_only = False
        self._odd = 0
        # The code of the reply of several lines that has not ended.
        self._unfinished: bytes | None = None
        # How many commands have come, and which one the latest reply was to. Some
        # servers answer ABOR twice and some never: so these are told from the replies
        # that name them, and what is out of step errs on the side of opening.
        self._sent = self._answered = 0
        # Those by their numbers whose replies matter.
        self._awaited: deque[tuple[int, bytes]] = deque(maxlen=_AWAITED)
        # The commands that led to what may still be taken back.
        self._unused: deque[int] = deque(maxlen=_UNUSED)

    def footprint(self) -> int:
        """What the commands that have no reply take."""
        return _INSTANCE + _ITEM * (len(self._awaited) + len(self._unused))

    def frame(self, data: memoryview) -> int | None:
        """A message is a line, or a record of TLS."""
        if self._encrypted and data[0] in _RECORDS:
            if len(data) == 1:
                return None
            if data[1] == 3:
                return _record_length(data)
        return bytes(data).find(b"\n") + 1 or None

    def on_message(self, message: Message) -> Effects:
        """Expect what PORT, EPRT, 227 and 229 announce."""
        if self._encrypted and _is_record(message.payload):
            return _nothing()
        if message.direction is ORIGINAL:
            return self._on_command(message)
        return self._on_reply(message)

    def _on_command(self, message: Message) -> Effects:
        line = message.payload
        verb, start = parse_command(line)
        self._sent += 1
        if verb in _ANNOUNCING:
            if not self._ready:
                raise ExpectationRefused("not-ready", "no 220 of the server's yet")
            if self._extended_only:
                raise ExpectationRefused("epsv-all", f"{verb.decode()} after EPSV ALL")
            read = parse_port if verb == b"PORT" else parse_eprt
            announced = self._readable(read, line, start)
            self._await(verb)
            yield from self._announce(self._sent)
            yield from _open(announced, _label(self._sent))
        elif verb in _PASSIVE_VERBS:
            if line[start:].strip().upper() == b"ALL":
                self._await(_ALL)
            elif verb == b"EPSV" or not self._extended_only:
                self._await(verb)
        elif verb in _TRANSFERS or verb in (_ABORT, _ANEW):
            self._await(verb)
        elif verb in (b"LPRT", b"LPSV"):
            raise ExpectationRefused("unserved", f"{verb.decode()}, of RFC 1639")

    def _on_reply(self, message: Message) -> Effects:
        code = self._code(message.payload)
        if code is None or code < b"2":
            return
        if code in _LAST:
            if code == _TLS and _CCC.of(message):
                self._encrypted = True
                self._answer(code)
            else:
                yield Done(_LAST[code])
        elif not self._ready:
            self._ready = code == _READY
        elif code in _PASSIVE_CODES:
            number = self._asked_for()
            if number is None:
                for each in self._answer(code):
                    yield Withdraw(_label(each))
                raise ExpectationRefused(
                    "unasked", f"{code.decode()} without a command"
                )
            server = message.source.address
            label = _label(number)
            if code == b"227":
                announced = self._readable(parse_passive, message.payload)
                yield from self._announce(number)
                yield from _open_passive(announced, message, label)
            else:
                read = parse_extended_passive
                announced = self._readable(read, message.payload, server)
                yield from self._announce(number)
                yield from _open(announced, label)
        else:
            for each in self._answer(code):
                yield Withdraw(_label(each))

    def _code(self, line: bytes) -> bytes | None:
        """The reply's code, where this is its last line."""
        found = _REPLY.match(line)
        if self._unfinished is None:
            if found is None:
                self._count_odd(f"no reply: {line[:40]!r}")
                return None
        elif found is None or found["code"] != self._unfinished:
            return None
        code: bytes = found["code"]
        self._unfinished = code if found["more"] == b"-" else None
        return None if self._unfinished else code

    def _await(self, verb: bytes) -> None:
        self._awaited.append((self._sent, verb))

    def _asked_for(self) -> int | None:
        """The command that a 227 or 229 is the reply to; None: nobody asked."""
        asked = [each for each, verb in self._awaited if verb in _PASSIVE_VERBS]
        if not asked:
            return None
        self._answered = asked[0]
        while self._awaited[0][0] < asked[0]:
            number, verb = self._awaited.popleft()
            if verb in _TRANSFERS:
                self._used_by(number)
        self._awaited.popleft()
        return asked[0]

    def _answer(self, code: bytes) -> list[int]:
        """A reply has come that names no command: it is to the next one.

        What is void now, by the commands that led to it.
        """
        void: list[int] = []
        if self._answered == self._sent:
            return void
        self._answered += 1
        failed = code >= b"4"
        for number, verb in list(self._awaited):
            if number > self._answered:
                break
            # One that is skipped, where a reply was too many, is still to be answered.
            if verb in _PASSIVE_VERBS and (number < self._answered or not failed):
                continue
            self._awaited.remove((number, verb))
            if number == self._answered:
                void = self._ended_by(number, verb, failed=failed)
        return void

    def _ended_by(self, number: int, verb: bytes, *, failed: bool) -> list[int]:
        """What is void once a command, by its number, was answered."""
        if verb in _TRANSFERS:
            used = self._used_by(number)
            return used if failed else []
        void: list[int] = []
        if verb in _ANNOUNCING and failed:
            void = [each for each in self._unused if each == number]
        elif verb == _ABORT and not failed:
            void = [each for each in self._unused if each < number]
        elif verb == _ALL and not failed:
            self._extended_only = True
        elif verb == _ANEW and not failed:
            self._extended_only = False
        for each in void:
            self._unused.remove(each)
        return void

    def _used_by(self, number: int) -> list[int]:
        """The announcement that a transfer uses, which is no longer unused; or none."""
        used = [each for each in self._unused if each < number][-1:]
        for each in used:
            self._unused.remove(each)
        return used

    def _announce(self, number: int) -> Effects:
        """A command leads to an announcement: those that no transfer uses are void."""
        transfers = [each for each, verb in self._awaited if verb in _TRANSFERS]
        for each in list(self._unused):
            if not any(each < transfer < number for transfer in transfers):
                self._unused.remove(each)
                yield Withdraw(_label(each))
        self._unused.append(number)

    def _readable(
        self, read: Callable[..., Announced], line: bytes, *more: object
    ) -> Announced:
        """What `read` makes of a line. Raises ExpectationRefused."""
        try:
            return read(line, *more)
        except Malformed as error:
            self._count_odd(str(error))
            raise ExpectationRefused("unreadable", str(error)) from None

    def _count_odd(self, what: str) -> None:
        """Something passes that is not as it should be. Raises Malformed at last."""
        self._odd += 1
        if self._odd == _ODD:
            raise Malformed(f"{what}, which is the {_ODD}th odd line")

    def describe(self, message: Message) -> dict[str, str]:
        """Command or code, and no argument: it may be a password."""
        if self._encrypted and _is_record(message.payload):
            return {"record": "TLS"}
        if message.direction is ORIGINAL:
            return {"command": parse_command(message.payload)[0].decode()}
        if self._unfinished is not None:
            return {"reply": f"{self._unfinished.decode()}, a further line"}
        return {"reply": parse_reply(message.payload).decode()}


def _nothing() -> Effects:
    """No effects."""
    yield from ()


def _label(number: int) -> bytes:
    """What the announcement of a command is taken back by."""
    return b"%d" % number


def _open(announced: Announced, label: bytes) -> Effects:
    """Expect the data flow, and write what was granted where that differs.

    There are several ways to write one endpoint: what stands there stays if it can.
    """
    grant = yield from expect(announced.endpoint, policy="data", label=label)
    if grant.endpoint != announced.endpoint:
        yield Rewrite(announced.span, announced.emit(grant.endpoint))


def _open_passive(announced: Announced, message: Message, label: bytes) -> Effects:
    """As `_open`, where clients may take the port alone, as curl and ftplib do.

    A server announces another address than its own where it has several, or where it
    does not know what its NAT makes of it.
    """
    server, known = message.source.address, message.original.destination.address
    endpoint = announced.endpoint
    if endpoint.address in (server, known):
        yield from _open(announced, label)
        return
    own = Endpoint(server, endpoint.port)
    grant = yield from expect(own, policy="data", label=label)
    try:
        grant = yield from expect(
            endpoint, policy="data", alternative=True, label=label
        )
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


def parse_reply(line: bytes) -> bytes:
    """The code of a reply's first line. Raises Malformed."""
    found = _REPLY.match(line)
    if found is None:
        raise Malformed(f"no reply: {line[:40]!r}")
    code: bytes = found["code"]
    return code


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


def parse_eprt(line: bytes, start: int) -> Announced:
    """The endpoint in EPRT's argument, which begins at `start`. Raises Malformed."""
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
            raise Malformed(f"EPRT of protocol {family}")
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


def _is_record(message: bytes) -> bool:
    return message[0] in _RECORDS and len(message) > 1 and message[1] == 3


def _record_length(data: memoryview) -> int | None:
    """Length of the record of TLS that begins here; None: need more."""
    if len(data) < _RECORD_HEADER:
        return None
    length = _RECORD_HEADER + int.from_bytes(bytes(data[3:_RECORD_HEADER]))
    if length > _LARGEST_RECORD:
        raise Malformed(f"a record of TLS of {length} bytes")
    return length if len(data) >= length else None

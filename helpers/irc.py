# SPDX-License-Identifier: GPL-2.0-or-later
"""IRC: DCC, by which a user has another one connect to him (CTCP and DCC, 1994).

::

    client: PRIVMSG bob :^ADCC CHAT chat 3221225985 40000^A
    client: PRIVMSG bob :^ADCC SEND "two words.txt" 3221225985 40001 1234^A
    server: passes it on, and bob connects to 192.0.2.1

Lines end in CR LF, or in LF alone, and may begin with IRCv3's tags. The text of PRIVMSG
or NOTICE is a DCC, and nothing else: CHAT and SEND, and of the same form SCHAT, TSEND,
SSEND, MOVE, XMIT. The address is one decimal number, a dotted quad, or an IPv6 address;
it and the port are read from the end, as a name may have blanks and no quotes. Port 0
(passive DCC), RESUME and ACCEPT announce nothing: he who answers announces.

Who connects is anybody, as the server has no part in it. Behind NAT address and port
are rewritten, in the form in which they came. The kernel's only translation of an
expected flow gives it the source that the server has: behind source NAT the client sees
bob come from the server's address.

Security. Off by default, since it opens a port of the sender's to everybody, once, for
five minutes. Only the sender's own address is opened, also where he has written what
NAT makes of it, and eight ports in ten seconds. The kernel's helper looked for DCC
anywhere, so that a server's PING and the client's PONG opened a port (CVE-2022-2663):
here it counts at the beginning of a text, in the client's direction, after the server's
welcome (001). A client whose first line is none of IRC's, or that speaks HTTP, as a
browser which was made to send such lines (NAT slipstreaming), is read no further, and
neither is what STARTTLS encrypts. Port 6697 is TLS from the beginning. The flow is
never done with, as its user may send at any time.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from typing import Final

from cthelper.core.api import (
    ANY,
    ORIGINAL,
    TCP,
    Address,
    Done,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Message,
    Policy,
    Rewrite,
    expect,
)

_CHUNK: Final = 8192
_MARK: Final = b"\x01DCC"
# Before a command: IRCv3's tags, and who it is from.
_BEFORE: Final = rb"^(?:@\S+ +)?(?::\S+ +)?"
_COMMAND: Final = re.compile(_BEFORE + rb"([A-Za-z]+|[0-9]{3})(?![^ \r\n])", re.M)
# The server's welcome, and that what follows is encrypted.
_ANSWER: Final = re.compile(_BEFORE + rb"(001|670) ", re.M)
# Methods of HTTP. IRC has commands TRACE and CONNECT.
_HTTP: Final = re.compile(rb"^(?:DELETE|GET|HEAD|OPTIONS|PATCH|POST|PUT) ", re.M)
# A line has 512 bytes at most, without its tags.
_DCC: Final = re.compile(
    _BEFORE + rb"(?i:PRIVMSG|NOTICE) +\S+ +:\x01DCC "
    rb"+(?i:CHAT|MOVE|SCHAT|SEND|SSEND|TSEND|XMIT)"
    rb'(?= )(?P<name> +"[^"\x01\r\n]*")?(?P<rest>[^\x01\r\n]{0,512})\x01\r*\n'
)
_WORD: Final = re.compile(rb"[^ ]+")
_NUMBER: Final = re.compile(rb"[0-9]{1,20}")
_DECIMAL: Final = re.compile(rb"[0-9]{1,10}")
_PORT: Final = re.compile(rb"[0-9]{1,5}")

# What a client says before it is known. irssi joins nothing at first.
_FIRST: Final = frozenset(
    {
        *(b"AUTHENTICATE", b"CAP", b"JOIN", b"NICK", b"PASS", b"PING", b"PONG"),
        *(b"PROTOCTL", b"QUIT", b"STARTTLS", b"USER", b"WEBIRC"),
    }
)
# After an address and a port: a file's size, and the token of passive DCC.
_NUMBERS_AFTER: Final = 2
_BURST: Final = 8
_BURST_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Announced:
    """An endpoint, and the slices of the line that hold its address and its port."""

    endpoint: Endpoint
    address_at: tuple[int, int]
    port_at: tuple[int, int]


class Irc(Helper):
    """IRC's DCC: chats and files between two users."""

    name = "irc"
    transports = frozenset({TCP})
    ports = (6667,)
    policies = (Policy("dcc", max_expected=_BURST, timeout=300),)
    enabled = False
    api = (1, 1)

    def __init__(self) -> None:
        self._begun = False
        self._welcomed = False
        # When the last ones were asked for.
        self._asked: tuple[float, ...] = ()

    def frame(self, data: memoryview) -> int | None:
        """A message is a line with a DCC in it, or as many whole lines without."""
        begin = bytes(data[:_CHUNK])
        end = begin.find(b"\n") + 1
        if not end:
            return bytes(data).find(b"\n") + 1 or None
        mark = begin.find(_MARK)
        if mark < 0:
            return begin.rfind(b"\n") + 1
        return begin.rfind(b"\n", 0, mark) + 1 or end

    def on_message(self, message: Message) -> Effects:
        """Expect a connection to what a DCC of the client's announces."""
        if message.direction is not ORIGINAL:
            yield from self._on_answer(message.payload)
            return
        if not self._begins(message.payload):
            yield Done("the client speaks no IRC")
            return
        if _DCC.fullmatch(message.payload) is None:
            return
        self._check_rate(message.now)
        for announced in read_dcc(message.payload, _own(message)):
            self._asked = (*self._asked[1 - _BURST :], message.now)
            yield from _open(announced, message)

    def _begins(self, lines: bytes) -> bool:
        """Whether the client's lines are of IRC, as far as that can be told."""
        if not self._begun and (first := lines.lstrip(b"\r\n")):
            found = _COMMAND.match(first)
            self._begun = found is not None and found[1].upper() in _FIRST
            if not self._begun:
                return False
        return _HTTP.search(lines) is None

    def _on_answer(self, lines: bytes) -> Effects:
        for found in _ANSWER.finditer(lines):
            if found[1] == b"670":
                yield Done("what follows is encrypted")
                return
            self._welcomed = True

    def _check_rate(self, now: float) -> None:
        """Raise ExpectationRefused where no DCC is to be read now."""
        if not self._welcomed:
            raise ExpectationRefused("not-welcomed", "DCC before the server's 001")
        if len(self._asked) == _BURST and now - self._asked[0] < _BURST_SECONDS:
            raise ExpectationRefused("dcc-rate", f"over {_BURST} in ten seconds")

    def describe(self, message: Message) -> dict[str, str]:
        """Commands, and of a DCC where it leads; no texts, which are private."""
        commands = _COMMAND.findall(message.payload)
        fields = {"commands": b" ".join(commands).decode().upper()}
        for each in read_dcc(message.payload, _own(message)):
            fields["DCC"] = str(each.endpoint)
        return fields


def _open(announced: Announced, message: Message) -> Effects:
    """Expect anybody there, and write what was granted where that differs."""
    old = announced.endpoint
    new = (yield from expect(old, policy="dcc", source=ANY)).endpoint
    if new.address != old.address:
        start, stop = announced.address_at
        like = message.payload[start:stop]
        yield Rewrite((start, stop), emit_address(new.address, like))
    if new.port != old.port:
        yield Rewrite(announced.port_at, b"%d" % new.port)


def _own(message: Message) -> frozenset[Address]:
    """The client's address, and the one that others know it by."""
    return frozenset(
        (message.original.source.address, message.reply.destination.address)
    )


def read_dcc(line: bytes, own: frozenset[Address]) -> list[Announced]:
    """What a line with a DCC announces: one endpoint or none.

    Where it can be read in several ways, since names may hold numbers and blanks, the
    one that names an address of the sender's `own` counts.
    """
    found = _DCC.fullmatch(line)
    if found is None:
        return []
    words = list(_WORD.finditer(line, *found.span("rest")))
    first = 0 if found["name"] else 1
    ways = []
    for at in range(max(first, len(words) - 2 - _NUMBERS_AFTER), len(words) - 1):
        host, port, *rest = words[at:]
        address = read_address(host[0])
        if (
            address is not None
            and _PORT.fullmatch(port[0])
            and int(port[0]) <= 0xFFFF
            and all(_NUMBER.fullmatch(each[0]) for each in rest)
        ):
            endpoint = Endpoint(address, int(port[0]))
            ways.append(Announced(endpoint, host.span(), port.span()))
    best = [each for each in ways if each.endpoint.address in own][-1:] or ways
    return [] if any(each.endpoint.port == 0 for each in best) else best[:1]


def read_address(text: bytes) -> Address | None:
    """The address of a DCC: a decimal number, a dotted quad, IPv6; None: none of them.

    One with a zone means nothing to another host.
    """
    if _DECIMAL.fullmatch(text):
        number = int(text)
        return IPv4Address(number) if number < 1 << 32 else None
    try:
        address = ip_address(text.decode("ascii"))
    except ValueError:
        return None
    return None if "%" in str(address) else address


def emit_address(address: Address, like: bytes) -> bytes:
    """An address in the form that another one has."""
    return b"%d" % int(address) if like.isdigit() else str(address).encode()

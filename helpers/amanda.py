# SPDX-License-Identifier: GPL-2.0-or-later
"""Amanda's backups: a client announces the ports that the server fetches data from.

There is no public specification; this is what Amanda 3.5 sends, over UDP to port 10080.
The backup server asks a client to serve it, and the client's answer names streams::

    server: Amanda 3.5 REQ HANDLE 000-00000000 SEQ 1795912944
            SERVICE sendbackup ...
    client: Amanda 3.5 REP HANDLE 000-00000000 SEQ 1795912944
            CONNECT DATA 50040 MESG 50041 INDEX 50042 STATE 50043

HANDLE and SEQ are the transaction. With ``auth=bsd`` each number is a TCP port of the
client's that the server connects to. With ``auth=bsdudp`` the first one is, and the
others are streams within that flow, with numbers over 65535, which are no ports. A
stream that the client cannot have is -1, as where two backups of one machine begin at
once and choose the same port. All other ways (bsdtcp, ssh, ssl) have one flow for
everything and need no help.

It is for a firewall between the backup server and its clients; else ports that Amanda
keeps to (`tcpportrange`) have to be open all the time.

Only what answers a request of the same flow, for an hour, opens anything: ports of the
client to the server that asked, each for one flow. Behind destination NAT the numbers
are rewritten in the text.

Over IPv6 all is the same, where Amanda has it. Debian builds it ``--without-ipv6``:
amandad does not answer there, and the server looks for addresses of IPv4 alone. Such
hosts come over IPv6 with a translator on each (464XLAT).

An answer that comes when conntrack has forgotten the request's flow is dropped like any
other: where a client thinks for long, set ``net.netfilter.nf_conntrack_udp_timeout``
and ``nf_conntrack_udp_timeout_stream``.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    TCP,
    UDP,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Malformed,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
    Rewrite,
    expect,
)

_HEADER: Final = re.compile(
    rb"Amanda \d{1,2}\.\d{1,2} (REQ|REP|PREP|ACK|NAK) "
    rb"(HANDLE [\w-]{1,40} SEQ \d{1,10})(?=\n)"
)
_CONNECT: Final = b"\nCONNECT "
_STREAM: Final = re.compile(rb"([A-Z][A-Z0-9_]{0,15}) (-?\d{1,10})(?: |$)")
_STREAMS: Final = 8
_PORTS: Final = range(1 << 16)
# Requests of a flow that are remembered, and for how many seconds.
_PENDING: Final = 16
_SECONDS: Final = 3600.0
# What an instance and a request take in memory, in bytes.
_INSTANCE: Final = 400
_REQUEST: Final = 250


@dataclass(frozen=True, slots=True)
class Stream:
    """One of CONNECT: its name, its number, and where that stands in the datagram."""

    name: str
    number: int
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Packet:
    """A datagram: its type, its transaction, and the streams that it names."""

    kind: str
    transaction: bytes
    streams: tuple[Stream, ...]


class Amanda(Helper):
    """Amanda: the streams of a backup with auth bsd or bsdudp."""

    name = "amanda"
    transports = frozenset({UDP})
    ports = (10080,)
    policies = (Policy("stream", max_expected=4, timeout=180),)
    enabled = False
    api = (1, 1)

    def __init__(self) -> None:
        # When each request was seen last, the oldest first.
        self._asked: dict[bytes, float] = {}

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Requests, and what answers them; the version has three characters or four."""
        return Prefilter(_matches(b"REQ "), _matches(b"REP "), answers=True)

    def footprint(self) -> int:
        """What the requests take."""
        return _INSTANCE + _REQUEST * len(self._asked)

    def on_message(self, message: Message) -> Effects:
        """Remember a request; expect flows to the ports that its answer names."""
        packet = parse(message.payload)
        if message.direction is ORIGINAL:
            if packet.kind == "REQ":
                self._asked.pop(packet.transaction, None)
                if len(self._asked) == _PENDING:
                    del self._asked[next(iter(self._asked))]
                self._asked[packet.transaction] = message.now
            return
        ports = [each for each in packet.streams if each.number in _PORTS]
        if packet.kind != "REP" or not ports:
            return
        asked = self._asked.get(packet.transaction)
        if asked is None or message.now - asked > _SECONDS:
            raise ExpectationRefused("unasked", "it answers no request of this flow")
        for stream in ports:
            endpoint = Endpoint(message.source.address, stream.number)
            # One that is refused, which the engine has counted, does not end others.
            with suppress(ExpectationRefused):
                grant = yield from expect(endpoint, policy="stream", transport=TCP)
                yield Rewrite(stream.span, b"%d" % grant.endpoint.port)

    def describe(self, message: Message) -> dict[str, str]:
        """Type and transaction, and what each stream is."""
        packet = parse(message.payload)
        fields = {"type": packet.kind, "transaction": packet.transaction.decode()}
        for each in packet.streams:
            what = "port" if each.number in _PORTS else "no port,"
            fields[f"stream {each.name}"] = f"{what} {each.number}"
        return fields


def _matches(kind: bytes) -> tuple[tuple[Match, ...], ...]:
    """The two places where a datagram says that it is of a kind."""
    begin = Match(0, 32, int.from_bytes(b"Aman"))
    return tuple((begin, Match(8 * at, 32, int.from_bytes(kind))) for at in (11, 12))


def parse(datagram: bytes) -> Packet:
    """What a datagram says. Raises Malformed, and nothing else."""
    header = _HEADER.match(datagram)
    if header is None:
        raise Malformed(f"no header: {datagram[:60]!r}")
    streams: list[Stream] = []
    found = datagram.find(_CONNECT, header.end())
    if found >= 0:
        at = found + len(_CONNECT)
        stop = datagram.find(b"\n", at)
        stop = len(datagram) if stop < 0 else stop
        while at < stop:
            stream = _STREAM.match(datagram, at, stop)
            if stream is None or len(streams) == _STREAMS:
                raise Malformed(f"streams: {datagram[found + 1 : stop][:200]!r}")
            name, number = stream.groups()
            streams.append(Stream(name.decode(), int(number), stream.span(2)))
            at = stream.end()
    return Packet(header[1].decode(), header[2], tuple(streams))

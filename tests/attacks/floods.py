# SPDX-License-Identifier: GPL-2.0-or-later
"""What is sent to exhaust: the dearest packets, the fullest flows, the most openings.

The tests play these with an assertion of what is promised, `bench.weaknesses` to say
what they cost.
"""

from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.api import Helper
from tests.attacks import plugins, wire
from tests.attacks.scene import Scene, Step
from tests.attacks.wire import (
    ATTACKER,
    CONNECT,
    EVIL,
    SERVER,
    Connection,
    datagram,
    turned,
    udp_flow,
)

SEGMENT: Final = 1448
"""Payload of a full segment on Ethernet, with timestamps."""

_MINUTE: Final = 60.0
_FIRST_PORT: Final = 20000

# Work


def tns_small_packets(segments: int = 1, port: int = 40000) -> Iterator[bytes]:
    """Segments full of the shortest packets of TNS, before the server has decided."""
    line = Connection((ATTACKER, port), (EVIL, 1521))
    yield from line.opened()
    yield from line.sent(CONNECT)
    yield from line.answered(*[wire.tns(12, b"") * (SEGMENT // 8)] * segments)


def rpc_unknown_replies(segments: int = 1) -> Iterator[bytes]:
    """Segments full of the shortest replies, which answer no call."""
    line = Connection((ATTACKER, 40001), (EVIL, 111))
    one = wire.record(wire.xdr(7, 1))
    yield from line.opened()
    yield from line.sent(wire.record(wire.getport(1)))
    yield from line.answered(*[one * (SEGMENT // len(one))] * segments)


def rpc_empty_fragments(segments: int = 1) -> Iterator[bytes]:
    """Segments full of fragments of a record that have nothing in them."""
    line = Connection((ATTACKER, 40003), (EVIL, 111))
    yield from line.opened()
    yield from line.sent(wire.record(wire.getport(1)))
    yield from line.answered(*[bytes(4) * (SEGMENT // 4)] * segments)


def rpc_long_list() -> Iterator[bytes]:
    """GETADDRLIST, and an answer of 58 KB: the longest datagram, of several sources."""
    way = udp_flow((ATTACKER, 40002), (EVIL, 111))
    yield datagram(way, wire.getaddrlist(1))
    addresses = (wire.uaddr(EVIL, _FIRST_PORT + number) for number in range(1000))
    yield datagram(turned(way), wire.reply(1, wire.listed(addresses)))


def ftp_short_lines(segments: int = 1) -> Iterator[bytes]:
    """Segments full of the shortest lines."""
    line = Connection((ATTACKER, 40004), (EVIL, 21))
    yield from line.opened()
    yield from line.answered(b"220 ready\r\n")
    yield from line.answered(*[b"150-\n" + b"x\n" * (SEGMENT // 2 - 3)] * segments)


def ftp_many_passives(segments: int) -> Iterator[bytes]:
    """Commands that nobody answers, 60 to a segment, and then a hundred answers."""
    line = Connection((ATTACKER, 40014), (EVIL, 21))
    yield from line.opened()
    yield from line.answered(b"220 ready\r\n")
    yield from line.sent(*[b"PASV\r\n" * 60] * segments)
    for number in range(100):
        answer = b"227 x (" + wire.six(EVIL, _FIRST_PORT + number) + b")\r\n"
        yield from line.answered(answer)


def mdns_many_questions() -> Iterator[bytes]:
    """A query of the gateway's own host, with as many questions as a datagram holds."""
    way = udp_flow((wire.GATEWAY, 40005), (wire.MDNS_GROUP, 5353))
    yield datagram(way, wire.mdns_query(*[b""] * 12_000, unicast=False))


def tns_nested_descriptor() -> Iterator[bytes]:
    """A redirect whose text is as long and as nested as it may be."""
    line = Connection((ATTACKER, 40006), (EVIL, 1521))
    yield from line.opened()
    yield from line.sent(CONNECT)
    text = b"(A=" * 1360
    yield from line.answered(wire.redirect(text))


def tns_many_addresses() -> Iterator[bytes]:
    """A redirect of 4 KB to as many addresses as it holds, all of them elsewhere."""
    line = Connection((ATTACKER, 40007), (EVIL, 1521))
    yield from line.opened()
    yield from line.sent(CONNECT)
    one = "(ADDRESS=(PROTOCOL=tcp)(HOST=10.9.9.{})(PORT=40000))"
    yield from line.answered(
        wire.redirect("".join(one.format(number) for number in range(70)).encode())
    )


# Memory


def tns_filled_flow(number: int, pieces: int = 60) -> Iterator[bytes]:
    """A flow of TNS whose bytes wait wherever they can, in both directions.

    In order they are less than one packet of the protocol, and behind a gap there is
    as much again.
    """
    client = str(IPv4Address("172.16.0.0") + number)
    line = Connection((client, 40000), (EVIL, 1521))
    yield from line.opened()
    yield from line.sent(CONNECT)
    for say, other in ((line.sent, 0), (line.answered, 1)):
        yield from say(wire.tns(6, b"", 16383))
        yield from say(*[bytes(SEGMENT)] * 11)
        way = turned(line.way) if other else line.way
        size = 15_000 // pieces
        for piece in range(pieces):
            start = (1000, 5000)[other] + 1 + 8 + 11 * SEGMENT + 10 + size * piece
            start += 0 if other else len(CONNECT)
            acknowledged = (5001, 1001 + len(CONNECT))[other]
            yield wire.segment(way, bytes(size - 2), start, acknowledged)


def rpc_pending_flow(number: int) -> Iterator[bytes]:
    """A flow of SunRPC over UDP with as many calls as are remembered."""
    client = str(IPv4Address("172.16.0.0") + number)
    way = udp_flow((client, 40000), (EVIL, 111))
    for xid in range(128):
        arguments = wire.xdr(1000 + xid + 1000 * number, 3, b"udp", b"", b"")
        yield datagram(way, wire.call(xid, 3, 3, arguments))


def unanswered_flows(amount: int, port: int = 111) -> Iterator[bytes]:
    """Flows of one datagram each, with ever another source; nobody answers."""
    for number in range(amount):
        client = str(IPv4Address("172.16.0.0") + number)
        yield datagram(udp_flow((client, 40000), (EVIL, port)), wire.getport(number))


# Openings


def _asked(
    client: tuple[str, int], server: str, xid: int, port: int
) -> Iterator[bytes]:
    """A GETPORT that is answered."""
    way = udp_flow(client, (server, 111))
    yield datagram(way, wire.getport(xid))
    yield datagram(turned(way), wire.reply(xid, wire.xdr(port)))


def announcements(sources: int, each: int, minutes: int = 1) -> Iterator[Step]:
    """Each source asks for so many ports, evenly in so many minutes."""
    pause = minutes * _MINUTE / each
    for number in range(each):
        for source in range(sources):
            client = str(IPv4Address(ATTACKER) + source)
            own = 1024 + number * 8 % 60000
            yield from _asked((client, own), EVIL, number, _FIRST_PORT + number)
        yield pause


def from_one_network(amount: int) -> Iterator[Step]:
    """Ever another address of one /64 asks for one port, all in one second."""
    first = IPv6Address("2001:db8:6::1")
    for number in range(amount):
        client = str(first + number)
        yield from _asked((client, 40000), "2001:db8:66::66", 1, _FIRST_PORT + number)
        yield 1 / amount


def for_many_clients(amount: int) -> Iterator[Step]:
    """One server answers ever another client, in five minutes."""
    for number in range(amount):
        client = str(IPv4Address("172.16.0.0") + 256 * number)
        yield from _asked((client, 40000), EVIL, 1, _FIRST_PORT + number)
        yield 5 * _MINUTE / amount


FORGED_SETTINGS: Final = 'helpers.sunrpc.procedures = ["getport", "callit"]'


def in_the_name_of(victim: str, amount: int) -> Iterator[Step]:
    """Calls that nobody answers, with the victim's address as their source."""
    for number in range(amount):
        way = udp_flow((victim, 1024 + number), (SERVER, 111))
        yield datagram(way, wire.callit(number))
        yield 0.01


# Faults


@cache
def _faulty() -> type[Helper]:
    return plugins.load("half")


def faulty_scene() -> Scene:
    """One with a plugin that has a bug, which a message may reach."""
    return Scene(plugins=[_faulty()], count=False)


def faults(source: str, number: int) -> Iterator[bytes]:
    """A datagram that reaches the bug, in a flow of its own."""
    way = udp_flow((source, 30000 + number), (SERVER, plugins.PORT))
    yield datagram(way, plugins.HARM)


def works(source: str, number: int) -> Iterator[bytes]:
    """A datagram that announces port 40000, and does not reach it."""
    way = udp_flow((source, 30000 + number), (SERVER, plugins.PORT))
    yield datagram(way, b"OPEN 40000")

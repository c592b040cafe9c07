# SPDX-License-Identifier: GPL-2.0-or-later
"""What packets that are made to be dear cost: CPU of one, and memory of a flow.

usage: python -m bench.hostile [--rounds N] [NAME...]

CPU is this thread's in `Engine.handle`, of each packet of an attack the least of some
rounds, and of these the most: what the dearest packet takes where nothing disturbs.
Memory is what tracemalloc counts, for each of many flows that keep as much as they can,
beside what the engine takes them for. The last line of the output is JSON.
"""

import argparse
import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from bench import UNLIMITED
from cthelper.core.config import parse
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Conntrack,
    Direction,
    Endpoint,
    Network,
    Status,
    Transport,
    Tuple,
)

_CLIENT: Final = IPv4Address("10.77.1.2")
_SERVER: Final = IPv4Address("10.77.2.2")
_OUTSIDE: Final = IPv4Address("203.0.113.7")
_SETTINGS: Final = f"""
{UNLIMITED}
[helpers.sunrpc]
procedures = ["getport", "getaddr", "getaddrlist", "dump"]
"""
_SEGMENT: Final = 1448
# As much as a queue copies of a packet (core/packet.py), less the headers.
_LARGEST: Final = 65_000
# A message of mDNS is no longer (RFC 6762, section 17); others may be.
_MDNS: Final = 9000
_FLOWS: Final = 512

Packet = tuple[Direction, bytes]
Attack = Iterator[Packet]


def _ip(protocol: int, rest: bytes) -> bytes:
    """An IPv4 packet; the engine takes addresses and ports from the entry."""
    head = struct.pack("!BxHIBB10x", 0x45, 20 + len(rest), 0, 64, protocol)
    return head + rest


def _segment(sequence: int, payload: bytes, flags: int = 0x18) -> bytes:
    head = struct.pack("!4xIIBB6x", sequence, 1, 0x50, flags)
    return _ip(TCP, head + payload)


def _datagram(payload: bytes) -> bytes:
    return _ip(UDP, struct.pack("!4xH2x", 8 + len(payload)) + payload)


def _handshake() -> Attack:
    yield ORIGINAL, _ip(TCP, struct.pack("!4xIIBB6x", 0, 0, 0x50, 0x02))
    yield REPLY, _ip(TCP, struct.pack("!4xIIBB6x", 0, 1, 0x50, 0x12))


def _stream(payload: bytes, direction: Direction, start: int = 1) -> Attack:
    """The payload in segments of the usual size."""
    for at in range(0, len(payload), _SEGMENT):
        yield direction, _segment(start + at, payload[at : at + _SEGMENT])


# TNS


def _tns(kind: int, body: bytes) -> bytes:
    return struct.pack("!HHBBH", 8 + len(body), 0, kind, 0, 0) + body


_CONNECT: Final = _tns(1, bytes(50))


def _tns_connected() -> Attack:
    yield from _handshake()
    yield ORIGINAL, _segment(1, _CONNECT)


def _tns_packets() -> Attack:
    yield from _tns_connected()
    begin = 1 + len(_CONNECT)
    yield from _stream(_tns(6, b"") * 181, ORIGINAL, begin)


def _tns_packets_64k() -> Attack:
    yield from _tns_connected()
    yield ORIGINAL, _segment(1 + len(_CONNECT), _tns(6, b"") * (_LARGEST // 8))


def _tns_held_then_filled() -> Attack:
    """Eight-byte packets from the second on, backwards, and then the first byte."""
    yield from _tns_connected()
    begin = 1 + len(_CONNECT)
    data = _tns(6, b"") * 2000
    for at in range(256, 0, -1):
        yield ORIGINAL, _segment(begin + 62 * at, data[62 * at : 62 * at + 62])
    yield ORIGINAL, _segment(begin, data[:62])


def _tns_redirect(text: bytes) -> Attack:
    yield from _tns_connected()
    yield REPLY, _segment(1, _tns(5, len(text).to_bytes(2) + text))


def _tns_groups() -> Attack:
    yield from _tns_redirect(b"(A=(B=" * 4 + b"(k=v)" * 800 + b"))" * 4)


def _tns_empty_groups() -> Attack:
    yield from _tns_redirect(b"(A=" + b"(B=(k=))" * 500 + b")")


def _tns_addresses() -> Attack:
    one = b"(ADDRESS=(PROTOCOL=tcp)(HOST=10.77.2.2)(PORT=%d))"
    text = b"(ADDRESS_LIST=" + b"".join(one % (2000 + n) for n in range(80)) + b")"
    yield from _tns_redirect(text)


def _tns_pieces() -> Attack:
    """A descriptor that comes to no end, in as many packets as are taken."""
    yield from _tns_connected()
    begun = _tns(5, b"\0\0(A=")
    yield REPLY, _segment(1, begun)
    at = 1 + len(begun)
    for _ in range(15):
        more = _tns(6, b"\0\0" + b"(B='x'" * 38)
        yield REPLY, _segment(at, more)
        at += len(more)


def _one_byte_backwards() -> Attack:
    """One byte a segment, backwards, and then the one that was missing."""
    yield from _handshake()
    data = _tns(1, bytes(400))
    for at in range(255, -1, -1):
        yield ORIGINAL, _segment(1 + at, data[at : at + 1])


def _one_byte_with_holes() -> Attack:
    """Every second byte, and then those between."""
    yield from _handshake()
    data = _tns(1, bytes(600))
    for at in (*range(1, 511, 2), *range(0, 511, 2)):
        yield ORIGINAL, _segment(1 + at, data[at : at + 1])


# SunRPC


def _record(data: bytes) -> bytes:
    return (0x80000000 | len(data)).to_bytes(4) + data


def _call(xid: int, version: int, number: int, arguments: bytes = b"") -> bytes:
    head = struct.pack("!10I", xid, 0, 2, 100000, version, number, 0, 0, 0, 0)
    return head + arguments


def _reply(xid: int, result: bytes = b"") -> bytes:
    return struct.pack("!6I", xid, 1, 0, 0, 0, 0) + result


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4) + data + bytes(-len(data) % 4)


def _getport(xid: int) -> bytes:
    return _call(xid, 2, 3, struct.pack("!4I", 100003, 3, 6, 0))


def _rpc_unknown_replies() -> Attack:
    yield from _handshake()
    replies = b"".join(_record(_reply(xid)) for xid in range(400))
    yield from _stream(replies, REPLY)


def _rpc_unknown_replies_64k() -> Attack:
    yield from _handshake()
    yield REPLY, _segment(1, _record(_reply(7)) * (_LARGEST // 28))


def _rpc_calls() -> Attack:
    yield from _handshake()
    calls = b"".join(_record(_getport(xid)) for xid in range(1000))
    yield from _stream(calls, ORIGINAL)


def _rpc_fragments() -> Attack:
    """Empty fragments, a byte a segment."""
    yield from _handshake()
    data = bytes(4) * 63
    for at in range(len(data)):
        yield ORIGINAL, _segment(1 + at, data[at : at + 1])


def _rpc_calls_udp() -> Attack:
    for xid in range(400):
        yield ORIGINAL, _datagram(_getport(xid))


def _rpc_unknown_replies_udp() -> Attack:
    yield ORIGINAL, _datagram(_getport(0))
    for xid in range(1, 100):
        yield REPLY, _datagram(_reply(xid, bytes(4)))


def _list_of(item: Callable[[int], bytes]) -> bytes:
    items = b""
    number = 0
    while len(items) < 58_000:
        items += (1).to_bytes(4) + item(number)
        number += 1
    return items + bytes(4)


def _uaddr(number: int) -> str:
    return f"10.77.2.2.{16 + number // 250}.{number % 250}"


def _entry(number: int) -> bytes:
    address = _string(_uaddr(number))
    kind = struct.pack("!I", 3)
    return address + _string("tcp") + kind + _string("inet") + _string("tcp")


def _entry_of_nothing(_: int) -> bytes:
    return bytes(20)


def _mapping(number: int) -> bytes:
    return struct.pack("!4I", 200_000 + number, 3, 6, 4096 + number)


def _rpcb(number: int) -> bytes:
    return (
        struct.pack("!2I", 200_000 + number, 3)
        + _string("tcp")
        + _string(_uaddr(number))
        + _string("superuser")
    )


def _rpcb_of_nothing(number: int) -> bytes:
    return struct.pack("!2I", number, 3) + bytes(12)


def _answered(
    version: int, number: int, arguments: bytes, item: Callable[[int], bytes]
) -> Attack:
    yield ORIGINAL, _datagram(_call(7, version, number, arguments))
    yield REPLY, _datagram(_reply(7, _list_of(item)))


_ASKED: Final = struct.pack("!2I", 100003, 3) + _string("udp") + bytes(8)


def _getaddrlist() -> Attack:
    yield from _answered(4, 11, _ASKED, _entry)


def _getaddrlist_empty() -> Attack:
    yield from _answered(4, 11, _ASKED, _entry_of_nothing)


def _dump_2() -> Attack:
    yield from _answered(2, 4, b"", _mapping)


def _dump_4() -> Attack:
    yield from _answered(4, 4, b"", _rpcb)


def _dump_4_empty() -> Attack:
    yield from _answered(4, 4, b"", _rpcb_of_nothing)


# To groups


def _slp() -> Attack:
    strings = b"".join(struct.pack("!H", 10_000) + bytes(10_000) for _ in range(5))
    size = 16 + len(strings)
    head = b"\x02\x01" + size.to_bytes(3) + b"\x20\x00" + bytes(5) + b"\0\2en"
    yield ORIGINAL, _datagram(head + strings)


def _mdns() -> Attack:
    """As many questions as a message may have, for the root: one wants unicast."""
    count = _MDNS // 5 - 3
    question = b"\0\0\1\0\1"
    head = struct.pack("!6H", 0, 0, count, 0, 0, 0)
    yield ORIGINAL, _datagram(head + question * (count - 1) + b"\0\0\1\x80\1")


def _mdns_labels() -> Attack:
    question = b"\1a" * 126 + b"\0\0\1\0\1"
    count = (_MDNS - 12) // len(question)
    head = struct.pack("!6H", 0, 0, count, 0, 0, 0)
    yield ORIGINAL, _datagram(head + question * count)


def _mdns_longer() -> Attack:
    question = b"\0\0\1\0\1"
    head = struct.pack("!6H", 0, 0, _LARGEST // 5, 0, 0, 0)
    yield ORIGINAL, _datagram(head + question * (_LARGEST // 5))


def _dhcpv6() -> Attack:
    yield ORIGINAL, _datagram(b"\1abc" + b"\0\x08\0\0" * (_LARGEST // 4))


_ATTACKS: Final[dict[str, tuple[str, Transport, Callable[[], Attack]]]] = {
    "tns: packets of 8 bytes": ("tns", TCP, _tns_packets),
    "tns: packets of 8 bytes, 64 KiB": ("tns", TCP, _tns_packets_64k),
    "tns: packets of 8 bytes, held": ("tns", TCP, _tns_held_then_filled),
    "tns: descriptor, groups": ("tns", TCP, _tns_groups),
    "tns: descriptor, groups of groups": ("tns", TCP, _tns_empty_groups),
    "tns: descriptor, addresses": ("tns", TCP, _tns_addresses),
    "tns: descriptor, pieces": ("tns", TCP, _tns_pieces),
    "tcp: bytes backwards": ("tns", TCP, _one_byte_backwards),
    "tcp: bytes with holes": ("tns", TCP, _one_byte_with_holes),
    "sunrpc: unknown replies": ("sunrpc", TCP, _rpc_unknown_replies),
    "sunrpc: unknown replies, 64 KiB": ("sunrpc", TCP, _rpc_unknown_replies_64k),
    "sunrpc: unknown replies, UDP": ("sunrpc", UDP, _rpc_unknown_replies_udp),
    "sunrpc: calls, never answered": ("sunrpc", TCP, _rpc_calls),
    "sunrpc: calls, never answered, UDP": ("sunrpc", UDP, _rpc_calls_udp),
    "sunrpc: empty fragments": ("sunrpc", TCP, _rpc_fragments),
    "sunrpc: GETADDRLIST": ("sunrpc", UDP, _getaddrlist),
    "sunrpc: GETADDRLIST, empty entries": ("sunrpc", UDP, _getaddrlist_empty),
    "sunrpc: DUMP of version 2": ("sunrpc", UDP, _dump_2),
    "sunrpc: DUMP of version 4": ("sunrpc", UDP, _dump_4),
    "sunrpc: DUMP of version 4, empty entries": ("sunrpc", UDP, _dump_4_empty),
    "slp: request": ("slp", UDP, _slp),
    "mdns: questions": ("mdns", UDP, _mdns),
    "mdns: labels": ("mdns", UDP, _mdns_labels),
    "mdns: questions, 64 KiB": ("mdns", UDP, _mdns_longer),
    "dhcpv6: options": ("dhcpv6", UDP, _dhcpv6),
}
_PORTS: Final = {"tns": 1521, "sunrpc": 111, "slp": 427, "mdns": 5353, "dhcpv6": 547}
_GROUPS: Final[dict[str, Address]] = {
    "slp": IPv4Address("239.255.255.253"),
    "mdns": IPv4Address("224.0.0.251"),
    "dhcpv6": IPv6Address("ff02::1:2"),
}


def _entry_for(
    helper: str, transport: Transport, number: int = 0, *, translated: bool = False
) -> Conntrack:
    client: Address = IPv6Address("fe80::1") if helper == "dhcpv6" else _CLIENT
    port = 546 if helper == "dhcpv6" else 10_000 + number
    here = Endpoint(client, port)
    there = Endpoint(_GROUPS.get(helper, _SERVER), _PORTS[helper])
    known = replace(there, address=_OUTSIDE) if translated else there
    return Conntrack(
        id=number + 1,
        original=Tuple(transport, here, known),
        reply=Tuple(transport, there, here),
        status=Status.CONFIRMED | Status.HELPER | Status.SEEN_REPLY,
        helper=helper,
    )


def _on_link(address: Address) -> tuple[Network, ...]:
    if address.version == 6:
        return (IPv6Network("fe80::/10"), IPv6Network("2001:db8::/64"))
    return (IPv4Network("10.77.0.0/16"),)


def _engine() -> Engine:
    config = parse(_SETTINGS, Path("bench"), builtin_helpers())
    return Engine(
        config.helpers,
        guard=Guard(config.limits),
        on_link=_on_link,
        clock=lambda: 0.0,
        flow_limit=65536,
    )


def _dearest(name: str, rounds: int, *, translated: bool = False) -> tuple[float, int]:
    """Microseconds of CPU of the dearest packet, and its size."""
    helper, transport, attack = _ATTACKS[name]
    packets = list(attack())
    entry = _entry_for(helper, transport, translated=translated)
    least = [float("inf")] * len(packets)
    for _ in range(rounds):
        engine = _engine()
        for number, (direction, packet) in enumerate(packets):
            before = time.thread_time_ns()
            engine.handle(packet, entry, direction)
            taken = time.thread_time_ns() - before
            least[number] = min(least[number], taken / 1000)
    most = max(least)
    return most, len(packets[least.index(most)][1])


# Memory


def _full_tns() -> Attack:
    """Both directions at their limit: a message begun, and pieces beyond it."""
    yield from _tns_connected()
    client = 1 + len(_CONNECT)
    for direction, start in ((ORIGINAL, client), (REPLY, 1)):
        begun = struct.pack("!HHBBH", 16_300, 0, 6, 0, 0) + bytes(16_000)
        yield from _stream(begun, direction, start)
        beyond = start + len(begun)
        for each in range(64):
            yield direction, _segment(beyond + 1 + 251 * each, bytes(250))


def _one_call() -> Attack:
    yield ORIGINAL, _datagram(_getport(1))


_FULL: Final[dict[str, tuple[str, Transport, Callable[[], Attack]]]] = {
    "sunrpc, one call": ("sunrpc", UDP, _one_call),
    "tns, CONNECT": ("tns", TCP, _tns_connected),
    "tns": ("tns", TCP, _full_tns),
    "sunrpc, TCP": ("sunrpc", TCP, _rpc_calls),
    "sunrpc, UDP": ("sunrpc", UDP, _rpc_calls_udp),
}


def _held(name: str) -> tuple[float, float]:
    """KiB of a flow that keeps as much as it can, and what it is taken for."""
    helper, transport, attack = _FULL[name]
    packets = list(attack())
    engine = _engine()

    def fill(number: int) -> None:
        entry = _entry_for(helper, transport, number)
        for direction, packet in packets:
            engine.handle(packet, entry, direction)

    fill(_FLOWS)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(_FLOWS):
        fill(number)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    weight = engine.flows.weight / (_FLOWS + 1)
    return taken / _FLOWS / 1024, weight / 1024


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("name", nargs="*", help="attacks whose names begin so")
    options = parser.parse_args()
    chosen = tuple(options.name) or ("",)
    cpu: dict[str, float] = {}
    for name in _ATTACKS:
        if not name.startswith(chosen):
            continue
        variants = [(name, False)]
        if name.startswith("sunrpc: "):
            variants.append((f"{name}, translated", True))
        for label, translated in variants:
            cpu[label], size = _dearest(name, options.rounds, translated=translated)
            print(f"{label}: {cpu[label]:.0f} us for a packet of {size} bytes")
    held = {name: _held(name) for name in _FULL if name.startswith(chosen)}
    for name, (taken, weight) in held.items():
        print(f"{name}: {taken:.1f} KiB for a flow, taken for {weight:.1f} KiB")
    print(json.dumps({"cpu": cpu, "memory": held}))
    return 0


if __name__ == "__main__":
    main()

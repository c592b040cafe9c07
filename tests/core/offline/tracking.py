# SPDX-License-Identifier: GPL-2.0-or-later
"""What has a table of the model of conntrack see packets, for its tests."""

import math
import struct
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, Final

from cthelper.core.api import DONE, Effects, Helper, Message, Policy
from cthelper.core.config import HelperConfig
from cthelper.core.offline.blocks import single
from cthelper.core.offline.conntrack import Seen, Table
from cthelper.core.offline.entries import Entry, Expected
from cthelper.core.offline.expectations import Outcome
from cthelper.core.tuples import TCP, UDP, Expectation, Tuple
from tests.core.builders import endpoint, flow_tuple
from tests.core.offline.test_tcp import FIN, LETTERS, SYN

CLIENT, OTHER, SERVER = "192.0.2.1", "192.0.2.9", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8:1::1", "2001:db8:2::2"
# Control ports of the helper and of none.
CONTROL, PLAIN = 7000, 7100
DATA: Final = 5000


class Lab(Helper):
    """Nothing of it is run."""

    name = "lab"
    transports = frozenset({TCP, UDP})

    def on_message(self, message: Message) -> Effects:
        yield DONE


def config(helper: type[Helper] = Lab, **changes: Any) -> HelperConfig:
    """A helper for CONTROL with two classes: 2 for 10 s, and 1 for 20 s."""
    given = HelperConfig(
        helper=helper,
        queue=0,
        ports=(CONTROL,),
        policies=(Policy("data", 2, 10), Policy("more", 1, 20)),
        options={},
    )
    return replace(given, **changes)


def table(*helpers: HelperConfig, **changes: Any) -> Table:
    """A table with these helpers, or with Lab alone."""
    found = helpers or (config(),)
    return Table({each.helper.name: each for each in found}, **changes)


def see(held: Table, number: int, now: float, data: bytes, start: int) -> Seen | None:
    """What `pass_over` says of a packet."""
    return held.pass_over(single(number, now, data, start), math.inf)


# Packets


def wrapped(flow: Tuple, header: bytes) -> bytes:
    """An IP packet; conntrack's model asks for no checksum."""
    source, destination = flow.source.address, flow.destination.address
    addresses = source.packed + destination.packed
    if source.version == 6:
        size = struct.pack("!IHBB", 6 << 28, len(header), flow.transport, 64)
        return size + addresses + header
    size = struct.pack("!BBHIBBH", 0x45, 0, 20 + len(header), 0, 64, flow.transport, 0)
    return size + addresses + header


def packet(flow: Tuple, flags: int = SYN, end: int = 1, acknowledged: int = 1) -> bytes:
    """A packet without payload; the flags and numbers are for TCP."""
    ports = struct.pack("!HH", flow.source.port, flow.destination.port)
    if flow.transport is UDP:
        return wrapped(flow, ports + struct.pack("!HH", 8, 0))
    first = end - bool(flags & SYN) - bool(flags & FIN)
    numbers = struct.pack("!II", first & 0xFFFFFFFF, acknowledged)
    rest = numbers + struct.pack("!BBHHH", 0x50, flags, 1024, 0, 0)
    return wrapped(flow, ports + rest)


def udp(
    source: tuple[str, int] = (CLIENT, 40000), to: tuple[str, int] = (SERVER, CONTROL)
) -> Tuple:
    """A tuple of UDP, the helper's unless told."""
    return flow_tuple(UDP, source, to)


def tcp(
    source: tuple[str, int] = (CLIENT, 40000), to: tuple[str, int] = (SERVER, CONTROL)
) -> Tuple:
    """A tuple of TCP, the helper's unless told."""
    return flow_tuple(TCP, source, to)


def turned(flow: Tuple) -> Tuple:
    """The tuple of the answers."""
    return Tuple(flow.transport, flow.destination, flow.source)


# A flow to the helper's port and one to none's, of each transport and IP version.
FLOWS: Final = [
    udp(),
    tcp(),
    udp((CLIENT6, 40000), (SERVER6, CONTROL)),
    tcp((CLIENT6, 40000), (SERVER6, CONTROL)),
    udp(to=(SERVER, PLAIN)),
    tcp(to=(SERVER, PLAIN)),
    udp((CLIENT6, 40000), (SERVER6, PLAIN)),
    tcp((CLIENT6, 40000), (SERVER6, PLAIN)),
]


def frame(held: Table, number: int, now: float, data: bytes) -> Seen:
    """Have a packet pass: its entry is confirmed."""
    seen = held.track(number, now, data, 0)
    assert seen is not None
    if seen.entry is not None:
        held.confirm(seen.entry)
    return seen


def track(held: Table, now: float, flow: Tuple, flags: int = SYN) -> Seen:
    """Have a packet of a flow pass."""
    return frame(held, 1, now, packet(flow, flags))


def begin(held: Table, now: float, flow: Tuple) -> Entry:
    """The entry of a flow that begins here."""
    seen = track(held, now, flow)
    assert seen.created
    assert seen.entry is not None
    return seen.entry


def timed(flow: Tuple, words: str) -> list[tuple[int, float, bytes]]:
    """Segments by number and second, as test_tcp.py writes them."""
    return [
        (
            number,
            float(number),
            packet(
                flow if word[0] == ">" else turned(flow),
                sum(LETTERS[letter] for letter in word[1:]),
            ),
        )
        for number, word in enumerate(words.split())
    ]


def play(held: Table, flow: Tuple, words: str) -> float:
    """Have these segments pass, one each second; the time of the last one."""
    for number, now, data in timed(flow, words):
        frame(held, number, now, data)
    return float(len(words.split()) - 1)


def unconfirmed(held: Table, now: float, flow: Tuple) -> Entry:
    """The entry of a flow whose first packet is still on its way."""
    seen = held.track(1, now, packet(flow), 0)
    assert seen is not None
    assert seen.entry is not None
    return seen.entry


def wanted(**changes: Any) -> Expectation:
    """The server may send to the client's DATA port over UDP."""
    given = Expectation(
        master=udp(),
        transport=UDP,
        source=ip_network(SERVER),
        source_port=None,
        destination=endpoint(CLIENT, DATA),
        policy="data",
        timeout=10,
    )
    return replace(given, **changes)


DATA_FLOW: Final = udp((SERVER, 20000), (CLIENT, DATA))


def make(held: Table, now: float, master: Entry, **changes: Any) -> Expected:
    """An expectation that is made."""
    outcome, expected = held.expect(now, master, wanted(**changes), 1)
    assert outcome is Outcome.CREATED
    assert expected is not None
    return expected

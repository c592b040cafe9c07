# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a frame did, or did not, lead to an expectation."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from cthelper.core.config import parse
from cthelper.core.offline.explain import explain
from cthelper.core.registry import builtin_helpers
from tests.helpers.test_sunrpc import getport, port, record

CLIENT, SERVER = "192.0.2.1", "198.51.100.2"


def pieces(packet: Packet) -> list[Packet]:
    """The packet in fragments."""
    found: list[Packet] = fragment(packet)  # type: ignore[no-untyped-call] # scapy's
    return found


def ask(payload: bytes, source: int = 700, to: int = 111) -> Packet:
    return IP(src=CLIENT, dst=SERVER) / UDP(sport=source, dport=to) / Raw(payload)


def answer(payload: bytes, to: int = 700, source: int = 111) -> Packet:
    return IP(src=SERVER, dst=CLIENT) / UDP(sport=source, dport=to) / Raw(payload)


def segment(flags: str, sequence: int, payload: bytes = b"") -> Packet:
    header = TCP(sport=700, dport=111, flags=flags, seq=sequence)
    return IP(src=CLIENT, dst=SERVER) / header / Raw(payload)


def steps(
    folder: Path, packets: Sequence[Packet], frame: int, settings: str = ""
) -> list[str]:
    path = folder / "test.pcap"
    wrpcap(str(path), [Ether() / each for each in packets])
    config = parse(settings, Path("test.toml"), builtin_helpers())
    return list(explain(path, frame, config, warn=pytest.fail))


UNREAD = "neither TCP nor UDP, or a fragment"
WHOLE = record(getport(7))
OPENED = [
    segment("S", 9),
    IP(src=SERVER, dst=CLIENT) / TCP(sport=111, dport=700, flags="SA", seq=5, ack=10),
]
FIRST, SECOND = segment("A", 10, WHOLE[:20]), segment("A", 30, WHOLE[20:])
# What a capture begins with that was begun too late.
LATE = [
    segment("A", 9),
    IP(src=SERVER, dst=CLIENT) / TCP(sport=111, dport=700, flags="A", seq=5, ack=9),
]
NOISE = segment("A", 10, b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    ("packets", "step", "text"),
    [
        ([ARP()], "frame", "holds no IPv4 or IPv6 packet"),
        ([IP(src=CLIENT, dst=SERVER) / ICMP()], "packet", UNREAD),
        (pieces(ask(bytes(3000)))[:1], "packet", UNREAD),
        ([ask(b"x")[IP] / b""], "malformed", "8 bytes wanted at offset 0"),
        (LATE, "engine", "inspected no longer: mid-stream"),
        ([segment("SA", 9)], "conntrack", "invalid: it belongs to no flow"),
        ([ask(getport(7), to=112)], "ruleset", "udp port 112 is no control port"),
        ([answer(port(7))], "ruleset", "in the middle of the flow, with an answer"),
        ([ask(getport(7)), answer(port(7))], "kernel", "expects udp 192.0.2.1 >"),
        ([ask(getport(7)), answer(port(7))], "later", "no flow met what was expected"),
        ([ask(getport(7)), answer(port(8))], "helper", "asks for nothing"),
        ([ask(getport(7)), answer(port(7, 22))], "refused", "denied-port: port 22"),
        ([*OPENED, FIRST], "stream", "20 bytes wait for the rest of their message"),
        ([*OPENED, SECOND], "stream", "its bytes are not next"),
        (OPENED, "stream", "no bytes of a message"),
        ([*OPENED, FIRST, SECOND], "message", "60 bytes, original direction"),
        ([*OPENED, NOISE], "malformed", "record of"),
        (
            [*OPENED, NOISE, segment("A", 28, b"x")],
            "engine",
            "this direction is no longer read",
        ),
    ],
)
def test_last_frame_is_explained(
    packets: Sequence[Packet], step: str, text: str, tmp_path: Path
) -> None:
    lines = steps(tmp_path, packets, len(packets))
    found = [line for line in lines if line.strip().startswith(step)]
    assert any(text in line for line in found), lines


def test_fragment_that_completes_its_packet_is_explained_as_the_packet(
    tmp_path: Path,
) -> None:
    packets = pieces(ask(getport(7) + bytes(3000)))
    assert "3056 bytes of payload" in steps(tmp_path, packets, len(packets))[1]


def test_flow_that_the_sources_leave_out(tmp_path: Path) -> None:
    settings = '[helpers.sunrpc]\nsources = ["10.0.0.0/8"]\n'
    lines = steps(tmp_path, [ask(getport(7))], 1, settings)
    assert "its sources and destinations leave this flow out" in lines[-1]


def test_finished_flow_is_told_as_such(tmp_path: Path) -> None:
    lines = steps(tmp_path, [*LATE, segment("A", 10)], 3)
    assert "the flow is no longer inspected (mid-stream)" in lines[-1]

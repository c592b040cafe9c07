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
from cthelper.core.offline import history
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
        (
            [IP(src=SERVER, dst=CLIENT) / TCP(sport=111, dport=700, flags="A")],
            "ruleset",
            "in the middle of the flow, with an answer",
        ),
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


# The blocked packet


def call_of(source: int, to: int) -> Packet:
    """The first packet of a flow to an announced port."""
    return IP(src=CLIENT, dst=SERVER) / UDP(sport=source, dport=to) / Raw(b"call")


ONE_SHOT = '[helpers.sunrpc]\nmode = "oneshot"\n'
FEW = "[helpers.sunrpc.policies.service]\nmax_expected = 1\n"
ASKED = [ask(getport(7)), answer(port(7, 4000))]
TEXT = "sunrpc expected udp 192.0.2.1 > 198.51.100.2:4000 in frame 2"
SYN = IP(src=CLIENT, dst=SERVER) / TCP(sport=800, dport=4000, flags="S")
CLOSED = [
    *OPENED,
    FIRST,
    SECOND,
    IP(src=SERVER, dst=CLIENT)
    / TCP(sport=111, dport=700, flags="A", seq=6)
    / Raw(record(port(7, 4000))),
    segment("RA", 70),
]


@pytest.mark.parametrize(
    ("packets", "settings", "text"),
    [
        (
            [*ASKED, call_of(800, 4000), call_of(801, 4000)],
            ONE_SHOT,
            f"{TEXT}: it was for one flow, and used up in frame 3",
        ),
        (
            [*ASKED, ask(getport(8)), answer(port(8, 4001)), call_of(800, 4000)],
            FEW,
            f"{TEXT}: it was evicted in frame 4, by a later one of its flow "
            "(max_expected of the policy)",
        ),
        (
            [*CLOSED, SYN],
            "",
            "sunrpc expected udp 192.0.2.1 > 198.51.100.2:4000 in frame 5: the flow is "
            "tcp, not udp",
        ),
        (
            [call_of(800, 4000), *ASKED, call_of(800, 4000)],
            "",
            "sunrpc expected udp 192.0.2.1 > 198.51.100.2:4000 in frame 3: the flow "
            "had begun before, in frame 1, and meets nothing more",
        ),
        (
            [*ASKED, call_of(800, 4001)],
            "",
            f"{TEXT}: the flow goes to port 4001",
        ),
        (
            [ask(getport(7)), answer(port(7, 22)), call_of(800, 22)],
            "",
            "sunrpc asked for udp 192.0.2.1 > 198.51.100.2:22 in frame 2: refused, "
            "denied-port: port 22 is in guard.denied_ports",
        ),
        (
            [ask(getport(7)), answer(port(7, 4000)), call_of(800, 4000)],
            '[helpers.sunrpc]\ndeny_programs = ["mountd"]\n',
            "helper sunrpc, udp 192.0.2.1:700 > 198.51.100.2:111: refused, "
            "denied-program: program 100005 (mountd), by deny_programs in frame 2",
        ),
        (
            [*LATE, segment("A", 10, WHOLE), call_of(800, 4000)],
            "",
            "helper sunrpc, tcp 192.0.2.1:700 > 198.51.100.2:111: read no longer, "
            "mid-stream (first segment seen is not a SYN), since what came in frame 2",
        ),
        (
            [call_of(800, 4000)],
            "",
            "no message announced it that a helper read, or could have read",
        ),
        (
            [
                ask(getport(7), to=112),
                answer(port(7, 4000), source=112),
                call_of(800, 4000),
            ],
            "",
            "frame 2 announced it in udp 192.0.2.1:700 > 198.51.100.2:112, where "
            "helper sunrpc would have read it, but is not attached: udp port 112 is no "
            "control port of an enabled helper",
        ),
    ],
)
def test_blocked_packet_is_told_why(
    packets: Sequence[Packet], settings: str, text: str, tmp_path: Path
) -> None:
    lines = steps(tmp_path, packets, len(packets), settings)
    assert f"  expected   no: {text}" in lines


def test_later_packet_of_a_blocked_flow_is_told_the_same(tmp_path: Path) -> None:
    packets = [*ASKED, call_of(800, 4000), *[call_of(801, 4000)] * 3]
    first, second, third = (
        steps(tmp_path, packets, frame, ONE_SHOT)[-1] for frame in (4, 5, 6)
    )
    assert first == second == third


def test_history_keeps_the_latest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_LIMIT", 2)
    queries = [ask(b"x" * 60, source=source) for source in range(700, 705)]
    lines = steps(tmp_path, [*queries, call_of(800, 4000)], 6)
    told = [each for each in lines if each.startswith("  expected")]
    assert [each.split(" > ")[0][-3:] for each in told] == ["703", "704"]


def test_end_of_the_announcing_connection_is_named(tmp_path: Path) -> None:
    packets = [Ether() / each for each in (*CLOSED, call_of(800, 4000))]
    for number, each in enumerate(packets):
        each.time = number / 10
    packets[-1].time = 350.0
    path = tmp_path / "test.pcap"
    wrpcap(str(path), packets)
    config = parse("", Path("test.toml"), builtin_helpers())
    lines = list(explain(path, len(packets), config, warn=pytest.fail))
    (why,) = [each for each in lines if each.startswith("  expected")]
    assert f"no: {TEXT.replace('frame 2', 'frame 5')}: it ended at " in why

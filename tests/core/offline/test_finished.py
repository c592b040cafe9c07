# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay tells of each flow that is read no longer, and why."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw

from cthelper.core.config import parse
from cthelper.core.offline.events import FinishedEvent, Summary, record
from cthelper.core.offline.replay import Replay
from cthelper.core.offline.report import json_line, line
from cthelper.core.registry import builtin_helpers
from tests.helpers.test_sunrpc import getport
from tests.helpers.test_sunrpc import record as rpc_record

CLIENT, SERVER = "192.0.2.1", "198.51.100.2"
FLOW: Final = f"tcp {CLIENT}:700 > {SERVER}:111"
TURNED: Final = f"tcp {SERVER}:111 > {CLIENT}:700"
CALL: Final = rpc_record(getport(7))


def sent(
    flags: str, sequence: int = 1, payload: bytes = b"", port: int = 111
) -> Packet:
    header = TCP(sport=700, dport=port, flags=flags, seq=sequence)
    return IP(src=CLIENT, dst=SERVER) / header / Raw(payload)


def answered(flags: str, sequence: int = 1, payload: bytes = b"") -> Packet:
    header = TCP(sport=111, dport=700, flags=flags, seq=sequence)
    return IP(src=SERVER, dst=CLIENT) / header / Raw(payload)


MIDDLE: Final = [sent("A"), answered("A"), sent("PA", 1, CALL)]
OPENED: Final = [sent("S", 0), answered("SA", 0)]


def finished(packets: Sequence[Packet], settings: str = "") -> list[FinishedEvent]:
    """The events of this kind; the summary counts them."""
    config = parse(settings, Path("test.toml"), builtin_helpers())
    replay = Replay(config, warn=pytest.fail)
    frames = [
        (number, number / 10, bytes(each), 0) for number, each in enumerate(packets, 1)
    ]
    *events, summary = replay.run(frames)
    found = [each for each in events if isinstance(each, FinishedEvent)]
    assert isinstance(summary, Summary)
    assert summary.finished == len(found)
    return found


@pytest.mark.parametrize(
    ("packets", "frame", "flow", "reason"),
    [
        # A capture that was begun while the connection was there.
        (MIDDLE, 2, FLOW, "mid-stream"),
        ([sent("PA", 1, CALL), answered("PA", 1, CALL)] * 3, 2, FLOW, "mid-stream"),
        # With the server's segments first conntrack takes the flow for the server's,
        # whose port is no control port.
        ([answered("A"), sent("PA", 1, CALL)], 1, TURNED, "mid-stream"),
        ([answered("PA", 1, CALL)] * 3, 1, TURNED, "mid-stream"),
        # The SYN is not there; its answer by itself begins no flow.
        ([answered("SA"), *MIDDLE], 3, FLOW, "mid-stream"),
        # A segment is missing, and what comes behind it is too much to wait.
        (
            [
                *OPENED,
                *(sent("A", 5 + 1400 * at, bytes(1400)) for at in range(80)),
            ],
            78,
            FLOW,
            "gap",
        ),
        (
            [*OPENED, sent("A", 1, b"\0\0"), sent("A", 1, b"\0\1")],
            4,
            FLOW,
            "overlap",
        ),
    ],
)
def test_flow_that_is_read_no_longer_is_told_of_once(
    packets: Sequence[Packet], frame: int, flow: str, reason: str
) -> None:
    (event,) = finished(packets)
    assert (event.frame, event.helper) == (frame, "sunrpc")
    assert (str(event.flow), event.reason) == (flow, reason)
    assert event.detail


@pytest.mark.parametrize(
    "packets",
    [
        # From the start, with an answer of the same port, and of other flows.
        [*OPENED, sent("A"), sent("A", 1, CALL), answered("A")],
        [sent("A", port=2049), sent("A", 1, CALL, port=2049)],
        # Datagrams have no middle.
        [IP(src=SERVER, dst=CLIENT) / UDP(sport=111, dport=700) / Raw(b"x")],
        # A connection that nobody opened.
        [answered("RA"), answered("SA")],
    ],
)
def test_nothing_is_told_of_others(packets: Sequence[Packet]) -> None:
    assert finished(packets) == []


def test_server_that_the_configuration_leaves_out_is_not_missed() -> None:
    settings = '[helpers.sunrpc]\ndestinations = ["10.0.0.0/8"]\n'
    assert finished([answered("A"), sent("A", 1, CALL)], settings) == []


def test_each_connection_is_told_of_by_itself() -> None:
    other = [each.copy() for each in MIDDLE]
    for each in other:
        each[TCP].sport, each[TCP].dport = (
            701 if port == 700 else port for port in (each[TCP].sport, each[TCP].dport)
        )
    assert [each.frame for each in finished([*MIDDLE, *other])] == [2, 5]


def test_line_and_record() -> None:
    (event,) = finished(MIDDLE)
    assert line(event) == (
        "      2      0.200000  finished     sunrpc           "
        f"{FLOW}, read no longer: mid-stream, first segment seen is not a SYN"
    )
    found = record(event, "a.pcap")
    assert found is not None
    assert json_line(found) == (
        '{"event":"finished","capture":"a.pcap","frame":2,"time":0.2,'
        '"helper":"sunrpc","flow":{"transport":"tcp","source":"192.0.2.1:700",'
        '"destination":"198.51.100.2:111"},"reason":"mid-stream"}'
    )

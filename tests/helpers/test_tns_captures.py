# SPDX-License-Identifier: GPL-2.0-or-later
"""Real clients of Oracle Net, and the flows that they were redirected to.

What each capture must give stands in pcaps/MANIFEST.toml, with the rule that asks for
it; frames and endpoints were read off with tshark, which shares no code with us.
"""

from ipaddress import ip_address
from typing import Final

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet6 import IPv6
from scapy.packet import NoPayload, Padding
from scapy.utils import rdpcap

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    Endpoint,
    Expect,
    Message,
    Tuple,
)
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    FlowEvent,
    MessageEvent,
    Summary,
)
from cthelper.helpers.tns import Tns
from cthelper.testing import (
    Line,
    any_segmentation,
    defaults,
    endpoint,
    expectations,
    failures,
)
from tests.helpers.captures import PCAPS, PUBLIC, captures_of, related, replayed, told

PUBLISHED: Final = PUBLIC / "ndpi-oracle12.pcapng"

CHAINED: Final = "[helpers.tns]\nchained = true\n"

# Frame and tuple of the first packet of each flow that an expectation let in.
REDIRECTED: Final[dict[str, list[tuple[int, str]]]] = {
    "tns/tns-nodeoracledb-redirect-data-accept319": [
        (13, "tcp 10.77.1.2:44570 > 10.77.2.2:41521")
    ],
    "tns/tns-nodeoracledb-redirect-inline-refuse": [
        (9, "tcp 10.77.1.2:47298 > 10.77.2.2:41521")
    ],
    "tns/tns-nodeoracledb-redirect6-data-accept319": [
        (13, "tcp [fd77:1::2]:33782 > [fd77:2::2]:41521")
    ],
    "tns/tns-pyoracledb-redirect-data-accept314": [
        (12, "tcp 10.77.1.2:46510 > 10.77.2.2:41521")
    ],
    "tns/tns-pyoracledb-redirect-data-accept318": [
        (12, "tcp 10.77.1.2:33510 > 10.77.2.2:41521")
    ],
    "tns/tns-pyoracledb-redirect-data-refuse": [
        (12, "tcp 10.77.1.2:44548 > 10.77.2.2:41521")
    ],
    # python-oracledb follows neither of these forms; other clients do.
    "tns/tns-pyoracledb-redirect-inline": [],
    "tns/tns-pyoracledb-redirect-zerolen": [],
}
NAMES: Final = sorted(REDIRECTED)

# The decision in the flow that was redirected to: its frame and type.
DECIDED: Final = {
    "tns/tns-nodeoracledb-redirect-data-accept319": (18, "ACCEPT (2)"),
    "tns/tns-nodeoracledb-redirect-inline-refuse": (14, "REFUSE (4)"),
    "tns/tns-nodeoracledb-redirect6-data-accept319": (18, "ACCEPT (2)"),
    "tns/tns-pyoracledb-redirect-data-accept314": (22, "ACCEPT (2)"),
    "tns/tns-pyoracledb-redirect-data-accept318": (22, "ACCEPT (2)"),
    "tns/tns-pyoracledb-redirect-data-refuse": (22, "REFUSE (4)"),
}


def real(name: str, settings: str = "") -> list[Event]:
    return replayed(PCAPS / f"{name}.pcap", settings)


def messages(events: list[Event], flow: str | None = None) -> list[MessageEvent]:
    return [
        each
        for each in events
        if isinstance(each, MessageEvent) and flow in (None, str(each.flow))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_redirected_flow_is_expected_and_let_in(name: str) -> None:
    events = real(name)
    assert expectations(events) == told(name)
    assert related(events) == REDIRECTED[name]
    made = [each.expectation for each in events if isinstance(each, ExpectationEvent)]
    assert not any(each.permanent for each in made)


@pytest.mark.parametrize("name", NAMES)
def test_every_other_flow_is_a_control_flow(name: str) -> None:
    events = real(name)
    summary = events[-1]
    assert isinstance(summary, Summary)
    watched = [each for each in events if isinstance(each, FlowEvent)]
    control = [each for each in watched if each.helper is not None]
    assert (len(control), len(watched)) == (1, 1 + len(REDIRECTED[name]))
    assert summary.flows == len(watched)


@pytest.mark.parametrize("settings", ["", CHAINED], ids=["", "chained"])
@pytest.mark.parametrize("name", NAMES)
def test_real_traffic_is_neither_malformed_nor_refused(
    name: str, settings: str
) -> None:
    assert failures(real(name, settings)) == []


@pytest.mark.parametrize("name", sorted(DECIDED))
def test_chained_flow_is_read_until_the_server_decides(name: str) -> None:
    events = real(name, CHAINED)
    made = [each.expectation for each in events if isinstance(each, ExpectationEvent)]
    assert related(events) == REDIRECTED[name]
    assert [each.helper for each in made] == ["tns"]
    ((_, flow),) = REDIRECTED[name]
    last = messages(events, flow)[-1]
    assert (last.frame, last.fields["type"]) == DECIDED[name]
    assert last.effects == (DONE,)


@pytest.mark.parametrize("name", NAMES)
def test_redirect_is_described(name: str) -> None:
    (frame, _), *_ = told(name)
    (last,) = [each for each in messages(real(name)) if each.frame == frame]
    host = "[fd77:2::2]" if "redirect6" in name else "10.77.2.2"
    assert last.fields["redirects to"] == f"tcp {host}:41521"


def stream(name: str, port: int) -> list[Message]:
    """What the first flow to this port carried, a message for each segment."""
    packets = rdpcap(str(PCAPS / f"{name}.pcap"))
    segments = [
        (each[IPv6 if IPv6 in each else IP], each[ScapyTCP])
        for each in packets
        if ScapyTCP in each and port in (each[ScapyTCP].sport, each[ScapyTCP].dport)
    ]
    ip, first = segments[0]
    source = Endpoint(ip_address(ip.src), first.sport)
    flow = Line(Tuple(TCP, source, Endpoint(ip_address(ip.dst), port)), defaults(Tns))
    return [
        flow.message(REPLY if each.sport == port else ORIGINAL, bytes(each.payload))
        for _, each in segments
        if not isinstance(each.payload, NoPayload | Padding)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_any_segmentation_of_the_streams_gives_the_same_effects(name: str) -> None:
    server = "[fd77:2::2]" if "redirect6" in name else "10.77.2.2"
    redirected = [Expect(endpoint(f"{server}:41521"), "redirect")]
    assert any_segmentation(Tns, stream(name, 1521)) == redirected
    if name in DECIDED:
        assert any_segmentation(Tns, stream(name, 41521)) == [DONE]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the public captures are not here")
def test_published_session_without_a_redirect_is_read_until_accept() -> None:
    events = replayed(PUBLISHED)
    assert expectations(events) == failures(events) == []
    read = [(each.frame, each.fields["type"]) for each in messages(events)]
    assert read == [
        (4, "CONNECT (1)"),
        (6, "RESEND (11)"),
        (8, "CONNECT (1)"),
        (10, "ACCEPT (2)"),
    ]
    (flow,) = [each for each in events if isinstance(each, FlowEvent)]
    assert flow.finished == "done"


def test_every_capture_has_its_case() -> None:
    assert captures_of(NAMES) == NAMES

# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures made after reports from the field: why the blocked packet is blocked."""

from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.config import parse
from cthelper.core.offline.corpus import Job, replay_job
from cthelper.core.offline.events import Notice, RelatedEvent
from cthelper.core.offline.explain import explain
from cthelper.core.registry import builtin_helpers

FOLDER: Final = Path(__file__).parents[3] / "pcaps" / "field"
LINK: Final = "192.0.2.0/24"
SECOND: Final = "203.0.113.0/24"
MANY: Final = "10.0.0.0/8"


def because(
    name: str, frame: int, networks: Sequence[str] = (), settings: str = ""
) -> list[str]:
    """What the explanation of a frame says of why it was not expected."""
    path = FOLDER / f"{name}.pcap"
    config = parse(settings, Path("test.toml"), builtin_helpers())
    lines = explain(
        path,
        frame,
        config,
        networks=[ip_network(each) for each in networks],
        warn=lambda _: None,
    )
    told = list(lines)
    assert not [each for each in told if "begins in the middle" in each]
    return [
        each.split("no: ")[1] for each in told if each.startswith("  expected   no: ")
    ]


@pytest.mark.parametrize(
    ("name", "frame", "networks", "why"),
    [
        (
            "mdns-two-subnets",
            2,
            [LINK],
            "mdns expected udp 192.0.2.0/24 port 5353 > 192.0.2.10:40500 in frame 1: "
            "its source 203.0.113.9 is not in 192.0.2.0/24",
        ),
        (
            "mdns-two-subnets",
            2,
            [LINK, MANY],
            "mdns expected udp 10.0.0.0/8 port 5353 > 192.0.2.10:40500 in frame 1: its "
            "source 203.0.113.9 is not in 10.0.0.0/8 or 192.0.2.0/24",
        ),
        (
            "mdns-wrong-port",
            2,
            [LINK],
            "mdns expected udp 192.0.2.0/24 port 5353 > 192.0.2.10:5353 in frame 1: "
            "the flow comes from port 20215, not 5353",
        ),
        (
            "dhcpv6-late-reconfigure",
            6,
            [],
            "dhcpv6 expected udp any > [fe80::c]:546 in frame 1, again in frame 4: it "
            "ended at 31.100000 s",
        ),
        (
            "tns-pool",
            22,
            [],
            "tns asked for tcp 192.0.2.10 > 198.51.100.31:1521 in frame 18: refused, "
            "third-party-address: 198.51.100.20 announced 198.51.100.31, which it may "
            "not by guard.allow",
        ),
    ],
)
def test_blocked_packet_is_told_what_came_nearest(
    name: str, frame: int, networks: list[str], why: str
) -> None:
    assert because(name, frame, networks) == [why]


def test_query_whose_answer_nothing_announced_is_named() -> None:
    settings = '[helpers.sunrpc]\nprocedures = ["getaddr"]\n'
    (why,) = because("rpc-vxi11-discovery", 2, [LINK], settings)
    query = "udp 192.0.2.10:57808 > 192.0.2.255:111"
    assert why == f"helper sunrpc read {query} in frame 1, and asked for nothing"


@pytest.mark.parametrize(
    ("name", "frame", "settings", "announced", "control"),
    [
        (
            "rpc-service-later",
            36,
            "[helpers.sunrpc]\nports = [112]\n",
            2,
            "udp 192.0.2.10:900 > 198.51.100.20:111",
        ),
        (
            "tns-pool",
            22,
            "[helpers.tns]\nports = [1526]\n"
            '[helpers.tns.guard]\nallow_hosts = ["198.51.100.16/28"]\n',
            14,
            "tcp 192.0.2.10:50000 > 198.51.100.20:1521",
        ),
        (
            "mdns-two-subnets",
            2,
            '[helpers.mdns]\nsources = ["10.0.0.0/8"]\n',
            1,
            "udp 192.0.2.10:40500 > 224.0.0.251:5353",
        ),
    ],
)
def test_announcement_on_a_flow_that_is_not_tagged_is_named(
    name: str, frame: int, settings: str, announced: int, control: str
) -> None:
    (why, *_) = because(name, frame, [LINK, SECOND], settings)
    assert why.startswith(f"frame {announced} announced it in {control}, where helper ")
    assert "control port" in why or "sources and destinations leave" in why


def test_all_networks_of_one_link_are_on_link() -> None:
    config = parse("", Path("test.toml"), builtin_helpers())
    for networks, related in (([LINK], []), ([LINK, SECOND], [2]), ([SECOND], [])):
        job = Job(
            capture=FOLDER / "mdns-two-subnets.pcap",
            read_config=lambda: config,
            networks=tuple(map(ip_network, networks)),
        )
        events = list(replay_job(job))
        met = [each.frame for each in events if isinstance(each, RelatedEvent)]
        assert met == related, networks


def test_warning_names_the_networks_that_would_have_let_an_answer_in() -> None:
    config = parse("", Path("test.toml"), builtin_helpers())
    path = FOLDER / "mdns-two-subnets.pcap"
    events = list(replay_job(Job(capture=path, read_config=lambda: config)))
    notices = [each.text for each in events if isinstance(each, Notice)]
    assert notices[1:] == [
        f"{path}: 203.0.113.9 answered 192.0.2.10 from outside what is taken for "
        f"on-link: --network {LINK} --network {SECOND} would have let it in"
    ]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What real clients and servers said, and which of their flows had to be expected.

Captures of real peers that a router stood between; pcaps/MANIFEST.toml says more. The
frames and endpoints were read off with tshark, which shares no code with us.
"""

import tomllib
from collections.abc import Collection
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.config import parse
from cthelper.core.offline.capture import Capture
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    FaultEvent,
    FlowEvent,
    MalformedEvent,
    RefusedEvent,
    RelatedEvent,
    Summary,
)
from cthelper.core.offline.replay import Replay
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import Address

PCAPS: Final = Path(__file__).parents[2] / "pcaps"

# The router's addresses; mDNS clients ran on it, and so their queries are local ones.
ROUTER: Final = frozenset(
    map(ip_address, ["10.77.2.1", "fd77:2::1", "fe80::59:dfff:fe32:bf69"])
)

# Capture: frame and text of each expectation, and then of each flow that it let in,
# with the frame of its first packet.
Expected = list[tuple[int, str]]
SUNRPC: Final[dict[str, tuple[Expected, Expected]]] = {
    "rpc-nfs-ls-D-broadcast": ([], []),
    "rpc-nfsv3-nfs-cat-tcp": (
        [
            (9, "tcp 10.77.1.2 > 10.77.2.2:43173"),
            (31, "tcp 10.77.1.2 > 10.77.2.2:30049"),
        ],
        [
            (11, "tcp 10.77.1.2:657 > 10.77.2.2:43173"),
            (33, "tcp 10.77.1.2:659 > 10.77.2.2:30049"),
        ],
    ),
    "rpc-nfsv3-nfs-ls-tcp": (
        [
            (9, "tcp 10.77.1.2 > 10.77.2.2:43173"),
            (31, "tcp 10.77.1.2 > 10.77.2.2:30049"),
        ],
        [
            (11, "tcp 10.77.1.2:542 > 10.77.2.2:43173"),
            (33, "tcp 10.77.1.2:546 > 10.77.2.2:30049"),
        ],
    ),
    "rpc-rpcinfo-T-tcp-mountd": (
        [(6, "tcp 10.77.1.2 > 10.77.2.2:43173")],
        [(11, "tcp 10.77.1.2:656 > 10.77.2.2:43173")],
    ),
    "rpc-rpcinfo-T-tcp6-mountd": (
        [(6, "tcp fd77:1::2 > [fd77:2::2]:43173")],
        [(9, "tcp [fd77:1::2]:985 > [fd77:2::2]:43173")],
    ),
    "rpc-rpcinfo-T-udp-mountd": (
        [(2, "udp 10.77.1.2 > 10.77.2.2:46350")],
        [(3, "udp 10.77.1.2:989 > 10.77.2.2:46350")],
    ),
    "rpc-rpcinfo-T-udp-statd": (
        [(2, "udp 10.77.1.2 > 10.77.2.2:56571")],
        [(3, "udp 10.77.1.2:669 > 10.77.2.2:56571")],
    ),
    # CALLIT to broadcast and multicast is not served yet: the answer comes from a port
    # of its own, 60386, and would need its own kind of expectation.
    "rpc-rpcinfo-b-broadcast-callit": ([], []),
    # Nor are GETADDRLIST and DUMP.
    "rpc-rpcinfo-dump-v4-tcp4": ([], []),
    "rpc-rpcinfo-p-v2dump-tcp": ([], []),
    "rpc-rpcinfo-s-v3dump": ([], []),
    "rpc-rpcinfo-t-getport-v2-mountd": (
        [(6, "tcp 10.77.1.2 > 10.77.2.2:43173")],
        [(10, "tcp 10.77.1.2:905 > 10.77.2.2:43173")],
    ),
    "rpc-rpcinfo-u-getport-v2-rstatd": (
        [(2, "udp 10.77.1.2 > 10.77.2.2:63459")],
        [(3, "udp 10.77.1.2:756 > 10.77.2.2:63459")],
    ),
    "rpc-rup-broadcast": ([], []),
    "rpc-rup-rstatd-udp": (
        [(2, "udp 10.77.1.2 > 10.77.2.2:63459")],
        [(3, "udp 10.77.1.2:637 > 10.77.2.2:63459")],
    ),
    "rpc-showmount-e": (
        [(6, "tcp 10.77.1.2 > 10.77.2.2:43173")],
        [(9, "tcp 10.77.1.2:721 > 10.77.2.2:43173")],
    ),
    "rpc-showmount-e-6": (
        [(6, "tcp fd77:1::2 > [fd77:2::2]:43173")],
        [(10, "tcp [fd77:1::2]:792 > [fd77:2::2]:43173")],
    ),
}

_QU: Final = "udp 10.77.2.0/24 port 5353 > 10.77.2.1:5353"
# A neighbour may answer from any of its addresses.
_QU6: Final = [
    f"udp {network} port 5353 > [fe80::59:dfff:fe32:bf69]:5353"
    for network in ("fd77:2::/64", "fe80::/10")
]
MDNS: Final[dict[str, tuple[Expected, Expected]]] = {
    # QM queries and announcements.
    "mdns-avahi-browse": ([], []),
    "mdns-dig-legacy-unicast": (
        [(3, "udp 10.77.2.0/24 port 5353 > 10.77.2.1:60530")],
        [(4, "udp 10.77.2.2:5353 > 10.77.2.1:60530")],
    ),
    # To the responder's own address: the answer is a reply of the same flow.
    "mdns-dig-unicast-direct": ([], []),
    "mdns-scan": ([], []),
    "mdns-zeroconf-qm": ([], []),
    # The responder chose to answer these by multicast.
    "mdns-zeroconf-qu": ([(2, _QU), (5, _QU)], []),
    "mdns-zeroconf-qu-twice": ([(2, _QU), (3, _QU), (6, _QU), (7, _QU)], []),
    "mdns-zeroconf6-qu": ([(frame, each) for frame in (3, 5) for each in _QU6], []),
}

TABLES: Final = {"sunrpc": SUNRPC, "mdns": MDNS}
CASES: Final = [
    (f"{helper}/{name}", *expected)
    for helper, table in TABLES.items()
    for name, expected in table.items()
]
NAMES: Final = [case[0] for case in CASES]

# How many flows are neither tagged nor announced to us.
UNEXPECTED: Final = {
    # To the responder's own address, and the ruleset tags the groups alone.
    "mdns/mdns-dig-unicast-direct": 1,
    # The answer, udp 10.77.2.2:60386 > 10.77.2.1:45070.
    "sunrpc/rpc-rpcinfo-b-broadcast-callit": 1,
}


def replay(
    name: str, *, hosts: Collection[Address] = ROUTER, settings: str = ""
) -> list[Event]:
    """The events of a capture, of which the router is the machine of the daemon."""
    config = parse(settings, Path("capture.toml"), builtin_helpers())
    entry = manifest()[f"{name}.pcap"]
    runner = Replay(
        config,
        networks=[ip_network(each) for each in entry.get("on_link", [])],
        hosts=hosts if name.startswith("mdns/") else (),
        warn=pytest.fail,
        watch=True,
    )
    with Capture(PCAPS / f"{name}.pcap", warn=pytest.fail) as capture:
        return list(runner.run(capture))


def expectations(events: list[Event]) -> Expected:
    """Frame and text of each expectation."""
    return [
        (each.frame, str(each.expectation))
        for each in events
        if isinstance(each, ExpectationEvent)
    ]


@pytest.mark.parametrize(("name", "announced", "data"), CASES, ids=NAMES)
def test_announced_endpoints_are_expected_and_their_flows_let_in(
    name: str, announced: Expected, data: Expected
) -> None:
    events = replay(name)
    assert expectations(events) == announced
    related = [each for each in events if isinstance(each, RelatedEvent)]
    assert [(each.frame, str(each.flow)) for each in related] == data
    made = [each for each in events if isinstance(each, ExpectationEvent)]
    assert all(each.expectation.permanent for each in made)


@pytest.mark.parametrize("name", NAMES)
def test_every_other_flow_is_a_control_flow(name: str) -> None:
    events = replay(name)
    summary = events[-1]
    assert isinstance(summary, Summary)
    watched = [each for each in events if isinstance(each, FlowEvent)]
    # A control flow has a helper, an expected one has none; others are not watched.
    control = [each for each in watched if each.helper is not None]
    assert len(watched) == len(control) + summary.related
    assert summary.flows - len(watched) == UNEXPECTED.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_real_traffic_is_never_malformed(name: str) -> None:
    events = replay(name)
    assert not [
        each for each in events if isinstance(each, MalformedEvent | FaultEvent)
    ]


def refusals(events: list[Event]) -> list[tuple[int, str]]:
    return [
        (each.frame, each.reason) for each in events if isinstance(each, RefusedEvent)
    ]


def test_portmapper_that_announces_itself_is_refused() -> None:
    # rpcinfo -p asks for it before it lists everything.
    events = replay("sunrpc/rpc-rpcinfo-p-v2dump-tcp")
    assert refusals(events) == [(6, "portmapper")]


@pytest.mark.parametrize(
    "name", [each for each in NAMES if not each.endswith("p-v2dump-tcp")]
)
def test_nothing_else_is_refused(name: str) -> None:
    assert refusals(replay(name)) == []


@pytest.mark.parametrize(
    "name", [name for name, announced, _ in CASES if announced and "mdns" in name]
)
def test_queries_of_another_host_are_refused(name: str) -> None:
    events = replay(name, hosts=[ip_address("192.0.2.1")])
    assert expectations(events) == []
    frames = {frame for frame, _ in TABLES["mdns"][name.removeprefix("mdns/")][0]}
    assert refusals(events) == [(frame, "forwarded") for frame in sorted(frames)]


def test_without_its_helper_nothing_is_expected() -> None:
    settings = "[helpers.sunrpc]\nenabled = false\n"
    (summary,) = replay("sunrpc/rpc-showmount-e", settings=settings)
    assert summary == Summary(packets=20, flows=2)


def manifest() -> dict[str, dict[str, str | list[str]]]:
    tables = tomllib.loads((PCAPS / "MANIFEST.toml").read_text("utf-8"))
    assert all(isinstance(table, dict) for table in tables.values())
    return tables


def test_every_capture_has_its_case() -> None:
    served = [
        str(path.relative_to(PCAPS).with_suffix(""))
        for path in PCAPS.rglob("*.pcap")
        if path.parent.name in TABLES
    ]
    assert sorted(served) == sorted(NAMES)

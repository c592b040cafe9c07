# SPDX-License-Identifier: GPL-2.0-or-later
"""What real clients and servers said, and which of their flows had to be expected.

Captures of real peers that a router stood between; pcaps/MANIFEST.toml says more. The
frames and endpoints were read off with tshark, which shares no code with us.
"""

import hashlib
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.engine import Damaged, Fault, Refused
from tests.helpers.capture import HELPER_OF_PORT, PCAPS, Report, replay

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
_QU6: Final = "udp fe80::/10 port 5353 > [fe80::59:dfff:fe32:bf69]:5353"
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
    "mdns-zeroconf6-qu": ([(3, _QU6), (5, _QU6)], []),
}

TABLES: Final = {"sunrpc": SUNRPC, "mdns": MDNS}
CASES: Final = [
    (f"{helper}/{name}", *expected)
    for helper, table in TABLES.items()
    for name, expected in table.items()
]
NAMES: Final = [case[0] for case in CASES]

# Flows to other ports than the helpers' that nothing announced to us.
UNEXPECTED: Final = {
    "sunrpc/rpc-rpcinfo-b-broadcast-callit": [
        "udp 10.77.2.2:60386 > 10.77.2.1:45070",
    ],
}


def report(name: str) -> Report:
    own = ROUTER if name.startswith("mdns/") else frozenset()
    return replay(PCAPS / f"{name}.pcap", own=own)


@pytest.mark.parametrize(("name", "announced", "data"), CASES, ids=NAMES)
def test_announced_endpoints_are_expected_and_their_flows_let_in(
    name: str, announced: Expected, data: Expected
) -> None:
    found = report(name)
    assert found.texts == announced
    assert [(each.frame, str(each.flow)) for each in found.related] == data
    assert all(each.expectation.permanent for each in found.announced)


@pytest.mark.parametrize("name", NAMES)
def test_every_other_flow_is_a_control_flow(name: str) -> None:
    found = report(name)
    related = {each.flow for each in found.related}
    others = [
        str(flow)
        for flow in found.opened
        if flow not in related and flow.destination.port not in HELPER_OF_PORT
    ]
    assert found.opened
    assert others == UNEXPECTED.get(name, [])


@pytest.mark.parametrize("name", NAMES)
def test_real_traffic_is_never_malformed(name: str) -> None:
    events = [event for _, event in report(name).events]
    assert not [each for each in events if isinstance(each, Damaged | Fault)]


def refusals(found: Report) -> list[tuple[int, str]]:
    return [
        (frame, event.reason)
        for frame, event in found.events
        if isinstance(event, Refused)
    ]


def test_portmapper_that_announces_itself_is_refused() -> None:
    # rpcinfo -p asks for it before it lists everything.
    found = report("sunrpc/rpc-rpcinfo-p-v2dump-tcp")
    assert refusals(found) == [(6, "portmapper")]


@pytest.mark.parametrize(
    "name", [each for each in NAMES if not each.endswith("p-v2dump-tcp")]
)
def test_nothing_else_is_refused(name: str) -> None:
    assert refusals(report(name)) == []


@pytest.mark.parametrize(
    "name", [name for name, announced, _ in CASES if announced and "mdns" in name]
)
def test_queries_of_another_host_are_refused(name: str) -> None:
    elsewhere = frozenset({ip_address("192.0.2.1")})
    found = replay(PCAPS / f"{name}.pcap", own=elsewhere)
    assert found.texts == []
    frames = [frame for frame, _ in TABLES["mdns"][name.removeprefix("mdns/")][0]]
    assert refusals(found) == [(frame, "forwarded") for frame in frames]


def test_without_its_helper_nothing_is_expected() -> None:
    path = PCAPS / "sunrpc" / "rpc-showmount-e.pcap"
    found = replay(path, settings="[helpers.sunrpc]\nenabled = false\n")
    assert (found.texts, found.related, found.events) == ([], (), ())


# The folder.


def manifest() -> dict[str, dict[str, str]]:
    tables = tomllib.loads((PCAPS / "MANIFEST.toml").read_text("utf-8"))
    assert all(isinstance(table, dict) for table in tables.values())
    return tables


def captures() -> dict[str, Path]:
    return {str(path.relative_to(PCAPS)): path for path in PCAPS.rglob("*.pcap")}


def test_every_capture_has_its_case() -> None:
    served = [name for name in captures() if name.split("/")[0] in TABLES]
    assert sorted(served) == sorted(f"{name}.pcap" for name in NAMES)


def test_manifest_and_folder_agree() -> None:
    files = captures()
    entries = manifest()
    assert sorted(entries) == sorted(files)
    assert {name: entry["sha256"] for name, entry in entries.items()} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
    }


def test_manifest_says_where_each_capture_comes_from_and_what_it_holds() -> None:
    for name, entry in manifest().items():
        assert entry.keys() == {"origin", "sha256", "holds"}, name
        assert all(text.strip() for text in entry.values()), name
        assert "\n" not in entry["holds"], name

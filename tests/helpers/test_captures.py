# SPDX-License-Identifier: GPL-2.0-or-later
"""What real clients and servers said, and which of their flows had to be expected.

Captures of real peers that a router stood between. What each must give, and the
settings for it, stand in pcaps/MANIFEST.toml with the reason; frames and endpoints were
read off with tshark, which shares no code with us.
"""

from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

import pytest

from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    RefusedEvent,
    Summary,
)
from cthelper.core.tuples import Address
from cthelper.testing import expectations
from tests.helpers import tshark
from tests.helpers.captures import (
    PCAPS,
    PUBLIC,
    ROUTER,
    Found,
    broken,
    captures_of,
    manifest,
    refusals,
    related,
    replayed,
    told,
    unwatched,
)

EVERY_PROCEDURE: Final = """
[helpers.sunrpc]
procedures = [
    "getport", "getaddr", "getversaddr", "getaddrlist",
    "dump", "callit", "bcast", "indirect",
]
"""

# Frame and tuple of the first packet of each flow that an expectation let in.
RELATED: Final[dict[str, Found]] = {
    "sunrpc/rpc-nfs-ls-D-broadcast": [],
    "sunrpc/rpc-nfsv3-nfs-cat-tcp": [
        (11, "tcp 10.77.1.2:657 > 10.77.2.2:43173"),
        (33, "tcp 10.77.1.2:659 > 10.77.2.2:30049"),
    ],
    "sunrpc/rpc-nfsv3-nfs-ls-tcp": [
        (11, "tcp 10.77.1.2:542 > 10.77.2.2:43173"),
        (33, "tcp 10.77.1.2:546 > 10.77.2.2:30049"),
    ],
    # The client goes to the address that it asked; the capture's last flow, to the one
    # that is announced, is no client's and is not let in.
    "sunrpc/rpc-other-address": [
        (6, "tcp [2001:db8:1::2]:820 > [2001:db8:2::2]:33293")
    ],
    "sunrpc/rpc-rpcinfo-T-tcp-mountd": [(11, "tcp 10.77.1.2:656 > 10.77.2.2:43173")],
    "sunrpc/rpc-rpcinfo-T-tcp6-mountd": [
        (9, "tcp [fd77:1::2]:985 > [fd77:2::2]:43173")
    ],
    "sunrpc/rpc-rpcinfo-T-udp-mountd": [(3, "udp 10.77.1.2:989 > 10.77.2.2:46350")],
    "sunrpc/rpc-rpcinfo-T-udp-statd": [(3, "udp 10.77.1.2:669 > 10.77.2.2:56571")],
    # The server answers from a port of its own, not from 111.
    "sunrpc/rpc-rpcinfo-b-broadcast-callit": [
        (7, "udp 10.77.2.2:60386 > 10.77.2.1:45070")
    ],
    "sunrpc/rpc-rpcinfo-dump-v4-tcp4": [],
    "sunrpc/rpc-rpcinfo-p-v2dump-tcp": [],
    "sunrpc/rpc-rpcinfo-s-v3dump": [],
    "sunrpc/rpc-rpcinfo-t-getport-v2-mountd": [
        (10, "tcp 10.77.1.2:905 > 10.77.2.2:43173")
    ],
    "sunrpc/rpc-rpcinfo-u-getport-v2-rstatd": [
        (3, "udp 10.77.1.2:756 > 10.77.2.2:63459")
    ],
    "sunrpc/rpc-rup-broadcast": [],
    "sunrpc/rpc-rup-rstatd-udp": [(3, "udp 10.77.1.2:637 > 10.77.2.2:63459")],
    "sunrpc/rpc-showmount-e": [(9, "tcp 10.77.1.2:721 > 10.77.2.2:43173")],
    "sunrpc/rpc-vxi11-discovery": [
        (2, "udp 192.0.2.130:111 > 192.0.2.10:57808"),
        (3, "udp 192.0.2.131:111 > 192.0.2.10:57808"),
    ],
    "sunrpc/rpc-showmount-e-6": [(10, "tcp [fd77:1::2]:792 > [fd77:2::2]:43173")],
    "mdns/mdns-avahi-browse": [],
    "mdns/mdns-dig-legacy-unicast": [(4, "udp 10.77.2.2:5353 > 10.77.2.1:60530")],
    "mdns/mdns-dig-unicast-direct": [],
    "mdns/mdns-scan": [],
    "mdns/mdns-zeroconf-qm": [],
    # The responder chose to answer the QU questions by multicast.
    "mdns/mdns-zeroconf-qu": [],
    "mdns/mdns-zeroconf-qu-twice": [],
    "mdns/mdns-zeroconf6-qu": [],
}
NAMES: Final = sorted(RELATED)
MDNS: Final = [each for each in NAMES if each.startswith("mdns/")]

# How many flows are neither tagged nor announced to us: this one goes to the
# responder's own address, and the ruleset tags the groups alone.
OTHERS: Final = {
    "mdns/mdns-dig-unicast-direct": 1,
    # To the address that nobody allows, and to an instrument that has answered.
    "sunrpc/rpc-other-address": 1,
    "sunrpc/rpc-vxi11-discovery": 1,
}

# The machine of the daemon, where it is not the router.
HOSTS: Final = {"sunrpc/rpc-vxi11-discovery": {ip_address("192.0.2.10")}}


MANIFEST: Final = manifest()


def settings_of(name: str) -> str:
    """The settings that the manifest wants, none for most."""
    settings = MANIFEST[f"{name}.pcap"].get("settings", "")
    assert isinstance(settings, str)
    return settings


WIDENED: Final = [each for each in NAMES if settings_of(each)]
TO_GROUP: Final = [
    each
    for each in NAMES
    if told(each)
    and (each in MDNS or {"callit", "discovery"} & set(settings_of(each).split('"')))
]


def replay(
    name: str,
    *,
    hosts: Collection[Address] | None = None,
    settings: str | None = None,
) -> list[Event]:
    """The events of a capture, of which the router is the machine of the daemon.

    The clients of mDNS and of calls to a group ran on it, and so those are local ones;
    all else was forwarded. Without `settings` with those of the manifest.
    """
    return replayed(
        PCAPS / f"{name}.pcap",
        settings_of(name) if settings is None else settings,
        hosts=HOSTS.get(name, ROUTER) if hosts is None else hosts,
        on_link=MANIFEST[f"{name}.pcap"].get("on_link", []),
    )


@pytest.mark.parametrize("name", NAMES)
def test_announced_endpoints_are_expected_and_their_flows_let_in(name: str) -> None:
    found = replay(name)
    assert expectations(found) == told(name)
    assert related(found) == RELATED[name]
    made = [each for each in found if isinstance(each, ExpectationEvent)]
    assert all(each.expectation.permanent for each in made)


@pytest.mark.parametrize("name", WIDENED)
def test_lists_and_calls_to_a_group_open_nothing_unless_configured(name: str) -> None:
    found = replay(name, settings="")
    assert expectations(found) == related(found) == []


@pytest.mark.parametrize(
    "name", [each for each in NAMES if each not in (*WIDENED, *MDNS)]
)
def test_every_procedure_opens_nothing_more(name: str) -> None:
    found = replay(name, settings=EVERY_PROCEDURE)
    assert expectations(found) == told(name)
    assert related(found) == RELATED[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_other_flow_is_a_control_flow(name: str) -> None:
    assert unwatched(replay(name)) == OTHERS.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "settings", ["", EVERY_PROCEDURE], ids=["default", "every procedure"]
)
def test_real_traffic_is_never_malformed(name: str, settings: str) -> None:
    assert broken(replay(name, settings=settings)) == []


# Frame and reason; all else is not refused.
REFUSED: Final[dict[str, Found]] = {
    # rpcinfo -p asks for it before it lists everything.
    "sunrpc/rpc-rpcinfo-p-v2dump-tcp": [(6, "portmapper")],
    "sunrpc/rpc-other-address": [(5, "other-address")],
}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_is_refused(name: str) -> None:
    refused = REFUSED.get(name, [])
    assert refusals(replay(name, settings="")) == refused
    assert refusals(replay(name, settings=EVERY_PROCEDURE)) == refused


@pytest.mark.parametrize("name", TO_GROUP)
def test_what_another_host_sends_to_a_group_is_refused(name: str) -> None:
    found = replay(name, hosts=[ip_address("192.0.2.1")])
    assert expectations(found) == related(found) == []
    frames = sorted({frame for frame, _ in told(name)})
    assert refusals(found) == [(frame, "forwarded") for frame in frames]


def test_without_its_helper_nothing_is_expected() -> None:
    settings = "[helpers.sunrpc]\nenabled = false\n"
    (summary,) = replay("sunrpc/rpc-showmount-e", settings=settings)
    assert summary == Summary(packets=20, flows=2)


def test_denied_programs_are_left_out_of_a_list() -> None:
    settings = """
    [helpers.sunrpc]
    procedures = ["dump"]
    allow_programs = ["mountd", 100003]
    deny_programs = ["nfs"]
    """
    found = replay("sunrpc/rpc-rpcinfo-s-v3dump", settings=settings)
    assert expectations(found) == [
        (10, "udp 10.77.1.2 > 10.77.2.2:46350"),
        (10, "tcp 10.77.1.2 > 10.77.2.2:43173"),
    ]
    assert refusals(found) == [(10, "denied-program")]
    (refused,) = [each for each in found if isinstance(each, RefusedEvent)]
    assert (
        refused.detail
        == "program 100001 (rstatd) and 5 more, by allow_programs and deny_programs"
    )


def test_allowed_address_of_a_server_with_several_is_opened_too() -> None:
    name = "sunrpc/rpc-other-address"
    settings = '[helpers.sunrpc.guard]\nallow_hosts = ["2001:db8:2::/64"]\n'
    found = replay(name, settings=settings)
    assert expectations(found) == [
        *told(name),
        (5, "tcp 2001:db8:1::2 > [2001:db8:2::3]:33293"),
    ]
    assert related(found) == [
        *RELATED[name],
        (9, "tcp [2001:db8:1::2]:821 > [2001:db8:2::3]:33293"),
    ]
    assert refusals(found) == []


def test_every_capture_has_its_case() -> None:
    assert captures_of(NAMES) == NAMES


# What tshark reads.


def read(name: str, frame: int, *fields: str) -> list[list[str]]:
    """All values of each field in one frame of a capture."""
    capture = PCAPS / f"{name}.pcap"
    (row,) = tshark.fields(capture, fields, "-Y", f"frame.number == {frame}")
    return [each.split(",") for each in row]


@tshark.needed
def test_dump_of_version_2_opens_what_tshark_reads() -> None:
    name = "sunrpc/rpc-rpcinfo-p-v2dump-tcp"
    fields = ("portmap.prog", "portmap.proto", "portmap.port")
    listed = zip(*read(name, 16, *fields), strict=True)
    transports = {"6": "tcp", "17": "udp"}
    places = dict.fromkeys(
        f"{transports[protocol]} 10.77.1.2 > 10.77.2.2:{port}"
        for program, protocol, port in listed
        if program != "100000"
    )
    assert [text for _, text in expectations(replay(name))] == list(places)


@tshark.needed
def test_dump_of_version_3_opens_what_tshark_reads() -> None:
    name = "sunrpc/rpc-rpcinfo-s-v3dump"
    fields = ("portmap.rpcb.prog", "portmap.rpcb.netid", "portmap.rpcb.addr")
    places: dict[str, None] = {}
    for program, netid, address in zip(*read(name, 10, *fields), strict=True):
        if program != "100000" and netid in ("tcp", "udp"):
            high, low = map(int, address.split(".")[-2:])
            port = high * 256 + low
            places[f"{netid} 10.77.1.2 > 10.77.2.2:{port}"] = None
    assert [text for _, text in expectations(replay(name))] == list(places)


@tshark.needed
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("sunrpc/rpc-rup-rstatd-udp", "portmap.port"),
        ("sunrpc/rpc-nfsv3-nfs-ls-tcp", "portmap.port"),
        ("sunrpc/rpc-rpcinfo-T-udp-statd", "portmap.uaddr"),
        ("sunrpc/rpc-showmount-e-6", "portmap.uaddr"),
    ],
)
def test_reply_opens_the_port_that_tshark_reads(name: str, field: str) -> None:
    for frame, text in told(name):
        ((value,),) = read(name, frame, field)
        if field == "portmap.uaddr":
            high, low = map(int, value.split(".")[-2:])
            value = str(high * 256 + low)
        assert text.rpartition(":")[2] == value


# Captures that others have published.

PUBLISHED: Final = sorted(
    each.name
    for pattern in ("*nfs*.pcap", "*portmap*.pcap")
    for each in PUBLIC.glob(pattern)
)


@pytest.mark.skipif(not PUBLIC.exists(), reason="no captures beside the project")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_traffic_is_never_malformed(name: str) -> None:
    found = replayed(PUBLIC / name, EVERY_PROCEDURE)
    assert broken(found) == []
    assert expectations(found) == expectations(replayed(PUBLIC / name))

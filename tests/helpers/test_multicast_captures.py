# SPDX-License-Identifier: GPL-2.0-or-later
"""Real multicast requests, and their unicast answers that had to be let in.

What the requests of all hosts ask for stands in pcaps/MANIFEST.toml, with the rule for
it; here one of them is the machine of the daemon, which serves its own alone: mostly a
router, on which the clients ran. Frames and endpoints were read off with tshark, which
shares no code with us.
"""

from collections.abc import Collection
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import pytest

from cthelper import testing
from cthelper.core.offline.events import Event, Summary
from cthelper.core.tuples import Address
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.helpers.discovery import GroupQuery
from cthelper.helpers.llmnr import Llmnr
from cthelper.helpers.netbios_ns import NetbiosNs
from cthelper.helpers.slp import Slp
from cthelper.helpers.ssdp import Ssdp
from cthelper.helpers.wsd import Wsd
from cthelper.testing import expectations
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

# The machine of the daemon, where it is not the router.
HOSTS: Final = {
    "dhcpv6/dhcpv6-relay-clientside-rc": {ip_address("fe80::d4a6:4cff:fec1:b478")},
}
# The host that asks in those of one link.
ASKER: Final = frozenset(map(ip_address, ["10.91.1.2", "fe80::2877:7fff:fe0e:bfeb"]))

# Frame and tuple of the first packet of each flow that an expectation let in.
ANSWERS: Final[dict[str, Found]] = {
    "dhcpv6/dhcpv6-dhclient-dnsmasq": [
        (2, "udp [fe80::688b:cff:fed6:9efe]:547 > [fe80::59:dfff:fe32:bf69]:546")
    ],
    "dhcpv6/dhcpv6-relay-clientside-rc": [
        (2, "udp [fe80::6437:5dff:fead:a6f4]:547 > [fe80::d4a6:4cff:fec1:b478]:546")
    ],
    "dhcpv6/dhcpv6-relay-rs": [],
    "dhcpv6/dhcpv6-wide-dhcp6c-dnsmasq": [
        (2, "udp [fe80::688b:cff:fed6:9efe]:547 > [fe80::59:dfff:fe32:bf69]:546")
    ],
    "discovery/bacnet-bacpypes3-whois": [(2, "udp 10.91.1.1:47808 > 10.91.1.2:47808")],
    "discovery/coap-libcoap-aiocoap": [(6, "udp 10.91.1.1:5683 > 10.91.1.2:49105")],
    "discovery/gvcp-aravis": [(2, "udp 10.91.1.1:3956 > 10.91.1.2:60079")],
    "discovery/knx-xknx-knxd": [(3, "udp 10.91.1.1:3671 > 10.91.1.2:42052")],
    "discovery/llmnr-llmnrquery-llmnrd": [(2, "udp 10.91.1.1:5355 > 10.91.1.2:59648")],
    "discovery/llmnr-script6-llmnrd": [
        (
            4,
            "udp [fe80::983d:dfff:fec1:5f97]:5355 > [fe80::2877:7fff:fe0e:bfeb]:56958",
        )
    ],
    "discovery/netbiosns-nbtscan-unicast137": [],
    # Two hosts answer.
    "discovery/netbiosns-nmblookup-two": [
        (4, "udp 10.91.1.3:137 > 10.91.1.2:50785"),
        (7, "udp 10.91.1.1:137 > 10.91.1.2:50785"),
    ],
    "discovery/ssdp-nodessdp-all": [(4, "udp 10.91.1.1:1900 > 10.91.1.2:42762")],
    "discovery/wsd-wsdd-wsdd2": [(2, "udp 10.91.1.1:3702 > 10.91.1.2:48009")],
    # Nobody answers; the other host's slpd asks, too.
    "slp/slp-openslp-bcast-findsrvs": [],
    "slp/slp-openslp-da-unicast-udp-findsrvs": [],
    # A DAAdvert.
    "slp/slp-openslp-mcast-da-discovery": [(2, "udp 10.77.2.2:427 > 10.77.2.1:39692")],
    "slp/slp-openslp-mcast-findsrvs": [(4, "udp 10.77.2.2:427 > 10.77.2.1:45557")],
    "slp/slp-openslp-mcast-findsrvtypes": [(4, "udp 10.77.2.2:427 > 10.77.2.1:49169")],
}
NAMES: Final = sorted(ANSWERS)

# How many flows no helper is attached to: DHCPv6 and NetBIOS by unicast, TCP, and what
# other programs announce.
OTHERS: Final = {
    "dhcpv6/dhcpv6-relay-rs": 1,
    "dhcpv6/dhcpv6-wide-dhcp6c-dnsmasq": 1,
    "discovery/llmnr-script6-llmnrd": 1,
    "discovery/netbiosns-nbtscan-unicast137": 1,
    "discovery/wsd-wsdd-wsdd2": 5,
}


def replay(name: str, *, hosts: Collection[Address] | None = None) -> list[Event]:
    """The events of a capture, by default on the machine that asked."""
    entry = manifest()[f"{name}.pcap"]
    asking = ASKER if name.startswith("discovery/") else HOSTS.get(name, ROUTER)
    return replayed(
        PCAPS / f"{name}.pcap",
        entry.get("settings", ""),
        hosts=asking if hosts is None else hosts,
        on_link=entry["on_link"],
    )


# Frame and reason of each refusal.
REFUSED: Final[dict[str, Found]] = {
    "slp/slp-openslp-bcast-findsrvs": [(2, "forwarded")],
}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_rules_ask_for_is_expected_or_refused(name: str) -> None:
    events = replay(name)
    refused = REFUSED.get(name, [])
    assert refusals(events) == refused
    assert expectations(events) == [
        each for each in told(name) if each[0] not in dict(refused)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_unicast_answers_are_let_in(name: str) -> None:
    assert related(replay(name)) == ANSWERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_other_flow_is_a_control_flow(name: str) -> None:
    assert unwatched(replay(name)) == OTHERS.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_real_traffic_is_never_malformed(name: str) -> None:
    assert broken(replay(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_requests_of_another_host_are_refused(name: str) -> None:
    # Among them the client's own, as the relay in front of it sees them.
    events = replay(name, hosts=[ip_address("192.0.2.1")])
    assert expectations(events) == related(events) == []
    # What one message would open is refused at once.
    frames = dict.fromkeys(frame for frame, _ in told(name))
    assert refusals(events) == [(frame, "forwarded") for frame in frames]


# Published ones


def published(name: str) -> Path:
    """A published capture, which is not kept here; skips the test where it is not."""
    capture = PUBLIC / name
    if not capture.exists():
        pytest.skip(f"{name} is not there")
    return capture


@pytest.mark.parametrize(
    ("name", "helper", "network", "count"),
    [
        ("ndpi-netbios.pcap", NetbiosNs, "10.0.4.0/23", 246),
        ("ndpi-ssdp-m-search-ua.pcap", Ssdp, None, 4),
        ("ndpi-upnp.pcap", Wsd, None, 14),
        ("suri-output-eve-ftp-data.pcap", Llmnr, None, 100),
        ("suri-output-eve-ftp-data.pcap", NetbiosNs, None, 51),
        ("suri-output-eve-ftp-data.pcap", Ssdp, None, 30),
        ("suri-sip-method_sip.pcap", NetbiosNs, None, 111),
    ],
)
def test_each_published_query_opens_its_port(
    name: str, helper: type[GroupQuery], network: str | None, count: int
) -> None:
    # As many as tshark finds of the kind, be they read as this host's own.
    settings = f"helpers.{helper.name}.enabled = true"
    networks = [] if network is None else [ip_network(network)]
    events = testing.replay(
        published(name), helper, settings=settings, networks=networks
    )
    frames = {frame for frame, _ in expectations(events)}
    assert (len(frames), testing.failures(events)) == (count, [])


@pytest.mark.parametrize("name", ["ndpi-srvloc-v1.pcapng", "ndpi-srvloc.pcap"])
def test_unicast_requests_of_others_open_nothing(name: str) -> None:
    # Scans, and an answer of version 1: no rule asks for an expectation.
    for settings in ("", "[helpers.slp]\nv1 = true\noverflow = true\n"):
        *events, summary = testing.replay(published(name), Slp, settings=settings)
        assert events == []
        assert isinstance(summary, Summary)
        assert summary.flows > 0


def test_repeated_solicit_opens_the_port_each_time() -> None:
    events = testing.replay(published("suri-output-eve-ftp-data.pcap"), Dhcpv6)
    text = "udp any > [fe80::9154:c66f:8d0e:33cb]:546"
    assert expectations(events) == [(frame, text) for frame in (5, 179, 637)]
    assert related(events) == refusals(events) == []


def test_every_capture_has_its_case() -> None:
    assert captures_of(NAMES) == NAMES

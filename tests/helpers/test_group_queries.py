# SPDX-License-Identifier: GPL-2.0-or-later
"""Queries to a group or by broadcast: what is one, and whose port it opens.

Most messages are of the captures in pcaps/discovery; each helper's table has what else
its peers send to the same port, too.
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    ANY,
    BROADCAST,
    ON_LINK,
    ORIGINAL,
    UDP,
    Expect,
    ExpectationRefused,
    Helper,
    Hook,
    Malformed,
    OptionValue,
)
from cthelper.core.outcome import Refused
from cthelper.helpers.bacnet import Bacnet
from cthelper.helpers.coap import Coap
from cthelper.helpers.discovery import GroupQuery
from cthelper.helpers.gvcp import Gvcp
from cthelper.helpers.knx import Knx
from cthelper.helpers.llmnr import Llmnr
from cthelper.helpers.netbios_ns import NetbiosNs
from cthelper.helpers.ssdp import Ssdp
from cthelper.helpers.wsd import Wsd
from cthelper.testing import Line, defaults, play
from tests.cases import cases
from tests.core.builders import conntrack, endpoint, flow_tuple, udp
from tests.helpers.given import damaged, unanswerable
from tests.helpers.inspected import configured, engine_with, on_link

HOST: Final = "192.0.2.1"
HOST6: Final = "fe80::1"
ASKER: Final = 40000

HELPERS: Final[tuple[type[GroupQuery], ...]] = (
    *(Bacnet, Coap, Gvcp, Knx),
    *(Llmnr, NetbiosNs, Ssdp, Wsd),
)
# Where each asks.
GROUPS: Final = {
    Bacnet: ("192.0.2.255", "255.255.255.255"),
    Coap: ("224.0.1.187", "ff02::fd", "ff05::fd", "ff08::fd"),
    Gvcp: ("192.0.2.255", "255.255.255.255"),
    Knx: ("224.0.23.12",),
    Llmnr: ("224.0.0.252", "ff02::1:3"),
    NetbiosNs: ("192.0.2.255", "255.255.255.255"),
    Ssdp: ("239.255.255.250", "ff02::c", "ff05::c", "ff08::c"),
    Wsd: ("239.255.255.250", "ff02::c"),
}
# Seconds for answers.
WINDOWS: Final = {
    **{Bacnet: 10, Coap: 8, Gvcp: 2, Knx: 10},
    **{Llmnr: 3, NetbiosNs: 5, Ssdp: 8, Wsd: 10},
}

OPENS: Final = "opens"
NOTHING: Final = "nothing"
BROKEN: Final = "broken"
OUTCOMES: Final = {
    OPENS: "link, port {port} > asker's port, {window} s",
    NOTHING: "opens nothing",
    BROKEN: "malformed, opens nothing",
}

# BACnet.


def bvlc(npdu: bytes, function: int = 0x0B) -> bytes:
    return bytes([0x81, function]) + (len(npdu) + 4).to_bytes(2) + npdu


WHO_IS: Final = bytes.fromhex("0120ffff00ff1008")
BACNET: Final = {
    "Who-Is to all networks": (OPENS, bvlc(WHO_IS)),
    "Who-Is to the own network": (OPENS, bvlc(b"\x01\x00\x10\x08")),
    "Who-Is of a range": (OPENS, bvlc(b"\x01\x00\x10\x08\x09\x01\x19\x05")),
    "Who-Is that a router has passed on": (
        OPENS,
        bvlc(bytes.fromhex("0128ffff0000050119ff1008")),
    ),
    "Who-Has": (OPENS, bvlc(b"\x01\x00\x10\x07\x2c\x00\x00\x00\x01")),
    "I-Am": (NOTHING, bvlc(bytes.fromhex("01001000c4020003e9"))),
    "Who-Is by unicast (frame 10)": (NOTHING, bvlc(WHO_IS, 0x0A)),
    "Forwarded-NPDU of a BBMD": (NOTHING, bvlc(bytes(6) + WHO_IS, 0x04)),
    "message of the network layer": (NOTHING, bvlc(b"\x01\x80\x00\x01")),
    "confirmed request": (NOTHING, bvlc(b"\x01\x04\x00\x08")),
    "length that is wrong": (BROKEN, bvlc(WHO_IS) + b"\0"),
    "other version of the network layer": (BROKEN, bvlc(b"\x02\x00\x10\x08")),
    "address longer than the message": (BROKEN, bvlc(b"\x01\x20\xff\xff\x09\xff")),
    "nothing to read": (BROKEN, bvlc(b"\x01\x00")),
}

# CoAP.

CORE: Final = b"\xbb.well-known\x04core"
COAP: Final = {
    "NON GET": (OPENS, bytes.fromhex("51016fb901") + CORE),
    "NON GET without a token": (OPENS, b"\x50\x01\x6f\xb9" + CORE),
    "NON POST": (OPENS, b"\x50\x02\x6f\xb9"),
    "NON FETCH": (OPENS, b"\x50\x05\x6f\xb9"),
    "CON GET, which may not go to a group": (NOTHING, b"\x40\x01\x6f\xb9" + CORE),
    "NON 2.05, an answer": (NOTHING, bytes.fromhex("514591d401c128ff3c")),
    "empty message (code 0.00)": (NOTHING, b"\x50\x00\x6f\xb9"),
    "Reset": (NOTHING, b"\x70\x00\x6f\xb9"),
    "other version": (BROKEN, b"\x90\x01\x6f\xb9"),
    "token of 9 bytes": (BROKEN, b"\x59\x01\x6f\xb9" + bytes(9)),
    "token that is cut off": (BROKEN, b"\x54\x01\x6f\xb9abc"),
}

# GigE Vision.

GVCP: Final = {
    "DISCOVERY_CMD": (OPENS, bytes.fromhex("420100020000ffff")),
    "DISCOVERY_CMD that permits broadcasts": (OPENS, bytes.fromhex("421100020000ffff")),
    "FORCEIP_CMD": (NOTHING, bytes.fromhex("420100040038ffff") + bytes(56)),
    "READREG_CMD": (NOTHING, bytes.fromhex("420100800004ffff00000d00")),
    "DISCOVERY_ACK": (BROKEN, bytes.fromhex("0000000300f8ffff") + bytes(248)),
    "length that is wrong": (BROKEN, bytes.fromhex("420100020000ffff00")),
    "header that is cut off": (BROKEN, bytes.fromhex("4201000200")),
}

# KNXnet/IP.


def knx(service: int, body: bytes) -> bytes:
    return b"\x06\x10" + service.to_bytes(2) + (len(body) + 6).to_bytes(2) + body


def hpai(address: str = HOST, port: int = ASKER, protocol: int = 1) -> bytes:
    return bytes([8, protocol]) + ip_address(address).packed + port.to_bytes(2)


KNX: Final = {
    "SEARCH_REQUEST (0201)": (OPENS, knx(0x0201, hpai())),
    "SEARCH_REQUEST_EXTENDED (020B)": (
        OPENS,
        knx(0x020B, hpai() + bytes.fromhex("060401020607")),
    ),
    "SEARCH_REQUEST without address and port": (
        OPENS,
        knx(0x0201, hpai("0.0.0.0", 0)),  # noqa: S104 - not a bind
    ),
    "SEARCH_REQUEST without a port": (OPENS, knx(0x0201, hpai(port=0))),
    "SEARCH_REQUEST to be answered by multicast": (
        NOTHING,
        knx(0x0201, hpai("224.0.23.12", 3671)),
    ),
    "SEARCH_REQUEST for an answer over TCP": (NOTHING, knx(0x0201, hpai(protocol=2))),
    "SEARCH_RESPONSE (0202)": (NOTHING, knx(0x0202, hpai() + bytes(60))),
    "ROUTING_INDICATION (0530)": (NOTHING, knx(0x0530, bytes(11))),
    "length that is wrong": (BROKEN, knx(0x0201, hpai()) + b"\0"),
    "other header": (BROKEN, b"\x06\x20" + knx(0x0201, hpai())[2:]),
    "HPAI that is cut off": (BROKEN, knx(0x0201, hpai()[:7])),
}

# LLMNR and NetBIOS, both in the form of DNS.


def dns(
    flags: int, question: bytes, counts: tuple[int, int, int, int] = (1, 0, 0, 0)
) -> bytes:
    head = b"".join(each.to_bytes(2) for each in (0x7170, flags, *counts))
    return head + question


NAME: Final = b"\x06pmhost\0\x00\xff\x00\x01"
LLMNR: Final = {
    "query": (OPENS, dns(0, NAME)),
    "query with further records (EDNS)": (OPENS, dns(0, NAME, (1, 0, 0, 1))),
    "query that is tentative (T)": (OPENS, dns(0x0100, NAME)),
    "query after a conflict (C)": (NOTHING, dns(0x0400, NAME)),
    "response": (NOTHING, dns(0x8000, NAME)),
    "query of two questions": (NOTHING, dns(0, NAME * 2, (2, 0, 0, 0))),
    "query with answers": (NOTHING, dns(0, NAME, (1, 1, 0, 0))),
    "query with name servers": (NOTHING, dns(0, NAME, (1, 0, 1, 0))),
    "other operation code": (NOTHING, dns(0x2800, NAME)),
    "no question": (NOTHING, dns(0, b"", (0, 0, 0, 0))),
    "question that is cut off": (BROKEN, dns(0, NAME[:-1])),
    "header that is cut off": (BROKEN, dns(0, b"")[:11]),
}


def netbios(
    letters: bytes = b"FA" + b"CA" * 15, kind: int = 0x20, scope: bytes = b""
) -> bytes:
    return b"\x20" + letters + scope + b"\0" + kind.to_bytes(2) + b"\0\1"


NETBIOS: Final = {
    "NB query by broadcast": (OPENS, dns(0x0110, netbios())),
    "NBSTAT query by broadcast": (OPENS, dns(0x0010, netbios(kind=0x21))),
    "NB query with a scope": (OPENS, dns(0x0110, netbios(scope=b"\3lan"))),
    "NB query without the flag B": (NOTHING, dns(0x0100, netbios())),
    "positive answer": (NOTHING, dns(0x8580, netbios(), (0, 1, 0, 0))),
    "registration (opcode 5)": (
        NOTHING,
        dns(0x2910, netbios() + b"\xc0\x0c\0\x20\0\1" + bytes(12), (1, 0, 0, 1)),
    ),
    "release (opcode 6)": (
        NOTHING,
        dns(0x3010, netbios() + b"\xc0\x0c\0\x20\0\1" + bytes(12), (1, 0, 0, 1)),
    ),
    "query of two questions": (NOTHING, dns(0x0110, netbios() * 2, (2, 0, 0, 0))),
    "question of another type": (BROKEN, dns(0x0110, netbios(kind=1))),
    "name of other letters": (BROKEN, dns(0x0110, netbios(b"Qa" * 16))),
    "name of DNS": (BROKEN, dns(0x0110, b"\4test\0\0\x20\0\1")),
    "question that is cut off": (BROKEN, dns(0x0110, netbios()[:-1])),
}

# SSDP.


def search(
    man: str = 'MAN: "ssdp:discover"', target: str = "ST: ssdp:all", more: str = ""
) -> bytes:
    host = "HOST: 239.255.255.250:1900"
    lines = ["M-SEARCH * HTTP/1.1", host, man, "MX: 3", target, more, ""]
    return "\r\n".join(lines).encode()


SSDP: Final = {
    "M-SEARCH": (OPENS, search()),
    "M-SEARCH with names in small letters, without blanks": (
        OPENS,
        search('man:"ssdp:discover"', "st:upnp:rootdevice"),
    ),
    "M-SEARCH without quotes in MAN": (OPENS, search("MAN: ssdp:discover")),
    "M-SEARCH that ends without an empty line": (OPENS, search().rstrip()),
    "M-SEARCH with lines that end in LF alone": (
        OPENS,
        search().replace(b"\r\n", b"\n"),
    ),
    "M-SEARCH of another kind (MAN)": (NOTHING, search('MAN: "ssdp:other"')),
    "M-SEARCH without MAN": (NOTHING, search("X: y")),
    "NOTIFY": (NOTHING, b"NOTIFY * HTTP/1.1\r\nNTS: ssdp:alive\r\n\r\n"),
    "answer (200)": (NOTHING, b"HTTP/1.1 200 OK\r\nST: ssdp:all\r\n\r\n"),
    "M-SEARCH for nothing (ST)": (BROKEN, search(target="ST:")),
    "M-SEARCH with a line that is no field": (BROKEN, search("MAN")),
    "M-SEARCH over 2 KiB": (BROKEN, search(more="X: " + "y" * 2048)),
}

# WS-Discovery.

OLD: Final = "http://schemas.xmlsoap.org/ws/2005/04/discovery"
NEW: Final = "http://docs.oasis-open.org/ws-dd/ns/discovery/2009/01"


def envelope(action: str, *, before: str = "", mark: bytes = b"") -> bytes:
    text = f"<soap:Envelope>{before}<wsa:Action>{action}</wsa:Action></soap:Envelope>"
    return mark + text.encode()


WSD: Final = {
    "Probe (2005)": (OPENS, envelope(f"{OLD}/Probe")),
    "Resolve (2005)": (OPENS, envelope(f"{OLD}/Resolve")),
    "Probe (1.1)": (OPENS, envelope(f"{NEW}/Probe")),
    "Resolve (1.1)": (OPENS, envelope(f"{NEW}/Resolve")),
    "Probe with a byte order mark": (
        OPENS,
        envelope(f"{OLD}/Probe", mark=b"\xef\xbb\xbf"),
    ),
    "Probe that names answers before": (
        OPENS,
        envelope(f"{OLD}/Probe", before=f"<x>{OLD}/ProbeMatches</x>"),
    ),
    "Hello": (NOTHING, envelope(f"{OLD}/Hello")),
    "Bye": (NOTHING, envelope(f"{NEW}/Bye")),
    "ProbeMatches": (NOTHING, envelope(f"{OLD}/ProbeMatches")),
    "ResolveMatches": (NOTHING, envelope(f"{NEW}/ResolveMatches")),
    "Probe behind the first 2 KiB": (
        NOTHING,
        envelope(f"{OLD}/Probe", before="x" * 2048),
    ),
    "no XML": (NOTHING, f"{OLD}/Probe".encode()),
}

TABLES: Final[dict[type[GroupQuery], Mapping[str, tuple[str, bytes]]]] = {
    **{Bacnet: BACNET, Coap: COAP, Gvcp: GVCP, Knx: KNX},
    **{Llmnr: LLMNR, NetbiosNs: NETBIOS, Ssdp: SSDP, Wsd: WSD},
}


def rows() -> list[Any]:
    """Each message of each table, with the mark of what becomes of it."""
    found = []
    for helper, table in TABLES.items():
        for name, (outcome, payload) in table.items():
            (port,) = helper.ports
            text = OUTCOMES[outcome].format(port=port, window=WINDOWS[helper])
            mark = pytest.mark.handles(helper.name, name, text)
            id_ = f"{helper.name}: {name}"
            found.append(pytest.param(helper, payload, outcome, marks=mark, id=id_))
    return found


def line(
    helper: type[GroupQuery],
    destination: str | None = None,
    port: int = ASKER,
    *,
    group: bool = True,
    **options: OptionValue,
) -> Line:
    """A flow of the host's to a group of the helper's."""
    destination = GROUPS[helper][0] if destination is None else destination
    source = HOST6 if ":" in destination else HOST
    ends = (source, port), (destination, helper.ports[0])
    given_ = defaults(helper) | options
    return Line(flow_tuple(UDP, *ends), given_, group=group)


def answers(
    helper: type[GroupQuery], port: int = ASKER, address: str = HOST, **other: Any
) -> Expect:
    """What a query opens."""
    wish: dict[str, Any] = {"source": ON_LINK, "source_port": helper.ports[0]} | other
    return Expect(endpoint(address, port), "answer", permanent=True, **wish)


QUERIES: Final = {
    helper: next(payload for outcome, payload in table.values() if outcome == OPENS)
    for helper, table in TABLES.items()
}


@pytest.mark.parametrize(("helper", "payload", "outcome"), rows())
def test_what_becomes_of_a_message_to_the_group(
    helper: type[GroupQuery], payload: bytes, outcome: str
) -> None:
    message = line(helper).sent(payload)
    if outcome == BROKEN:
        with pytest.raises(Malformed):
            play(helper(), [message])
    else:
        expected = [answers(helper)] if outcome == OPENS else []
        assert play(helper(), [message]) == expected


@pytest.mark.parametrize(("helper", "payload", "outcome"), rows())
def test_what_opens_something_is_what_the_prefilter_has_read(
    helper: type[GroupQuery], payload: bytes, outcome: str
) -> None:
    alternatives = helper.prefilter(defaults(helper)).request or ()
    bits = int.from_bytes(payload[:64].ljust(64, b"\0"))
    read = any(
        all(
            bits >> (512 - offset - length) & (1 << length) - 1 == value
            for offset, length, value in alternative
        )
        for alternative in alternatives
    )
    assert read or outcome != OPENS


@pytest.mark.parametrize(
    ("helper", "group"),
    [(helper, group) for helper, groups in GROUPS.items() for group in groups],
)
def test_every_group_of_the_protocol_is_asked(
    helper: type[GroupQuery], group: str
) -> None:
    flow = line(helper, group)
    asker = str(flow.original.source.address)
    payload = QUERIES[helper]
    assert play(helper(), [flow.sent(payload)]) == [answers(helper, address=asker)]


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize(
    ("destination", "group"),
    [
        ("192.0.2.7", False),
        ("198.51.100.255", False),
        ("224.0.0.9", True),
        ("ff02::9", True),
        ("fe80::7", False),
    ],
)
def test_query_to_no_group_of_the_protocol_opens_nothing(
    helper: type[GroupQuery], destination: str, group: bool
) -> None:
    flow = line(helper, destination, group=group)
    assert play(helper(), [flow.sent(QUERIES[helper])]) == []


@pytest.mark.parametrize("helper", HELPERS)
def test_broadcast_is_for_those_that_ask_so(helper: type[GroupQuery]) -> None:
    flow = line(helper, "192.0.2.255")
    opens = BROADCAST in helper.destinations
    wanted = [answers(helper)] if opens else []
    assert play(helper(), [flow.sent(QUERIES[helper])]) == wanted


@pytest.mark.parametrize("helper", HELPERS)
def test_query_in_the_reply_direction_opens_nothing(helper: type[GroupQuery]) -> None:
    assert play(helper(), [line(helper).answered(QUERIES[helper])]) == []


@pytest.mark.parametrize("helper", HELPERS)
def test_each_query_opens_the_port_anew_and_leaves_nothing_behind(
    helper: type[GroupQuery],
) -> None:
    asked = helper()
    before = asked.footprint()
    message = line(helper).sent(QUERIES[helper])
    assert play(asked, [message] * 1000) == [answers(helper)] * 1000
    assert asked.footprint() == before


@pytest.mark.parametrize("helper", HELPERS)
def test_query_from_the_services_own_port_opens_it(helper: type[GroupQuery]) -> None:
    (port,) = helper.ports
    payload = QUERIES[helper]
    if helper is Knx:
        payload = knx(0x0201, hpai(port=port))
    message = line(helper, port=port).sent(payload)
    assert play(helper(), [message]) == [answers(helper, port)]


@cases(
    "helper, option",
    {
        "SSDP, any port": (Ssdp, {"any_sport": True}),
        "WS-Discovery, any port": (Wsd, {"any_sport": True}),
        "KNX, any port": (Knx, {"any_sport": True}),
        "CoAP, anybody": (Coap, {"responders": "any"}),
    },
)
def test_options_widen_who_may_answer(
    helper: type[GroupQuery], option: dict[str, Any]
) -> None:
    wider: dict[str, Any] = {"source_port": None}
    if "responders" in option:
        wider = {"source": ANY}
    message = line(helper, **option).sent(QUERIES[helper])
    assert play(helper(), [message]) == [answers(helper, **wider)]


# Of one protocol.


def test_knx_answers_go_where_the_hpai_says() -> None:
    message = line(Knx, port=50000).sent(knx(0x0201, hpai(port=40001)))
    assert play(Knx(), [message]) == [answers(Knx, 40001)]


def test_knx_hpai_of_a_third_host_opens_nothing() -> None:
    message = line(Knx).sent(knx(0x0201, hpai("192.0.2.9")))
    with pytest.raises(ExpectationRefused, match="third-party-address"):
        play(Knx(), [message])


@pytest.mark.parametrize("port", [1, 136, 138, 1023])
def test_netbios_opens_no_other_port_that_needs_a_privilege(port: int) -> None:
    message = line(NetbiosNs, port=port).sent(QUERIES[NetbiosNs])
    with pytest.raises(ExpectationRefused, match="source-port"):
        play(NetbiosNs(), [message])


@cases(
    "helper, payload, fields",
    {
        "BACnet": (Bacnet, bvlc(WHO_IS), {"type": "Who-Is"}),
        "BACnet, none": (Bacnet, b"\x81\x0a\0\4", {"type": "no question"}),
        "CoAP": (
            Coap,
            b"\x50\x01\x6f\xb9",
            {"type": "non-confirmable", "code": "GET"},
        ),
        "CoAP, answer": (
            Coap,
            b"\x60\x45\x6f\xb9",
            {"type": "acknowledgement", "code": "code 2.05"},
        ),
        "GVCP": (Gvcp, QUERIES[Gvcp], {"type": "search for cameras"}),
        "GVCP, other": (
            Gvcp,
            bytes.fromhex("420100800000ffff"),
            {"type": "command 0x0080"},
        ),
        "KNX": (
            Knx,
            knx(0x0201, hpai()),
            {"type": "search", "answers to": f"{HOST}:{ASKER}"},
        ),
        "KNX, other": (Knx, knx(0x0530, b""), {"type": "service 0x0530"}),
        "LLMNR": (
            Llmnr,
            dns(0, NAME),
            {"type": "query", "name": repr(b"\x06pmhost\0")[1:]},
        ),
        "LLMNR, none": (Llmnr, dns(0x8000, NAME), {"type": "no query"}),
        "NetBIOS": (
            NetbiosNs,
            dns(0x0110, netbios(b"FAENEIEPFDFECACACACACACACACACAAA")),
            {"type": "NB query", "name": "'PMHOST', suffix 0x00"},
        ),
        "NetBIOS, none": (NetbiosNs, dns(0x8580, b""), {"type": "no query"}),
        "SSDP": (
            Ssdp,
            search(),
            {"type": "search", "ST": "'ssdp:all'", "MX": "'3'"},
        ),
        "SSDP, none": (Ssdp, b"NOTIFY * HTTP/1.1\r\n\r\n", {"type": "no search"}),
        "WS-Discovery": (Wsd, envelope(f"{NEW}/Resolve"), {"type": "Resolve"}),
        "WS-Discovery, none": (Wsd, b"<x/>", {"type": "no question"}),
    },
)
def test_message_is_described(
    helper: type[GroupQuery], payload: bytes, fields: dict[str, str]
) -> None:
    assert helper().describe(line(helper).sent(payload)) == fields


# Through the engine: who may answer.


def asked_by(
    helper: type[GroupQuery], source: str, *, forwarded: bool = False
) -> tuple[list[str], list[str]]:
    """Expectations and reasons of refusal for a query of this host."""
    groups = GROUPS[helper]
    of_version = [each for each in groups if (":" in each) is (":" in source)]
    (port,) = helper.ports
    original = flow_tuple(UDP, (source, ASKER), ((of_version or groups)[0], port))
    config = configured(helper, "enabled = true")
    engine = engine_with(config, on_link=on_link)
    payload = QUERIES[helper]
    if helper is Knx and "." in source:
        payload = knx(0x0201, hpai(source))
    packet = udp(payload, version=6 if ":" in source else 4)
    entry = conntrack(original, helper=helper.name)
    handled = engine.handle(packet, entry, ORIGINAL, forwarded=forwarded)
    refused = [each.reason for each in handled.events if isinstance(each, Refused)]
    return list(map(str, handled.expectations)), refused


@pytest.mark.parametrize("helper", HELPERS)
def test_hosts_of_the_link_may_answer_from_one_port(helper: type[GroupQuery]) -> None:
    (port,) = helper.ports
    text = f"udp 192.0.2.0/24 port {port} > {HOST}:{ASKER}"
    assert asked_by(helper, HOST) == ([text], [])


@pytest.mark.parametrize("helper", [Coap, Llmnr, Ssdp, Wsd])
def test_hosts_of_an_ipv6_link_may_answer_from_all_their_prefixes(
    helper: type[GroupQuery],
) -> None:
    (port,) = helper.ports
    assert asked_by(helper, HOST6) == (
        [
            f"udp {network} port {port} > [{HOST6}]:{ASKER}"
            for network in ("fe80::/10", "2001:db8::/64")
        ],
        [],
    )


@pytest.mark.parametrize("helper", HELPERS)
def test_query_of_another_host_opens_nothing(helper: type[GroupQuery]) -> None:
    # Forged or not: it came in.
    assert asked_by(helper, HOST, forwarded=True) == ([], ["forwarded"])


@unanswerable
def test_query_that_nobody_on_the_link_can_answer_opens_nothing(
    source: str, reason: str
) -> None:
    assert asked_by(Ssdp, source) == ([], [reason])


@pytest.mark.parametrize("helper", HELPERS)
def test_helper_is_off_narrow_and_opens_its_port_for_seconds(
    helper: type[GroupQuery],
) -> None:
    assert not helper.enabled
    assert helper.hooks == {Hook.OUTPUT}
    assert not helper.nat
    assert helper.destinations
    (policy,) = helper.policies
    assert (policy.max_expected, policy.timeout) == (8, WINDOWS[helper])
    assert helper.prefilter(defaults(helper)).reply == ()


# Whatever the bytes are.


@pytest.mark.parametrize("helper", HELPERS)
@given(data=st.data())
def test_any_bytes_open_at_most_the_askers_port(
    helper: type[GroupQuery], data: st.DataObject
) -> None:
    valid = st.sampled_from([each for _, each in TABLES[helper].values()])
    payload = data.draw(st.binary(max_size=100) | damaged(valid))
    message = line(helper).sent(payload)
    made: Helper = helper()
    try:
        made.describe(message)
        effects = play(made, [message])
    except (Malformed, ExpectationRefused):
        return
    assert len(effects) <= 1
    for effect in effects:
        assert isinstance(effect, Expect)
        assert effect.endpoint.address == message.source.address
        assert helper is Knx or effect.endpoint == message.source
        assert (effect.source, effect.source_port) == (ON_LINK, helper.ports[0])

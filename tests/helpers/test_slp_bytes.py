# SPDX-License-Identifier: GPL-2.0-or-later
"""SLP through the engine: faults of conntrackd, any bytes, words, another reader."""

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import UDP as ScapyUDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    UDP,
    Direction,
    Hook,
    Malformed,
    OptionValue,
)
from cthelper.core.engine import Decision, Engine
from cthelper.core.outcome import Damaged, Refused
from cthelper.core.tuples import Conntrack
from cthelper.helpers.slp import Slp
from cthelper.testing import failures, related, replay
from tests.core.builders import conntrack, flow_tuple, udp
from tests.helpers import tshark
from tests.helpers.given import damaged, unanswerable
from tests.helpers.inspected import configured, engine_with, on_link
from tests.helpers.test_slp import (
    ASKER,
    GROUP,
    GROUP6,
    HOST,
    HOST6,
    O_FLAG,
    PORT,
    R_FLAG,
    REQUESTS,
    RESPONDER,
    STRINGS,
    answer,
    answers_to,
    effects_of,
    follow_up,
    line,
    strings,
    v1,
    v2,
)

# Through the engine


def engine(*hooks: Hook, **options: OptionValue) -> Engine:
    config = configured(Slp)
    config = replace(
        config,
        options={**config.options, **options},
        hooks=frozenset(hooks) or config.hooks,
    )
    return engine_with(config, on_link=on_link)


def flow(source: str = HOST, destination: str = GROUP, port: int = ASKER) -> Conntrack:
    original = flow_tuple(UDP, (source, port), (destination, PORT))
    return conntrack(original, helper="slp")


def handle(payload: bytes, entry: Conntrack, **options: OptionValue) -> Decision:
    return engine(**options).handle(udp(payload), entry, ORIGINAL)


def expected(decision: Decision) -> list[str]:
    return list(map(str, decision.expectations))


def reasons(decision: Decision) -> list[str]:
    return [each.reason for each in decision.events if isinstance(each, Refused)]


def test_hosts_on_the_link_may_answer_from_port_427() -> None:
    decision = handle(v2(), flow())
    assert expected(decision) == ["udp 192.0.2.0/24 port 427 > 192.0.2.1:40000"]
    (expectation,) = decision.expectations
    assert (expectation.permanent, expectation.timeout) == (True, 16)
    assert expectation.helper is None


def test_every_prefix_of_an_ipv6_link_may_answer() -> None:
    assert expected(handle(v2(), flow(HOST6, GROUP6))) == [
        "udp fe80::/10 port 427 > [2001:db8::1]:40000",
        "udp 2001:db8::/64 port 427 > [2001:db8::1]:40000",
    ]


def test_anybody_may_answer_where_multicast_is_routed() -> None:
    decision = handle(v2(), flow("198.51.100.1"), responders="any", any_sport=True)
    assert expected(decision) == ["udp any > 198.51.100.1:40000"]


@pytest.mark.parametrize(
    ("destination", "opens"),
    [("192.0.2.255", True), ("192.0.2.127", False), ("198.51.100.255", False)],
    ids=["of the link", "of half the link", "of another network"],
)
def test_broadcast_address_is_that_of_the_askers_link(
    destination: str, opens: bool
) -> None:
    decision = handle(v2(), flow(destination=destination))
    assert bool(decision.expectations) == opens
    assert reasons(decision) == []


@unanswerable
def test_asker_that_nobody_on_a_link_can_answer_is_refused(
    source: str, reason: str
) -> None:
    decision = handle(v2(), flow(source, GROUP6 if ":" in source else GROUP))
    assert (expected(decision), reasons(decision)) == ([], [reason])


def test_request_of_another_host_is_refused() -> None:
    decision = engine().handle(udp(v2()), flow(), ORIGINAL, forwarded=True)
    assert (expected(decision), reasons(decision)) == ([], ["forwarded"])


def test_request_of_another_host_is_served_where_configured() -> None:
    router = engine(Hook.PREROUTING, responders="any")
    decision = router.handle(udp(v2()), flow(), ORIGINAL, forwarded=True)
    assert expected(decision) == ["udp any port 427 > 192.0.2.1:40000"]


@pytest.mark.parametrize("port", [1, 111, 426])
def test_port_below_427_is_refused(port: int) -> None:
    decision = handle(v2(), flow(port=port))
    assert (expected(decision), len(reasons(decision))) == ([], 1)


def test_nat_is_refused() -> None:
    original = flow_tuple(UDP, (HOST, ASKER), (GROUP, PORT))
    reply = flow_tuple(UDP, (GROUP, PORT), ("203.0.113.9", ASKER))
    decision = handle(v2(), conntrack(original, reply, helper="slp"))
    assert (expected(decision), reasons(decision)) == ([], ["nat"])


@pytest.mark.parametrize("hooks", [(), (Hook.PREROUTING,)], ids=["host", "router"])
def test_answer_that_overflows_is_followed_from_its_request_on(
    hooks: tuple[Hook, ...],
) -> None:
    runner = engine(*hooks, overflow=True)
    request = flow()
    decision = runner.handle(udp(v2()), request, ORIGINAL, forwarded=bool(hooks))
    (expectation,) = decision.expectations
    assert expectation.helper == "slp"
    tuple_ = flow_tuple(UDP, (RESPONDER, PORT), (HOST, ASKER))
    reply = Conntrack(
        id=2,
        original=tuple_,
        reply=flow_tuple(UDP, (HOST, ASKER), (RESPONDER, PORT)),
        status=request.status,
        helper="slp",
        master=request.original,
    )
    payload = v2(2, b"\0\0\0\0", flags=O_FLAG)
    decision = runner.handle(udp(payload), reply, ORIGINAL, forwarded=True)
    assert expected(decision) == ["tcp 192.0.2.1 > 192.0.2.77:427"]
    assert not decision.expectations[0].permanent


@pytest.mark.parametrize("overflow", [False, True])
def test_asker_comes_back_to_the_responder_in_a_replay(
    tmp_path: Path, overflow: bool
) -> None:
    ours, theirs = IP(src=HOST, dst=GROUP), IP(src=RESPONDER, dst=HOST)
    back = IP(src=HOST, dst=RESPONDER)
    frames = [
        ours / ScapyUDP(sport=ASKER, dport=PORT) / v2(),
        theirs / ScapyUDP(sport=PORT, dport=ASKER) / v2(2, bytes(4), flags=O_FLAG),
        back / ScapyTCP(sport=50000, dport=PORT, flags="S"),
        # The expectation is used up.
        back / ScapyTCP(sport=50001, dport=PORT, flags="S"),
    ]
    capture = tmp_path / "capture.pcap"
    wrpcap(str(capture), [Ether() / frame for frame in frames])
    settings = f"[helpers.slp]\noverflow = {str(overflow).lower()}"
    events = replay(
        capture, Slp, settings=settings, networks=[ip_network("192.0.2.0/24")]
    )
    assert failures(events) == []
    assert related(events) == [(2, 1), (3, 2)][: 1 + overflow]


# Faults of conntrackd


@pytest.mark.fault("slp 1", "function, language and length are not looked at")
def test_only_a_whole_request_opens_the_port() -> None:
    for function in range(256):
        opens = function in REQUESTS
        assert bool(handle(v2(function), flow()).expectations) == opens
    for payload in (v2(language=b"e" * 33), v2(length=99), v2()[:-1], b""):
        decision = handle(payload, flow())
        assert decision.expectations == ()
        assert isinstance(decision.events[0], Damaged)


@pytest.mark.fault("slp 2", "versions 1 and 2 are not told apart")
def test_version_1_opens_nothing_unless_configured() -> None:
    assert handle(v1(), flow()).expectations == ()
    assert len(handle(v1(), flow(), v1=True).expectations) == 1


@pytest.mark.fault("slp 3", "a unicast request opens the port to everybody")
@pytest.mark.parametrize("function", REQUESTS)
def test_unicast_request_opens_no_port(function: int) -> None:
    decision = handle(v2(function, flags=0), flow(destination=RESPONDER))
    assert (decision.expectations, reasons(decision)) == ((), [])


@pytest.mark.fault(
    "slp 4", "an asker cannot come back over TCP when an answer overflows"
)
def test_asker_comes_back_over_tcp_and_only_the_asker() -> None:
    message = answer().sent(v2(2, b"\0\0\0\0", flags=O_FLAG))
    # From the receiver of the answer, once.
    assert effects_of(message) == [follow_up()]


@pytest.mark.fault("slp 5", "directory agents are not followed")
def test_directory_agent_that_was_asked_for_is_let_in() -> None:
    # It answers the request with a DAAdvert by unicast, as any responder; one that it
    # multicasts by itself announces no flow.
    discovery = v2(body=strings(b"", b"service:directory-agent", b"DEFAULT", b"", b""))
    assert len(handle(discovery, flow()).expectations) == 1
    assert handle(v2(8), flow()).expectations == ()


@pytest.mark.fault("slp 6", "service URLs are passed over; here, too, on purpose")
def test_services_of_an_answer_open_nothing() -> None:
    # Anybody on the link may answer, and would name what he likes.
    url = b"service:printer:lpr://192.0.2.1:515"
    entry = b"\0\xff\xff" + strings(url) + b"\0"
    payload = v2(2, b"\0\0\0\1" + entry, flags=0)
    assert effects_of(answer().sent(payload)) == []


@pytest.mark.fault("slp 7", "answers from another port than 427 are not let in")
def test_answers_from_another_port_are_let_in_where_configured() -> None:
    decision = handle(v2(), flow(), any_sport=True)
    assert expected(decision) == ["udp 192.0.2.0/24 > 192.0.2.1:40000"]


@pytest.mark.fault("slp 8", "IPv6 is left to chance")
@pytest.mark.parametrize("group", ["ff02::116", "ff05::123", "ff05::1:11d8"])
def test_request_over_ipv6_opens_the_port(group: str) -> None:
    assert handle(v2(), flow(HOST6, group)).expectations != ()
    assert handle(v2(), flow(HOST6, "ff0e::116")).expectations == ()


@pytest.mark.fault("slp 9", "hosts beyond the link may answer")
def test_hosts_beyond_the_link_may_not_answer() -> None:
    (expectation,) = handle(v2(), flow()).expectations
    assert expectation.source == ip_network("192.0.2.0/24")


# Any bytes

texts: Final = st.lists(st.binary(max_size=20), max_size=6).map(
    lambda parts: strings(*parts)
)
functions: Final = st.integers(0, 12)
valid: Final = st.builds(
    v2,
    functions,
    st.none() | texts,
    flags=st.sampled_from([0, R_FLAG, O_FLAG, 0xFFFF]),
    language=st.binary(max_size=33),
) | st.builds(v1, functions, st.none() | texts, flags=st.integers(0, 255))


payloads: Final = st.binary() | valid | damaged(valid)


@given(
    payloads,
    st.sampled_from(Direction),
    st.sampled_from([ASKER, PORT]),
    st.sampled_from([GROUP, "255.255.255.255", RESPONDER]),
    st.booleans(),
)
def test_any_bytes_open_the_askers_own_port_or_nothing(
    payload: bytes, direction: Direction, port: int, destination: str, version_1: bool
) -> None:
    message = line(port, destination=destination, v1=version_1).message(
        direction, payload
    )
    try:
        effects = effects_of(message)
    except Malformed:
        return
    assert effects in ([], [DONE], [answers_to()])
    if effects == [answers_to()]:
        assert (direction, port) == (ORIGINAL, ASKER)
        assert destination != RESPONDER
        assert payload[0] == 2 or version_1


@given(payloads, st.sampled_from(Direction), st.booleans())
def test_any_bytes_of_an_answer_let_the_asker_come_back_or_nothing(
    payload: bytes, direction: Direction, overflow: bool
) -> None:
    try:
        effects = effects_of(answer(overflow=overflow).message(direction, payload))
    except Malformed:
        return
    assert effects in ([], [DONE], [follow_up()])
    assert not (effects == [follow_up()] and (direction is REPLY or not overflow))


@given(st.sampled_from(sorted(REQUESTS)), st.binary(min_size=1, max_size=40))
def test_junk_after_a_request_is_malformed(function: int, junk: bytes) -> None:
    with pytest.raises(Malformed):
        effects_of(line().sent(v2(function) + junk))


# In words


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (
            v2(),
            {
                "type": "SrvRqst (1), version 2",
                "xid": "4660",
                "language": "'en'",
                "sent": "by multicast or broadcast",
                "previous responders": "''",
                "service type": "'service:printer'",
                "scopes": "'DEFAULT'",
                "predicate": "'(color=true)'",
                "SPI": "''",
            },
        ),
        (
            v2(9, strings(b"\xff") + b"\xff\xff" + strings(b"DEFAULT"), flags=0),
            {
                "type": "SrvTypeRqst (9), version 2",
                "xid": "4660",
                "language": "'en'",
                "previous responders": "'\\\\xff'",
                "naming authority": "''",
                "scopes": "'DEFAULT'",
            },
        ),
        (
            v2(2, flags=O_FLAG),
            {
                "type": "SrvRply (2), version 2",
                "xid": "4660",
                "language": "'en'",
                "overflow": "the whole of it is to be had over TCP",
            },
        ),
        (
            v1(),
            {
                "type": "SrvRqst (1), version 1",
                "xid": "4660",
                "language": "'en'",
                "previous responders": "''",
                "predicate": "'printer//(COLOR)/'",
            },
        ),
    ],
)
def test_message_is_described(payload: bytes, fields: dict[str, str]) -> None:
    assert Slp().describe(line().sent(payload)) == fields


@given(payloads)
def test_any_bytes_are_described_or_malformed(payload: bytes) -> None:
    try:
        fields = Slp().describe(line().sent(payload))
    except Malformed:
        return
    assert all(fields.values())


words: Final = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=20)


@given(
    st.sampled_from(sorted(STRINGS)),
    st.integers(0, 0xFFFF),
    st.lists(words, min_size=5, max_size=5),
)
def test_what_is_written_is_read_back(
    kind: tuple[int, int], xid: int, contents: list[str]
) -> None:
    version, function = kind
    wanted = contents[: len(STRINGS[kind])]
    body = strings(*(each.encode() for each in wanted))
    payload = v2(function, body, xid=xid) if version == 2 else v1(function, body)
    fields = Slp().describe(line().sent(payload))
    assert fields["type"].endswith(f"({function}), version {version}")
    assert list(fields.values())[-len(wanted) :] == list(map(repr, wanted))
    assert fields["xid"] == str(xid if version == 2 else 0x1234)


# Against another reader

TSHARK: Final = (
    *("version", "function", "xid", "transaction_id", "langtag"),
    *("srvreq.prlist", "srvreq.srvtypelist", "srvreq.scopelist", "srvreq.predicate"),
    *("attrreq.prlist", "attrreq.url", "srvtypereq.prlist", "flags_v2.overflow"),
)


@tshark.needed
def test_tshark_reads_the_same(tmp_path: Path) -> None:
    messages = [
        *(v2(function, xid=function) for function in REQUESTS),
        *(v2(function, bytes(4), flags=O_FLAG) for function in (2, 7)),
        v2(language=b"de-CH"),
        *(v1(function) for function in REQUESTS),
    ]
    capture = tmp_path / "capture.pcap"
    ether = Ether(src="02:00:00:00:00:01", dst="01:00:5e:7f:ff:fd")
    header = IP(src=HOST, dst=GROUP) / ScapyUDP(sport=ASKER, dport=PORT)
    wrpcap(str(capture), [ether / header / each for each in messages])
    rows = tshark.fields(capture, [f"srvloc.{each}" for each in TSHARK])
    read = [dict(zip(TSHARK, each, strict=True)) for each in rows]
    assert len(read) == len(messages)
    for payload, theirs in zip(messages, read, strict=True):
        ours = Slp().describe(line().sent(payload))
        kind = f"({theirs['function']}), version {theirs['version']}"
        assert ours["type"].endswith(kind)
        assert ours["xid"] == (theirs["xid"] or theirs["transaction_id"])
        if theirs["version"] == "2":
            assert ours["language"] == repr(theirs["langtag"])
            # Of tshark 4.0, and of later ones.
            assert ("overflow" in ours) == (
                theirs["flags_v2.overflow"] in ("1", "True")
            )
        if theirs["srvreq.srvtypelist"]:
            assert ours["service type"] == repr(theirs["srvreq.srvtypelist"])
            assert ours["scopes"] == repr(theirs["srvreq.scopelist"])
            assert ours["predicate"] == repr(theirs["srvreq.predicate"])
        if theirs["attrreq.url"]:
            assert ours["URL"] == repr(theirs["attrreq.url"])
        for name in ("attrreq.prlist", "srvtypereq.prlist"):
            if theirs[name] and theirs["version"] == "2":
                assert ours["previous responders"] == repr(theirs[name])

# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls of several procedures under way, through the engine, as bytes, in words."""

from ipaddress import ip_network
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Direction,
    Expect,
    ExpectationRefused,
    Malformed,
    Transport,
)
from cthelper.core.engine import Decision, Engine
from cthelper.core.outcome import Refused
from cthelper.core.tuples import Network
from cthelper.helpers.rpcbind import PORTMAPPER
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import any_segmentation, play
from tests.core.builders import (
    CLIENT,
    CLIENT6,
    SERVER,
    conntrack,
    flow_tuple,
    udp,
)
from tests.helpers.inspected import configured, engine_with
from tests.helpers.test_sunrpc import (
    MOUNTD,
    NFS,
    PORT,
    WILDCARD,
    address,
    call,
    exchange,
    getaddr,
    getport,
    line,
    port,
    record,
    service,
    u32,
    uaddr,
)
from tests.helpers.test_sunrpc_procedures import (
    EVERYTHING,
    GROUP6,
    OPENED,
    REMOTE,
    SERVICES,
    STATUS,
    Listed,
    addresses,
    answers,
    called,
    callit,
    dump,
    dumped,
    getaddrlist,
    heard,
    listed,
    refused,
    rpcb,
    to_group,
    wide,
)

# Transactions


def test_repeated_list_opens_its_services_anew() -> None:
    flow = wide()
    messages = [flow.sent(dump(7))] + [flow.answered(dumped(7, SERVICES))] * 2
    messages += [flow.sent(dump(7)), flow.answered(dumped(7, SERVICES))]
    assert play(SunRpc(), messages) == OPENED * 3


@pytest.mark.parametrize(
    "second",
    [SERVICES[1:3], [*SERVICES, (STATUS, "tcp", uaddr(number=1))], SERVICES[::-1]],
    ids=["fewer", "more", "in another order"],
)
def test_second_list_that_differs_is_refused(second: Listed) -> None:
    helper, flow = SunRpc(), wide()
    messages = [flow.sent(dump(7)), flow.answered(dumped(7, SERVICES))]
    assert play(helper, messages) == OPENED
    reason, text = refused(flow.answered(dumped(7, second)), helper=helper)
    assert reason == "second-answer"
    assert text.endswith(f"after {SERVER}:2000 and 2 more for one call")
    assert play(helper, [flow.answered(dumped(7, SERVICES))]) == OPENED


def test_xid_that_is_used_again_for_another_call_is_that_call() -> None:
    flow = wide()
    messages = [
        flow.sent(getport(7)),
        flow.answered(port(7)),
        flow.sent(dump(7)),
        flow.answered(dumped(7, SERVICES)),
        flow.sent(getport(7, protocol=TCP)),
        flow.answered(port(7, 4000)),
    ]
    assert play(SunRpc(), messages) == [service(), *OPENED, service(4000, TCP)]


def test_calls_of_all_kinds_are_pending_side_by_side() -> None:
    flow = wide()
    asked = [getport(1), dump(2), getaddrlist(3), callit(4), getaddr(5)]
    answered = [
        address(5, uaddr(number=2005)),
        called(4, number=2004),
        addresses(3, [("udp", uaddr(number=2003))]),
        dumped(2, [(NFS, "udp", uaddr(number=2002))]),
        port(1, 2001),
    ]
    messages = [flow.sent(each) for each in asked]
    messages += [flow.answered(each) for each in answered]
    assert play(SunRpc(), messages) == [
        heard(),
        *(service(number) for number in (2005, 2004, 2003)),
        listed(2002, UDP),
        service(2001),
    ]


# Flows that were expected


@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
@pytest.mark.parametrize("depth", [1, 2])
def test_flow_that_was_expected_is_not_read(on: Transport, depth: int) -> None:
    # Some kernels attach the helper that DUMP's policy makes it name.
    flow = wide(on, depth=depth)
    for payload in (getport(7), b"anything", b""):
        wire = record(payload) if on is TCP else payload
        for message in (flow.sent(wire), flow.answered(wire)):
            assert play(SunRpc(), [message]) == [DONE]
            assert SunRpc().describe(message) == {}


# Through the engine


def on_link(source: Address) -> tuple[Network, ...]:
    networks = ("2001:db8:1::/64", "fe80::/10") if source.version == 6 else ()
    return tuple(map(ip_network, networks or ("192.0.2.0/24",)))


def engine() -> Engine:
    config = configured(SunRpc, f"procedures = {list(EVERYTHING)}")
    return engine_with(config, on_link=on_link)


def decided(asked: bytes, answered: bytes) -> Decision:
    """What becomes of a reply over UDP."""
    entry = conntrack(flow_tuple(UDP, (CLIENT, 650), (SERVER, 111)), helper="sunrpc")
    ours = engine()
    assert not ours.handle(udp(asked), entry, ORIGINAL).expectations
    return ours.handle(udp(answered, direction=REPLY), entry, REPLY)


def reasons(decision: Decision) -> list[str]:
    return [each.reason for each in decision.events if isinstance(each, Refused)]


def test_refused_services_of_a_list_do_not_keep_the_others_from_being_opened() -> None:
    services = [
        (NFS, "tcp", uaddr(number=22)),
        (NFS, "tcp", uaddr("203.0.113.9", 2049)),
        (NFS, "udp", uaddr(number=0)),
        (NFS, "tcp", uaddr(number=100)),
        (MOUNTD, "udp", uaddr(WILDCARD, 2000)),
    ]
    opened = [f"tcp {CLIENT} > {SERVER}:2049", f"udp {CLIENT} > {SERVER}:2000"]
    expected = ["denied-port", "port-zero", "low-port", "other-address"]
    decision = decided(dump(7), dumped(7, services))
    assert list(map(str, decision.expectations)) == opened
    assert reasons(decision) == expected
    addressed = addresses(7, [(netid, text) for _, netid, text in services])
    decision = decided(getaddrlist(7), addressed)
    assert list(map(str, decision.expectations)) == opened
    assert reasons(decision) == expected


def test_services_of_a_dump_have_its_policy_and_name_the_helper() -> None:
    (first, *_) = decided(dump(7), dumped(7, SERVICES)).expectations
    assert (first.policy, first.class_, first.timeout) == ("dump", 2, 300)
    assert first.helper == "sunrpc"


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (
            CLIENT,
            "192.0.2.255",
            ["udp 192.0.2.0/24 > 192.0.2.1:45070"],
        ),
        (
            CLIENT6,
            GROUP6,
            [
                f"udp 2001:db8:1::/64 > [{CLIENT6}]:45070",
                f"udp fe80::/10 > [{CLIENT6}]:45070",
            ],
        ),
    ],
)
def test_hosts_on_the_link_may_answer_a_call_to_a_group_for_10_seconds(
    source: str, destination: str, expected: list[str]
) -> None:
    original = flow_tuple(UDP, (source, 45070), (destination, 111))
    entry = conntrack(original, helper="sunrpc")
    decision = engine().handle(udp(callit(7)), entry, ORIGINAL)
    assert list(map(str, decision.expectations)) == expected
    first = decision.expectations[0]
    assert (first.policy, first.class_, first.timeout) == ("broadcast", 1, 10)
    assert (first.permanent, first.helper) == (True, "sunrpc")


def test_only_the_server_may_answer_a_remote_call_to_it() -> None:
    entry = conntrack(flow_tuple(UDP, (CLIENT, 650), (SERVER, 111)), helper="sunrpc")
    ours = engine()
    decision = ours.handle(udp(callit(7)), entry, ORIGINAL, forwarded=True)
    (expectation,) = decision.expectations
    assert str(expectation) == f"udp {SERVER} > {CLIENT}:650"
    assert (expectation.policy, expectation.timeout) == ("broadcast", 10)
    # And it may do so in the flow of the call.
    decision = ours.handle(udp(called(7), direction=REPLY), entry, REPLY)
    assert [str(each) for each in decision.expectations] == [
        f"udp {CLIENT} > {SERVER}:{PORT}"
    ]


def test_answer_to_a_masqueraded_client_comes_to_the_port_that_the_server_knows() -> (
    None
):
    entry = conntrack(
        flow_tuple(UDP, (CLIENT, 650), (SERVER, 111)),
        flow_tuple(UDP, (SERVER, 111), ("203.0.113.1", 12345)),
        helper="sunrpc",
    )
    ours = engine()
    decision = ours.handle(udp(callit(7)), entry, ORIGINAL)
    assert [str(each) for each in decision.expectations] == [
        f"udp {SERVER} > 203.0.113.1:12345"
    ]
    decision = ours.handle(udp(called(7), direction=REPLY), entry, REPLY)
    assert len(decision.expectations) == 1


def test_forwarded_call_to_a_group_is_refused_and_counted() -> None:
    original = flow_tuple(UDP, (CLIENT, 45070), ("255.255.255.255", 111))
    entry = conntrack(original, helper="sunrpc")
    decision = engine().handle(udp(callit(7)), entry, ORIGINAL, forwarded=True)
    assert decision.expectations == ()
    assert reasons(decision) == ["forwarded"]


# Any bytes

PAIRS: Final = [
    *((dump(7, each), dumped(7, SERVICES, each)) for each in (2, 3, 4)),
    (getaddrlist(7), addresses(7, [("udp", uaddr()), ("tcp6", uaddr("::"))])),
    (call(7, (4, 9), rpcb(MOUNTD, "", "")), address(7)),
    *((callit(7, each), called(7, each)) for each in REMOTE),
]


@pytest.mark.parametrize(("asked", "answered"), PAIRS)
def test_any_segmentation_has_the_same_effects(asked: bytes, answered: bytes) -> None:
    flow = wide(TCP)
    body = asked[8:]
    conversation = [
        flow.sent(record(getport(1, protocol=TCP))),
        flow.sent(record(asked, 5, 30)),
        flow.answered(record(answered, 3, 40)),
        flow.answered(record(port(1))),
        flow.sent(record(u32(9, 0) + body)),
        flow.answered(record(u32(9, 1) + answered[8:])),
    ]
    found = any_segmentation(SunRpc, conversation)
    assert service(transport=TCP) in found
    assert len(found) >= 3


@given(st.sampled_from(PAIRS), st.binary(max_size=40), st.binary(max_size=40))
def test_junk_after_a_message_changes_nothing(
    pair: tuple[bytes, bytes], first: bytes, second: bytes
) -> None:
    asked, answered = pair
    found = exchange(asked + first, answered + second, wide())
    assert found == exchange(asked, answered, wide()) != []


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A message of which some bytes have changed, or that ends early."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(st.sampled_from(PAIRS), st.sampled_from([UDP, TCP]), st.data())
def test_any_bytes_give_effects_malformed_or_refusals_and_nothing_else(
    pair: tuple[bytes, bytes], on: Transport, data: st.DataObject
) -> None:
    helper, flow = SunRpc(), wide(on)
    for direction, whole in zip((ORIGINAL, REPLY), pair, strict=True):
        body = data.draw(damaged(whole) | st.binary())
        message = flow.message(direction, record(body) if on is TCP else body)
        try:
            helper.describe(message)
            effects = play(helper, [message])
        except (Malformed, ExpectationRefused):
            continue
        assert len(effects) <= 32
        if direction is ORIGINAL:
            assert effects in ([], [heard()])
            continue
        for each in effects:
            assert isinstance(each, Expect)
            assert each.policy in ("service", "dump")
            assert (each.helper is None) == (each.policy == "service")


@given(st.sampled_from(PAIRS), st.binary(max_size=60))
def test_any_bytes_to_a_group_open_the_askers_port_or_nothing(
    pair: tuple[bytes, bytes], tail: bytes
) -> None:
    flow = to_group()
    for payload in (*pair, tail, pair[0][:40] + tail):
        for direction in Direction:
            try:
                effects = play(SunRpc(), [flow.message(direction, payload)])
            except Malformed:
                continue
            assert effects in ([], [answers()])
            assert not (effects and direction is REPLY)


# In words


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        (dump(7), {"program": "100000, version 3", "procedure": "DUMP"}),
        (
            getaddrlist(7),
            {
                "program": "100000, version 4",
                "procedure": "GETADDRLIST",
                "asks for": "program 100005, version 3",
                "netid": "'tcp'",
                "address": "''",
                "owner": "'superuser'",
            },
        ),
        (
            callit(7, (4, 10)),
            {
                "program": "100000, version 4",
                "procedure": "INDIRECT",
                "asks for": "program 100005, version 3",
                "calls": "procedure 0, 14 bytes of arguments",
            },
        ),
    ],
    ids=["DUMP", "GETADDRLIST", "INDIRECT"],
)
def test_call_is_described(asked: bytes, fields: dict[str, str]) -> None:
    described = SunRpc().describe(wide().sent(asked))
    assert described == {"xid": "0x00000007", "type": "call", **fields}
    # As is one that will open nothing.
    assert SunRpc().describe(line().sent(asked)) == described


@pytest.mark.parametrize(
    ("asked", "answered", "text"),
    [
        (
            dump(7),
            dumped(7, SERVICES[1:4]),
            f"program {PORTMAPPER} at udp {SERVER}:111; "
            f"program {MOUNTD} at udp {SERVER}:2000; "
            f"program {MOUNTD} at tcp {SERVER}:3000",
        ),
        (dump(7), dumped(7, []), "nothing over TCP or UDP and IPv4"),
        (
            getaddrlist(7),
            addresses(7, [("udp6", uaddr("::")), ("local", "/run/rpcbind.sock")]),
            "nothing over TCP or UDP and IPv4",
        ),
        (callit(7), called(7), f"program {MOUNTD} at udp {SERVER}:{PORT}"),
        (callit(7), called(7, number=0), "nothing: the program is not registered"),
    ],
    ids=["DUMP", "of nothing", "GETADDRLIST", "CALLIT", "of what is not there"],
)
def test_reply_is_described_by_its_call(
    asked: bytes, answered: bytes, text: str
) -> None:
    helper, flow = SunRpc(), wide()
    play(helper, [flow.sent(asked)])
    assert helper.describe(flow.answered(answered))["announces"] == text

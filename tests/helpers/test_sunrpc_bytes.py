# SPDX-License-Identifier: GPL-2.0-or-later
"""Portmapper messages as bytes: what is malformed, records, segments, words."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.contrib.oncrpc import RPC, Auth_Unix, Object_Name, RM_Header, RPC_Call
from scapy.contrib.oncrpc import RPC_Reply as ScapyReply
from scapy.contrib.portmap import GETPORT_Call, GETPORT_Reply

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Direction,
    Expect,
    ExpectationRefused,
    Malformed,
    Oversized,
    Transport,
)
from cthelper.core.engine import Decision, Engine
from cthelper.core.guard import DENIED_PORTS
from cthelper.core.outcome import Damaged, Refused
from cthelper.core.tuples import Conntrack, Endpoint
from cthelper.helpers.rpcbind import PORTMAPPER
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import play
from tests.cases import cases
from tests.core.builders import (
    CLIENT,
    SERVER,
    SERVER6,
    conntrack,
    cut,
    flow_tuple,
    tcp,
    udp,
)
from tests.helpers.given import damaged
from tests.helpers.inspected import configured, engine_with, entry_of
from tests.helpers.test_sunrpc import (
    MODES,
    MOUNTD,
    NFS,
    PORT,
    address,
    auth,
    call,
    exchange,
    fault,
    getaddr,
    getport,
    line,
    opaque,
    port,
    record,
    reply,
    service,
    u32,
    uaddr,
)

# What is malformed.


@cases(
    "asked, answered",
    {
        "port 65536": (getport(7), port(7, 65536)),
        "port 70000": (getport(7), port(7, 70000)),
        "port of 32 bits": (getport(7), port(7, 0xFFFFFFFF)),
        "half a port": (getport(7), reply(7, b"\0\0\x4e")),
        "verifier over 400": (getport(7), reply(7, u32(PORT), verifier=auth(401))),
        "octet over 255": (getaddr(7), address(7, "198.51.100.2.300.1")),
        "uaddr without a port": (getaddr(7), address(7, "198.51.100.2")),
        "uaddr that is not ASCII": (getaddr(7), reply(7, opaque(b"\xff\xff"))),
        "uaddr over 255 bytes": (getaddr(7), reply(7, opaque(b"1" * 256))),
        "uaddr that ends early": (getaddr(7), reply(7, u32(200) + b"short")),
    },
)
def test_reply_that_does_not_parse_is_malformed(asked: bytes, answered: bytes) -> None:
    with pytest.raises(Malformed):
        exchange(asked, answered)


def test_port_0_in_a_uaddr_is_announced_as_it_is() -> None:
    # For the guard to refuse: see below.
    assert exchange(getaddr(7), address(7, uaddr(number=0))) == [service(0)]


@cases(
    "asked",
    {
        "empty": b"",
        "xid only": u32(7),
        "no RPC version": u32(7, 0),
        "half a port": getport(7)[:-1],
        "half a netid": getaddr(7)[:54],
        "RPC version 1": call(7, (2, 0), rpc_version=1),
        "RPC version 3": call(7, (2, 0), rpc_version=3),
        "credentials over 400": call(
            7, (2, 3), u32(MOUNTD, 3, UDP, 0), credentials=auth(401)
        ),
        "verifier over 400": call(
            7, (2, 3), u32(MOUNTD, 3, UDP, 0), verifier=auth(401)
        ),
        "credentials of 4 GiB": call(7, (2, 3), credentials=u32(0, 0xFFFFFFFF)),
        "netid over 255 bytes": getaddr(7, netid="x" * 256),
        "netid that is not ASCII": getaddr(7, netid="é"),
    },
)
def test_call_that_does_not_parse_is_malformed(asked: bytes) -> None:
    with pytest.raises(Malformed):
        play(SunRpc(), [line().sent(asked)])


@pytest.mark.parametrize("kind", [0, 1, 2, 0xFFFFFFFF])
@pytest.mark.parametrize("direction", list(Direction), ids=lambda each: each.value)
def test_only_calls_are_sent_and_only_replies_answered(
    kind: int, direction: Direction
) -> None:
    body = getport(7) if kind == 0 else port(7)
    message = line().message(direction, u32(7, kind) + body[8:])
    if (kind, direction) in {(0, ORIGINAL), (1, REPLY)}:
        assert play(SunRpc(), [message]) == []
    else:
        text = f"message type {kind} in {direction.value} direction"
        with pytest.raises(Malformed, match=f"^{text}$"):
            play(SunRpc(), [message])


def test_call_in_the_reply_direction_is_no_call() -> None:
    # A server cannot ask itself a question and answer it.
    helper, flow = SunRpc(), line()
    with pytest.raises(Malformed):
        play(helper, [flow.answered(getport(7))])
    assert play(helper, [flow.answered(port(7))]) == []


# Records on TCP.


@fault(3)
def test_record_of_several_fragments_is_one_message() -> None:
    flow = line(TCP)
    messages = [
        flow.sent(record(getport(7, protocol=TCP), 0, 3, 8, 40)),
        flow.answered(record(port(7), 1, 2, 3, 20)),
    ]
    assert play(SunRpc(), messages) == [service(transport=TCP)]


def test_record_is_framed_by_its_marks() -> None:
    helper = SunRpc()
    wire = record(getport(7), 9) + record(getport(8))
    length = helper.frame(memoryview(wire))
    assert length == len(record(getport(7), 9))
    assert helper.frame(memoryview(wire[: length - 1])) is None


@fault(9)
def test_record_over_16_kib_is_malformed() -> None:
    helper = SunRpc()
    assert helper.frame(memoryview(record(bytes(16 * 1024 - 4)))) == 16 * 1024
    with pytest.raises(Oversized):
        helper.frame(memoryview(u32(0x80000000 | 16 * 1024)))


@fault(9)
@pytest.mark.parametrize("short", [1, 4, 20, 40])
def test_record_that_ends_within_its_message_is_malformed(short: int) -> None:
    # What comes after it in the segment is another record, and not its rest.
    body = getport(7)
    helper, flow = SunRpc(), line(TCP)
    wire = u32(0x80000000 | len(body) - short) + body
    length = helper.frame(memoryview(wire))
    assert length == len(wire) - short
    with pytest.raises(Malformed):
        play(helper, [flow.sent(wire[:length])])
    assert play(helper, [flow.answered(record(port(7)))]) == []


# Through the engine.


def engine(*lines: str) -> Engine:
    return engine_with(configured(SunRpc, *lines))


def entry_over(transport: Transport) -> Conntrack:
    return entry_of(SunRpc, (CLIENT, 650), transport=transport)


def decided(
    asked: bytes, answered: bytes, *lines: str, entry: Conntrack | None = None
) -> Decision:
    """What becomes of a reply over UDP."""
    entry = entry or entry_over(UDP)
    ours = engine(*lines)
    first = ours.handle(udp(asked), entry, ORIGINAL)
    assert not first.expectations
    assert not first.events
    return ours.handle(udp(answered, direction=REPLY), entry, REPLY)


def reason(decision: Decision) -> str | None:
    """Why the decision has refused an expectation."""
    assert decision.packet is None
    if decision.expectations:
        return None
    (event,) = decision.events
    assert isinstance(event, Refused)
    return event.reason


@pytest.mark.parametrize("number", [512, 1023, 1024, 20048, 65535])
def test_port_from_512_is_opened_for_the_client_alone(number: int) -> None:
    decision = decided(getport(7), port(7, number))
    (expectation,) = decision.expectations
    assert str(expectation) == f"udp {CLIENT} > {SERVER}:{number}"
    assert (expectation.permanent, expectation.timeout) == (True, 300)
    assert decision.events == ()


@fault(10)
@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *((number, "denied-port") for number in sorted(DENIED_PORTS)),
        (1, "low-port"),
        (111, "low-port"),
        (511, "low-port"),
    ],
)
def test_port_that_no_service_of_rpc_has_is_refused(number: int, expected: str) -> None:
    assert reason(decided(getport(7), port(7, number))) == expected
    uaddr_answer = address(7, uaddr(number=number))
    assert reason(decided(getaddr(7), uaddr_answer)) == expected


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("203.0.113.9", None),
        (CLIENT, None),
        (SERVER6, "address-family"),
        ("224.0.0.251", "multicast-address"),
        ("255.255.255.255", "broadcast-address"),
        (f"::ffff:{SERVER}", "v4-mapped-address"),
    ],
)
def test_port_is_opened_at_the_address_that_was_asked_whichever_is_announced(
    host: str, allowed: str | None
) -> None:
    """And at another one where it is allowed, and no reason is against it."""
    own = f"udp {CLIENT} > {SERVER}:{PORT}"
    answer = address(7, uaddr(host))
    decision = decided(getaddr(7), answer)
    assert list(map(str, decision.expectations)) == [own]
    (refused,) = decision.events
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.detail) == (
        "other-address",
        f"{SERVER} announced {Endpoint(ip_address(host), PORT)}, which it may not by "
        "guard.allow",
    )
    decision = decided(getaddr(7), answer, 'guard.allow_hosts = ["0.0.0.0/0", "::/0"]')
    opened = [own] if allowed else [own, f"udp {CLIENT} > {host}:{PORT}"]
    assert list(map(str, decision.expectations)) == opened
    refusals = [each.reason for each in decision.events if isinstance(each, Refused)]
    assert refusals == ([allowed] if allowed else [])


def test_port_0_in_a_uaddr_is_refused() -> None:
    assert reason(decided(getaddr(7), address(7, uaddr(number=0)))) == "port-zero"


def test_portmapper_itself_is_refused_and_counted() -> None:
    asked = getaddr(7, program=PORTMAPPER)
    assert reason(decided(asked, address(7, uaddr(number=111)))) == "portmapper"


def test_options_reach_the_helper() -> None:
    lines = ('mode = "oneshot"', 'netid = "trust"')
    decision = decided(getaddr(7, netid="tcp"), address(7), *lines)
    (expectation,) = decision.expectations
    assert expectation.transport is TCP
    assert not expectation.permanent


def test_masqueraded_client_is_let_through_under_its_own_address() -> None:
    original = flow_tuple(UDP, (CLIENT, 650), (SERVER, 111))
    entry = conntrack(
        original,
        flow_tuple(UDP, (SERVER, 111), ("203.0.113.1", 12345)),
        helper="sunrpc",
    )
    (expectation,) = decided(getport(7), port(7), entry=entry).expectations
    assert str(expectation) == f"udp {CLIENT} > {SERVER}:{PORT}"


def segments(
    asked: Iterable[bytes], answered: Iterable[bytes]
) -> list[tuple[Direction, bytes]]:
    """A handshake, then the pieces that the client sends, then the server's."""
    packets = [
        (ORIGINAL, tcp(b"", 99, flags="S")),
        (REPLY, tcp(b"", 4999, flags="SA", direction=REPLY)),
    ]
    for direction, first, pieces in (
        (ORIGINAL, 100, asked),
        (REPLY, 5000, answered),
    ):
        for piece in pieces:
            packets.append((direction, tcp(piece, first, direction=direction)))
            first += len(piece)
    return packets


def texts(packets: Iterable[tuple[Direction, bytes]]) -> list[str]:
    """The expectations that come of the segments of one connection."""
    ours, entry = engine(), entry_over(TCP)
    result = []
    for direction, packet in packets:
        decision = ours.handle(packet, entry, direction)
        assert decision.events == ()
        result += [str(each) for each in decision.expectations]
    return result


# Two calls at once, a NULL call before them, and a record of several fragments.
ASKED = (
    record(call(1, (2, 0)))
    + record(getport(2, protocol=TCP), 10, 30)
    + record(getaddr(3, netid="tcp", program=NFS))
)
ANSWERED = (
    record(reply(1, b"")) + record(port(2, 2000), 4) + record(address(3, uaddr()), 20)
)
OPENED = [f"tcp {CLIENT} > {SERVER}:2000", f"tcp {CLIENT} > {SERVER}:{PORT}"]


@fault(3)
def test_coalesced_and_pipelined_records_are_all_read() -> None:
    assert texts(segments([ASKED], [ANSWERED])) == OPENED


@fault(3)
def test_records_split_into_single_bytes_are_all_read() -> None:
    sent = cut(ASKED, range(len(ASKED)))
    answered = cut(ANSWERED, range(len(ANSWERED)))
    assert texts(segments(sent, answered)) == OPENED


def test_expectation_is_made_with_the_segment_that_completes_the_reply() -> None:
    packets = segments([record(getport(7, protocol=TCP))], cut(record(port(7)), [9]))
    ours, entry = engine(), entry_over(TCP)
    counts = [
        len(ours.handle(packet, entry, direction).expectations)
        for direction, packet in packets
    ]
    assert counts == [0, 0, 0, 0, 1]


@given(
    st.lists(st.integers(1, len(ASKED) - 1), max_size=8),
    st.lists(st.integers(1, len(ANSWERED) - 1), max_size=8),
)
def test_any_segmentation_gives_the_same_expectations(
    asked: list[int], answered: list[int]
) -> None:
    assert texts(segments(cut(ASKED, asked), cut(ANSWERED, answered))) == OPENED


@given(
    st.permutations(range(6)), st.lists(st.integers(1, len(ANSWERED) - 1), max_size=5)
)
def test_any_order_of_the_servers_segments_gives_the_same_expectations(
    order: list[int], at: list[int]
) -> None:
    packets = segments([ASKED], cut(ANSWERED, at))
    first, theirs = packets[:3], packets[3:]
    shuffled = [theirs[each] for each in order if each < len(theirs)]
    assert texts(first + shuffled) == OPENED


def test_malformed_record_ends_the_reading_of_its_direction_alone() -> None:
    ours, entry = engine(), entry_over(TCP)
    packets = segments([record(getport(7, protocol=TCP))], [record(u32(7, 0))])
    events = [
        event
        for direction, packet in packets
        for event in ours.handle(packet, entry, direction).events
    ]
    assert events == [Damaged("message type 0 in reply direction")]
    late = tcp(record(port(7)), 5000 + 12, direction=REPLY)
    assert ours.handle(late, entry, REPLY).expectations == ()


# Any bytes.

valid = st.sampled_from(
    [
        getport(7),
        getport(7, protocol=TCP),
        getaddr(7),
        getaddr(7, netid="", version=3),
        call(7, (2, 4)),
        port(7),
        port(7, 70000),
        address(7),
        address(7, uaddr("203.0.113.9")),
        address(7, ""),
    ]
)


bodies = st.binary() | valid | damaged(valid)


@given(
    st.lists(st.tuples(st.sampled_from(Direction), bodies), max_size=4),
    st.sampled_from(Transport),
    st.sampled_from([4, 6]),
    st.sampled_from(MODES),
    st.lists(st.integers(1, 80), max_size=3),
)
@example([(ORIGINAL, getport(7)), (REPLY, port(7))], UDP, 4, "match", [])
def test_any_bytes_give_effects_malformed_or_refusals_and_nothing_else(
    exchanged: list[tuple[Direction, bytes]],
    transport: Transport,
    version: int,
    netid: str,
    at: list[int],
) -> None:
    helper, flow = SunRpc(), line(transport, version=version, netid=netid)
    asked: set[int] = set()
    for direction, body in exchanged:
        wire = record(body, *at) if transport is TCP else body
        if direction is ORIGINAL:
            asked.add(int.from_bytes(body[:4]))
        try:
            effects = play(helper, [flow.message(direction, wire)])
        except (Malformed, ExpectationRefused):
            continue
        assert all(isinstance(each, Expect) for each in effects)
        if effects:
            assert direction is REPLY
            assert int.from_bytes(body[:4]) in asked


@given(valid, st.binary(max_size=40))
def test_junk_after_a_message_changes_nothing(body: bytes, junk: bytes) -> None:
    def effects(tail: bytes) -> object:
        helper, flow = SunRpc(), line()
        is_call = body[4:8] == u32(0)
        before = [] if is_call else [flow.sent(getport(7))]
        message = flow.message(ORIGINAL if is_call else REPLY, body + tail)
        try:
            return play(helper, [*before, message])
        except (Malformed, ExpectationRefused) as error:
            return type(error)

    assert effects(junk) == effects(b"")


# Scapy builds the same messages.

u32s = st.integers(0, 0xFFFFFFFF)


@given(
    u32s,
    u32s.filter(lambda program: program != PORTMAPPER),
    st.sampled_from(Transport),
    st.integers(1, 0xFFFF),
    st.booleans(),
)
def test_getport_that_scapy_builds_is_read(
    xid: int, program: int, protocol: Transport, number: int, unix: bool
) -> None:
    name = Object_Name()
    name.length, name._name, name.fill = 5, b"gizmo", bytes(3)
    credentials = (
        {"aflavor": 1, "a_unix": Auth_Unix(mname=name, num_auxgids=1, auxgids=[4])}
        if unix
        else {"aflavor": 0}
    )
    asked = (
        RPC(xid=xid, mtype=0)
        / RPC_Call(program=PORTMAPPER, pversion=2, procedure=3, **credentials)
        / GETPORT_Call(prog=program, vers=3, prot=int(protocol))
    )
    answered = RPC(xid=xid, mtype=1) / ScapyReply() / GETPORT_Reply(port=number)
    flow = line(TCP)
    messages = [
        flow.sent(bytes(RM_Header() / asked)),
        flow.answered(bytes(RM_Header() / answered)),
    ]
    assert play(SunRpc(), messages) == [service(number, protocol)]


@given(u32s, u32s, st.integers(0, 0xFFFF))
def test_getport_that_we_build_is_read_by_scapy(
    xid: int, program: int, number: int
) -> None:
    asked = RPC(getport(xid, program, TCP))
    assert asked.xid == xid
    assert asked[GETPORT_Call].prog == program
    assert asked[GETPORT_Call].prot == TCP
    answered = RPC(port(xid, number))
    assert answered[ScapyReply].accept_stat == 0
    assert bytes(answered[ScapyReply].payload) == u32(number)


# In words

GETPORT_WORDS: Final = {
    "xid": "0x00000007",
    "type": "call",
    "program": "100000, version 2",
    "procedure": "GETPORT",
    "asks for": "program 100005, version 3",
    "protocol": "17",
}
GETADDR_WORDS: Final = {
    "xid": "0x00000007",
    "type": "call",
    "program": "100000, version 4",
    "procedure": "GETADDR",
    "asks for": "program 100005, version 3",
    "netid": "'udp'",
    "address": "'198.51.100.2.0.111'",
    "owner": "'libtirpc'",
}


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        (getport(7), GETPORT_WORDS),
        (getaddr(7), GETADDR_WORDS),
        (
            call(7, (2, 4)),
            {
                "xid": "0x00000007",
                "type": "call",
                "program": "100000, version 2",
                "procedure": "DUMP",
            },
        ),
        (
            call(7, (4, 77), program=MOUNTD),
            {
                "xid": "0x00000007",
                "type": "call",
                "program": "100005, version 4",
                "procedure": "77",
            },
        ),
    ],
    ids=["GETPORT", "GETADDR", "another procedure", "another program"],
)
def test_call_is_described(asked: bytes, fields: dict[str, str]) -> None:
    assert SunRpc().describe(line().sent(asked)) == fields
    assert SunRpc().describe(line(TCP).sent(record(asked, 6))) == fields


@pytest.mark.parametrize(
    ("answered", "fields"),
    [
        (
            port(7),
            {
                "status": "success",
                "announces": f"program {MOUNTD} at udp {SERVER}:{PORT}",
            },
        ),
        (
            port(7, 0),
            {
                "status": "success",
                "announces": "nothing: the program is not registered",
            },
        ),
        (reply(7, b"", status=1), {"status": "failed, PROG_UNAVAIL"}),
        (reply(7, b"", status=9), {"status": "failed, 9"}),
        (u32(7, 1, 1, 1, 5), {"status": "denied, AUTH_ERROR"}),
        (u32(7, 1, 1, 0, 2, 2), {"status": "denied, RPC_MISMATCH"}),
        (
            port(8),
            {
                "status": "success",
                "answers": "no call that could announce an endpoint",
            },
        ),
    ],
    ids=[
        *("port", "not registered", "failed", "failed by number", "no credentials"),
        *("RPC version", "another call's"),
    ],
)
def test_reply_is_described_by_its_call(
    answered: bytes, fields: dict[str, str]
) -> None:
    helper, flow = SunRpc(), line()
    play(helper, [flow.sent(getport(7))])
    described = helper.describe(flow.answered(answered))
    assert described == {"xid": described["xid"], "type": "reply", **fields}


@given(bodies, st.sampled_from([TCP, UDP]), st.sampled_from(Direction))
def test_any_bytes_are_described_or_malformed(
    payload: bytes, transport: Transport, direction: Direction
) -> None:
    helper, flow = SunRpc(), line(transport)
    asked = getport(7) if transport is UDP else record(getport(7))
    play(helper, [flow.sent(asked)])
    try:
        fields = helper.describe(flow.message(direction, payload))
    except Malformed:
        return
    assert all(fields.values())

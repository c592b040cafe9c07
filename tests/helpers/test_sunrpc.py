# SPDX-License-Identifier: GPL-2.0-or-later
"""SunRPC: which replies of a portmapper open a port, and which.

The faults that tests are marked with are those of conntrackd's rpc helper. Lists,
remote calls and programs that are denied: test_sunrpc_procedures.py.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

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
    Effect,
    Expect,
    ExpectationRefused,
    Malformed,
    OptionValue,
    Oversized,
    Policy,
    Transport,
)
from cthelper.core.config import parse
from cthelper.core.engine import Decision, Engine
from cthelper.core.guard import DENIED_PORTS, Guard
from cthelper.core.outcome import Damaged, Refused
from cthelper.core.tuples import Address, Conntrack, Network
from cthelper.helpers.rpcbind import PORTMAPPER
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import Line, defaults, play
from tests.cases import cases
from tests.core.builders import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    conntrack,
    cut,
    endpoint,
    flow_tuple,
    tcp,
    udp,
)

MOUNTD: Final = 100005
NFS: Final = 100003
PORT: Final = 20048
WILDCARD: Final = "0.0.0.0"  # noqa: S104 - stands in messages, nothing is bound
MODES: Final = ["match", "trust"]

FAULTS: Final = {
    1: "modern clients, which ask rpcbind (versions 3 and 4), get nothing",
    2: "DUMP and CALLIT are not read",
    3: "records of TCP are not: one message a segment, its mark skipped blindly",
    4: "a reply with xid 0 matches the state of a call that is over",
    5: "whatever does not match wipes the pending call, of which there is one",
    6: "a repeated reply does not refresh the expectation",
    7: "one expectation a flow: the second service evicts the first",
    8: "under NAT a port is written into the packet that is never sent",
    9: "the record mark is not held against what there is",
    10: "no list of programs, no policy on ports",
    11: "IPv6 is not served: only version 2 of the protocol is, and NAT for IPv4",
    12: "a flow without state ends the daemon",
}


def fault(number: int) -> pytest.MarkDecorator:
    """The mark of a test that proves a fault to be theirs only."""
    return pytest.mark.fault(f"rpc {number}", FAULTS[number])


def handles(message: str, outcome: str) -> pytest.MarkDecorator:
    """The mark of a test that proves what becomes of a message."""
    return pytest.mark.handles("sunrpc", message, outcome)


# Calls and replies, bare of record marks.


def u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4) for value in values)


def opaque(data: bytes) -> bytes:
    return u32(len(data)) + data + bytes(-len(data) % 4)


def auth(size: int = 0) -> bytes:
    """Credentials or a verifier with a body of this size."""
    return u32(1 if size else 0) + opaque(bytes(size))


def call(
    xid: int,
    procedure: tuple[int, int],
    arguments: bytes = b"",
    *,
    program: int = PORTMAPPER,
    credentials: bytes | None = None,
    verifier: bytes | None = None,
    rpc_version: int = 2,
) -> bytes:
    return (
        u32(xid, 0, rpc_version, program, *procedure)
        + (auth() if credentials is None else credentials)
        + (auth() if verifier is None else verifier)
        + arguments
    )


def getport(
    xid: int, program: int = MOUNTD, protocol: int = UDP, *, port: int = 0
) -> bytes:
    return call(xid, (2, 3), u32(program, 3, protocol, port))


def getaddr(
    xid: int, netid: str = "udp", *, version: int = 4, program: int = MOUNTD
) -> bytes:
    words = [netid, "198.51.100.2.0.111", "libtirpc"]
    strings = b"".join(opaque(word.encode()) for word in words)
    return call(xid, (version, 3), u32(program, 3) + strings)


def reply(
    xid: int, result: bytes, *, verifier: bytes | None = None, status: int = 0
) -> bytes:
    """An accepted reply."""
    verifier = auth() if verifier is None else verifier
    return u32(xid, 1, 0) + verifier + u32(status) + result


def port(xid: int, number: int = PORT) -> bytes:
    """The reply to GETPORT."""
    return reply(xid, u32(number))


def uaddr(host: str = SERVER, number: int = PORT) -> str:
    return f"{host}.{number >> 8}.{number & 0xFF}"


def address(xid: int, text: str | None = None) -> bytes:
    """The reply to GETADDR."""
    return reply(xid, opaque((uaddr() if text is None else text).encode()))


def record(message: bytes, *at: int) -> bytes:
    """A record on TCP, cut into fragments at these offsets."""
    *first, last = cut(message, at)
    marked = [u32(len(each)) + each for each in first]
    return b"".join(marked) + u32(0x80000000 | len(last)) + last


# Flows.


def line(
    transport: Transport = UDP, *, version: int = 4, depth: int = 0, **options: Any
) -> Line:
    """A flow of the client's to port 111, with these options of the helper."""
    client, server = (CLIENT, SERVER) if version == 4 else (CLIENT6, SERVER6)
    original = flow_tuple(transport, (client, 650), (server, 111))
    values: dict[str, OptionValue] = {**defaults(SunRpc), **options}
    return Line(original, values, depth=depth)


def exchange(asked: bytes, answered: bytes, flow: Line | None = None) -> list[Effect]:
    """What the helper asks for at one call and its reply, on UDP unless told."""
    flow = flow or line()
    if flow.original.transport is TCP:
        asked, answered = record(asked), record(answered)
    return play(SunRpc(), [flow.sent(asked), flow.answered(answered)])


def service(
    number: int = PORT,
    transport: Transport = UDP,
    *,
    host: str = SERVER,
    permanent: bool = True,
) -> Expect:
    return Expect(
        endpoint(host, number), "service", transport=transport, permanent=permanent
    )


# What opens a port.

OPENS: Final = "client > server:port, 300 s"


@handles("GETPORT (v2, 3)", OPENS)
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=str)
def test_getport_opens_the_port_of_the_transport_it_asks_for(
    on: Transport, protocol: Transport
) -> None:
    effects = exchange(getport(7, protocol=protocol), port(7), line(on))
    assert effects == [service(transport=protocol)]


@fault(1)
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(version, marks=handles(f"GETADDR (v{version}, 3)", OPENS))
        for version in (3, 4)
    ],
)
def test_getaddr_of_versions_3_and_4_opens_the_announced_port(
    on: Transport, version: int
) -> None:
    effects = exchange(getaddr(7, netid=str(on), version=version), address(7), line(on))
    assert effects == [service(transport=on)]


@fault(11)
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
@pytest.mark.parametrize("netid", ["", None], ids=["empty netid", "its own netid"])
def test_getaddr_over_ipv6_opens_the_announced_port(
    on: Transport, netid: str | None
) -> None:
    asked = getaddr(7, netid=f"{on}6" if netid is None else netid, version=3)
    answered = address(7, uaddr(SERVER6))
    effects = exchange(asked, answered, line(on, version=6))
    assert effects == [service(transport=on, host=SERVER6)]


@pytest.mark.parametrize(
    "credentials",
    [auth(), auth(20), auth(21), auth(400)],
    ids=["none", "20", "padded", "400"],
)
def test_credentials_and_verifiers_of_up_to_400_bytes_are_passed_over(
    credentials: bytes,
) -> None:
    asked = call(
        7,
        (2, 3),
        u32(MOUNTD, 3, UDP, 0),
        credentials=credentials,
        verifier=credentials,
    )
    answered = reply(7, u32(PORT), verifier=credentials)
    assert exchange(asked, answered) == [service()]


def test_getport_that_fills_in_the_port_is_read_all_the_same() -> None:
    # RFC 1833 has the server ignore it.
    assert exchange(getport(7, port=99), port(7)) == [service()]


@fault(3)
def test_bytes_after_a_message_are_not_looked_at() -> None:
    assert exchange(getport(7) + b"\xa5", port(7) + b"\xa5") == [service()]


def test_oneshot_mode_opens_one_flow() -> None:
    flow = line(mode="oneshot")
    assert exchange(getport(7), port(7), flow) == [service(permanent=False)]
    assert exchange(getaddr(7), address(7), flow) == [service(permanent=False)]


@fault(7)
def test_a_client_may_have_eight_services_open_for_300_seconds() -> None:
    assert SunRpc.policies[0] == Policy("service", max_expected=8, timeout=300)


@pytest.mark.parametrize(
    "host", [WILDCARD, "::", SERVER], ids=["IPv4", "IPv6", "the server's own"]
)
def test_wildcard_host_in_a_uaddr_means_the_server(host: str) -> None:
    assert exchange(getaddr(7), address(7, uaddr(host))) == [service()]


def test_third_party_host_in_a_uaddr_is_announced_as_it_is() -> None:
    # For the guard to refuse, and to count: see below.
    effects = exchange(getaddr(7), address(7, uaddr("203.0.113.9")))
    assert effects == [service(host="203.0.113.9")]


# Which transport.


@pytest.mark.parametrize("mode", MODES)
def test_empty_netid_means_the_transport_of_the_call(mode: str) -> None:
    for on in (TCP, UDP):
        effects = exchange(getaddr(7, netid=""), address(7), line(on, netid=mode))
        assert effects == [service(transport=on)]


@pytest.mark.parametrize(
    ("on", "netid", "meant"), [(TCP, "udp", UDP), (UDP, "tcp", TCP)], ids=str
)
def test_netid_of_another_transport_opens_nothing_unless_trusted(
    on: Transport, netid: str, meant: Transport
) -> None:
    asked, answered = getaddr(7, netid=netid), address(7)
    assert exchange(asked, answered, line(on, netid="match")) == []
    trusted = exchange(asked, answered, line(on, netid="trust"))
    assert trusted == [service(transport=meant)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "netid", ["udp6", "tcp6", "local", "UDP", "udp\0", "sctp", "raw"]
)
def test_netid_of_another_family_or_unknown_opens_nothing(
    netid: str, mode: str
) -> None:
    assert exchange(getaddr(7, netid=netid), address(7), line(netid=mode)) == []


@pytest.mark.parametrize("netid", ["udp", "tcp"])
def test_ipv4_netid_over_ipv6_opens_nothing(netid: str) -> None:
    flow = line(version=6, netid="trust")
    assert exchange(getaddr(7, netid=netid), address(7, uaddr(SERVER6)), flow) == []


def test_getport_for_neither_tcp_nor_udp_opens_nothing() -> None:
    assert exchange(getport(7, protocol=132), port(7)) == []


# What opens nothing.


def test_unregistered_service_opens_nothing() -> None:
    assert exchange(getport(7), port(7, 0)) == []
    assert exchange(getaddr(7), address(7, "")) == []


@handles("a reply that is denied, or fails", "opens nothing")
@cases(
    "answered",
    {
        "denied, other RPC version": u32(7, 1, 1, 0, 2, 2),
        "denied, bad credentials": u32(7, 1, 1, 1, 5),
        "unknown reply status": u32(7, 1, 2) + auth() + u32(0, PORT),
        "program unavailable": reply(7, u32(PORT), status=1),
        "program mismatch": reply(7, u32(PORT), status=2),
        "procedure unavailable": reply(7, u32(PORT), status=3),
        "garbage arguments": reply(7, u32(PORT), status=4),
        "system error": reply(7, u32(PORT), status=5),
    },
)
def test_rejected_or_unsuccessful_reply_opens_nothing(answered: bytes) -> None:
    assert exchange(getport(7), answered) == []


MAPPING: Final = u32(MOUNTD, 3, UDP, PORT)
RPCB: Final = u32(MOUNTD, 3) + opaque(b"udp") + opaque(b"") + opaque(b"")
REMOTE: Final = u32(MOUNTD, 3, 0) + opaque(b"")
# By name: version and number of each, and its arguments.
OTHER_PROCEDURES: Final = {
    "NULL": ([(2, 0), (3, 0), (4, 0)], b""),
    "SET": ([(2, 1)], MAPPING),
    "UNSET": ([(2, 2)], MAPPING),
    "SET of rpcbind": ([(3, 1), (4, 1)], RPCB),
    "UNSET of rpcbind": ([(3, 2), (4, 2)], RPCB),
    "GETTIME": ([(3, 6), (4, 6)], b""),
    "UADDR2TADDR": ([(3, 7), (4, 7)], opaque(b"192.0.2.1.8.1")),
    "TADDR2UADDR": ([(3, 8), (4, 8)], u32(16) + opaque(bytes(16))),
    "GETSTAT": ([(4, 12)], b""),
}
# Those that need the option `procedures`.
WIDER: Final = {
    "DUMP": ([(2, 4), (3, 4), (4, 4)], b""),
    "CALLIT": ([(2, 5), (3, 5)], REMOTE),
    "BCAST": ([(4, 5)], REMOTE),
    "INDIRECT": ([(4, 10)], REMOTE),
}
UNKNOWN: Final = {
    "version 5": ([(5, 3)], MAPPING),
    "version 1": ([(1, 3)], MAPPING),
    "number 13": ([(4, 13)], RPCB),
}


def marked(
    table: dict[str, tuple[list[tuple[int, int]], bytes]], outcome: str
) -> list[Any]:
    """A case for each procedure, with its mark."""
    return [
        pytest.param(
            (version, number),
            arguments,
            marks=handles(f"{name.split()[0]} (v{version}, {number})", outcome),
            id=f"v{version} {name}",
        )
        for name, (numbers, arguments) in table.items()
        for version, number in numbers
    ]


@pytest.mark.parametrize(
    ("procedure", "arguments"),
    [
        *marked(OTHER_PROCEDURES, "opens nothing"),
        *marked(WIDER, "opens nothing, by default"),
        *(
            pytest.param(number, arguments, id=name)
            for name, ((number,), arguments) in UNKNOWN.items()
        ),
    ],
)
def test_other_procedures_open_nothing(
    procedure: tuple[int, int], arguments: bytes
) -> None:
    for answered in (port(7), address(7), reply(7, b"")):
        assert exchange(call(7, procedure, arguments), answered) == []


def test_other_programs_open_nothing() -> None:
    asked = call(7, (2, 3), u32(MOUNTD, 3, UDP, 0), program=NFS)
    assert exchange(asked, port(7)) == []


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (getport(7, program=PORTMAPPER), port(7, 1111)),
        (getaddr(7, program=PORTMAPPER), address(7, uaddr(number=1111))),
        (getaddr(7, program=PORTMAPPER), address(7, uaddr(number=111))),
    ],
    ids=["GETPORT", "GETADDR", "its well-known port"],
)
def test_portmapper_itself_is_refused(asked: bytes, answered: bytes) -> None:
    with pytest.raises(ExpectationRefused) as caught:
        exchange(asked, answered)
    assert caught.value.reason == "portmapper"


def test_portmapper_that_is_not_registered_is_not_refused() -> None:
    assert exchange(getport(7, program=PORTMAPPER), port(7, 0)) == []


# Transactions.


@fault(12)
def test_reply_without_a_call_opens_nothing() -> None:
    flow = line()
    assert play(SunRpc(), [flow.answered(port(7))]) == []
    assert exchange(getport(7), port(8)) == []


@fault(4)
def test_reply_with_xid_0_after_an_exchange_opens_nothing() -> None:
    # They forget a call by setting its xid to 0.
    flow = line()
    messages = [
        flow.sent(getport(7)),
        flow.answered(port(7)),
        flow.answered(port(0, 4444)),
    ]
    assert play(SunRpc(), messages) == [service()]


@fault(4)
def test_reply_with_xid_0_before_any_call_opens_nothing() -> None:
    assert play(SunRpc(), [line().answered(port(0))]) == []


def test_xid_0_is_like_any_other() -> None:
    assert exchange(getport(0), port(0)) == [service()]


@fault(5)
def test_stale_reply_does_not_disturb_the_pending_call() -> None:
    flow = line()
    messages = [
        flow.sent(getport(7)),
        flow.answered(port(6, 4444)),
        flow.answered(port(7)),
    ]
    assert play(SunRpc(), messages) == [service()]


@fault(5)
def test_malformed_message_does_not_disturb_the_pending_call() -> None:
    helper, flow = SunRpc(), line()
    assert play(helper, [flow.sent(getport(7))]) == []
    for damaged in (b"", port(7)[:-1], port(7, 70000)):
        with pytest.raises(Malformed):
            play(helper, [flow.answered(damaged)])
    assert play(helper, [flow.answered(port(7))]) == [service()]


@fault(5)
def test_call_of_another_procedure_does_not_disturb_the_pending_call() -> None:
    flow = line()
    messages = [
        flow.sent(getport(7)),
        flow.sent(call(8, (2, 0))),
        flow.answered(reply(8, b"")),
        flow.answered(port(7)),
    ]
    assert play(SunRpc(), messages) == [service()]


@fault(5)
@fault(7)
@pytest.mark.parametrize("order", [(7, 8), (8, 7)], ids=["in order", "reversed"])
def test_two_outstanding_calls_are_both_answered(order: tuple[int, int]) -> None:
    flow = line()
    messages = [flow.sent(getport(7)), flow.sent(getaddr(8, program=NFS))]
    answers = {7: port(7, 2000), 8: address(8, uaddr(number=2049))}
    messages += [flow.answered(answers[xid]) for xid in order]
    ports = {7: 2000, 8: 2049}
    assert play(SunRpc(), messages) == [service(ports[xid]) for xid in order]


def test_retransmitted_call_is_the_same_call() -> None:
    flow = line()
    messages = [flow.sent(getport(7))] * 3 + [flow.answered(port(7))]
    assert play(SunRpc(), messages) == [service()]


@fault(6)
def test_retransmitted_reply_refreshes_the_expectation() -> None:
    flow = line()
    messages = [flow.sent(getport(7))] + [flow.answered(port(7))] * 3
    assert play(SunRpc(), messages) == [service()] * 3


@pytest.mark.parametrize("again", [False, True], ids=["", "after the call again"])
def test_second_reply_with_another_port_is_refused(again: bool) -> None:
    # A spoofed reply that comes late must not open a second port.
    helper, flow = SunRpc(), line()
    messages = [flow.sent(getport(7)), flow.answered(port(7))]
    assert play(helper, messages + [flow.sent(getport(7))] * again) == [service()]
    with pytest.raises(ExpectationRefused) as caught:
        play(helper, [flow.answered(port(7, 4444))])
    assert caught.value.reason == "second-answer"
    assert play(helper, [flow.answered(port(7))]) == [service()]


def test_second_reply_that_names_nothing_opens_nothing() -> None:
    helper, flow = SunRpc(), line()
    messages = [flow.sent(getport(7)), flow.answered(port(7))]
    assert play(helper, messages) == [service()]
    assert play(helper, [flow.answered(port(7, 0))]) == []
    # And does not make room for a third.
    with pytest.raises(ExpectationRefused, match="second-answer"):
        play(helper, [flow.answered(port(7, 4444))])


def test_xid_that_is_used_again_for_another_program_is_another_call() -> None:
    flow = line()
    messages = [
        flow.sent(getport(7)),
        flow.answered(port(7, 2000)),
        flow.sent(getport(7, program=NFS, protocol=TCP)),
        flow.answered(port(7, 2049)),
    ]
    assert play(SunRpc(), messages) == [service(2000), service(2049, TCP)]


def test_xid_that_is_used_again_for_what_opens_nothing_opens_nothing() -> None:
    flow = line()
    messages = [
        flow.sent(getport(7)),
        flow.sent(call(7, (2, 4))),
        flow.answered(port(7)),
    ]
    assert play(SunRpc(), messages) == []


@pytest.mark.parametrize(
    ("seconds", "opens"), [(59.9, True), (60.0, False), (3600.0, False)]
)
def test_call_expires_after_60_seconds(seconds: float, opens: bool) -> None:
    flow = line()
    messages = [flow.sent(getport(7), 5.0), flow.answered(port(7), 5.0 + seconds)]
    assert play(SunRpc(), messages) == [service()] * opens


def test_retransmitted_call_runs_60_seconds_anew() -> None:
    flow = line()
    messages = [
        flow.sent(getport(7), 0.0),
        flow.sent(getport(7), 50.0),
        flow.answered(port(7), 109.0),
    ]
    assert play(SunRpc(), messages) == [service()]


def test_oldest_call_gives_way_to_the_33rd() -> None:
    flow = line()
    messages = [flow.sent(getport(xid)) for xid in range(33)]
    messages += [flow.answered(port(xid, 2000 + xid)) for xid in range(33)]
    assert play(SunRpc(), messages) == [service(2000 + xid) for xid in range(1, 33)]


def test_retransmitted_call_is_not_the_oldest_any_more() -> None:
    flow = line()
    messages = [flow.sent(getport(xid)) for xid in (*range(32), 0, 32)]
    helper = SunRpc()
    assert play(helper, messages) == []
    assert play(helper, [flow.answered(port(0))]) == [service()]
    assert play(helper, [flow.answered(port(1))]) == []


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


def never(_address: Address) -> tuple[Network, ...]:
    raise AssertionError("SunRPC asks nobody on the link")


def engine(settings: str = "") -> Engine:
    config = parse(settings, Path("test.toml"), {"sunrpc": SunRpc})
    return Engine(
        config.helpers,
        guard=Guard(),
        on_link=never,
        clock=lambda: 0.0,
        flow_limit=8,
    )


def entry_of(transport: Transport) -> Conntrack:
    original = flow_tuple(transport, (CLIENT, 650), (SERVER, 111))
    return conntrack(original, helper="sunrpc")


def decided(
    asked: bytes, answered: bytes, *, entry: Conntrack | None = None, settings: str = ""
) -> Decision:
    """What becomes of a reply over UDP."""
    entry = entry or entry_of(UDP)
    ours = engine(settings)
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
    ("host", "expected"),
    [
        ("203.0.113.9", "third-party-address"),
        (CLIENT, "third-party-address"),
        (SERVER6, "third-party-address"),
        ("127.0.0.1", "loopback-address"),
        ("224.0.0.251", "multicast-address"),
        ("255.255.255.255", "broadcast-address"),
        (f"::ffff:{SERVER}", "v4-mapped-address"),
    ],
)
def test_third_party_host_in_a_uaddr_is_refused(host: str, expected: str) -> None:
    assert reason(decided(getaddr(7), address(7, uaddr(host)))) == expected


def test_port_0_in_a_uaddr_is_refused() -> None:
    assert reason(decided(getaddr(7), address(7, uaddr(number=0)))) == "port-zero"


def test_portmapper_itself_is_refused_and_counted() -> None:
    asked = getaddr(7, program=PORTMAPPER)
    assert reason(decided(asked, address(7, uaddr(number=111)))) == "portmapper"


def test_options_reach_the_helper() -> None:
    settings = '[helpers.sunrpc]\nmode = "oneshot"\nnetid = "trust"\n'
    decision = decided(getaddr(7, netid="tcp"), address(7), settings=settings)
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
    ours, entry = engine(), entry_of(TCP)
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
    ours, entry = engine(), entry_of(TCP)
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
    ours, entry = engine(), entry_of(TCP)
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


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The beginning of a message and any bytes after it."""
    whole = draw(valid)
    return whole[: draw(st.integers(0, len(whole)))] + draw(st.binary(max_size=80))


bodies = st.binary() | valid | damaged()


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
        (reply(7, b"", status=1), {"status": "denied or failed"}),
        (
            port(8),
            {
                "status": "success",
                "answers": "no call that could announce an endpoint",
            },
        ),
    ],
    ids=["port", "not registered", "failed", "another call's"],
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""SunRPC: which replies of a portmapper open a port, and which.

The faults that tests are marked with are those of conntrackd's rpc helper. Lists,
remote calls and programs that are denied: test_sunrpc_procedures.py. Behind NAT:
test_sunrpc_nat.py. Messages as bytes: test_sunrpc_bytes.py. Calls of several
procedures under way at a time: test_sunrpc_transactions.py.
"""

from typing import Any, Final

import pytest

from cthelper.core.api import (
    TCP,
    UDP,
    Effect,
    Expect,
    ExpectationRefused,
    Malformed,
    OptionValue,
    Policy,
    Transport,
)
from cthelper.helpers.rpcbind import PORTMAPPER
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import Line, defaults, play
from tests.cases import cases
from tests.core.builders import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    cut,
    endpoint,
    flow_tuple,
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
    alternative: bool = False,
) -> Expect:
    return Expect(
        endpoint(host, number),
        "service",
        transport=transport,
        permanent=permanent,
        alternative=alternative,
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


def test_port_at_another_address_is_opened_at_the_one_that_was_asked() -> None:
    # At the other one, too, where the guard allows it: see test_sunrpc_bytes.py.
    effects = exchange(getaddr(7), address(7, uaddr("203.0.113.9")))
    assert effects == [service(), service(host="203.0.113.9", alternative=True)]


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


def test_xid_that_is_used_again_over_tcp_for_what_opens_nothing_opens_nothing() -> None:
    flow = line(TCP)
    messages = [
        flow.sent(record(getport(7))),
        flow.sent(record(call(7, (2, 4)))),
        flow.answered(record(port(7))),
    ]
    assert play(SunRpc(), messages) == []


@cases(
    "forged",
    {
        "NULL": call(7, (2, 0)),
        "DUMP": call(7, (2, 4)),
        "another program": getport(7, program=NFS),
        "another transport": getport(7, protocol=TCP),
        "GETADDR": getaddr(7),
        "CALLIT": call(7, (2, 5), u32(NFS, 3, 0, 0)),
    },
)
def test_forged_call_with_the_number_of_one_that_waits_changes_nothing(
    forged: bytes,
) -> None:
    flow = line()
    messages = [flow.sent(getport(7)), flow.sent(forged), flow.answered(port(7))]
    assert play(SunRpc(), messages) == [service()]


@pytest.mark.parametrize("answer", [port(7, 0), reply(7, b"", status=1)])
def test_number_of_a_call_that_opened_nothing_may_be_used_again(answer: bytes) -> None:
    flow = line()
    messages = [
        flow.sent(getport(7)),
        flow.answered(answer),
        flow.sent(getport(7, program=NFS)),
        flow.answered(port(7)),
    ]
    assert play(SunRpc(), messages) == [service()]


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


def test_forged_calls_do_not_push_out_one_that_waits() -> None:
    flow = line()
    messages = [flow.sent(getport(7)), flow.sent(getport(8))]
    messages += [flow.sent(getport(100 + number)) for number in range(100)]
    messages += [flow.answered(port(7)), flow.answered(port(8))]
    assert play(SunRpc(), messages) == [service(), service()]


def test_answered_calls_give_way_before_those_that_wait() -> None:
    flow = line()
    messages = [flow.sent(getport(7))]
    for number in range(100, 5000):
        messages += [flow.sent(getport(number)), flow.answered(port(number, 0))]
    messages += [flow.answered(port(7))]
    assert play(SunRpc(), messages) == [service()]


def test_calls_that_wait_are_bounded() -> None:
    # As many others have to come within the time of one answer.
    flow = line()
    helper = SunRpc()
    assert play(helper, [flow.sent(getport(xid)) for xid in range(20_000)]) == []
    opened = [xid for xid in range(20_000) if play(helper, [flow.answered(port(xid))])]
    assert 112 <= len(opened) <= 128
    assert opened == list(range(20_000 - len(opened), 20_000))


def test_texts_of_calls_that_wait_are_not_kept() -> None:
    """They may be long, and anybody may send many."""
    flow, helper = line(), SunRpc()
    text = "x" * 200
    arguments = u32(100005, 3) + b"".join(
        opaque(each) for each in (b"udp", text.encode(), text.encode())
    )
    listing = arguments.replace(opaque(b"udp"), opaque(text.encode()))
    calls = [call(1, (3, 3), arguments), call(2, (4, 11), listing)]
    assert play(helper, [flow.sent(each) for each in calls]) == []
    assert isinstance(helper._pending, dict)
    assert list(helper._pending) == [1, 2]
    assert text not in repr(helper._pending)


def test_retransmitted_call_is_not_the_oldest_any_more() -> None:
    flow = line()
    messages = [flow.sent(getport(xid)) for xid in (*range(128), 0, 128)]
    helper = SunRpc()
    assert play(helper, messages) == []
    assert play(helper, [flow.answered(port(0))]) == [service()]
    assert play(helper, [flow.answered(port(1))]) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""SLP: which requests open the asker's port, for whom, and what an answer leads to.

The faults that the tests name are those of conntrackd's slp helper, which reads nothing
of the payload: every packet opens the sender's port to port 427 of everybody.
"""

from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import UDP as ScapyUDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from cthelper import nft
from cthelper.core.api import (
    ANY,
    DONE,
    ON_LINK,
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Direction,
    Effect,
    Expect,
    ExpectationRefused,
    Hook,
    Malformed,
    Message,
    Network,
    OptionValue,
    Source,
)
from cthelper.core.config import HelperConfig, parse
from cthelper.core.engine import Decision, Engine
from cthelper.core.guard import Guard, Rules
from cthelper.core.outcome import Damaged, Refused
from cthelper.core.tuples import Conntrack
from cthelper.helpers.slp import Slp
from cthelper.testing import Line, defaults, failures, play, related, replay
from tests.cases import cases
from tests.core.builders import conntrack, endpoint, flow_tuple, udp
from tests.helpers import tshark

HOST: Final = "192.0.2.1"
HOST6: Final = "2001:db8::1"
GROUP: Final = "239.255.255.253"
GROUP6: Final = "ff05::116"
RESPONDER: Final = "192.0.2.77"
ASKER, PORT = 40000, 427
O_FLAG, F_FLAG, R_FLAG = 0x8000, 0x4000, 0x2000

REQUESTS: Final = {1: "SrvRqst", 6: "AttrRqst", 9: "SrvTypeRqst"}
REPLIES: Final = {2: "SrvRply", 7: "AttrRply", 10: "SrvTypeRply"}
OTHERS: Final = {
    3: "SrvReg",
    4: "SrvDereg",
    5: "SrvAck",
    8: "DAAdvert",
    11: "SAAdvert",
}

# The strings of a request: previous responders first.
STRINGS: Final[dict[tuple[int, int], list[bytes]]] = {
    (2, 1): [b"", b"service:printer", b"DEFAULT", b"(color=true)", b""],
    (2, 6): [b"192.0.2.9", b"service:printer", b"DEFAULT", b"color", b"spi"],
    (2, 9): [b"192.0.2.9,192.0.2.8", b"iana", b"DEFAULT"],
    (1, 1): [b"", b"printer//(COLOR)/"],
    (1, 6): [b"192.0.2.9", b"service:printer", b"", b"COLOR"],
    (1, 9): [b"", b"IANA", b""],
}


def strings(*texts: bytes) -> bytes:
    return b"".join(len(each).to_bytes(2) + each for each in texts)


def v2(
    function: int = 1,
    body: bytes | None = None,
    *,
    version: int = 2,
    flags: int = R_FLAG,
    language: bytes = b"en",
    length: int | None = None,
    xid: int = 0x1234,
) -> bytes:
    """A message of version 2; `length` is what it says of itself."""
    if body is None:
        body = strings(*STRINGS.get((2, function), [b""]))
    size = 14 + len(language) + len(body) if length is None else length
    header = bytes([version, function]) + size.to_bytes(3) + flags.to_bytes(2)
    return header + bytes(3) + xid.to_bytes(2) + strings(language) + body


def v1(
    function: int = 1,
    body: bytes | None = None,
    *,
    flags: int = 0,
    length: int | None = None,
) -> bytes:
    """A message of version 1."""
    if body is None:
        body = strings(*STRINGS.get((1, function), [b""]))
    size = 12 + len(body) if length is None else length
    header = bytes([1, function]) + size.to_bytes(2) + bytes([flags, 0])
    return header + b"en" + (3).to_bytes(2) + (0x1234).to_bytes(2) + body


def line(
    port: int = ASKER,
    *,
    source: str = HOST,
    destination: str = GROUP,
    group: bool = False,
    **options: OptionValue,
) -> Line:
    flow = flow_tuple(UDP, (source, port), (destination, PORT))
    return Line(flow, {**defaults(Slp), **options}, group=group)


def answer(*, overflow: bool = True, depth: int = 1) -> Line:
    """The flow of an answer, which the helper expected."""
    flow = flow_tuple(UDP, (RESPONDER, PORT), (HOST, ASKER))
    return Line(flow, {**defaults(Slp), "overflow": overflow}, depth=depth)


def effects_of(message: Message) -> list[Effect]:
    return play(Slp(), [message])


def answers_to(
    address: str = HOST,
    port: int = ASKER,
    *,
    source: Source = ON_LINK,
    source_port: int | None = PORT,
    helper: str | None = None,
) -> Expect:
    return Expect(
        endpoint(address, port),
        "answer",
        source=source,
        source_port=source_port,
        permanent=True,
        helper=helper,
    )


def handles(function: int, name: str, outcome: str, version: int = 2) -> Any:
    """A case for one message type, which the test proves."""
    text = f"{name} ({function}) of version {version}"
    mark = pytest.mark.handles("slp", text, outcome)
    return pytest.param(function, id=text, marks=mark)


# Which messages open the port


@pytest.mark.parametrize("flags", [R_FLAG, 0, R_FLAG | F_FLAG])
@pytest.mark.parametrize(
    "function",
    [
        handles(function, name, "on-link:427 > asker, 16 s")
        for function, name in REQUESTS.items()
    ],
)
def test_request_opens_the_askers_port(function: int, flags: int) -> None:
    message = line().sent(v2(function, flags=flags))
    assert effects_of(message) == [answers_to()]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(
    "function",
    [
        handles(function, name, "opens nothing")
        for function, name in (OTHERS | REPLIES).items()
    ],
)
def test_what_is_no_request_opens_nothing(function: int, direction: Direction) -> None:
    for version_1 in (False, True):
        flow = line(v1=version_1)
        assert effects_of(flow.message(direction, v2(function))) == []


@pytest.mark.parametrize(
    "function",
    [
        handles(function, name, "as version 2, with option v1", version=1)
        for function, name in REQUESTS.items()
    ],
)
def test_request_of_version_1_opens_the_port_where_configured(function: int) -> None:
    payload = v1(function)
    for group in ("224.0.1.22", "224.0.1.35"):
        message = line(destination=group, v1=True).sent(payload)
        assert effects_of(message) == [answers_to()]
        assert effects_of(line(destination=group).sent(payload)) == []


@pytest.mark.parametrize(
    "function",
    [
        handles(function, name, "opens nothing", version=1)
        for function, name in (OTHERS | REPLIES).items()
        if name != "SAAdvert"
    ],
)
def test_what_is_no_request_of_version_1_opens_nothing(function: int) -> None:
    assert effects_of(line(v1=True).sent(v1(function))) == []


@pytest.mark.parametrize(
    ("destination", "group"),
    [
        (GROUP, False),
        ("224.0.1.22", False),
        ("224.0.1.35", False),
        ("255.255.255.255", False),
        ("192.0.2.255", True),
    ],
    ids=["version 2", "version 1", "directory agents", "broadcast", "of a subnet"],
)
def test_groups_over_ipv4(destination: str, group: bool) -> None:
    message = line(destination=destination, group=group).sent(v2())
    assert effects_of(message) == [answers_to()]


@pytest.mark.parametrize("scope", ["2", "3", "4", "5", "8"])
@pytest.mark.parametrize(
    "group", ["116", "123", "1:1000", "1:11d8", "1:13ff"], ids=lambda each: each
)
def test_groups_over_ipv6(group: str, scope: str) -> None:
    flow = line(source=HOST6, destination=f"ff0{scope}::{group}")
    assert effects_of(flow.sent(v2())) == [answers_to(HOST6)]


@pytest.mark.parametrize("function", REQUESTS)
@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (HOST, RESPONDER),
        (HOST, "192.0.2.255"),
        (HOST, "224.0.0.251"),
        (HOST, "239.255.255.250"),
        (HOST6, "2001:db8::2"),
        (HOST6, "fe80::116"),
        (HOST6, "ff02::fb"),
        (HOST6, "ff05::117"),
        (HOST6, "ff05::1:fff"),
        (HOST6, "ff05::1:1400"),
        (HOST6, "ff05::1:0:116"),
        (HOST6, "ff01::116"),
        (HOST6, "ff0e::116"),
        (HOST6, "ff15::116"),
    ],
)
def test_request_to_another_address_opens_nothing(
    source: str, destination: str, function: int
) -> None:
    # And never will on this flow, so that it need not be inspected.
    flow = line(source=source, destination=destination, v1=True)
    assert effects_of(flow.sent(v2(function))) == [DONE]


@pytest.mark.parametrize("function", REQUESTS)
def test_request_in_the_reply_direction_opens_nothing(function: int) -> None:
    assert effects_of(line().answered(v2(function))) == []


@pytest.mark.parametrize("function", [*REQUESTS, *REPLIES, *OTHERS])
@pytest.mark.parametrize(
    ("source", "group"), [(HOST, GROUP), (HOST, "255.255.255.255"), (HOST6, GROUP6)]
)
def test_port_427_is_never_opened(source: str, group: str, function: int) -> None:
    # An agent that asks from its own port is open to all the world then: amplification.
    flow = line(PORT, source=source, destination=group, v1=True, any_sport=True)
    assert effects_of(flow.sent(v2(function))) == [DONE]
    assert effects_of(flow.sent(v1(min(function, 10)))) == [DONE]


def test_privileged_port_above_427_is_opened() -> None:
    assert Slp.lowest_port == PORT
    assert effects_of(line(600).sent(v2())) == [answers_to(port=600)]


def test_each_request_of_a_flow_opens_the_port_anew() -> None:
    message = line().sent(v2())
    assert play(Slp(), [message] * 3) == [answers_to()] * 3


def test_previous_responders_change_nothing() -> None:
    # Entries that are no address are to be ignored (RFC 2608, section 8.1).
    for responders in (b"10.77.2.2", b"192.0.2.9,2001:db8::9", b",,\xff", b"x" * 1300):
        body = strings(responders, *STRINGS[2, 1][1:])
        assert effects_of(line().sent(v2(body=body))) == [answers_to()]


def test_all_naming_authorities_may_be_asked_for() -> None:
    body = strings(b"192.0.2.9") + b"\xff\xff" + strings(b"DEFAULT")
    assert effects_of(line().sent(v2(9, body))) == [answers_to()]
    body = strings(b"192.0.2.9") + b"\xff\xff" + strings(b"")
    assert effects_of(line(v1=True).sent(v1(9, body))) == [answers_to()]


def test_extensions_after_the_strings_are_not_looked_at() -> None:
    payload = v2(body=strings(*STRINGS[2, 1]) + b"\0\2\0\0\0\0\0\0\0\0")
    assert effects_of(line().sent(payload)) == [answers_to()]


@pytest.mark.parametrize("size", [0, 1, 2, 8, 31, 32])
def test_language_tag_up_to_its_limit(size: int) -> None:
    message = line().sent(v2(language=b"e" * size))
    assert effects_of(message) == [answers_to()]


MALFORMED: Final = {
    "empty": b"",
    "version alone": b"\x02",
    "version 0": v2(version=0),
    "version 3": v2(version=3),
    "function 0": v2(0),
    "function 12": v2(12),
    "function 255": v2(255),
    "function 11 of version 1": v1(11),
    "half a header": v2()[:10],
    "length too small": v2(length=13),
    "length one short": v2(length=len(v2()) - 1),
    "length one over": v2(length=len(v2()) + 1),
    "length of all ones": v2(length=0xFFFFFF),
    "bytes after the end": v2() + b"\0",
    "bytes missing": v2()[:-1],
    "language over 32 bytes": v2(language=b"e" * 33),
    "language past the end": v2()[:12] + b"\0\x20" + v2()[14:19],
    "no previous responders": v2(body=b""),
    "half a length": v2(body=b"\0"),
    "responders past the end": v2(body=b"\0\x09" + b"10.77.2."),
    "responders of all ones": v2(body=b"\xff\xff" + b"x" * 8),
    "only responders": v2(body=strings(b"10.77.2.2")),
    "SPI missing": v2(body=strings(*STRINGS[2, 1][:-1])),
    "predicate past the end": v2(body=strings(b"", b"x", b"y") + b"\0\x05abcd"),
    "scopes of all naming authorities missing": v2(9, strings(b"") + b"\xff\xff"),
    "attributes without tags": v2(6, strings(b"", b"x", b"y")),
    "half a header of version 1": v1()[:11],
    "length of version 1 one over": v1(length=len(v1()) + 1),
    "predicate of version 1 missing": v1(body=strings(b"")),
}


@cases("payload", MALFORMED)
def test_message_that_does_not_parse_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        effects_of(line(v1=True).sent(payload))


# Who may answer


def test_answers_may_be_wanted_from_anywhere_and_any_port() -> None:
    message = line(responders="any").sent(v2())
    assert effects_of(message) == [answers_to(source=ANY)]
    message = line(any_sport=True).sent(v2())
    assert effects_of(message) == [answers_to(source_port=None)]


def test_answers_come_from_the_port_that_was_asked() -> None:
    flow = Line(flow_tuple(UDP, (HOST, ASKER), (GROUP, 1427)), defaults(Slp))
    assert effects_of(flow.sent(v2())) == [answers_to(source_port=1427)]


def test_only_local_requests_are_tagged_to_whatever_address() -> None:
    # The broadcast address of a network is known to the engine alone.
    assert Slp.hooks == {Hook.OUTPUT}
    assert Slp.destinations == ()


def test_answers_are_awaited_a_second_longer_than_requests_are_repeated() -> None:
    (policy,) = Slp.policies
    assert (policy.max_expected, policy.timeout) == (8, 16)


# Answers that overflow


def follow_up() -> Expect:
    return Expect(endpoint(RESPONDER, PORT), "answer", transport=TCP)


@pytest.mark.parametrize("function", REQUESTS)
def test_request_names_the_helper_for_answers_that_are_read(function: int) -> None:
    message = line(overflow=True).sent(v2(function))
    assert effects_of(message) == [answers_to(helper="slp")]


@pytest.mark.parametrize(
    "function",
    [
        handles(function, name, "with option overflow: asker > responder, TCP, 16 s")
        for function, name in REPLIES.items()
    ],
)
def test_answer_that_overflows_lets_the_asker_come_back(function: int) -> None:
    for flags in (O_FLAG, O_FLAG | F_FLAG | R_FLAG):
        # Cut where the datagram was full.
        message = answer().sent(v2(function, b"\0\0\0", flags=flags))
        assert effects_of(message) == [follow_up()]
    message = answer(depth=3).sent(v1(function, b"\0\0\0", flags=0x80))
    assert effects_of(message) == [follow_up()]


@pytest.mark.parametrize(
    "payload",
    [v2(function, flags=0) for function in REPLIES]
    + [v2(function, flags=F_FLAG | R_FLAG) for function in REPLIES]
    + [v1(function, flags=0x7F) for function in REPLIES]
    + [v2(function, flags=O_FLAG) for function in (*REQUESTS, *OTHERS)],
)
def test_any_other_answer_leads_to_nothing(payload: bytes) -> None:
    assert effects_of(answer().sent(payload)) == []


@pytest.mark.parametrize("function", [*REQUESTS, *REPLIES])
def test_what_the_asker_sends_to_the_responder_leads_to_nothing(function: int) -> None:
    assert effects_of(answer().answered(v2(function, flags=O_FLAG))) == []


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("function", [*REQUESTS, *REPLIES, *OTHERS])
def test_answers_that_are_not_to_be_read_are_let_go(
    function: int, direction: Direction
) -> None:
    # Some kernels attach helpers to expected flows unasked.
    flow = answer(overflow=False)
    assert effects_of(flow.message(direction, v2(function, flags=O_FLAG))) == [DONE]


@cases("payload", MALFORMED)
def test_answer_with_a_broken_header_is_malformed(payload: bytes) -> None:
    # The strings of a request are no matter here.
    try:
        effects = effects_of(answer().sent(payload))
    except Malformed:
        return
    assert effects == []


def test_ruleset_attaches_the_helper_to_answers_where_configured() -> None:
    rule = 'meta l4proto udp ct state related ct helper "slp" ct helper set "slp-udp"'
    for overflow in (False, True):
        settings = f"[helpers.slp]\noverflow = {str(overflow).lower()}"
        ruleset = nft.render(parse(settings, Path("test.toml"), {"slp": Slp}))
        assert (rule in ruleset) == overflow


# Through the engine


def on_link(address: Address) -> tuple[Network, ...]:
    if isinstance(address, IPv6Address):
        return (ip_network("fe80::/10"), ip_network("2001:db8::/64"))
    if address in ip_network("192.0.2.0/24"):
        return (ip_network("192.0.2.0/24"),)
    raise ExpectationRefused("off-link", f"{address} is on no link")


def engine(*hooks: Hook, **options: OptionValue) -> Engine:
    config = HelperConfig(
        helper=Slp,
        queue=0,
        ports=Slp.ports,
        policies=Slp.policies,
        options={**defaults(Slp), **options},
        hooks=frozenset(hooks) or Slp.hooks,
        guard=Rules(lowest_port=Slp.lowest_port),
    )
    return Engine(
        {"slp": config},
        guard=Guard(),
        on_link=on_link,
        clock=lambda: 0.0,
        flow_limit=8,
    )


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


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("198.51.100.1", "off-link"),
        ("0.0.0.0", "unspecified-address"),  # noqa: S104 - not a bind
        ("::", "unspecified-address"),
        ("127.0.0.1", "loopback-address"),
    ],
)
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


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The beginning of a message and any bytes after it."""
    whole = draw(valid)
    return whole[: draw(st.integers(0, len(whole)))] + draw(st.binary(max_size=40))


payloads: Final = st.binary() | valid | damaged()


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
            assert ("overflow" in ours) == (theirs["flags_v2.overflow"] == "1")
        if theirs["srvreq.srvtypelist"]:
            assert ours["service type"] == repr(theirs["srvreq.srvtypelist"])
            assert ours["scopes"] == repr(theirs["srvreq.scopelist"])
            assert ours["predicate"] == repr(theirs["srvreq.predicate"])
        if theirs["attrreq.url"]:
            assert ours["URL"] == repr(theirs["attrreq.url"])
        for name in ("attrreq.prlist", "srvtypereq.prlist"):
            if theirs[name] and theirs["version"] == "2":
                assert ours["previous responders"] == repr(theirs[name])

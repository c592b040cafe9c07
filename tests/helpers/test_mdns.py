# SPDX-License-Identifier: GPL-2.0-or-later
"""Multicast DNS: which queries open the asker's port, and for whom.

The faults that tests are marked with are those of conntrackd's mdns helper, which reads
nothing of the payload: every packet opens the sender's port to everybody.
"""

from collections.abc import Iterable
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR

from cthelper.core.api import (
    ON_LINK,
    ORIGINAL,
    REPLY,
    UDP,
    Direction,
    Expect,
    Hook,
    Malformed,
    Message,
)
from cthelper.core.outcome import Refused
from cthelper.core.tuples import Expectation, Tuple
from cthelper.helpers.mdns import Mdns
from cthelper.testing import Line, play
from tests.cases import cases
from tests.core.builders import conntrack, endpoint, flow_tuple, udp
from tests.helpers.given import damaged, unanswerable
from tests.helpers.inspected import configured, engine_with, on_link

HOST = "192.0.2.1"
GROUP = "224.0.0.251"
HOST6 = "fe80::1"
GROUP6 = "ff02::fb"
ASKER = 40000
QM, QU = 0x0001, 0x8001

FAULTS: Final = {
    1: "queries from port 5353 that ask for unicast responses (QU) are left out",
    2: "a unicast packet or a response opens its sender's port to the world",
    3: "hosts that are not on the link may answer",
    4: "the port stays open for 30 s, and longer for who has got in",
    5: "number of questions, QR bit and operation code are never looked at",
    6: "IPv6 works by accident",
}


def fault(number: int) -> pytest.MarkDecorator:
    """The mark of a test that proves a fault to be theirs only."""
    return pytest.mark.fault(f"mdns {number}", FAULTS[number])


def case(message: str, outcome: str, *values: object) -> Any:
    """A case that proves what becomes of a message."""
    mark = pytest.mark.handles("mdns", message, outcome)
    return pytest.param(*values, marks=mark, id=message)


OPENS: Final = "link, port 5353 > asker's port, 10 s"
NOTHING: Final = "opens nothing"

names = st.from_regex(r"[a-z0-9_-]{1,20}(\.[a-z0-9_-]{1,20}){0,4}", fullmatch=True)


def question(class_: int = QM, name: bytes = b"\x04test\x05local\0") -> bytes:
    return name + b"\x00\x0c" + class_.to_bytes(2)


def query(*questions: bytes, flags: int = 0, count: int | None = None) -> bytes:
    """A DNS message; it says that it has `count` questions, or as many as it has."""
    number = len(questions) if count is None else count
    header = bytes(2) + flags.to_bytes(2) + number.to_bytes(2) + bytes(6)
    return header + b"".join(questions)


def line(
    port: int = ASKER,
    *,
    source: str = HOST,
    destination: tuple[str, int] = (GROUP, 5353),
) -> Line:
    return Line(flow_tuple(UDP, (source, port), destination))


def opened(message: Message) -> list[Expect]:
    """What the helper asks for at `message`."""
    effects = play(Mdns(), [message])
    assert all(isinstance(each, Expect) for each in effects)
    return [each for each in effects if isinstance(each, Expect)]


def answers_to(address: str, port: int) -> Expect:
    return Expect(
        endpoint(address, port),
        "answer",
        source=ON_LINK,
        source_port=5353,
        permanent=True,
    )


@fault(1)
@pytest.mark.parametrize(
    ("port", "class_", "opens"),
    [
        case("one-shot query, from another port than 5353", OPENS, ASKER, QM, True),
        case("one-shot query with a QU question", OPENS, ASKER, QU, True),
        case("query from port 5353 with a QU question", OPENS, 5353, QU, True),
        case("query from port 5353, all questions QM", NOTHING, 5353, QM, False),
    ],
)
def test_queries_that_are_answered_by_unicast_open_the_askers_port(
    port: int, class_: int, opens: bool
) -> None:
    expected = [answers_to(HOST, port)] if opens else []
    assert opened(line(port).sent(query(question(class_)))) == expected


@fault(6)
@pytest.mark.parametrize("port", [ASKER, 5353])
def test_ipv6_queries_open_the_askers_port(port: int) -> None:
    flow = line(port, source=HOST6, destination=(GROUP6, 5353))
    assert opened(flow.sent(query(question(QU)))) == [answers_to(HOST6, port)]


def test_one_qu_question_among_others_is_enough() -> None:
    several = query(question(QM), question(QU), question(QM))
    assert opened(line(5353).sent(several)) == [answers_to(HOST, 5353)]
    assert opened(line(5353).sent(query(question(QM), question(QM)))) == []


def test_each_query_of_a_flow_opens_the_port_anew() -> None:
    message = line(5353).sent(query(question(QU)))
    assert play(Mdns(), [message] * 3) == [answers_to(HOST, 5353)] * 3


def test_records_after_the_questions_are_not_looked_at() -> None:
    # Known answers, and those that fill a packet up to its end or beyond it.
    message = line().sent(query(question()) + b"\xc0\x0c\xff")
    assert opened(message) == [answers_to(HOST, ASKER)]


@fault(5)
@pytest.mark.parametrize("port", [ASKER, 5353])
@pytest.mark.parametrize(
    "payload",
    [
        case("response", NOTHING, query(question(QU), flags=0x8000)),
        case("authoritative response", NOTHING, query(question(QU), flags=0x8400)),
        case("announcement, which nobody asked for", NOTHING, query(flags=0x8400)),
        case("query without a question", NOTHING, query()),
        case("known answers continued (TC)", NOTHING, query(flags=0x0200)),
        case("other operation code", NOTHING, query(question(QU), flags=0x0800)),
        pytest.param(query(question(QU), flags=0x7800), id="opcode 15"),
        case("query with a response code", NOTHING, query(question(QU), flags=0x0003)),
    ],
)
def test_what_is_no_query_opens_nothing(payload: bytes, port: int) -> None:
    assert opened(line(port).sent(payload)) == []


def test_truncated_bit_does_not_matter() -> None:
    # TC: more known answers follow in further packets (RFC 6762, section 7.2).
    message = line().sent(query(question(), flags=0x0200))
    assert opened(message) == [answers_to(HOST, ASKER)]


@fault(2)
@pytest.mark.handles("mdns", "query to a responder's own address", NOTHING)
@pytest.mark.parametrize(
    "destination",
    ["198.51.100.2", "224.0.0.252", "255.255.255.255", "192.0.2.255"],
    ids=["unicast", "another group", "broadcast", "subnet broadcast"],
)
def test_query_to_another_address_than_the_group_opens_nothing(
    destination: str,
) -> None:
    # A rule that attaches the helper too broadly does not open a port.
    flow = line(destination=(destination, 5353))
    assert opened(flow.sent(query(question(QU)))) == []


@fault(2)
@pytest.mark.parametrize("destination", ["2001:db8::2", "ff02::fc", "ff05::fb"])
def test_ipv6_query_to_another_address_opens_nothing(destination: str) -> None:
    flow = line(source=HOST6, destination=(destination, 5353))
    assert opened(flow.sent(query(question(QU)))) == []


@fault(2)
def test_query_in_the_reply_direction_opens_nothing() -> None:
    assert opened(line().answered(query(question(QU)))) == []


@pytest.mark.parametrize(
    "questions",
    [
        [b"\x04test\xc0\x0c" + b"\x00\x0c\x80\x01"],
        [b"\xc0\x0c" + b"\x00\x0c\x80\x01"],
        [question(QM), b"\xc0\x0c" + b"\x00\x0c\x80\x01"],
    ],
    ids=["after a label", "to itself", "to the first question"],
)
def test_compression_pointer_ends_a_name(questions: list[bytes]) -> None:
    assert opened(line(5353).sent(query(*questions))) == [answers_to(HOST, 5353)]


LONG = b"".join(b"\x3f" + b"x" * 63 for _ in range(4)) + b"\0"


@cases(
    "payload",
    {
        "empty": b"",
        "short header": bytes(11),
        "second question missing": query(question(), count=2),
        "half a class": query(question()[:-1]),
        "half a label": query(b"\x04te"),
        "half a pointer": query(b"\x04test\xc0"),
        "label over 63": query(question(name=b"\x40" + b"x" * 64 + b"\0")),
        "name over 255": query(question(name=LONG)),
        "65535 questions": query(question(), count=0xFFFF),
    },
)
def test_query_that_does_not_parse_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        play(Mdns(), [line().sent(payload)])


def test_only_local_queries_to_the_groups_are_tagged() -> None:
    assert Mdns.hooks == {Hook.OUTPUT}
    assert set(map(str, Mdns.destinations)) == {"224.0.0.251/32", "ff02::fb/128"}


@fault(4)
def test_answers_are_awaited_for_10_seconds() -> None:
    (policy,) = Mdns.policies
    assert (policy.max_expected, policy.timeout) == (8, 10)


# Through the engine: who may answer.


def asked_by(
    source: str,
    *,
    payload: bytes | None = None,
    forwarded: bool = False,
    reply: Tuple | None = None,
    lines: Iterable[str] = (),
) -> tuple[tuple[Expectation, ...], list[str]]:
    """Expectations and reasons of refusal for a query of this host, a one-shot one."""
    group = GROUP6 if ":" in source else GROUP
    original = flow_tuple(UDP, (source, ASKER), (group, 5353))
    engine = engine_with(configured(Mdns, *lines), on_link=on_link)
    decision = engine.handle(
        udp(query(question()) if payload is None else payload),
        conntrack(original, reply, helper="mdns"),
        ORIGINAL,
        forwarded=forwarded,
    )
    assert decision.packet is None
    reasons = [each.reason for each in decision.events if isinstance(each, Refused)]
    return decision.expectations, reasons


@fault(3)
def test_only_hosts_on_the_link_may_answer_and_only_from_port_5353() -> None:
    expectations, _ = asked_by(HOST)
    assert list(map(str, expectations)) == [
        "udp 192.0.2.0/24 port 5353 > 192.0.2.1:40000"
    ]
    assert expectations[0].permanent


def test_every_prefix_of_an_ipv6_link_may_answer() -> None:
    expectations, _ = asked_by("2001:db8::1")
    assert list(map(str, expectations)) == [
        "udp fe80::/10 port 5353 > [2001:db8::1]:40000",
        "udp 2001:db8::/64 port 5353 > [2001:db8::1]:40000",
    ]


@unanswerable
def test_asker_that_nobody_on_a_link_can_answer_is_refused(
    source: str, reason: str
) -> None:
    assert asked_by(source) == ((), [reason])


def test_query_of_another_host_is_refused_unless_it_is_to_be_reflected() -> None:
    assert asked_by(HOST, forwarded=True) == ((), ["forwarded"])
    lines = ['hooks = ["prerouting", "output"]']
    expectations, reasons = asked_by(HOST, forwarded=True, lines=lines)
    assert (len(expectations), reasons) == (1, [])


@pytest.mark.parametrize(
    "payload", [query(), query(flags=0x8400)], ids=["no question", "announcement"]
)
def test_what_opens_nothing_is_not_refused_either(payload: bytes) -> None:
    # Multicast traffic of the neighbours must not fill the log.
    assert asked_by(HOST, payload=payload, forwarded=True) == ((), [])


def test_translated_query_is_refused() -> None:
    translated = flow_tuple(UDP, (GROUP, 5353), ("203.0.113.1", ASKER))
    assert asked_by(HOST, reply=translated) == ((), ["nat"])


# Any bytes.

valid = st.builds(
    query,
    st.sampled_from([question(QM), question(QU), b"\xc0\x0c\0\x0c\x80\x01"]),
    st.sampled_from([question(QM), question(QU)]),
    flags=st.sampled_from([0, 0x0200, 0x8400]),
)


@given(
    st.binary() | valid | damaged(valid),
    st.sampled_from(Direction),
    st.sampled_from([ASKER, 5353]),
)
def test_any_bytes_open_the_askers_own_port_or_nothing(
    payload: bytes, direction: Direction, port: int
) -> None:
    message = line(port).message(direction, payload)
    try:
        effects = opened(message)
    except Malformed:
        return
    assert effects in ([], [answers_to(HOST, port)])
    assert not (effects and direction is REPLY)


@given(st.lists(st.tuples(names, st.booleans()), min_size=1, max_size=4))
def test_unicast_bit_that_scapy_sets_is_seen(
    questions: list[tuple[str, bool]],
) -> None:
    built = DNS(
        rd=0,
        qd=[
            DNSQR(qname=name, qtype="PTR", unicastresponse=int(unicast))
            for name, unicast in questions
        ],
    )
    expected = [answers_to(HOST, 5353)] if any(each for _, each in questions) else []
    assert opened(line(5353).sent(bytes(built))) == expected


@given(valid, st.binary(max_size=40))
def test_junk_after_the_questions_changes_nothing(payload: bytes, junk: bytes) -> None:
    assert opened(line(5353).sent(payload + junk)) == opened(line(5353).sent(payload))


# In words


@pytest.mark.parametrize(
    ("port", "payload", "fields"),
    [
        (
            ASKER,
            query(question()),
            {
                "type": "query",
                "questions": "1, 0 of them QU",
                "asked from": f"port {ASKER}: one-shot",
            },
        ),
        (
            5353,
            query(question(QU), question(QM)),
            {
                "type": "query",
                "questions": "2, 1 of them QU",
                "asked from": "port 5353",
            },
        ),
        (5353, query(flags=0x8400), {"type": "response, or no standard query"}),
    ],
)
def test_query_is_described(port: int, payload: bytes, fields: dict[str, str]) -> None:
    assert Mdns().describe(line(port).sent(payload)) == fields


@given(st.binary() | valid | damaged(valid))
def test_any_bytes_are_described_or_malformed(payload: bytes) -> None:
    try:
        fields = Mdns().describe(line().sent(payload))
    except Malformed:
        return
    assert all(fields.values())

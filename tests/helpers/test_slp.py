# SPDX-License-Identifier: GPL-2.0-or-later
"""SLP: which requests open the asker's port, for whom, and what an answer leads to.

The faults that the tests name are those of conntrackd's slp helper, which reads nothing
of the payload: every packet opens the sender's port to port 427 of everybody.
"""

from pathlib import Path
from typing import Any, Final

import pytest

from cthelper import nft
from cthelper.core.api import (
    ANY,
    DONE,
    ON_LINK,
    TCP,
    UDP,
    Direction,
    Effect,
    Expect,
    Hook,
    Malformed,
    Message,
    OptionValue,
    Source,
)
from cthelper.core.config import parse
from cthelper.helpers.slp import Slp
from cthelper.testing import Line, defaults, play
from tests.cases import cases
from tests.core.builders import endpoint, flow_tuple

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

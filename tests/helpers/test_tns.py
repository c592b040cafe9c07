# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle Net: which redirects of a listener open a port, and which.

The faults that the tests name are those of conntrackd's tns helper. Scapy does not know
the protocol; tshark reads the same packets where it is installed.
"""

from typing import Final

import pytest

from cthelper.core.api import (
    DONE,
    TCP,
    Direction,
    Effect,
    Effects,
    Expect,
    ExpectationRefused,
    Malformed,
    Message,
    OptionValue,
)
from cthelper.helpers.tns import Tns
from cthelper.testing import Line, any_segmentation, defaults, play
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

PORT: Final = 41521
NODE: Final = "198.51.100.12"
NODE6: Final = "2001:db8:2::12"
THIRD: Final = "203.0.113.9"
CONNECT_DATA: Final = "(DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME=orcl)))"

# Packets


def packet(
    kind: int, body: bytes = b"", *, flags: int = 0, length: int | None = None
) -> bytes:
    """A packet; it says that it has `length` bytes, or as many as it has."""
    size = 8 + len(body) if length is None else length
    return size.to_bytes(2) + bytes(2) + bytes([kind, flags]) + bytes(2) + body


def connect(text: str = CONNECT_DATA, *, flags: int = 0, inline: bool = True) -> bytes:
    """A CONNECT of version 319; connect data that are not inline follow in DATA."""
    words = [319, 300, 1, 8192, 65535, 0x130E, 0, 1, len(text), 74]
    body = b"".join(each.to_bytes(2) for each in words) + bytes(46)
    return packet(1, body + (text.encode() if inline else b""), flags=flags)


def data(text: str | bytes, *, flags: int = 0) -> bytes:
    """A DATA packet with its own two bytes of flags."""
    raw = text if isinstance(text, bytes) else text.encode("latin-1")
    return packet(6, flags.to_bytes(2) + raw)


def redirect(
    text: str | bytes = b"", *, length: int | None = None, flags: int = 0
) -> bytes:
    """A REDIRECT with this much text inline, of `length` bytes or of as many."""
    raw = text if isinstance(text, bytes) else text.encode("latin-1")
    size = len(raw) if length is None else length
    return packet(5, size.to_bytes(2) + raw, flags=flags)


def deferred(text: str, *, length: int | None = None, flags: int = 0) -> list[bytes]:
    """A REDIRECT whose text follows in DATA."""
    return [
        redirect(length=len(text) if length is None else length, flags=flags),
        data(text),
    ]


def address(host: str = SERVER, port: int | str = PORT, protocol: str = "tcp") -> str:
    return f"(ADDRESS=(PROTOCOL={protocol})(HOST={host})(PORT={port}))"


ACCEPT: Final = packet(2, bytes.fromhex("013f 0841 2000 ffff") + bytes(49))
REFUSE: Final = packet(4, b"\0\0\0\x0b(ERR=12514)")
RESEND: Final = packet(11)
# Of a session, where lengths have 32 bits.
LONG_DATA: Final = (35).to_bytes(4) + bytes([6, 0, 0, 0]) + bytes(27)
MARKER: Final = packet(12, b"\1\0\2")
CONTROL: Final = packet(14, b"\0\x09" + bytes(8))
TEXT: Final = f"{address()}\0{CONNECT_DATA}"

# Flows


def line(version: int = 4, *, depth: int = 0, **options: OptionValue) -> Line:
    client, server = (CLIENT, SERVER) if version == 4 else (CLIENT6, SERVER6)
    original = flow_tuple(TCP, (client, 40000), (server, 1521))
    return Line(original, {**defaults(Tns), **options}, depth=depth)


def conversation(flow: Line, *answers: bytes) -> list[Message]:
    """A CONNECT, and what the server answers."""
    return [flow.sent(connect()), *map(flow.answered, answers)]


def answered(*answers: bytes, flow: Line | None = None) -> list[Effect]:
    """The effects of a server's packets, after a CONNECT."""
    return play(Tns(), conversation(flow or line(), *answers))


def to(host: str = SERVER, port: int = PORT, *, helper: str | None = None) -> Expect:
    return Expect(endpoint(host, port), "redirect", helper=helper)


def hosts(*lines: str) -> tuple[object, ...]:
    """The option's value for these lines."""
    (option,) = [each for each in Tns.options if each.name == "hosts"]
    assert option.element is not None
    return tuple(map(option.element, lines))


def handles(message: str, outcome: str) -> pytest.MarkDecorator:
    return pytest.mark.handles("tns", message, outcome)


OPENS: Final = "client > HOST:PORT, once, 60 s"

# Redirects


def forms(address: str, connect_data: str) -> dict[str, list[bytes]]:
    """The packets of one redirect, in all the ways that there are."""
    text = f"{address}\0{connect_data}"
    pieces = cut(address.encode(), range(0, len(address), 7))
    return {
        "inline": [redirect(text)],
        "inline, no connect data": [redirect(address)],
        "inline, length 0": [redirect(text, length=0)],
        "DATA": deferred(text),
        "DATA, flag of the header": deferred(text, flags=2),
        "DATA with flags": [redirect(length=len(text)), data(text, flags=0x40)],
        "DATA, no connect data": deferred(address),
        "DATA in pieces": [redirect(length=len(address)), *map(data, pieces)],
        "DATA that is longer than announced": [
            redirect(length=len(address)),
            data(text),
        ],
        "length 0": deferred(text, length=0),
        "length 0, no connect data": deferred(address, length=0),
        "length 0, in pieces": [redirect(), data(""), *map(data, pieces)],
        "partly inline": [redirect(text[:20], length=len(text)), data(text[20:])],
        "partly inline, length 0": [redirect(text[:20], length=0), data(text[20:])],
    }


FORMS: Final = forms(address(), CONNECT_DATA)
# What each proves, of those that the protocol tells apart.
PROOFS: Final = {
    "inline": "REDIRECT (5), inline",
    "DATA": "REDIRECT (5), then DATA (6)",
    "length 0": "REDIRECT (5), length 0, then DATA (6)",
    "partly inline": "REDIRECT (5), partly inline, then DATA (6)",
}
MARKED_FORMS: Final = {
    name: pytest.param(FORMS[name], marks=handles(message, OPENS))
    for name, message in PROOFS.items()
}


@cases("answers", {**FORMS, **MARKED_FORMS})
def test_redirect_opens_the_address_that_it_names(answers: list[bytes]) -> None:
    assert answered(*answers) == [to()]
    # However segments cut it, and whatever comes after it.
    messages = conversation(line(), *answers, ACCEPT, LONG_DATA)
    assert any_segmentation(Tns, messages) == [to(), DONE]


@pytest.mark.parametrize("length", [len(TEXT) - 1, len(TEXT) + 1, 4097, 65535])
def test_text_is_whole_at_nul_whatever_the_length_says(length: int) -> None:
    assert answered(redirect(TEXT, length=length)) == [to()]
    assert answered(*deferred(TEXT, length=length), data(address(NODE))) == [to()]


@pytest.mark.parametrize("length", [1, 40, len(address()) - 1])
def test_length_that_cuts_the_text_short_is_malformed(length: int) -> None:
    with pytest.raises(Malformed):
        answered(redirect(TEXT, length=length))


def test_nothing_is_opened_before_the_text_is_whole() -> None:
    helper, flow = Tns(), line()
    first = [redirect(TEXT[:9], length=len(address())), data(TEXT[9 : len(address())])]
    assert play(helper, conversation(flow, first[0])) == []
    assert play(helper, [flow.answered(first[1])]) == [to()]


def test_data_after_the_text_opens_nothing() -> None:
    assert answered(*deferred(TEXT), data(address(NODE))) == [to()]


@handles("RESEND (11)", "opens nothing; CONNECT comes again")
def test_client_may_connect_again_after_resend() -> None:
    flow = line()
    messages = [
        flow.sent(connect()),
        flow.answered(RESEND),
        flow.sent(connect()),
        *map(flow.answered, deferred(TEXT)),
    ]
    assert play(Tns(), messages) == [to()]


def test_resend_voids_a_redirect_that_is_not_whole() -> None:
    assert answered(redirect(length=len(TEXT)), RESEND, data(TEXT)) == []


def test_second_redirect_takes_the_place_of_one_that_is_not_whole() -> None:
    answers = [redirect(length=9), *deferred(TEXT)]
    assert answered(*answers) == [to()]


@handles("CONNECT (1)", "opens nothing; the flow is TNS")
@handles("DATA (6) of a client", "passes: connect data")
def test_connect_data_may_follow_in_data() -> None:
    flow = line()
    messages = [
        flow.sent(connect(inline=False)),
        flow.sent(data(CONNECT_DATA)),
        *map(flow.answered, deferred(TEXT)),
    ]
    assert play(Tns(), messages) == [to()]


def test_connect_of_a_redirected_client_is_one() -> None:
    flow = line(depth=1)
    messages = [flow.sent(connect(flags=4)), *map(flow.answered, deferred(TEXT))]
    assert play(Tns(), messages) == [to()]


@pytest.mark.parametrize(
    "passed",
    [
        pytest.param(MARKER, marks=handles("MARKER (12)", "passes")),
        pytest.param(CONTROL, marks=handles("CONTROL (14)", "passes")),
        pytest.param(packet(3), marks=handles("ACK (3)", "passes")),
        pytest.param(packet(7), marks=handles("NULL (7)", "passes")),
        pytest.param(packet(9, b"\0\0x"), marks=handles("ABORT (9)", "passes")),
        pytest.param(packet(13), marks=handles("ATTENTION (13)", "passes")),
        pytest.param(
            packet(99, b"x"), marks=handles("any other type before ACCEPT", "passes")
        ),
        pytest.param(packet(0)),
    ],
)
def test_other_packets_are_passed_over(passed: bytes) -> None:
    first, second = deferred(TEXT)
    assert answered(passed, first, passed, second, passed) == [to()]
    flow = line()
    assert play(Tns(), [flow.sent(connect()), flow.sent(passed)]) == []


@handles("DATA (6) of a server without REDIRECT", "passes")
def test_data_without_a_redirect_is_passed_over() -> None:
    # Whatever it holds, and even where it has no room for its flags.
    assert answered(data(address()), packet(6)) == []


def test_ipv6_address_is_opened_with_brackets_and_without() -> None:
    for host in (SERVER6, f"[{SERVER6}]"):
        answers = deferred(address(host))
        assert answered(*answers, flow=line(6)) == [to(SERVER6)]


# Several addresses


def test_every_address_is_opened_once() -> None:
    first, second = address(NODE, 1521), address(NODE, 1522)
    text = f"(DESCRIPTION=(ADDRESS_LIST={first}{second}{first}{address()}))"
    assert answered(redirect(text)) == [to(NODE, 1521), to(NODE, 1522), to()]


def asked_and_refused(
    reaction: Effects, asked: list[Effect] | None = None
) -> list[Effect]:
    """What a helper asks for, all of it refused; into `asked` where it raises."""
    asked = [] if asked is None else asked
    try:
        asked.append(next(reaction))
        while True:
            asked.append(reaction.throw(ExpectationRefused("test", "refused")))
    except StopIteration:
        return asked


def test_address_that_is_refused_does_not_end_the_others() -> None:
    helper, flow = Tns(), line()
    text = address(THIRD) + address(NODE) + address()
    assert play(helper, [flow.sent(connect())]) == []
    reaction = helper.on_message(flow.answered(redirect(text)))
    assert asked_and_refused(reaction) == [to(THIRD), to(NODE), to()]


def test_no_more_than_eight_addresses_are_opened() -> None:
    (policy,) = Tns.policies
    assert (policy.max_expected, policy.timeout) == (8, 60)
    text = "".join(address(port=port) for port in range(2000, 2010))
    assert answered(redirect(text)) == [to(port=port) for port in range(2000, 2008)]


def test_address_over_another_protocol_opens_nothing() -> None:
    assert answered(redirect("(ADDRESS=(PROTOCOL=ipc)(KEY=x))")) == []


def test_address_over_tls_is_opened() -> None:
    assert answered(redirect(address(port=2484, protocol="TCPS"))) == [to(port=2484)]


# Host names

RAC: Final = hosts(
    f"{NODE} rac1 RAC1.example.net", f"{NODE6} rac1 rac1.example.net.", f"{NODE6} rac6"
)


@pytest.mark.parametrize("host", ["rac1", "RAC1.Example.NET", "rac1.example.net."])
@pytest.mark.parametrize(("version", "node"), [(4, NODE), (6, NODE6)])
def test_name_in_hosts_means_its_address_of_the_flows_version(
    host: str, version: int, node: str
) -> None:
    flow = line(version, hosts=RAC)
    assert answered(redirect(address(host)), flow=flow) == [to(node)]


@pytest.mark.parametrize("host", ["rac9", "rac6", "rac1.example"])
def test_unknown_name_is_refused_after_the_other_addresses(host: str) -> None:
    helper, flow = Tns(), line(hosts=RAC)
    assert play(helper, [flow.sent(connect())]) == []
    text = address(host) + address() + address("rac8", 1) + address("rac1")
    reaction = helper.on_message(flow.answered(redirect(text)))
    asked: list[Effect] = []
    with pytest.raises(ExpectationRefused, match="not in hosts") as caught:
        asked_and_refused(reaction, asked)
    assert asked == [to(), to(NODE)]
    assert caught.value.reason == "unknown-host"
    assert caught.value.detail == f"tcp {host}:{PORT}, tcp rac8:1: not in hosts"


def test_unknown_name_means_the_server_if_configured() -> None:
    flow = line(hosts=RAC, hostname="same")
    text = address("rac9") + address("rac1") + address(NODE, 7)
    assert answered(redirect(text), flow=flow) == [to(), to(NODE), to(NODE, 7)]
    flow = line(6, hostname="same")
    assert answered(redirect(address("rac9")), flow=flow) == [to(SERVER6)]


# Chains


@pytest.mark.parametrize("depth", range(4))
def test_four_redirects_in_a_row_are_followed(depth: int) -> None:
    helper, flow = Tns(), line(depth=depth)
    left = 4 - depth
    assert play(helper, conversation(flow, *deferred(TEXT) * left)) == [to()] * left
    for _ in range(2):
        with pytest.raises(ExpectationRefused) as caught:
            play(helper, [flow.answered(redirect(TEXT))])
        assert caught.value.reason == "redirect-chain"


def test_redirected_flow_is_to_be_read_only_if_configured() -> None:
    text = address() + address(port=2484, protocol="tcps")
    assert answered(redirect(text)) == [to(), to(port=2484)]
    chained = line(chained=True)
    assert answered(redirect(text), flow=chained) == [
        to(helper="tns"),
        to(port=2484),
    ]


# The end


@pytest.mark.parametrize(
    "decision",
    [
        pytest.param(ACCEPT, marks=handles("ACCEPT (2)", "ends the inspection")),
        pytest.param(REFUSE, marks=handles("REFUSE (4)", "ends the inspection")),
    ],
    ids=["ACCEPT", "REFUSE"],
)
def test_decision_ends_the_inspection(decision: bytes) -> None:
    assert answered(decision) == [DONE]
    assert answered(RESEND, decision) == [DONE]
    assert answered(redirect(length=9), decision) == [DONE]
    assert answered(redirect(TEXT), decision) == [to(), DONE]


@pytest.mark.parametrize("decision", [ACCEPT, REFUSE], ids=["ACCEPT", "REFUSE"])
def test_client_cannot_decide(decision: bytes) -> None:
    flow = line()
    assert play(Tns(), [flow.sent(connect()), flow.sent(decision)]) == []


TLS: Final = bytes.fromhex("16 0301 0201 0100 01fd 0303") + bytes(506)
NOT_TNS: Final = {
    "TLS": TLS,
    "TLS of 256 bytes and up to 65535": bytes.fromhex("16 0303 0101 01 0000fc"),
    "SSL 2": bytes.fromhex("802e 01 0002 0015 0000 0010"),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "SSH": b"SSH-2.0-x\r\n",
    "MySQL": b"\x4a\0\0\0\x0a8.0.30\0",
    "length 0": packet(1, length=0),
    "length 33": packet(1, bytes(25)),
    "length 4097": packet(1, bytes(4089)),
    "DATA": data(CONNECT_DATA),
    "REDIRECT": redirect(TEXT),
    "RESEND": RESEND,
    "zeros": bytes(8),
}


@handles("what does not begin with CONNECT: TLS, HTTP", "ends the inspection")
@cases("sent", NOT_TNS)
@pytest.mark.parametrize("direction", list(Direction), ids=lambda each: each.value)
def test_flow_that_does_not_begin_with_connect_is_not_read(
    direction: Direction, sent: bytes
) -> None:
    flow = line()
    first = flow.message(direction, sent)
    assert play(Tns(), [first]) == [DONE]
    assert any_segmentation(Tns, [first, *conversation(flow, redirect(TEXT))]) == [DONE]


def test_server_that_speaks_first_does_not_speak_tns() -> None:
    flow = line()
    assert any_segmentation(Tns, [flow.answered(connect())]) == [DONE]
    assert any_segmentation(Tns, [flow.answered(redirect(TEXT))]) == [DONE]


def test_first_segment_over_the_limit_is_not_malformed() -> None:
    # A sender's segments may come to the queue in one piece of up to 64 KiB.
    sent = TLS * 64
    assert len(sent) > Tns.message_limit
    assert Tns().frame(memoryview(sent)) == 8


@pytest.mark.parametrize("length", [34, 58, 74, 4096])
def test_connect_of_any_sane_length_begins_a_flow(length: int) -> None:
    sent = packet(1, bytes(length - 8))
    flow = line()
    messages = [flow.sent(sent), flow.answered(redirect(TEXT))]
    assert play(Tns(), messages) == [to()]


def test_packet_is_framed_by_its_length() -> None:
    helper, whole = Tns(), connect()
    for end in range(len(whole)):
        assert helper.frame(memoryview(whole[:end])) is None
    assert helper.frame(memoryview(whole + TLS)) == len(whole)

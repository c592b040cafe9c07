# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle Net: which redirects of a listener open a port, and which.

The faults that the tests name are those of conntrackd's tns helper. Scapy does not know
the protocol; tshark reads the same packets where it is installed.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    Address,
    Direction,
    Effect,
    Effects,
    Expect,
    ExpectationRefused,
    Malformed,
    Message,
    Network,
    OptionValue,
    Oversized,
)
from cthelper.core.config import HelperConfig, parse
from cthelper.core.engine import Decision, Engine
from cthelper.core.errors import ConfigError
from cthelper.core.guard import DENIED_PORTS, Guard
from cthelper.core.outcome import Damaged, Finished, Refused
from cthelper.core.tuples import Conntrack, Expectation
from cthelper.helpers.tns import Tns
from cthelper.helpers.tns_descriptor import parse_addresses
from cthelper.testing import Line, any_segmentation, defaults, play
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
)
from tests.helpers import tshark

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


# What is malformed


@handles("REDIRECT (5) of a client", "malformed")
def test_redirect_of_a_client_is_malformed() -> None:
    flow = line()
    with pytest.raises(Malformed):
        play(Tns(), [flow.sent(connect()), flow.sent(redirect(TEXT))])


@pytest.mark.parametrize("length", range(8))
def test_packet_that_is_shorter_than_its_header_is_malformed(length: int) -> None:
    helper = Tns()
    assert play(helper, [line().sent(connect())]) == []
    with pytest.raises(Malformed):
        helper.frame(memoryview(packet(6, length=length)))


@cases(
    "answers",
    {
        "no length": [packet(5)],
        "half a length": [packet(5, b"\0")],
        "no parenthesis": [redirect("HOST=192.0.2.1")],
        "blanks before NUL": [redirect(" \0" + address())],
        "nothing before NUL": [redirect("\0" + address())],
        "junk before": [redirect(f"x{address()}")],
        "junk after": [redirect(f"{address()}x")],
        "open parenthesis": [redirect(address()[:-1])],
        "port over 65535": [redirect(address(port=65536))],
        "port with a letter": [redirect(address(port="1521x"))],
        "octet over 255": [redirect(address("300.1.1.1"))],
        "length too short": [redirect(address(), length=3)],
        "length 0, no parenthesis": [redirect(), data("HOST")],
        "length 0, blanks, no parenthesis": [redirect(), data(" "), data("HOST")],
        "length 0, junk after": [redirect(), data(address() + "x")],
        "DATA without flags": [redirect(), packet(6)],
        "DATA with half its flags": [redirect(length=9), packet(6, b"\0")],
    },
)
def test_redirect_that_does_not_parse_is_malformed(answers: list[bytes]) -> None:
    with pytest.raises(Malformed):
        answered(*answers)


def test_blanks_before_the_text_do_not_matter() -> None:
    assert answered(redirect(f" \r\n{address()} ")) == [to()]


FILLED: Final = address() + f"(A={'x' * (4092 - len(address()))})"


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "DATA"])
@pytest.mark.parametrize("length", [None, 0, 65535], ids=["", "length 0", "65535"])
def test_text_of_4_kib_is_read_and_no_longer_one(
    length: int | None, inline: bool
) -> None:
    def answers(text: str) -> list[bytes]:
        size = len(text) if length is None else length
        if inline:
            return [redirect(text, length=size)]
        return [redirect(length=size), data(text[:3000]), data(text[3000:])]

    assert len(FILLED) == 4096
    tail = f"\0{CONNECT_DATA * 100}"
    assert answered(*answers(FILLED + tail)) == [to()]
    for longer in (f" {FILLED}", f"{FILLED} {tail}", "(" * 5000):
        with pytest.raises(Oversized):
            answered(*answers(longer))


# conntrackd's faults


@pytest.mark.fault("tns 1", "text that follows a REDIRECT in DATA is not looked at")
def test_text_in_data_after_a_redirect_of_ten_bytes_is_read() -> None:
    # As clusters send it: 10 bytes, flag 2, and the length of what follows.
    first, second = deferred(TEXT, flags=2)
    assert (len(first), first[5]) == (10, 2)
    assert int.from_bytes(first[8:]) == len(TEXT)
    assert answered(first, second) == [to()]


@pytest.mark.fault("tns 2", "after a length of 0 the flags of DATA end the search")
@pytest.mark.parametrize("flags", [0, 0x40, 0x2828, 0xFFFF])
def test_flags_of_data_are_no_part_of_the_text(flags: int) -> None:
    assert answered(redirect(), data(TEXT, flags=flags)) == [to()]


@pytest.mark.fault("tns 3", "keys in lower case, as SCAN listeners send, are not found")
def test_keys_in_lower_case_are_read() -> None:
    for form in (str.lower, str.upper, str.title):
        assert answered(*deferred(form(address()))) == [to()]


@pytest.mark.fault("tns 4", "the search goes beyond the payload, and pure ACKs end it")
def test_text_ends_with_the_packet_and_a_segment_without_bytes_is_none() -> None:
    first, second = deferred(address())
    packets = segments([connect()], [first, b"", second])
    assert texts(packets) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]
    # One that stops within its port, and goes on with what is another packet.
    half = redirect(address()[:-4])
    decisions = handle(segments([connect()], [half + b"21))"]))
    assert damage(decisions) == ["descriptor: b'(PORT=415'"]


@pytest.mark.fault(
    "tns 5", "names, IPv6 addresses and another order of keys are not understood"
)
def test_names_ipv6_and_any_order_are_read() -> None:
    text = f"(ADDRESS=(PORT={PORT})(HOST=rac1)(DEV=6)(PROTOCOL=tcp))"
    assert answered(redirect(text), flow=line(hosts=RAC)) == [to(NODE)]
    text = text.replace("rac1", SERVER6)
    assert answered(redirect(text), flow=line(6)) == [to(SERVER6)]


@pytest.mark.fault("tns 6", "one address of one packet in one segment is found")
def test_addresses_and_packets_may_be_several_and_segments_cut_anywhere() -> None:
    text = address(port=2000) + address(port=2001)
    answers = RESEND + b"".join(deferred(text))
    opened = [f"tcp {CLIENT} > {SERVER}:{port}" for port in (2000, 2001)]
    assert texts(segments([connect()], [answers])) == opened
    single = cut(answers, range(len(answers)))
    assert texts(segments(cut(connect(), range(99)), single)) == opened


@pytest.mark.fault("tns 7", "octets over 255 and ports over 65535 spill over")
@pytest.mark.parametrize(
    "text",
    [address("300.1.1.1"), address("198.51.100.258"), address(port=65537)],
    ids=["300.1.1.1", "258", "65537"],
)
@pytest.mark.parametrize("hostname", ["refuse", "same"])
def test_numbers_out_of_range_open_nothing(text: str, hostname: str) -> None:
    with pytest.raises(Malformed):
        answered(redirect(text), flow=line(hostname=hostname))


POISON: Final = "[helpers.tns.guard]\nallow_hosts = "


@pytest.mark.fault("tns 8", "a poisoned listener opens any host and port (TNS poison)")
@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        (THIRD, PORT, "third-party-address"),
        (CLIENT, PORT, "third-party-address"),
        ("127.0.0.1", PORT, "loopback-address"),
        ("0.0.0.0", PORT, "unspecified-address"),  # noqa: S104 - not a bind
        ("224.0.0.251", PORT, "multicast-address"),
        ("255.255.255.255", PORT, "broadcast-address"),
        (SERVER6, PORT, "third-party-address"),
        (f"::ffff:{SERVER}", PORT, "v4-mapped-address"),
        ("rac1", PORT, "unknown-host"),
        (SERVER, 0, "port-zero"),
        (SERVER, 1023, "low-port"),
        *((SERVER, port, "denied-port") for port in sorted(DENIED_PORTS)),
    ],
)
def test_redirect_elsewhere_is_refused(host: str, port: int, reason: str) -> None:
    decisions = handle(segments([connect()], deferred(address(host, port))))
    assert refused(decisions) == [reason]
    assert opened(decisions) == []
    assert all(each.packet is None for each in decisions)


def test_redirect_to_a_configured_host_is_allowed() -> None:
    packets = segments([connect()], deferred(address(NODE) + address(THIRD)))
    decisions = handle(packets, POISON + f'["{NODE}/32"]\n')
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {NODE}:{PORT}"]
    assert refused(decisions) == ["third-party-address"]


def test_name_of_a_configured_host_is_no_way_around_the_guard() -> None:
    packets = segments([connect()], deferred(address("rac1")))
    settings = f'[helpers.tns]\nhosts = ["{NODE} rac1"]\n'
    assert refused(handle(packets, settings)) == ["third-party-address"]
    decisions = handle(packets, settings + POISON + f'["{NODE}/32"]\n')
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {NODE}:{PORT}"]


INSIDE: Final = "10.0.0.2"


def translated() -> Conntrack:
    """The client knows the server by an address that is not its own."""
    original = flow_tuple(TCP, (CLIENT, 40000), (SERVER, 1521))
    reply = flow_tuple(TCP, (INSIDE, 1521), (CLIENT, 40000))
    return conntrack(original, reply, helper="tns")


@pytest.mark.fault(
    "tns 10", "a redirect to another node is translated to the first server"
)
def test_redirect_to_another_node_behind_destination_nat_is_refused() -> None:
    packets = segments([connect()], deferred(address(NODE)))
    settings = POISON + f'["{NODE}/32"]\n'
    decisions = handle(packets, settings, entry=translated())
    assert refused(decisions) == ["nat"]
    assert opened(decisions) == []


def test_masqueraded_client_is_let_through_under_its_own_address() -> None:
    original = flow_tuple(TCP, (CLIENT, 40000), (SERVER, 1521))
    reply = flow_tuple(TCP, (SERVER, 1521), ("203.0.113.1", 12345))
    entry = conntrack(original, reply, helper="tns")
    decisions = handle(segments([connect()], deferred(address())), entry=entry)
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]


@pytest.mark.fault("tns 11", "a server that was redirected to cannot redirect further")
def test_redirect_of_a_redirected_flow_is_followed_four_times() -> None:
    settings = "[helpers.tns]\nchained = true\n"
    assert configured(settings).tags_expected
    assert not configured().tags_expected
    ours = engine(configured(settings))
    entry, found = entry_of(), []
    for port in range(2000, 2005):
        packets = segments([connect()], deferred(address(port=port)))
        decisions = [ours.handle(each, entry, way) for way, each in packets]
        found.append((list(map(str, opened(decisions))), refused(decisions)))
        assert {each.helper for each in opened(decisions)} <= {"tns"}
        master = entry.original
        next_ = flow_tuple(TCP, (CLIENT, 40000 + port), (SERVER, port))
        entry = replace(conntrack(next_, id_=port, helper="tns"), master=master)
    assert found == [
        *(([f"tcp {CLIENT} > {SERVER}:{port}"], []) for port in range(2000, 2004)),
        ([], ["redirect-chain"]),
    ]


@handles("any packet after ACCEPT or REFUSE", "is not read")
@pytest.mark.fault("tns 12", "packets after ACCEPT are still searched for addresses")
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "more"])
def test_nothing_is_read_after_accept(together: bool) -> None:
    # Lengths are of 32 bits then, and to read them as they were would be malformed.
    after = [LONG_DATA, *deferred(address())]
    answers = [ACCEPT + b"".join(after)] if together else [ACCEPT, *after]
    decisions = handle(segments([connect()], answers))
    assert opened(decisions) == []
    events = [event for each in decisions for event in each.events]
    assert events == [Finished("done")]


# Through the engine


def never(_address: Address) -> tuple[Network, ...]:
    raise AssertionError("TNS asks nobody on the link")


def configured(settings: str = "") -> HelperConfig:
    return parse(settings, Path("test.toml"), {"tns": Tns}).helpers["tns"]


def engine(config: HelperConfig) -> Engine:
    return Engine(
        {"tns": config},
        guard=Guard(),
        on_link=never,
        clock=lambda: 0.0,
        flow_limit=8,
    )


def entry_of() -> Conntrack:
    return conntrack(flow_tuple(TCP, (CLIENT, 40000), (SERVER, 1521)), helper="tns")


def segments(
    sent: Iterable[bytes], answers: Iterable[bytes]
) -> list[tuple[Direction, bytes]]:
    """A handshake, then the pieces that the client sends, then the server's."""
    packets = [
        (ORIGINAL, tcp(b"", 99, flags="S")),
        (REPLY, tcp(b"", 4999, flags="SA", direction=REPLY)),
    ]
    for direction, first, pieces in ((ORIGINAL, 100, sent), (REPLY, 5000, answers)):
        for piece in pieces:
            packets.append((direction, tcp(piece, first, direction=direction)))
            first += len(piece)
    return packets


def handle(
    packets: Iterable[tuple[Direction, bytes]],
    settings: str = "",
    *,
    entry: Conntrack | None = None,
) -> list[Decision]:
    """What becomes of the segments of one connection."""
    ours, entry = engine(configured(settings)), entry or entry_of()
    decisions = []
    for direction, each in packets:
        decisions.append(ours.handle(each, entry, direction))
        if any(isinstance(event, Finished) for event in decisions[-1].events):
            break
    return decisions


def opened(decisions: Iterable[Decision]) -> list[Expectation]:
    return [one for each in decisions for one in each.expectations]


def texts(packets: Iterable[tuple[Direction, bytes]]) -> list[str]:
    """The expectations, where nothing goes wrong."""
    decisions = handle(packets)
    assert not [event for each in decisions for event in each.events]
    return list(map(str, opened(decisions)))


def refused(decisions: Iterable[Decision]) -> list[str]:
    events = [event for each in decisions for event in each.events]
    assert all(isinstance(event, Refused) for event in events)
    return [event.reason for event in events if isinstance(event, Refused)]


def damage(decisions: Iterable[Decision]) -> list[str]:
    events = [event for each in decisions for event in each.events]
    assert all(isinstance(event, Damaged) for event in events)
    return [event.reason for event in events if isinstance(event, Damaged)]


def test_expectation_is_made_with_the_segment_that_completes_the_text() -> None:
    pieces = cut(b"".join(deferred(address())), [9, 25])
    decisions = handle(segments([connect()], pieces))
    assert [len(each.expectations) for each in decisions] == [0, 0, 0, 0, 0, 1]
    ((expectation,),) = [each.expectations for each in decisions if each.expectations]
    assert (expectation.permanent, expectation.timeout) == (False, 60)


@pytest.mark.parametrize("direction", list(Direction), ids=lambda each: each.value)
def test_flow_that_is_not_tns_is_finished_without_noise(direction: Direction) -> None:
    sent, answers = ([TLS], []) if direction is ORIGINAL else ([], [b"220 ready\r\n"])
    decisions = handle(segments(sent, answers))
    assert [each.events for each in decisions] == [(), (), (Finished("done"),)]


def test_redirect_of_a_client_ends_the_reading_of_its_direction_alone() -> None:
    packets = segments([connect(), redirect(TEXT)], deferred(TEXT))
    decisions = handle(packets)
    assert damage(decisions) == ["REDIRECT in original direction"]
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]


# Options


def test_options_are_read_from_the_configuration() -> None:
    config = configured(
        "[helpers.tns]\n"
        'hostname = "same"\n'
        f'hosts = ["{NODE} rac1  rac1.example.net", "{NODE6} rac1"]\n'
        "chained = true\n"
    )
    assert config.options == {
        "hostname": "same",
        "hosts": hosts(f"{NODE} rac1.example.net rac1", f"{NODE6} RAC1"),
        "chained": True,
    }


@pytest.mark.parametrize(
    "value",
    [
        '"192.0.2.11"',
        '""',
        '"rac1"',
        '"rac1 192.0.2.11"',
        '"192.0.2.11 192.0.2.12"',
        '"192.0.2.11 rac1 192.0.2.12"',
        '"192.0.2.300 rac1"',
        '"192.0.2.0/24 rac1"',
        '"fe80::1%eth0 rac1"',
        '"192.0.2.11 rac/1"',
        "11",
    ],
)
def test_line_that_is_none_is_a_configuration_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a line such as") as caught:
        configured(f"[helpers.tns]\nhosts = [{value}]\n")
    assert "\n" not in str(caught.value)


# Any segmentation, any bytes

# Small ones, for each is cut in all sizes.
SMALL: Final = "(ADDRESS=(PROTOCOL=tcp)(HOST=r)(PORT=4))"
SMALL_CONNECT: Final = packet(1, bytes(26))
SMALL_FORMS: Final = list(forms(SMALL, "(x").values())

conversations = st.lists(
    st.sampled_from([*SMALL_FORMS, [RESEND], [MARKER], [CONTROL], [data("x")]]),
    max_size=2,
).map(lambda parts: [each for part in parts for each in part])
ends = st.sampled_from(
    [
        [],
        [ACCEPT, LONG_DATA, redirect(SMALL)],
        [REFUSE],
        [redirect("x"), redirect(SMALL)],
        [redirect("(ADDRESS=(PROTOCOL=tcp)(HOST=s)(PORT=4))")],
        [packet(6, length=7), redirect(SMALL)],
    ]
)


def small() -> Line:
    return line(hosts=hosts(f"{SERVER} r"))


@given(conversations, ends, st.booleans())
def test_any_segmentation_gives_the_same_effects(
    answers: list[bytes], end: list[bytes], resent: bool
) -> None:
    flow = small()
    messages = [flow.sent(SMALL_CONNECT), flow.sent(data("(x"))]
    if resent:
        messages += [flow.answered(RESEND), *messages]
    messages += map(flow.answered, [*answers, *end])
    found = any_segmentation(Tns, messages)
    redirects = sum(each[4] == 5 for each in answers)
    assert found[:redirects] == [to(port=4)] * redirects


@given(st.permutations(range(6)), st.lists(st.integers(1, len(TEXT) + 19), max_size=5))
def test_any_order_of_the_servers_segments_gives_the_same_expectations(
    order: list[int], at: list[int]
) -> None:
    packets = segments([connect()], cut(b"".join(deferred(TEXT)), at))
    first, theirs = packets[:3], packets[3:]
    shuffled = [theirs[each] for each in order if each < len(theirs)]
    assert texts(first + shuffled) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]


bodies = st.binary(max_size=20) | st.sampled_from(
    [b"", SMALL.encode(), SMALL.encode() + b"\0(x", b"\0\0" + SMALL.encode(), b"\0\0("]
)
packets_ = (
    st.builds(packet, st.integers(0, 15), bodies)
    | st.builds(redirect, bodies, length=st.none() | st.integers(0, 65535))
    | st.builds(data, bodies)
    | st.sampled_from([SMALL_CONNECT, ACCEPT, RESEND, TLS[:40]])
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The beginning of a packet and any bytes after it."""
    whole = draw(packets_)
    return whole[: draw(st.integers(0, len(whole)))] + draw(st.binary(max_size=20))


exchanges = st.lists(
    st.tuples(
        st.sampled_from(Direction), st.binary(max_size=20) | packets_ | damaged()
    ),
    max_size=5,
)


@given(exchanges, st.sampled_from(["refuse", "same"]))
@example([(ORIGINAL, connect()), (REPLY, redirect(TEXT))], "refuse")
def test_any_bytes_give_effects_malformed_or_refusals_and_nothing_else(
    exchanged: list[tuple[Direction, bytes]], hostname: str
) -> None:
    helper, flow = Tns(), line(hostname=hostname)
    for direction, body in exchanged:
        message = flow.message(direction, body)
        try:
            fields = helper.describe(message)
            effects = play(helper, [message])
        except (Malformed, ExpectationRefused):
            continue
        assert all(fields.values())
        if any(isinstance(each, Expect) for each in effects):
            assert direction is REPLY
            assert DONE not in effects


@given(exchanges)
def test_any_streams_are_the_same_in_any_segmentation(
    exchanged: list[tuple[Direction, bytes]],
) -> None:
    flow = small()
    messages = [flow.message(direction, body) for direction, body in exchanged]
    any_segmentation(Tns, messages)
    any_segmentation(Tns, [flow.sent(SMALL_CONNECT), *messages])


@given(st.sampled_from(SMALL_FORMS), st.binary(max_size=40))
def test_what_follows_a_redirect_does_not_change_it(
    form: list[bytes], junk: bytes
) -> None:
    flow = small()
    messages = [flow.sent(SMALL_CONNECT), flow.answered(b"".join(form) + junk)]
    assert any_segmentation(Tns, messages)[:1] == [to(port=4)]


# In words


@cases(
    "answers, fields",
    {
        "RESEND": ([RESEND], {"type": "RESEND (11)", "length": "8"}),
        "unknown": ([packet(99)], {"type": "unknown (99)", "length": "8"}),
        "ACCEPT": ([ACCEPT], {"type": "ACCEPT (2)", "length": "65"}),
        "MARKER": ([MARKER], {"type": "MARKER (12)", "length": "11"}),
        "MARKER within a redirect": (
            [redirect(), MARKER],
            {"type": "MARKER (12)", "length": "11"},
        ),
        "DATA": ([data("x")], {"type": "DATA (6)", "length": "11"}),
        "REDIRECT": (
            [redirect(TEXT)],
            {
                "type": "REDIRECT (5)",
                "length": str(10 + len(TEXT)),
                "redirect data": f"{len(TEXT)} of {len(TEXT)}",
                "redirects to": f"tcp {SERVER}:{PORT}",
            },
        ),
        "REDIRECT, DATA to follow": (
            [redirect(length=len(TEXT))],
            {
                "type": "REDIRECT (5)",
                "length": "10",
                "redirect data": f"0 of {len(TEXT)}",
                "redirects to": "what DATA will say",
            },
        ),
        "DATA of a REDIRECT": (
            deferred(address("rac1") + address(SERVER6, 2484, "tcps"), length=0),
            {
                "type": "DATA (6)",
                "length": "113",
                "redirect data": "103 of ?",
                "redirects to": f"tcp rac1:{PORT}, tcps [{SERVER6}]:2484",
            },
        ),
        "REDIRECT to another protocol": (
            [redirect("(ADDRESS=(PROTOCOL=ipc))")],
            {
                "type": "REDIRECT (5)",
                "length": "34",
                "redirect data": "24 of 24",
                "redirects to": "nothing over TCP",
            },
        ),
    },
)
def test_packet_of_a_server_is_described(
    answers: list[bytes], fields: dict[str, str]
) -> None:
    helper, flow = Tns(), line()
    *before, last = conversation(flow, *answers)
    play(helper, before)
    assert helper.describe(last) == fields


def test_packet_of_a_client_is_described() -> None:
    helper, flow = Tns(), line()
    first = flow.sent(connect())
    for _ in range(2):
        assert helper.describe(first) == {"type": "CONNECT (1)", "length": "122"}
        play(helper, [first])
    assert Tns().describe(flow.sent(TLS)) == {"type": "not TNS"}
    assert Tns().describe(flow.answered(REFUSE)) == {"type": "not TNS"}


@tshark.needed
def test_tshark_reads_the_same(tmp_path: Path) -> None:
    answers = [
        *(RESEND, MARKER, CONTROL, REFUSE, ACCEPT),
        *(each for form in FORMS.values() for each in form),
        redirect(address(SERVER6) + address("rac1", 2484, "tcps")),
    ]
    capture = tmp_path / "capture.pcap"
    # A flow for each packet, so that none depends on those before it.
    wrpcap(
        str(capture),
        [
            Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
            / IP(src=SERVER, dst=CLIENT)
            / ScapyTCP(sport=1521, dport=40000 + number, flags="PA")
            / each
            for number, each in enumerate(answers)
        ],
    )
    names = ("type", "length", "redirect_data_length", "redirect_data")
    read = tshark.fields(capture, [f"tns.{each}" for each in names])
    assert len(read) == len(answers)
    for answer, (kind, length, size, text) in zip(answers, read, strict=True):
        helper, flow = Tns(), line()
        play(helper, [flow.sent(connect())])
        ours = helper.describe(flow.answered(answer))
        assert ours["type"].endswith(f"({kind})")
        assert ours["length"] == length
        if size:
            # It shows a length of 0 as it is, and as much of the text as is there.
            assert ours["redirect data"].endswith(f" of {int(size) or '?'}")
        if size and ours["redirects to"] != "what DATA will say":
            found = ", ".join(map(str, parse_addresses(text.encode())))
            assert ours["redirects to"] == found

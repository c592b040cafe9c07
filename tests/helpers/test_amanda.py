# SPDX-License-Identifier: GPL-2.0-or-later
"""Amanda: which answers of a client open ports, and which numbers are ports."""

from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    TCP,
    UDP,
    Effect,
    Endpoint,
    Expect,
    ExpectationRefused,
    Malformed,
    Message,
    Rewrite,
)
from cthelper.helpers.amanda import Amanda, parse
from cthelper.testing import Line, expectations, play
from tests.cases import cases
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6, endpoint, flow_tuple
from tests.helpers.captures import PCAPS, broken, manifest, related, replayed, told
from tests.helpers.inspected import Inspected
from tests.helpers.translated import NATS, known, translated

LINE: Final = Line(flow_tuple(UDP, (CLIENT, 854), (SERVER, 10080)))
LINE6: Final = Line(flow_tuple(UDP, (CLIENT6, 854), (SERVER6, 10080)))
BSD: Final = "CONNECT DATA 50040 MESG 50041 INDEX 50042 STATE 50043"
BSDUDP: Final = "CONNECT DATA 50048 MESG 499999 INDEX 499998 STATE 499997"
FEATURES: Final = "OPTIONS features=ffffffff9efefb"


def packet(
    kind: str,
    *lines: str,
    handle: str = "000-00000000",
    seq: int = 7,
    version: str = "3.5",
) -> bytes:
    head = f"Amanda {version} {kind} HANDLE {handle} SEQ {seq}"
    return "".join(f"{each}\n" for each in (head, *lines)).encode()


REQUEST: Final = packet("REQ", "SECURITY USER backup", "SERVICE sendbackup")


def answered(*answers: bytes, line: Line = LINE) -> list[Effect]:
    """The effects of a client's datagrams, after a request."""
    return play(Amanda(), [line.sent(REQUEST), *map(line.answered, answers)])


def opened(*ports: int, server: str = SERVER) -> list[Effect]:
    return [Expect(endpoint(server, port), "stream", TCP) for port in ports]


def wishes(effects: list[Effect]) -> list[Effect]:
    return [each for each in effects if isinstance(each, Expect)]


def handles(message: str, outcome: str) -> pytest.MarkDecorator:
    return pytest.mark.handles("amanda", message, outcome)


OPENS: Final = "server > client:PORT, each once, 180 s"

# What opens ports


@handles("REP to a REQ, with CONNECT", OPENS)
@cases(
    "said, ports",
    {
        "bsd": (BSD, (50040, 50041, 50042, 50043)),
        "bsd, of three": (
            "CONNECT DATA 1024 MESG 1025 INDEX 65535",
            (1024, 1025, 65535),
        ),
        "bsdudp": (BSDUDP, (50048,)),
        "no index": ("CONNECT DATA 50040 MESG 50041 INDEX -1", (50040, 50041)),
        "a stream that cannot be had": (
            "CONNECT DATA 50060 MESG 50005 INDEX -1 STATE 50014",
            (50060, 50005, 50014),
        ),
        "the first one cannot": (
            "CONNECT DATA -1 MESG 50047 INDEX 50056 STATE 50058",
            (50047, 50056, 50058),
        ),
        "names to come": ("CONNECT X_2 50040 YZ 50041 ", (50040, 50041)),
        "eight, of which four are ports": (
            "CONNECT A 1025 B 65536 C 1026 D 99999 E 1027 F -1 G 1028 H 9999999999",
            (1025, 1026, 1027, 1028),
        ),
    },
)
def test_numbers_that_are_ports_are_expected(said: str, ports: tuple[int, ...]) -> None:
    for lines in ((said,), (said, FEATURES), (FEATURES, said, "")):
        assert wishes(answered(packet("REP", *lines))) == opened(*ports)


@pytest.mark.parametrize("version", ["2.6", "3.5", "3.10", "10.1"])
def test_any_version_is_read(version: str) -> None:
    found = answered(packet("REP", BSD, version=version))
    assert wishes(found) == opened(50040, 50041, 50042, 50043)


def test_answer_over_ipv6_opens_them_there() -> None:
    found = answered(packet("REP", BSDUDP), line=LINE6)
    assert wishes(found) == opened(50048, server=SERVER6)


def test_answer_that_is_sent_again_opens_them_again() -> None:
    found = answered(*[packet("REP", BSDUDP)] * 2)
    assert wishes(found) == opened(50048) * 2


def test_two_backups_of_one_flow_are_told_apart() -> None:
    both = [packet("REQ", handle=f"00{n}-00000000", seq=n) for n in (1, 2)]
    answers = [
        packet("REP", f"CONNECT DATA 5000{n}", handle=f"00{n}-00000000", seq=n)
        for n in (2, 1)
    ]
    found = play(Amanda(), [*map(LINE.sent, both), *map(LINE.answered, answers)])
    assert wishes(found) == opened(50002, 50001)


def test_port_that_is_granted_is_written_in_its_place() -> None:
    def grant(wish: Expect) -> Endpoint:
        return endpoint("203.0.113.1", 1100 if wish.endpoint.port == 50041 else 50040)

    answer = packet("REP", "CONNECT DATA 50040 MESG 50041", FEATURES)
    found = play(Amanda(), [LINE.sent(REQUEST), LINE.answered(answer)], grant)
    rewritten = answer
    for each in reversed(found):
        if isinstance(each, Rewrite):
            start, stop = each.span
            rewritten = rewritten[:start] + each.data + rewritten[stop:]
    assert rewritten == packet("REP", "CONNECT DATA 50040 MESG 1100", FEATURES)


def test_refused_stream_does_not_end_the_others() -> None:
    def grant(wish: Expect) -> Endpoint:
        if wish.endpoint.port == 50041:
            raise ExpectationRefused("denied-port", "it is")
        return wish.endpoint

    messages = [LINE.sent(REQUEST), LINE.answered(packet("REP", BSD))]
    found = play(Amanda(), messages, grant)
    assert len([each for each in found if isinstance(each, Rewrite)]) == 3


# Behind NAT


@pytest.mark.parametrize(
    ("nat", "taken"),
    [
        *((nat, ()) for nat in NATS),
        *((nat, (50041, 50043)) for nat in ("dnat", "both")),
    ],
)
def test_ports_that_are_taken_are_others_in_the_answer(
    nat: str, taken: tuple[int, ...]
) -> None:
    flow = Inspected(Amanda, translated(Amanda, nat=nat), "enabled = true", taken=taken)
    flow.sent(REQUEST)
    received = flow.answered(packet("REP", BSD, FEATURES))
    ports = [each.destination.port for each in flow.kernel.present]
    assert [port in taken for port in ports] == [False] * 4
    assert {each.destination.address for each in flow.kernel.present} == {
        ip_address(known(nat))
    }
    told = parse(received).streams
    assert [each.name for each in told] == ["DATA", "MESG", "INDEX", "STATE"]
    assert [each.number for each in told] == ports
    assert received.endswith(f"\n{FEATURES}\n".encode())


# What does not


@handles("PREP", "nothing")
@handles("ACK", "nothing")
@handles("NAK", "nothing")
@handles("REQ", "nothing but its answer")
@cases(
    "messages",
    {
        "REQ": [LINE.sent(packet("REQ", BSD))],
        "REP of the server": [LINE.sent(REQUEST), LINE.sent(packet("REP", BSD))],
        "PREP": [LINE.sent(REQUEST), LINE.answered(packet("PREP", BSD))],
        "ACK": [LINE.sent(REQUEST), LINE.answered(packet("ACK", BSD))],
        "NAK": [LINE.sent(REQUEST), LINE.answered(packet("NAK", BSD))],
        "REQ of the client": [LINE.sent(REQUEST), LINE.answered(packet("REQ", BSD))],
        "REP without streams": [
            *(LINE.sent(REQUEST), LINE.answered(packet("REP", FEATURES)))
        ],
        "streams alone": [
            *(LINE.sent(REQUEST), LINE.answered(packet("REP", "CONNECT MESG 499999")))
        ],
        "CONNECT within a line": [
            *(LINE.sent(REQUEST), LINE.answered(packet("REP", f"ERROR {BSD}")))
        ],
    },
)
def test_all_else_opens_nothing(messages: list[Message]) -> None:
    assert play(Amanda(), messages) == []


@handles("REP that answers no REQ", "refused")
@cases(
    "messages",
    {
        "no request": [],
        "another handle": [LINE.sent(packet("REQ", handle="001-00000000"))],
        "another number": [LINE.sent(packet("REQ", seq=8))],
        "acknowledged alone": [LINE.sent(packet("ACK"))],
        "an hour and more ago": [LINE.sent(REQUEST, now=0.0)],
        "forgotten": [
            LINE.sent(REQUEST),
            *(LINE.sent(packet("REQ", seq=seq)) for seq in range(10, 26)),
        ],
    },
)
def test_answer_that_nobody_asked_for_is_refused(messages: list[Message]) -> None:
    late = LINE.answered(packet("REP", BSD), now=3601.0)
    helper = Amanda()
    play(helper, messages)
    with pytest.raises(ExpectationRefused) as refused:
        play(helper, [late])
    assert refused.value.reason == "unasked"


def test_request_that_is_sent_again_is_as_new() -> None:
    messages = [LINE.sent(REQUEST, now=0.0), LINE.sent(REQUEST, now=3000.0)]
    answer = LINE.answered(packet("REP", BSDUDP), now=3601.0)
    assert wishes(play(Amanda(), [*messages, answer])) == opened(50048)


@handles("no header, or more than eight streams", "malformed, opens nothing")
@cases(
    "datagram",
    {
        "nothing": b"",
        "no Amanda": b"amanda 3.5 REP HANDLE 000-00000000 SEQ 7\nCONNECT DATA 50040\n",
        "no type": packet("RES", BSD),
        "no end of the header": packet("REP")[:-1],
        "handle without end": packet("REP", BSD, handle="0" * 41),
        "number with a sign": packet("REP", BSD, seq=-7),
        "no number": packet("REP", "CONNECT DATA"),
        "no name": packet("REP", "CONNECT 50040"),
        "eleven digits": packet("REP", "CONNECT DATA 10000050040"),
        "hexadecimal": packet("REP", "CONNECT DATA 0x5000"),
        "two blanks": packet("REP", "CONNECT DATA  50040"),
        "nine streams": packet("REP", "CONNECT" + " A 50040" * 9),
        "not one good": packet("REP", "CONNECT DATA 50040 MESG"),
    },
)
def test_what_breaks_the_protocol_is_malformed(datagram: bytes) -> None:
    helper = Amanda()
    play(helper, [LINE.sent(REQUEST)])
    with pytest.raises(Malformed):
        play(helper, [LINE.answered(datagram)])


def test_requests_are_bounded() -> None:
    helper = Amanda()
    play(helper, [LINE.sent(packet("REQ", seq=seq)) for seq in range(1000)])
    assert helper.footprint() < 5000
    found = play(helper, [LINE.answered(packet("REP", BSDUDP, seq=999))])
    assert wishes(found) == opened(50048)


@given(st.binary(max_size=200) | st.binary(max_size=80).map(packet("REP").__add__))
def test_any_bytes_are_read_or_malformed(datagram: bytes) -> None:
    try:
        found = parse(datagram)
    except Malformed:
        return
    for each in found.streams:
        start, stop = each.span
        assert int(datagram[start:stop]) == each.number
    assert len(found.streams) <= 8


def test_prefilter_lets_by_what_is_neither_asked_nor_answered() -> None:
    def read(datagram: bytes, way: str) -> bool:
        alternatives = getattr(Amanda.prefilter({}), way)
        number = int.from_bytes(datagram[:64].ljust(64, b"\0"))
        return any(
            all(
                (number >> (512 - each.offset - each.length)) % (1 << each.length)
                == each.value
                for each in alternative
            )
            for alternative in alternatives
        )

    for kind in ("REQ", "REP", "PREP", "ACK", "NAK"):
        for version in ("3.5", "3.10"):
            datagram = packet(kind, version=version)
            assert read(datagram, "request") is (kind == "REQ")
            # PREP is read with the longer version's place.
            if kind != "PREP":
                assert read(datagram, "reply") is (kind == "REP")


def test_description_says_which_numbers_are_ports() -> None:
    assert Amanda().describe(LINE.answered(packet("REP", BSDUDP))) == {
        "type": "REP",
        "transaction": "HANDLE 000-00000000 SEQ 7",
        "stream DATA": "port 50048",
        "stream MESG": "no port, 499999",
        "stream INDEX": "no port, 499998",
        "stream STATE": "no port, 499997",
    }


# Real ones


@pytest.mark.parametrize("name", ["amanda-amservice-bsd", "amanda-amservice-noop"])
def test_captured_streams_are_let_in(name: str) -> None:
    settings = manifest()[f"amanda/{name}.pcap"]["settings"]
    events = replayed(PCAPS / "amanda" / f"{name}.pcap", settings)
    assert expectations(events) == told(f"amanda/{name}")
    stream = (5, "tcp 10.92.1.2:50000 > 10.92.1.1:50078")
    assert related(events) == ([stream] if name.endswith("bsd") else [])
    assert broken(events) == []

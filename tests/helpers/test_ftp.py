# SPDX-License-Identifier: GPL-2.0-or-later
"""The worked example of a plugin, FTP: what is announced, and what only looks like it.

Where a test says "conntrackd", it names a fault of conntrackd's ftp helper.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    Effect,
    Endpoint,
    Expect,
    Grant,
    Malformed,
    Message,
    Rewrite,
)
from cthelper.core.config import parse
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.outcome import Event, Refused
from cthelper.core.registry import register
from cthelper.helpers.ftp import (
    Announced,
    Ftp,
    emit_extended,
    emit_six,
    parse_command,
    parse_eprt,
    parse_extended_passive,
    parse_passive,
    parse_port,
    parse_reply,
)
from cthelper.testing import (
    Line,
    any_segmentation,
    check,
    endpoint,
    expectations,
    failures,
    play,
    related,
    replay,
)
from tests.core.builders import SERVER, conntrack, tcp
from tests.helpers.inspected import Inspected, entry_of

PCAPS: Final = Path(__file__).parents[2] / "pcaps" / "ftp"
LINE: Final = Line.between(TCP, "192.0.2.1:40000", "198.51.100.2:21")
LINE6: Final = Line.between(TCP, "[2001:db8::1]:40000", "[2001:db8::2]:21")

# A conversation in short: "> " is the client's line, "< " the server's.
GREETING: Final = "< 220 ready"
# Another address, of which nothing says that it is the server's.
THERE: Final = "203.0.113.9"


def lines(*texts: str, line: Line = LINE) -> list[Message]:
    make = {"> ": line.sent, "< ": line.answered}
    return [make[text[:2]](text[2:].encode("latin-1") + b"\r\n") for text in texts]


def data(text: str) -> Expect:
    """The data flow's expectation."""
    return Expect(endpoint(text), "data")


ANNOUNCEMENTS: Final[list[tuple[Sequence[str], str]]] = [
    (["> PORT 192,0,2,1,156,64"], "192.0.2.1:40000"),
    (["> PORT 192,0,2,1,156,64  "], "192.0.2.1:40000"),
    # conntrackd compares the case of verbs.
    (["> port 192,0,2,1,156,64"], "192.0.2.1:40000"),
    (["> Eprt |1|192.0.2.1|40000|"], "192.0.2.1:40000"),
    # conntrackd: EPRT of IPv6 is refused.
    (["> EPRT |2|2001:db8::1|40000|"], "[2001:db8::1]:40000"),
    # RFC 2428, section 2: any delimiter.
    (["> EPRT !2!2001:db8::1!40000!"], "[2001:db8::1]:40000"),
    (["> PASV", "< 227 Entering passive (198,51,100,2,156,64)."], "198.51.100.2:40000"),
    # conntrackd wants the parenthesis, which RFC 1123 (4.1.2.6) does not.
    (["> PASV", "< 227 Entering 198,51,100,2,156,64"], "198.51.100.2:40000"),
    (["> PASV", "< 227 =198,51,100,2,156,64"], "198.51.100.2:40000"),
    (["> PASV", "< 227 Data on 7 (198,51,100,2,156,64)"], "198.51.100.2:40000"),
    # conntrackd: EPSV never works.
    (["> EPSV", "< 229 Entering extended (|||40000|)"], "198.51.100.2:40000"),
    (["> epsv 1", "< 229 Entering extended (!!!40000!)"], "198.51.100.2:40000"),
    # In a reply of several lines the last one counts.
    (
        ["> EPSV", "< 229-Wait", "<  229 (|||1|)", "< 229 (|||40000|)"],
        "198.51.100.2:40000",
    ),
    # A command that fails in between is answered, too.
    (
        ["> EPSV", "< 500 what?", "> PASV", "< 227 (198,51,100,2,156,64)"],
        "198.51.100.2:40000",
    ),
    # Pipelined: conntrackd reads one line of a segment.
    (
        ["> TYPE I", "> PASV", "> RETR f", "< 200 ok", "< 227 (198,51,100,2,156,64)"],
        "198.51.100.2:40000",
    ),
    # An interrupted transfer (RFC 959, section 4.1.3).
    (["> \xff\xf4\xff\xf2ABOR", "> PORT 192,0,2,1,156,64"], "192.0.2.1:40000"),
]


@pytest.mark.parametrize(("texts", "announced"), ANNOUNCEMENTS)
def test_announcement_leads_to_one_expectation(
    texts: Sequence[str], announced: str
) -> None:
    messages = lines(GREETING, *texts)
    assert any_segmentation(Ftp, messages) == [data(announced)]


def test_passive_reply_opens_the_port_at_the_servers_own_address_too() -> None:
    messages = lines(GREETING, "> PASV", "< 227 (203,0,113,9,156,64)")
    own, other = play(Ftp(), messages)
    assert own == data("198.51.100.2:40000")
    assert other == Expect(endpoint("203.0.113.9:40000"), "data", alternative=True)


@pytest.mark.parametrize(
    ("inside", "allowed", "opened", "told", "refused"),
    [
        (SERVER, "", [f"{SERVER}:40000"], THERE, ["other-address"]),
        (SERVER, THERE, [f"{SERVER}:40000", f"{THERE}:40000"], THERE, []),
        # Behind NAT the client is told where it gets to.
        ("10.0.0.2", "", [f"{SERVER}:40000"], SERVER, ["other-address"]),
        ("10.0.0.2", THERE, [f"{SERVER}:40000"], SERVER, ["nat"]),
    ],
    ids=["plain", "allowed", "translated", "outside unknown"],
)
def test_passive_reply_with_another_address_lets_the_client_in(
    inside: str, allowed: str, opened: list[str], told: str, refused: list[str]
) -> None:
    setting = [f'guard.allow_hosts = ["{allowed}/32"]'] if allowed else []
    flow = Inspected(Ftp, entry_of(Ftp, inside=inside), *setting)
    flow.answered(b"220 ready\r\n")
    flow.sent(b"PASV\r\n")
    received = flow.answered(b"227 (203,0,113,9,156,64)\r\n")
    assert [str(each.destination) for each in flow.expectations] == opened
    assert received == b"227 (%s,156,64)\r\n" % told.replace(".", ",").encode()
    assert flow.refused == refused


def test_extended_passive_reply_names_the_server_that_sends_it() -> None:
    messages = lines(GREETING, "> EPSV", "< 229 (|||40000|)", line=LINE6)
    assert play(Ftp(), messages) == [data("[2001:db8::2]:40000")]


@pytest.mark.parametrize(
    "texts",
    [
        ["> USER PORT 192,0,2,1,156,64"],
        ["> PASS 227 (198,51,100,2,156,64)"],
        ["> STOR PORT"],
        ["< 230-227 (198,51,100,2,156,64)", "< 230 ok"],
        ["> STAT d", "< 213-", "< 227 (198,51,100,2,156,64)", "< 213 end"],
        ["> PASV", "< 500-", "< 227 (198,51,100,2,156,64)", "< 500 no"],
        ["> EPRT |3|x|40000|", "< 522 (1,2)"],
        ["> LPRT 4,4,192,0,2,1,2,156,64"],
    ],
)
def test_what_only_looks_like_an_announcement_leads_to_nothing(
    texts: Sequence[str],
) -> None:
    assert any_segmentation(Ftp, lines(GREETING, *texts)) == []


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["< 227 (198,51,100,2,156,64)"], "227 without a command"),
        (["> EPSV", "< 227 (198,51,100,2,156,64)"], "227 without a command"),
        (["> PASV", "< 229 (|||40000|)"], "229 without a command"),
    ],
)
def test_reply_that_nobody_asked_for_is_refused(
    texts: Sequence[str], reason: str
) -> None:
    assert any_segmentation(Ftp, lines(GREETING, *texts)) == [f"unasked: {reason}"]


def test_one_command_is_answered_once() -> None:
    reply = "< 227 (198,51,100,2,156,64)"
    found = any_segmentation(Ftp, lines(GREETING, "> PASV", reply, reply))
    assert found == [data("198.51.100.2:40000"), "unasked: 227 without a command"]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        # conntrackd: octets over 255 and ports over 65535 spill over.
        (["> PORT 192,0,2,256,156,64"], "256 is over 255 in 192,0,2,256,156,64"),
        (["> PORT 192,0,2,1,256,0"], "256 is over 255 in 192,0,2,1,256,0"),
        (["> PORT 192,0,2,1,156"], "PORT without six numbers: b'192,0,2,1,156\\r\\n'"),
        (["> PORT"], "PORT without six numbers: b'\\r\\n'"),
        (["> PORT 1,2,3,4,5,6,7"], "PORT without six numbers: b'1,2,3,4,5,6,7\\r\\n'"),
        (["> EPRT |1|192.0.2.1|65536|"], "port 65536 is over 65535"),
        (
            ["> EPRT |1|192.0.2.300|5000|"],
            "EPRT: Octet 300 (> 255) not permitted in '192.0.2.300'",
        ),
        (
            ["> EPRT |2|192.0.2.1|5000|"],
            "EPRT: At least 3 parts expected in '192.0.2.1'",
        ),
        (["> EPRT |2|fe80::1%a|5000|"], "EPRT with a zone: 'fe80::1%a'"),
        (
            ["> EPRT |1|192.0.2.1|5000"],
            "EPRT without an endpoint: b'|1|192.0.2.1|5000\\r\\n'",
        ),
        (
            ["> PASV", "< 227 Entering"],
            "227 without six numbers: b'227 Entering\\r\\n'",
        ),
        (["> EPSV", "< 229 (|||65536|)"], "port 65536 is over 65535"),
        (
            ["> EPSV", "< 229 (|1|203.0.113.9|5000|)"],
            "229 without a port: b'229 (|1|203.0.113.9|5000|)\\r\\n'",
        ),
        # Not FTP: what a browser was made to send.
        (["> POST / HTTP/1.1"], "the client speaks HTTP: POST"),
        (["> connect a:21 HTTP/1.1"], "the client speaks HTTP: CONNECT"),
        (["> Host: 198.51.100.2"], "no command: b'Host: 198.51.100.2\\r\\n'"),
        (["> "], "no command: b'\\r\\n'"),
        (["< SSH-2.0-server"], "no reply: b'SSH-2.0-server\\r\\n'"),
        (["< 2200 x"], "no reply: b'2200 x\\r\\n'"),
    ],
)
def test_malformed_line_says_what_is_wrong(texts: Sequence[str], reason: str) -> None:
    assert any_segmentation(Ftp, lines(GREETING, *texts)) == [reason]


def test_client_that_speaks_first_is_not_read() -> None:
    found = any_segmentation(Ftp, lines("> PORT 192,0,2,1,156,64", GREETING))
    assert found == ["the client speaks before the server is ready"]


def test_form_that_holds_a_command_opens_nothing() -> None:
    form = ["> POST / HTTP/1.1", "> PORT 192,0,2,1,156,64"]
    assert any_segmentation(Ftp, lines(GREETING, *form)) == [
        "the client speaks HTTP: POST"
    ]


@pytest.mark.parametrize("code", ["234", "235"])
def test_encryption_ends_the_reading(code: str) -> None:
    messages = lines(
        *(GREETING, "> AUTH TLS", f"< {code} go ahead"),
        *("> \x16\x03\x01", "> PORT 192,0,2,1,156,64"),
    )
    assert any_segmentation(Ftp, messages) == [DONE]


def test_refused_encryption_does_not_end_the_reading() -> None:
    messages = lines(*(GREETING, "> AUTH TLS", "< 534 no", "> PORT 192,0,2,1,156,64"))
    assert any_segmentation(Ftp, messages) == [data("192.0.2.1:40000")]


# NAT: what was granted is written where the announcement stands.


def rewritten(message: Message, helper: Ftp, granted: str) -> bytes:
    """The line after its announcement was granted as another endpoint."""
    reaction = helper.on_message(message)
    effect: Effect = next(reaction)
    assert isinstance(effect, Expect)
    effect = reaction.send(Grant(endpoint(granted)))
    assert isinstance(effect, Rewrite)
    assert next(reaction, None) is None
    start, stop = effect.span
    return message.payload[:start] + effect.data + message.payload[stop:]


@pytest.mark.parametrize(
    ("texts", "granted", "line"),
    [
        (["> PORT 192,0,2,1,156,64"], "203.0.113.9:1025", "PORT 203,0,113,9,4,1"),
        (["> EPRT |1|192.0.2.1|5000|"], "203.0.113.9:5", "EPRT |1|203.0.113.9|5|"),
        (["> EPRT !2!2001:db8::1!5!"], "[2001:db8::9]:6", "EPRT |2|2001:db8::9|6|"),
        (
            ["> PASV", "< 227 At (198,51,100,2,156,64)."],
            "203.0.113.9:1025",
            "227 At (203,0,113,9,4,1).",
        ),
        (["> EPSV", "< 229 (|||40000|)"], "203.0.113.9:5", "229 (|||5|)"),
    ],
)
def test_granted_endpoint_takes_the_place_of_the_announced(
    texts: Sequence[str], granted: str, line: str
) -> None:
    *before, last = lines(GREETING, *texts)
    helper = Ftp()
    assert play(helper, before) == []
    assert rewritten(last, helper, granted) == line.encode() + b"\r\n"


@pytest.mark.parametrize(
    "text",
    ["> PORT 192,000,002,001,156,064", "> EPRT |2|2001:0db8::0001|05000|"],
)
def test_announcement_that_is_granted_stays_as_it_was_written(text: str) -> None:
    effects = play(Ftp(), lines(GREETING, text))
    assert [type(each) for each in effects] == [Expect]


endpoints4 = st.builds(Endpoint, st.ip_addresses(v=4), st.integers(0, 0xFFFF))
endpoints = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 0xFFFF))


@given(endpoints4)
def test_six_numbers_read_as_written(value: Endpoint) -> None:
    text = emit_six(value)
    announced = Announced(value, (5, 5 + len(text)), emit_six)
    assert parse_port(b"PORT " + text + b"\r\n", 5) == announced
    assert parse_passive(b"227 (" + text + b")\r\n") == announced


@given(endpoints)
def test_extended_argument_reads_as_written(value: Endpoint) -> None:
    text = emit_extended(value)
    announced = parse_eprt(b"EPRT " + text + b"\r\n", 5)
    assert announced == Announced(value, (5, 5 + len(text)), emit_extended)


# Any bytes


PIECES: Final = (
    *(b"PORT ", b"EPRT ", b"227 ", b"229-", b"229 ", b"\xff\xf4", b"fe80::1%"),
    *(b"|", b"(", b")", b",", b"1", b"256", b" ", b"\r\n", b"\n", b"\r"),
)
pieces = st.sampled_from(PIECES)
texts = st.binary(max_size=60) | st.lists(pieces, max_size=16).map(b"".join)


@given(texts)
@example(b"EPRT |2|fe80::1%|1|\r\n")
def test_any_bytes_give_a_value_or_malformed(line: bytes) -> None:
    server = LINE.original.destination.address
    for read in (
        parse_command,
        parse_reply,
        lambda line: parse_port(line, 0),
        lambda line: parse_eprt(line, 0),
        parse_passive,
        lambda line: parse_extended_passive(line, server),
    ):
        with suppress(Malformed):
            read(line)


@given(st.lists(st.tuples(st.booleans(), texts), max_size=5))
def test_any_conversation_is_read_alike_in_any_segmentation(
    said: list[tuple[bool, bytes]],
) -> None:
    messages = [LINE.answered(b"220 ready\r\n")]
    for from_client, text in said:
        make = LINE.sent if from_client else LINE.answered
        messages += map(make, re.findall(rb"[^\n]*\n", text + b"\n"))
    any_segmentation(Ftp, messages)


# People


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("> PASS secret", {"command": "PASS"}),
        ("> port 192,0,2,1,156,64", {"command": "PORT"}),
        ("< 227 (198,51,100,2,156,64)", {"reply": "227"}),
        ("< 230-Hello", {"reply": "230"}),
    ],
)
def test_line_is_described_without_its_argument(
    text: str, fields: dict[str, str]
) -> None:
    helper = Ftp()
    play(helper, lines(GREETING))
    assert helper.describe(*lines(text)) == fields


def test_further_line_of_a_reply_is_described_as_such() -> None:
    helper = Ftp()
    play(helper, lines("< 220-Hello"))
    assert helper.describe(*lines("< it is late")) == {"reply": "220, a further line"}


def test_host_takes_the_plugin() -> None:
    check(Ftp)


# FTP bounce (RFC 2577): the guard's work, which needs the right endpoint.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("PORT 203,0,113,9,156,64", "third-party-address"),
        ("EPRT |1|203.0.113.9|40000|", "third-party-address"),
        ("EPRT |2|::ffff:192.0.2.1|40000|", "v4-mapped-address"),
        ("PORT 192,0,2,1,0,25", "denied-port"),
        ("PORT 192,0,2,1,3,255", "low-port"),
        ("PORT 192,0,2,1,0,0", "port-zero"),
    ],
)
def test_endpoint_of_another_host_or_service_is_refused(text: str, reason: str) -> None:
    config = parse("", Path("test.toml"), register([Ftp]))
    engine = Engine(
        config.helpers,
        guard=Guard(),
        on_link=lambda address: (),
        clock=lambda: 0.0,
        flow_limit=1,
    )
    entry = conntrack(helper="ftp")
    events: list[Event] = []
    for packet, direction in [
        (tcp(b"", 0, flags="S"), ORIGINAL),
        (tcp(b"", 0, flags="SA", direction=REPLY), REPLY),
        (tcp(b"220 ready\r\n", 1, direction=REPLY), REPLY),
        (tcp(text.encode() + b"\r\nPORT 192,0,2,1,156,64\r\n", 1), ORIGINAL),
    ]:
        decision = engine.handle(packet, entry, direction)
        events += decision.events
    assert [each.reason for each in events if isinstance(each, Refused)] == [reason]
    assert len(events) == 1
    # conntrackd: the announcement after a refused one may be missed.
    (expectation,) = decision.expectations
    assert str(expectation) == "tcp 198.51.100.2 > 192.0.2.1:40000"


# Real clients and a real server; the frames were read off with tshark.


@pytest.mark.parametrize(
    ("capture", "frame", "announced", "met"),
    [
        ("ftp-curl-pasv-other-pyftpdlib", 18, "tcp 10.92.1.2 > 10.92.1.3:51421", 19),
        ("ftp-curl-eprt4-pyftpdlib", 13, "tcp 10.77.2.2 > 10.77.1.2:56817", 14),
        ("ftp-curl-epsv4-pyftpdlib", 14, "tcp 10.77.1.2 > 10.77.2.2:35705", 15),
        ("ftp-curl-epsv6-pyftpdlib", 14, "tcp fd77:1::2 > [fd77:2::2]:47595", 15),
        ("ftp-curl-pasv-pyftpdlib", 14, "tcp 10.77.1.2 > 10.77.2.2:35437", 15),
        ("ftp-curl-port-pyftpdlib", 13, "tcp 10.77.2.2 > 10.77.1.2:40603", 14),
        ("ftp-lftp-port-pyftpdlib", 24, "tcp 10.77.2.2 > 10.77.1.2:34873", 25),
    ],
)
def test_data_flow_of_a_real_client_is_expected(
    capture: str, frame: int, announced: str, met: int
) -> None:
    events = replay(PCAPS / f"{capture}.pcap", Ftp)
    assert expectations(events) == [(frame, announced)]
    assert related(events) == [(met, frame)]
    other = "other" in capture
    assert failures(events) == [(frame, "refused: other-address")] * other


def test_every_capture_is_in_the_table() -> None:
    assert len(list(PCAPS.iterdir())) == 7

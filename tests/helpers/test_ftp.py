# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP: what is announced, and what only looks like it.

Where a test says "conntrackd", it names a fault of conntrackd's ftp helper.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    Effect,
    Expect,
    Grant,
    Message,
    Rewrite,
)
from cthelper.core.config import parse
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.outcome import Event, Refused
from cthelper.core.registry import register
from cthelper.helpers.ftp import (
    Ftp,
)
from cthelper.testing import (
    Line,
    any_segmentation,
    check,
    endpoint,
    play,
)
from tests.core.builders import SERVER, conntrack, tcp
from tests.helpers.inspected import Inspected, entry_of

PCAPS: Final = Path(__file__).parents[2] / "pcaps" / "ftp"
OPTIONS: Final = {"ccc": False}
LINE: Final = Line.between(TCP, "192.0.2.1:40000", "198.51.100.2:21", OPTIONS)
LINE6: Final = Line.between(TCP, "[2001:db8::1]:40000", "[2001:db8::2]:21", OPTIONS)

# A conversation in short: "> " is the client's line, "< " the server's.
GREETING: Final = "< 220 ready"
# Another address, of which nothing says that it is the server's.
THERE: Final = "203.0.113.9"


SERVER_OPENS: Final = "server > client:port, once, 300 s"
CLIENT_OPENS: Final = "client > server:port, once, 300 s"


def handles(message: str, outcome: str) -> pytest.MarkDecorator:
    """Proves what becomes of a message."""
    return pytest.mark.handles("ftp", message, outcome)


def lines(*texts: str, line: Line = LINE) -> list[Message]:
    make = {"> ": line.sent, "< ": line.answered}
    return [make[text[:2]](text[2:].encode("latin-1") + b"\r\n") for text in texts]


def data(text: str) -> Expect:
    """The data flow's expectation, but for its label."""
    return Expect(endpoint(text), "data")


def read(messages: Sequence[Message]) -> list[Effect | str]:
    """What they lead to, however they are cut; no labels, which other tests look at."""
    return [unlabelled(each) for each in any_segmentation(Ftp, messages)]


def unlabelled(effect: Effect | str) -> Effect | str:
    return replace(effect, label=None) if isinstance(effect, Expect) else effect


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
    (["> PASV", "< 227 entering ( 198,51,100,2,156,64 )"], "198.51.100.2:40000"),
    (["> PASV", "< 227 198,51,100,2,156,64"], "198.51.100.2:40000"),
    # conntrackd wants the parenthesis, which RFC 1123 (4.1.2.6) does not.
    (["> PASV", "< 227 Entering 198,51,100,2,156,64"], "198.51.100.2:40000"),
    (["> PASV", "< 227 =198,51,100,2,156,64"], "198.51.100.2:40000"),
    (["> PASV", "< 227 Data on 7 (198,51,100,2,156,64)"], "198.51.100.2:40000"),
    # conntrackd: EPSV never works.
    (["> EPSV", "< 229 Entering extended (|||40000|)"], "198.51.100.2:40000"),
    (["> epsv 1", "< 229 Entering extended (!!!40000!)."], "198.51.100.2:40000"),
    # Some servers answer one as the other.
    (["> EPSV 2", "< 227 (198,51,100,2,156,64)"], "198.51.100.2:40000"),
    (["> PASV", "< 229 (|||40000|)"], "198.51.100.2:40000"),
    # What they accept with another reply first, or say twice.
    (["> EPSV", "< 200 wait", "< 229 (|||40000|)"], "198.51.100.2:40000"),
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
    # As lftp does with sync-mode off.
    (
        ["> TYPE I", "> SIZE f", "> PORT 192,0,2,1,156,64", "> RETR f"],
        "192.0.2.1:40000",
    ),
    (
        *(["> SIZE f", "> PASV", "< 550 no", "< 227 (198,51,100,2,156,64)"],),
        "198.51.100.2:40000",
    ),
    # An interrupted transfer (RFC 959, section 4.1.3), answered twice or never.
    (["> \xff\xf4\xff\xf2ABOR", "> PORT 192,0,2,1,156,64"], "192.0.2.1:40000"),
    (["> \xff\xfd\x06\xff\xf1ABOR", "> PORT 192,0,2,1,156,64"], "192.0.2.1:40000"),
    (
        ["> ABOR", "< 426 no", "< 226 ok", "> PASV", "< 227 (198,51,100,2,156,64)"],
        "198.51.100.2:40000",
    ),
    (["> ABOR", "> PASV", "< 227 (198,51,100,2,156,64)"], "198.51.100.2:40000"),
    # What is odd does not end the reading.
    (["< 230_in", "< 99 x", "< SYST no", "> PORT 192,0,2,1,156,64"], "192.0.2.1:40000"),
    (["< 230-in", "< 230", "> PORT 192,0,2,1,156,64"], "192.0.2.1:40000"),
]


@handles("PORT", SERVER_OPENS)
@handles("EPRT", SERVER_OPENS)
@handles("227, to PASV or EPSV", CLIENT_OPENS)
@handles("229, to EPSV or PASV", CLIENT_OPENS)
@handles("an odd line of the server's", "passes, 15 times")
@pytest.mark.parametrize(("texts", "announced"), ANNOUNCEMENTS)
def test_announcement_leads_to_one_expectation(
    texts: Sequence[str], announced: str
) -> None:
    messages = lines(GREETING, *texts)
    assert read(messages) == [data(announced)]


@handles("a command before 220", "passes; PORT and EPRT open nothing")
@pytest.mark.parametrize(
    "before",
    [
        ["> FEAT", GREETING],
        ["> FEAT", "> USER a", "< 120 soon", "< 220-Hello", "< 220 ready"],
        ["> FEAT", GREETING, "< 211 none"],
    ],
)
def test_client_may_speak_first(before: Sequence[str]) -> None:
    messages = lines(*before, "> PASV", "< 227 (198,51,100,2,156,64)")
    assert read(messages) == [data("198.51.100.2:40000")]


@handles(
    "227 with another address",
    "client > the server's own address; the other within guard.allow",
)
def test_passive_reply_opens_the_port_at_the_servers_own_address_too() -> None:
    messages = lines(GREETING, "> PASV", "< 227 (203,0,113,9,156,64)")
    own, other = map(unlabelled, play(Ftp(), messages))
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
    assert read(messages) == [data("[2001:db8::2]:40000")]


@handles("a line inside a reply of several", "opens nothing")
@handles("any other command or reply", "opens nothing")
@pytest.mark.parametrize(
    "texts",
    [
        ["> USER PORT 192,0,2,1,156,64"],
        ["> PASS 227 (198,51,100,2,156,64)"],
        ["> STOR PORT"],
        ["< 230-227 (198,51,100,2,156,64)", "< 230 ok"],
        ["> STAT d", "< 213-", "< 227 (198,51,100,2,156,64)", "< 213 end"],
        ["> PASV", "< 500-", "< 227 (198,51,100,2,156,64)", "< 500 no"],
        ["> STOU", "< 150 FILE: STOU.1"],
        # 220 is not only the greeting.
        ["> EPSV ALL", "< 220 ok"],
        ["> QUIT", "> PASV", "< 221-bye", "< 227 (198,51,100,2,156,64)"],
    ],
)
def test_what_only_looks_like_an_announcement_leads_to_nothing(
    texts: Sequence[str],
) -> None:
    assert read(lines(GREETING, *texts)) == []


@handles("227 or 229 that nobody asked for", "refused: `unasked`")
@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["< 227 (198,51,100,2,156,64)"], "227 without a command"),
        (["> QUIT", "< 227 Logout."], "227 without a command"),
        (["> NOOP", "< 229 (|||40000|)"], "229 without a command"),
        # One that was refused is answered.
        (
            ["> PASV", "< 500 no", "< 227 (198,51,100,2,156,64)"],
            "227 without a command",
        ),
        (["> EPSV", "< 425 no", "< 229 (|||40000|)"], "229 without a command"),
    ],
)
def test_reply_that_nobody_asked_for_is_refused(
    texts: Sequence[str], reason: str
) -> None:
    assert read(lines(GREETING, *texts)) == [f"unasked: {reason}"]


@handles("EPSV ALL, accepted", "from then on EPSV alone opens anything")
def test_after_epsv_all_nothing_but_epsv_opens() -> None:
    texts = [
        *("> EPSV ALL", "< 200 ok", "> PORT 192,0,2,1,156,64", "< 503 no"),
        *("> EPRT |1|192.0.2.1|40000|", "> PASV", "< 227 (198,51,100,2,156,64)"),
        *("> EPSV", "< 229 (|||40000|)"),
    ]
    assert read(lines(GREETING, *texts)) == [
        *("epsv-all: PORT after EPSV ALL", "epsv-all: EPRT after EPSV ALL"),
        *("unasked: 227 without a command", data("198.51.100.2:40000")),
    ]


def test_epsv_all_that_was_refused_changes_nothing() -> None:
    texts = ["> epsv all", "< 500 no", "> PORT 192,0,2,1,156,64"]
    found = read(lines(GREETING, *texts))
    assert found == [data("192.0.2.1:40000")]


@handles("REIN, accepted", "ends what EPSV ALL has begun")
@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("< 220 anew", [data("192.0.2.1:40000")]),
        ("< 502 no", ["epsv-all: PORT after EPSV ALL"]),
    ],
)
def test_rein_that_is_accepted_ends_epsv_all(reply: str, found: list[object]) -> None:
    texts = ["> EPSV ALL", "< 200 ok", "> REIN", reply, "> PORT 192,0,2,1,156,64"]
    assert read(lines(GREETING, *texts)) == found


@handles("LPRT, LPSV", "refused: `unserved`")
@pytest.mark.parametrize(
    ("text", "reason"),
    [("> LPRT 4,4,192,0,2,1,2,156,64", "LPRT"), ("> LPSV", "LPSV")],
)
def test_command_of_rfc_1639_is_refused_and_counted(text: str, reason: str) -> None:
    found = read(lines(GREETING, text, "< 500 what?"))
    assert found == [f"unserved: {reason}, of RFC 1639"]


def test_one_command_is_answered_once() -> None:
    reply = "< 227 (198,51,100,2,156,64)"
    found = read(lines(GREETING, "> PASV", reply, reply))
    assert found == [data("198.51.100.2:40000"), "unasked: 227 without a command"]


@handles("an announcement that cannot be read", "refused: `unreadable`")
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
        (
            ["> EPSV", "< 229 (1115000 1)"],
            "229 without a port: b'229 (1115000 1)\\r\\n'",
        ),
        (["> EPRT |3|x|40000|"], "EPRT of protocol 3"),
        (
            ["> PORT 192,0,2,1, 156,64"],
            "PORT without six numbers: b'192,0,2,1, 156,64\\r\\n'",
        ),
    ],
)
def test_announcement_that_cannot_be_read_is_refused_and_ends_nothing(
    texts: Sequence[str], reason: str
) -> None:
    after = ("< 501 no", "> PORT 192,0,2,1,156,64")
    found = read(lines(GREETING, *texts, *after))
    assert found == [f"unreadable: {reason}", data("192.0.2.1:40000")]


@handles("HTTP, or no command, of the client", "is malformed: it is read no longer")
@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        # Not FTP: what a browser was made to send.
        (["> POST / HTTP/1.1"], "the client speaks HTTP: POST"),
        (["> connect a:21 HTTP/1.1"], "the client speaks HTTP: CONNECT"),
        (["> Host: 198.51.100.2"], "no command: b'Host: 198.51.100.2\\r\\n'"),
        (["> "], "no command: b'\\r\\n'"),
        # Many odd lines are no FTP either.
        (
            ["< SSH-2.0-server"] * 17,
            "no reply: b'SSH-2.0-server\\r\\n', which is the 16th odd line",
        ),
    ],
)
def test_line_that_is_not_ftp_ends_the_reading(
    texts: Sequence[str], reason: str
) -> None:
    assert read(lines(GREETING, *texts)) == [reason]


def test_many_announcements_that_cannot_be_read_end_the_reading() -> None:
    *found, last = read(lines(GREETING, *["> PORT 1"] * 17))
    text = "PORT without six numbers: b'1\\r\\n'"
    assert found == [f"unreadable: {text}"] * 15
    assert last == f"{text}, which is the 16th odd line"


def test_nothing_is_opened_before_the_server_is_ready() -> None:
    texts = ["> PORT 192,0,2,1,156,64", "> PASV", "< 227 (198,51,100,2,156,64)"]
    found = read(lines(*texts, GREETING))
    assert found == ["not-ready: no 220 of the server's yet"]


def test_form_that_holds_a_command_opens_nothing() -> None:
    form = ["> POST / HTTP/1.1", "> PORT 192,0,2,1,156,64"]
    assert read(lines(GREETING, *form)) == ["the client speaks HTTP: POST"]


@handles("234, 235", "ends the inspection; with option ccc 234 does not")
@pytest.mark.parametrize("code", ["234", "235"])
def test_encryption_ends_the_reading(code: str) -> None:
    messages = lines(
        *(GREETING, "> AUTH TLS", f"< {code} go ahead"),
        *("> \x16\x03\x01", "> PORT 192,0,2,1,156,64"),
    )
    assert read(messages) == [DONE]


@handles("221, 421", "ends the inspection")
@pytest.mark.parametrize("text", ["< 221 bye", "< 421 too long"])
def test_end_of_the_session_ends_the_reading(text: str) -> None:
    assert read(lines(GREETING, text)) == [DONE]


def record(length: int, kind: int = 0x17) -> bytes:
    """A record of TLS with so many bytes, which look like a command."""
    return bytes((kind, 3, 3)) + length.to_bytes(2) + (b"PASV\r\n" * length)[:length]


CCC: Final = Line.between(TCP, "192.0.2.1:40000", "198.51.100.2:21", {"ccc": True})


@handles("CCC, inside TLS", "with option ccc: what is clear again is read")
def test_return_to_clear_text_is_followed_by_option() -> None:
    messages = [
        *lines(GREETING, "> AUTH TLS", "< 234 go ahead", line=CCC),
        *(CCC.sent(record(500, 0x16)), CCC.answered(record(3000, 0x16))),
        *(CCC.sent(record(1, 0x14)), CCC.answered(record(2, 0x15))),
        *(CCC.sent(record(2, 0x15)), CCC.answered(b"200 clear\r\n")),
        *lines("> PASV", "< 227 (198,51,100,2,156,64)", line=CCC),
        *lines("> QUIT", "< 221 bye", line=CCC),
    ]
    helper = Ftp()
    play(helper, messages[:3])
    assert helper.describe(messages[3]) == {"record": "TLS"}
    assert read(messages) == [data("198.51.100.2:40000"), DONE]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (record(5)[:3] + b"\xff\xff", "a record of TLS of 65540 bytes"),
        (b"\x16PASV\r\n", "no command: b'\\x16PASV\\r\\n'"),
    ],
)
def test_what_is_neither_a_record_nor_a_line_ends_the_reading(
    sent: bytes, reason: str
) -> None:
    texts = (GREETING, "> AUTH TLS", "< 234 go ahead")
    messages = [*lines(*texts, line=CCC), CCC.sent(sent)]
    assert read(messages) == [reason]


def test_refused_encryption_does_not_end_the_reading() -> None:
    messages = lines(*(GREETING, "> AUTH TLS", "< 534 no", "> PORT 192,0,2,1,156,64"))
    assert read(messages) == [data("192.0.2.1:40000")]


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

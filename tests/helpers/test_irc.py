# SPDX-License-Identifier: GPL-2.0-or-later
"""IRC: which lines are a DCC, what it announces, and what must not be one."""

from collections.abc import Collection
from ipaddress import IPv4Address, ip_address
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cthelper.core.api import (
    ANY,
    TCP,
    Address,
    Done,
    Effect,
    Expect,
    ExpectationRefused,
    Message,
)
from cthelper.core.outcome import Finished, Refused
from cthelper.helpers.irc import Irc, emit_address, read_address, read_dcc
from cthelper.testing import Line, any_segmentation, expectations, play
from tests.cases import cases
from tests.core.builders import endpoint, flow_tuple
from tests.helpers.captures import (
    PCAPS,
    PUBLIC,
    Found,
    broken,
    captures_of,
    manifest,
    refusals,
    related,
    replayed,
    told,
)
from tests.helpers.given import damaged
from tests.helpers.inspected import Inspected
from tests.helpers.translated import CLIENT as INSIDE
from tests.helpers.translated import MASQUERADED, NATS, translated

CLIENT, CLIENT6 = "192.0.2.1", "2001:db8:1::1"
SERVER, SERVER6 = "198.51.100.2", "2001:db8:2::2"
DECIMAL: Final = b"3221225985"
OWN: Final = frozenset({ip_address(CLIENT)})
ON: Final = "helpers.irc.enabled = true"

BEGIN: Final = b"CAP LS 302\r\nJOIN :\r\n"
WELCOME: Final = b":irc.example 001 alice :Welcome, alice!a@192.0.2.1\r\n"


def dcc(text: bytes, command: bytes = b"PRIVMSG bob") -> bytes:
    """A line with a DCC."""
    return command + b" :\x01DCC " + text + b"\x01\r\n"


SEND: Final = dcc(b"SEND hello.txt " + DECIMAL + b" 41099 6")


def line(version: int = 4) -> Line:
    ours, theirs = (CLIENT, SERVER) if version == 4 else (CLIENT6, SERVER6)
    return Line(flow_tuple(TCP, (ours, 40000), (theirs, 6667)))


def begun(version: int = 4) -> list[Message]:
    """What goes before: a client that is known to the server."""
    flow = line(version)
    return [flow.sent(BEGIN), flow.answered(WELCOME)]


def effects_of(*lines: bytes, version: int = 4) -> list[Effect]:
    """What lines of a client lead to that is known to the server."""
    return play(Irc(), [*begun(version), *map(line(version).sent, lines)])


def to(port: int, address: str = CLIENT) -> Expect:
    return Expect(endpoint(address, port), "dcc", source=ANY)


def handles(message: str, outcome: str, *values: object) -> Any:
    mark = pytest.mark.handles("irc", message, outcome)
    return pytest.param(*values, id=message, marks=mark)


# What opens a port.


_OPENS: Final = "any > address of the sender's, 300 s, once"


@pytest.mark.parametrize(
    "text",
    [
        handles("DCC CHAT", _OPENS, b"CHAT chat %s 40000"),
        handles("DCC SCHAT", _OPENS, b"SCHAT schat %s 40000"),
        handles("DCC SEND", _OPENS, b"SEND file %s 40000 1234"),
        handles("DCC TSEND", _OPENS, b"TSEND file %s 40000 1234"),
        handles("DCC SSEND", _OPENS, b"SSEND file %s 40000 1234"),
        handles("DCC MOVE", _OPENS, b"MOVE file %s 40000 1234"),
        handles("DCC XMIT", _OPENS, b"XMIT clear %s 40000"),
    ],
)
@pytest.mark.parametrize("command", [b"PRIVMSG bob", b"NOTICE bob", b"privmsg #a,bob"])
def test_dcc_opens_the_port_that_it_names(text: bytes, command: bytes) -> None:
    announced = dcc(text % DECIMAL, command)
    assert effects_of(announced) == [to(40000)]
    assert effects_of(announced.replace(b"\r\n", b"\n")) == [to(40000)]
    six = dcc(text % CLIENT6.encode(), command)
    assert effects_of(six, version=6) == [to(40000, CLIENT6)]


NAMES: Final = {
    "size is missing": b"SEND file 3221225985 40000",
    "quoted name with blanks": b'SEND "two words.txt" 3221225985 40000 6',
    "quoted name that looks like an endpoint": (
        b'SEND "3221225985 22222" 3221225985 40000 6'
    ),
    "name with blanks": b"SEND two words.txt 3221225985 40000 6",
    "name with blanks, no size": b"SEND two words.txt 3221225985 40000",
    "name with numbers": b"SEND part 1 of 2 3221225985 40000 6",
    "name with numbers at its end": b"SEND part 1 2 3221225985 40000 6",
    "name with numbers at its end, no size": b"SEND part 1 2 3221225985 40000",
    "name that looks like an endpoint": b"SEND x 3221225985 22222 3221225985 40000",
    "name with a quotation mark": b'SEND a"b 3221225985 40000 6',
    "size of 20 digits": b"SEND file 3221225985 40000 18446744073709551615",
    "dotted quad": b"SEND file 192.0.2.1 40000 6",
    "several blanks": b"SEND  file  3221225985  40000  6 ",
    "token after the size": b"SEND file 3221225985 40000 6 99",
    "small letters": b"send file 3221225985 40000 6",
}


@pytest.mark.handles("irc", "names, sizes and addresses in every form", "read")
@cases("text", NAMES)
def test_endpoint_is_read_whatever_the_name_is(text: bytes) -> None:
    assert effects_of(dcc(text)) == [to(40000)]


@pytest.mark.handles("irc", "lines with IRCv3's tags or a source", "read")
@pytest.mark.parametrize(
    "before", [b"@+draft/reply=abc;label=1 ", b":alice!a@host ", b"@a=1  :alice "]
)
def test_tags_and_source_of_a_line_are_passed_over(before: bytes) -> None:
    assert effects_of(before + SEND) == [to(41099)]


def test_any_line_of_a_segment_is_read_and_several_of_one() -> None:
    lines = b"PRIVMSG bob :a\r\n%sPING x\r\n%sPRIVMSG bob :b\r\n"
    other = dcc(b"CHAT chat " + DECIMAL + b" 40000")
    flow = line()
    messages = [*begun(), flow.sent(lines % (SEND, other))]
    assert any_segmentation(Irc, messages) == [to(41099), to(40000)]


# What opens nothing.


NOTHING: Final = {
    "PASSIVE": dcc(b"SEND file " + DECIMAL + b" 0 6 77"),
    "passive, without size": dcc(b"CHAT chat " + DECIMAL + b" 0"),
    "passive, of loopback": dcc(b"SEND file 2130706433 0 6 77"),
    "passive, of 199": dcc(b"SEND file 199 0 6 77"),
    "RESUME": dcc(b"RESUME file 41099 3"),
    "ACCEPT": dcc(b"ACCEPT file 41099 3"),
    "RESUME with an address": dcc(b"RESUME file " + DECIMAL + b" 41099 3"),
    "REJECT": dcc(b"REJECT SEND file " + DECIMAL + b" 41099"),
    "forged PONG (CVE-2022-2663)": (
        b"PONG :\x01DCC SEND f " + DECIMAL + b" 41099 6\x01\r\n"
    ),
    "JOIN": dcc(b"SEND f " + DECIMAL + b" 41099 6", b"JOIN #a"),
    "DCC in the middle of a text": (
        b"PRIVMSG bob :see \x01DCC SEND f " + DECIMAL + b" 41099 6\x01\r\n"
    ),
    "DCC as a nickname": (
        b"PRIVMSG \x01DCC SEND f " + DECIMAL + b" 41099 6\x01 :x\r\n"
    ),
    "PRIVMSG in a text": (
        b"TOPIC #a :PRIVMSG b :\x01DCC SEND f " + DECIMAL + b" 41099 6\x01\r\n"
    ),
    "no \\x01 at the beginning": (
        b"PRIVMSG bob :DCC SEND f " + DECIMAL + b" 41099 6\x01\r\n"
    ),
    "no \\x01 at the end": (
        b"PRIVMSG bob :\x01DCC SEND f " + DECIMAL + b" 41099 6\r\n"
    ),
    "two in one text": dcc(
        b"CHAT chat " + DECIMAL + b" 41099\x01\x01DCC CHAT chat " + DECIMAL + b" 41098"
    ),
    "address without a name": dcc(b"SEND " + DECIMAL + b" 41099"),
    "no address": dcc(b"SEND file"),
    "no port": dcc(b"SEND file " + DECIMAL),
    "port of six digits": dcc(b"SEND file " + DECIMAL + b" 041099"),
    "port over 65535": dcc(b"SEND file " + DECIMAL + b" 70000"),
    "address over 32 bits": dcc(b"SEND file 7516193281 41099"),
    "negative address": dcc(b"SEND file -1073741311 41099"),
    "address in brackets": dcc(b"SEND file [2001:db8:1::1] 41099"),
    "address with a zone": dcc(b"SEND file fe80::1%eth0 41099"),
    "name of a host": dcc(b"SEND file host.example 41099"),
    "words after the port": dcc(b"SEND file " + DECIMAL + b" 41099 six"),
    "chat": b"PRIVMSG bob :hello 3221225985 41099\r\n",
    "ACTION": b"PRIVMSG bob :\x01ACTION waves\x01\r\n",
    "empty line": b"\r\n",
}
_MARKED: Final = {
    "PASSIVE": "DCC with port 0 (passive)",
    "RESUME": "DCC RESUME",
    "ACCEPT": "DCC ACCEPT",
    "forged PONG (CVE-2022-2663)": "DCC in PONG (CVE-2022-2663)",
}


@pytest.mark.parametrize(
    "sent",
    [
        handles(_MARKED[name], "opens nothing", sent)
        if name in _MARKED
        else pytest.param(sent, id=name)
        for name, sent in NOTHING.items()
    ],
)
def test_nothing_is_opened(sent: bytes) -> None:
    assert effects_of(sent) == []
    assert effects_of(sent, SEND) == [to(41099)]


@pytest.mark.handles("irc", "DCC of the server's", "opens nothing")
def test_server_opens_nothing() -> None:
    flow = line()
    theirs = dcc(b"SEND f 3325256706 41099 6", b":bob!b@host PRIVMSG alice")
    assert play(Irc(), [*begun(), flow.answered(theirs), flow.answered(SEND)]) == []


@pytest.mark.handles("irc", "DCC before the server's 001", "refused")
@cases(
    "answers",
    {
        "nothing": b"",
        "notice": b":irc.example NOTICE * :*** Looking up your hostname\r\n",
        "001 in a text": b":irc.example NOTICE * :001 \r\n",
        "001 as a part": b":irc.example 0011 a :x\r\n",
    },
)
def test_nothing_opens_before_the_welcome(answers: bytes) -> None:
    flow = line()
    messages = [flow.sent(BEGIN)]
    if answers:
        messages.append(flow.answered(answers))
    with pytest.raises(ExpectationRefused) as refused:
        play(Irc(), [*messages, flow.sent(SEND)])
    assert refused.value.reason == "not-welcomed"


def test_welcome_in_the_midst_of_many_lines_counts() -> None:
    flow = line()
    many = b":s NOTICE * :x\r\n" * 40 + b"@time=1 " + WELCOME + b":s 002 a :x\r\n" * 900
    assert any_segmentation(
        Irc, [flow.sent(BEGIN), flow.answered(many[:2000]), flow.sent(SEND)]
    ) == [to(41099)]
    helper = Irc()
    assert play(helper, [flow.sent(BEGIN), flow.answered(many)]) == []
    # They are no more messages than a packet may have.
    assert (helper.frame(memoryview(many)) or 0) > 4000


HTTP: Final = b"POST / HTTP/1.1\r\nHost: irc.example:6667\r\n\r\n"


@pytest.mark.handles("irc", "client that speaks another protocol", "ends the reading")
@cases(
    "before",
    {
        "HTTP": HTTP,
        "HTTP's CONNECT": b"CONNECT irc.example:6667 HTTP/1.1\r\n",
        "HTTP later": BEGIN + b"GET / HTTP/1.1\r\n",
        "SMTP": b"EHLO example\r\n",
        "no word": b"\x16\x03\x01\x02\r\n",
        "PRIVMSG as the first line": SEND,
    },
)
def test_client_that_speaks_no_irc_is_read_no_further(before: bytes) -> None:
    flow = line()
    effects = play(Irc(), [flow.answered(WELCOME), flow.sent(before)])
    assert effects == [Done("the client speaks no IRC")]


@pytest.mark.handles("irc", "670 (STARTTLS)", "ends the reading")
def test_what_is_encrypted_is_not_read() -> None:
    flow = line()
    encrypted = flow.answered(b":irc.example 670 alice :STARTTLS successful\r\n")
    done = [Done("what follows is encrypted")]
    assert play(Irc(), [flow.sent(b"STARTTLS\r\n"), encrypted]) == done
    text = flow.answered(b":irc.example NOTICE alice :670 things\r\n")
    assert play(Irc(), [*begun(), text]) == []


@pytest.mark.handles("irc", "more than 8 DCC within 10 s", "refused")
def test_ninth_within_ten_seconds_is_refused() -> None:
    helper, flow = Irc(), line()
    play(helper, begun())

    def ask(now: float) -> list[Effect]:
        sent = flow.sent(SEND)
        sent.now = now
        return play(helper, [sent])

    for number in range(8):
        assert ask(100.0 + number) == [to(41099)]
    for now in (108.0, 109.9):
        with pytest.raises(ExpectationRefused) as refused:
            ask(now)
        assert refused.value.reason == "dcc-rate"
    assert ask(110.1) == [to(41099)]
    with pytest.raises(ExpectationRefused):
        ask(110.2)
    for number in range(8):
        assert ask(200.0 + number) == [to(41099)]


# What the engine makes of it.


def inspected(
    nat: str = "snat", version: int = 4, taken: Collection[int] = ()
) -> Inspected:
    """A translated flow, begun."""
    flow = Inspected(Irc, translated(Irc, version, nat), "enabled = true", taken=taken)
    flow.sent(BEGIN)
    flow.answered(WELCOME)
    return flow


def decimal(address: str) -> bytes:
    return b"%d" % int(IPv4Address(address))


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("192.0.2.7", 41099, "third-party-address"),
        ("198.51.100.2", 41099, "third-party-address"),
        ("127.0.0.1", 41099, "loopback-address"),
        ("0.0.0.0", 41099, "unspecified-address"),  # noqa: S104 - not a bind
        (CLIENT, 1023, "low-port"),
        (CLIENT, 22, "denied-port"),
        (CLIENT, 3389, "denied-port"),
    ],
)
@pytest.mark.handles("irc", "DCC of another's address, or of a low port", "refused")
def test_what_is_not_the_senders_own_is_refused(
    host: str, port: int, reason: str
) -> None:
    flow = Inspected(Irc, translated(Irc, 4, "dnat"), "enabled = true")
    flow.sent(BEGIN)
    flow.answered(WELCOME)
    sent = dcc(b"SEND f %s %d 6" % (decimal(host), port))
    assert flow.sent(sent) == sent
    assert flow.expectations == []
    assert flow.refused == [reason]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nat", NATS)
def test_behind_nat_the_outside_address_is_written(nat: str, version: int) -> None:
    inside = INSIDE[version]
    outside = inside if nat == "dnat" else MASQUERADED[version]
    form = str.encode if version == 6 else decimal
    text = b"PRIVMSG bob :x\r\n%sPING y\r\n"
    flow = inspected(nat, version)
    sent = dcc(b"SEND f %s 41099 6" % form(inside))
    wanted = dcc(b"SEND f %s 41099 6" % form(outside))
    assert flow.sent(text % sent) == text % wanted
    (made,) = flow.expectations
    assert made.source is None
    assert made.destination == endpoint(outside, 41099)
    assert not made.permanent
    assert flow.refused == []


def test_form_of_the_address_is_kept() -> None:
    flow = inspected()
    sent = dcc(f"SEND f {INSIDE[4]} 41099 6".encode())
    assert flow.sent(sent) == dcc(f"SEND f {MASQUERADED[4]} 41099 6".encode())


def test_outside_address_that_the_client_writes_is_its_own() -> None:
    flow = inspected()
    sent = dcc(b"SEND f %s 41099 6" % decimal(MASQUERADED[4]))
    assert flow.sent(sent) == sent
    (made,) = flow.expectations
    assert made.destination == endpoint(MASQUERADED[4], 41099)


def test_port_that_another_has_is_written_as_another() -> None:
    flow = inspected(taken={41099})
    sent = dcc(b"SEND f %s 41099 6" % decimal(INSIDE[4]))
    told_ = flow.sent(sent)
    assert told_ == dcc(b"SEND f %s 41100 6" % decimal(MASQUERADED[4]))


def test_helper_is_off_by_default() -> None:
    assert not Irc.enabled


def test_flow_that_is_no_irc_ends_in_the_engine() -> None:
    flow = Inspected(Irc, translated(Irc, 4, "dnat"), "enabled = true")
    flow.sent(HTTP)
    flow.answered(WELCOME)
    flow.sent(BEGIN, dcc(b"SEND f %s 41099 6" % decimal(CLIENT)))
    assert flow.expectations == []
    assert not any(isinstance(each, Refused) for each in flow.events)
    assert all(isinstance(each, Finished) for each in flow.events)


# Any bytes.


def test_message_is_described_without_its_text() -> None:
    flow = line()
    helper = Irc()
    assert helper.describe(flow.sent(b"PASS secret\r\nNICK alice\r\n")) == {
        "commands": "PASS NICK"
    }
    assert helper.describe(flow.sent(SEND)) == {
        "commands": "PRIVMSG",
        "DCC": "192.0.2.1:41099",
    }


@given(damaged(st.just(SEND)) | st.binary(max_size=200))
@example(SEND)
def test_any_line_announces_one_endpoint_or_none(sent: bytes) -> None:
    found = read_dcc(sent, OWN)
    assert len(found) <= 1
    for each in found:
        assert each.endpoint.port > 0
        assert read_address(sent[slice(*each.address_at)]) == each.endpoint.address
        assert int(sent[slice(*each.port_at)]) == each.endpoint.port


@given(
    st.lists(
        st.sampled_from(
            [SEND, b"PING x\r\n", b"PRIVMSG b :x\n", b"\r\n", b"\x01DCC \n"]
        )
        | st.binary(max_size=40).map(lambda text: b"AWAY :" + text + b"\n"),
        max_size=6,
    )
)
def test_segments_may_cut_lines_anywhere(lines: list[bytes]) -> None:
    flow = line()
    if lines:
        any_segmentation(Irc, [*begun(), flow.sent(b"".join(lines))])


@given(
    st.text(
        st.characters(codec="utf-8", exclude_characters='\0\1\r\n"'), min_size=1
    ).filter(lambda name: name.strip(" ") == name),
    st.integers(1024, 65535),
    st.integers(0, 1 << 64),
    st.booleans(),
)
def test_endpoint_after_any_name_is_found(
    name: str, port: int, size: int, quoted: bool
) -> None:
    said = f'"{name}"' if quoted else name
    if not quoted and name.startswith('"'):
        return
    sent = dcc(b"SEND %s %s %d %d" % (said.encode(), DECIMAL, port, size))
    (found,) = read_dcc(sent, OWN)
    assert found.endpoint == endpoint(CLIENT, port)


@given(st.ip_addresses())
def test_address_is_written_as_it_is_read(address: Address) -> None:
    for like in (b"1.2.3.4", b"::1", *([b"5"] if address.version == 4 else [])):
        assert read_address(emit_address(address, like)) == address


# What real peers said: frames as tshark tells them.

RELATED: Final[dict[str, Found]] = {
    "irc/irc-irssi-dcc-chat-pyirc": [(26, "tcp 10.91.1.1:48700 > 10.91.1.2:40937")],
    "irc/irc-irssi-dcc6-send": [],
}


@pytest.mark.parametrize("name", RELATED)
def test_every_dcc_of_real_peers_is_let_in_and_nothing_else(name: str) -> None:
    entry = manifest()[f"{name}.pcap"]
    path, on_link = PCAPS / f"{name}.pcap", entry["on_link"]
    found = replayed(path, entry["settings"], on_link=on_link)
    assert expectations(found) == told(name)
    assert related(found) == RELATED[name]
    assert broken(found) == []
    assert refusals(found) == []
    assert expectations(replayed(path, on_link=on_link)) == []


def test_every_capture_has_its_case() -> None:
    assert captures_of(RELATED) == sorted(RELATED)


# The frames of what is announced, and which flows came because of it.
PUBLISHED: Final = {
    "ndpi-irc.pcap": ([], []),
    "zeek-irc-basic.pcap": ([], []),
    # No welcome comes before it.
    "zeek-irc-dcc-first-command.pcap": ([], []),
    # One packet of the server's each, without \x01.
    "zeek-irc-dcc-send-malformed-host.pcap": ([], []),
    "zeek-irc-dcc-send-malformed-port.pcap": ([], []),
    "zeek-irc-dcc-send.pcapng": ([58, 1153], [60, 1155]),
    "zeek-irc-dcc-state-growth.pcapng": ([], []),
}


@pytest.mark.skipif(not PUBLIC.exists(), reason="no captures beside the project")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_captures_are_read(name: str) -> None:
    found = replayed(PUBLIC / name, ON)
    announced, met = PUBLISHED[name]
    assert [frame for frame, _ in expectations(found)] == announced
    assert [frame for frame, _ in related(found)] == met
    assert broken(found) == []

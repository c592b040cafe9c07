# SPDX-License-Identifier: GPL-2.0-or-later
"""SANE: which replies of a scanner's server open a port, however long others are."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    Done,
    Effect,
    Endpoint,
    Expect,
    ExpectationRefused,
    Malformed,
    Message,
    Rewrite,
)
from cthelper.helpers.sane import Sane
from cthelper.helpers.sane_wire import REPLIES, REQUESTS, Walk
from cthelper.testing import Line, any_segmentation, expectations, play
from tests.cases import cases
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6, endpoint, flow_tuple
from tests.helpers.captures import (
    PCAPS,
    broken,
    manifest,
    refusals,
    related,
    replayed,
    told,
    unwatched,
)
from tests.helpers.inspected import Inspected
from tests.helpers.translated import NATS, known, translated

PORT: Final = 42593
LINE: Final = Line(flow_tuple(TCP, (CLIENT, 40000), (SERVER, 6566)))
LINE6: Final = Line(flow_tuple(TCP, (CLIENT6, 40000), (SERVER6, 6566)))
SETTINGS: Final = "enabled = true"
OPENS: Final = "client > server:PORT, once, 60 s, for each page"
NOTHING: Final = "nothing"
CAPTURED: Final = {
    "sane-scanimage-saned": [(41, "tcp 10.91.1.2:40482 > 10.91.1.1:42593")],
    "sane-scanimage6-saned": [(41, "tcp [fd91::2]:47440 > [fd91::1]:35945")],
    "sane-scanimage-saned-password": [
        (54, "tcp 10.91.1.2:52260 > 10.91.1.1:43647"),
        (70, "tcp 10.91.1.2:34804 > 10.91.1.1:46989"),
    ],
}

# The wire


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4) for value in values)


def string(text: str | None) -> bytes:
    """With its NUL; None is no string at all."""
    return words(0) if text is None else words(len(text) + 1) + text.encode() + b"\0"


def value(kind: int, data: bytes) -> bytes:
    """Type, size, count and elements of an option's value."""
    return words(kind, len(data), len(data) if kind == 3 else len(data) // 4) + data


def device(*texts: str) -> bytes:
    return words(0) + b"".join(map(string, texts))


def option(kind: int = 0, constraint: bytes = b"") -> bytes:
    texts = b"".join(map(string, ("mode", "Scan mode", "Selects it")))
    return words(0) + texts + words(3, 0, 40, 5, kind) + constraint


def start_reply(
    port: int = PORT, status: int = 0, order: int = 0x1234, resource: str | None = None
) -> bytes:
    return words(status, port, order) + string(resource)


INIT: Final = words(0, 0x01010003) + string("scan")
HELLO: Final = words(0, 0x01010003)
OPEN: Final = words(2) + string("test:0")
START: Final = words(7, 0)
AUTHORIZE: Final = words(9) + b"".join(map(string, ("test", "me", "secret")))
CANCEL, CLOSE, EXIT = words(8, 0), words(3, 0), words(10)
OPTIONS: Final = words(6) + b"".join(
    (
        option(),
        option(1, words(0, 1, 9, 2)),
        option(1, words(1)),
        option(2, words(3, 2, 75, 150)),
        option(3, words(3) + string("Gray") + string("Color") + words(0)),
        words(1),
    )
)
CHOSEN: Final = start_reply(22222)
"""What an option's value may be, and a START's reply could."""

SPOKEN: Final[dict[str, tuple[bytes, bytes]]] = {
    "GET_DEVICES": (
        words(1),
        words(0, 2) + device("test:0", "Noname", "frontend", "virtual") + words(1),
    ),
    "GET_DEVICES, none": (words(1), words(7, 0)),
    "OPEN": (OPEN, words(0, 5) + string(None)),
    "CLOSE": (CLOSE, words(0)),
    "GET_OPTION_DESCRIPTORS": (words(4, 0), OPTIONS),
    "CONTROL_OPTION of a number": (
        words(5, 0, 7, 1) + value(2, words(50)),
        words(0, 4) + value(2, words(50)) + string(None),
    ),
    "CONTROL_OPTION of a string": (
        words(5, 0, 2, 0) + value(3, CHOSEN),
        words(0, 0) + value(3, CHOSEN) + string(None),
    ),
    "CONTROL_OPTION of a button": (
        words(5, 0, 9, 1, 4, 0, 0),
        words(0, 0, 4, 0, 0) + string(None),
    ),
    "CONTROL_OPTION, automatic": (
        words(5, 0, 9, 2),
        words(0, 0) + value(0, words(1)) + string(None),
    ),
    "CONTROL_OPTION of a gamma table": (
        words(5, 0, 9, 1) + value(1, bytes(70_000)),
        words(0, 0) + value(1, bytes(70_000)) + string(None),
    ),
    "GET_PARAMETERS": (words(6, 0), words(0, 0, 1, 39, 39, 39, 8)),
    "CANCEL": (CANCEL, words(0)),
}


def conversation(*said: bytes, line: Line = LINE) -> list[Message]:
    """Client and server in turns, after INIT."""
    turns = [INIT, HELLO, *said]
    return [
        line.message(REPLY if number % 2 else ORIGINAL, each)
        for number, each in enumerate(turns)
    ]


def heard(*said: bytes) -> list[Effect | str]:
    return any_segmentation(Sane, conversation(*said))


def announced(port: int = PORT, server: str = SERVER) -> list[Effect | str]:
    return [Expect(endpoint(server, port), "data"), Rewrite((4, 8), words(port))]


def handles(message: str, outcome: str) -> pytest.MarkDecorator:
    return pytest.mark.handles("sane", message, outcome)


# What opens a port


@handles("START (7), its reply", OPENS)
@pytest.mark.parametrize("order", [0x1234, 0x4321])
def test_start_reply_announces_the_data_flow(order: int) -> None:
    assert heard(START, start_reply(order=order)) == announced()


def test_start_reply_over_ipv6_announces_it_there() -> None:
    messages = conversation(START, start_reply(), line=LINE6)
    assert any_segmentation(Sane, messages) == announced(server=SERVER6)


@handles("START (7), its reply", OPENS)
def test_each_page_announces_its_own() -> None:
    said: list[bytes] = []
    for page in range(4):
        said += [START, start_reply(PORT + page), *SPOKEN["GET_PARAMETERS"]]
    found = heard(
        *said, START, start_reply(status=7), CANCEL, words(0), CLOSE, words(0)
    )
    assert found == [each for page in range(4) for each in announced(PORT + page)]


@handles("AUTHORIZE (9)", "what it authorizes is answered anew")
def test_authorized_start_is_answered_twice() -> None:
    wants = start_reply(0, resource="test$MD5$4711")
    assert heard(START, wants, AUTHORIZE, words(0) + start_reply()) == announced()
    assert heard(START, start_reply(5000, resource="x")) == []


@handles("AUTHORIZE (9)", "what it authorizes is answered anew")
@cases(
    "asked, reply",
    {
        "OPEN": (OPEN, words(0, 0)),
        "CONTROL_OPTION": (
            words(5, 0, 2, 0) + value(3, CHOSEN),
            words(0, 0) + value(3, CHOSEN),
        ),
    },
)
def test_others_may_be_authorized_too(asked: bytes, reply: bytes) -> None:
    wants, done = reply + string("test"), reply + string(None)
    said = [asked, wants, AUTHORIZE, words(0) + wants, AUTHORIZE, words(0) + done]
    assert heard(*said, START, start_reply()) == announced()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=handles(
                f"{name.partition(',')[0].partition(' ')[0]} ({asked[3]})", NOTHING
            ),
        )
        for name, (asked, _) in SPOKEN.items()
    ],
)
def test_what_else_is_said_opens_nothing_and_is_followed_to_its_end(name: str) -> None:
    asked, reply = SPOKEN[name]
    messages = conversation(asked, reply, *SPOKEN["GET_PARAMETERS"])
    after = conversation(START, start_reply())[2:]
    if len(asked) > 50_000:  # all ways to cut it would take long
        pieces = [
            LINE.message(each.direction, each.payload[start : start + 1448])
            for each in messages
            for start in range(0, len(each.payload), 1448)
        ]
        assert play(Sane(), [*pieces, *after]) == announced()
    else:
        assert any_segmentation(Sane, [*messages, *after]) == announced()


def test_one_whom_the_port_is_told_otherwise_reads_it_in_its_place() -> None:
    told = endpoint("203.0.113.1", 50000)
    found = play(Sane(), conversation(START, start_reply()), lambda wish: told)
    assert found[1:] == [Rewrite((4, 8), words(50000))]


def test_refused_page_does_not_end_the_next_one() -> None:
    def full(wish: Expect) -> Endpoint:
        raise ExpectationRefused("kernel-full", "no room")

    helper = Sane()
    with pytest.raises(ExpectationRefused):
        play(helper, conversation(START, start_reply()), full)
    again = conversation(START, start_reply())[2:]
    assert play(helper, again) == announced()


# Behind NAT


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("nat", "taken"),
    [*((nat, ()) for nat in NATS), *((nat, (PORT,)) for nat in ("dnat", "both"))],
)
def test_port_that_is_taken_is_another_one_in_the_reply(
    version: int, nat: str, taken: tuple[int, ...]
) -> None:
    flow = Inspected(Sane, translated(Sane, version, nat), SETTINGS, taken=taken)
    for message in conversation(START):
        (flow.sent if message.direction is ORIGINAL else flow.answered)(message.payload)
    received = flow.answered(start_reply())
    (expectation,) = flow.kernel.present
    port = expectation.destination.port
    assert (port == PORT) is not bool(taken)
    assert received == start_reply(port)
    assert expectation.destination == endpoint(known(nat, version), port)
    assert flow.refused == []


# What does not


@handles("START (7), its reply", NOTHING + " where it failed or is to be authorized")
@pytest.mark.parametrize("status", [1, 2, 7, 11, 0xFFFFFFFF])
def test_failed_start_opens_nothing(status: int) -> None:
    found = heard(START, start_reply(status=status), START, start_reply())
    assert found == announced()


@cases(
    "reply, why",
    {
        "over 65535": (start_reply(0x10000 | PORT), f"port {0x10000 | PORT}"),
        "huge": (start_reply(0xFFFFFFFF), "port 4294967295 is over 65535"),
        "no byte order": (start_reply(order=0), "byte order"),
        "another byte order": (start_reply(order=0x3412), "byte order"),
        "long resource": (words(0, 0, 0, 1025), "resource of 1025 bytes"),
    },
)
def test_start_reply_that_is_none_is_malformed(reply: bytes, why: str) -> None:
    (found,) = heard(START, reply)
    assert isinstance(found, str)
    assert found.startswith(why)


@handles("EXIT (10)", "done")
def test_exit_ends_it() -> None:
    (done,) = heard(EXIT)
    assert done == Done("the client's EXIT")


@handles("INIT (0)", "done where the flow does not begin with it")
@pytest.mark.parametrize(
    "begun",
    [
        b"GET / HTTP/1.1\r\n",
        words(7, 0) + INIT,
        words(0, 0x02000003),
        words(0, 0x01000002) + string("x"),
        bytes(8),
    ],
    ids=["HTTP", "START", "version 2", "build 2", "zeros"],
)
def test_flow_that_is_no_sane_is_left(begun: bytes) -> None:
    (done,) = play(Sane(), [LINE.sent(begun)])
    assert done == Done("it is no SANE")


OUT_OF_TURN: Final = {
    "server first": [(REPLY, HELLO), (ORIGINAL, INIT)],
    "reply that nobody asked for": [
        *((ORIGINAL, INIT), (REPLY, HELLO), (REPLY, start_reply()))
    ],
    "second reply": [
        *((ORIGINAL, INIT), (REPLY, HELLO), (ORIGINAL, CLOSE), (REPLY, words(0))),
        (REPLY, start_reply()),
    ],
    "START before the answer": [
        *((ORIGINAL, INIT), (ORIGINAL, START), (REPLY, HELLO)),
        (REPLY, start_reply()),
    ],
    "START amid an answer whose rest the client chose": [
        *((ORIGINAL, INIT), (REPLY, HELLO)),
        (ORIGINAL, words(5, 0, 2, 1) + value(3, CHOSEN)),
        *((REPLY, words(0, 0, 3, 17, 17)), (ORIGINAL, START), (REPLY, CHOSEN)),
    ],
    "two requests at once": [
        *((ORIGINAL, INIT), (REPLY, HELLO), (ORIGINAL, START + START)),
    ],
    "reply and more": [
        *((ORIGINAL, INIT), (REPLY, HELLO), (ORIGINAL, CLOSE)),
        (REPLY, words(0) + start_reply()),
    ],
}


@pytest.mark.parametrize("name", OUT_OF_TURN)
def test_who_speaks_out_of_turn_is_helped_no_longer(name: str) -> None:
    messages = [LINE.message(*each) for each in OUT_OF_TURN[name]]
    effects: list[Effect] = []
    helper = Sane()
    for message in messages:
        effects += play(helper, [message])
        if effects:
            break
    (done,) = effects
    assert isinstance(done, Done)
    assert done.reason == "out-of-turn"


@cases(
    "said, why",
    {
        "unknown request": ([words(11, 0)], "request 11"),
        "AUTHORIZE unasked": ([AUTHORIZE], "AUTHORIZE after INIT"),
        "START instead of it": (
            [START, start_reply(0, resource="x"), START],
            "START after START",
        ),
        "unknown type": ([words(5, 0, 0, 0, 6, 0, 0)], "value of type 6"),
        "endless array": ([words(4, 0), words(4097)], "array of 4097 elements"),
    },
)
def test_what_breaks_the_protocol_is_malformed(said: list[bytes], why: str) -> None:
    with pytest.raises(Malformed, match=why):
        play(Sane(), conversation(*said))


def test_strings_of_a_packet_are_bounded() -> None:
    """64 KiB of nothing but lengths, which would take their time."""
    helper = Sane()
    play(helper, conversation(words(4, 0)))
    with pytest.raises(Malformed, match="over 2500 fields"):
        play(helper, [LINE.answered(words(4000) + bytes(60 * 1024))])
    assert helper.footprint() < 40_000


# Any bytes


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=200)), max_size=8))
def test_any_bytes_are_read_or_malformed(said: list[tuple[bool, bytes]]) -> None:
    helper = Sane()
    for answers, data in said:
        message = LINE.message(REPLY if answers else ORIGINAL, data)
        try:
            helper.describe(message)
            play(helper, [message])
        except Malformed:
            pass


@given(st.data())
def test_any_pieces_lead_to_the_same_end(data: st.DataObject) -> None:
    table = data.draw(st.sampled_from([REQUESTS, REPLIES]))
    code = data.draw(st.sampled_from(sorted(table)))
    whole = data.draw(st.binary(max_size=100).map(lambda drawn: drawn + bytes(400)))

    def end(size: int) -> tuple[int | None, str]:
        """Where it ends, or why it does not."""
        walk = Walk(table[code])
        for start in range(0, len(whole), size):
            try:
                if walk.read(whole[start : start + size]):
                    return start + size, ""
            except Malformed as error:
                if "out of turn" in str(error):
                    return start + size, ""
                return None, str(error).partition(" in ")[0]
        return None, ""

    stop, why = end(1)
    size = data.draw(st.integers(1, len(whole)))
    other, other_why = end(size)
    assert why == other_why
    assert (stop is None) is (other is None)
    if stop is not None and other is not None:
        assert 0 <= other - stop < size


# Real ones


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_pages_are_let_in(name: str) -> None:
    path = f"sane/{name}"
    settings = manifest()[f"{path}.pcap"]["settings"]
    events = replayed(PCAPS / f"{path}.pcap", settings)
    assert expectations(events) == told(path)
    assert related(events) == CAPTURED[name]
    assert (broken(events), refusals(events), unwatched(events)) == ([], [], 0)


# For people


def test_description_names_what_is_said_and_nobody_s_password() -> None:
    helper = Sane()
    wants = start_reply(0, resource="test")
    messages = [
        *conversation(START, wants, AUTHORIZE, words(0)),
        *map(LINE.answered, [start_reply()]),
        *conversation(*SPOKEN["CLOSE"], EXIT)[2:],
    ]
    found = []
    for message in messages:
        found.append(helper.describe(message))
        play(helper, [message])
    assert [each["type"] for each in found] == [
        *("INIT", "reply to INIT", "START", "reply to START", "AUTHORIZE"),
        *("reply to AUTHORIZE", "reply to START", "CLOSE", "reply to CLOSE", "EXIT"),
    ]
    assert found[3]["announces"] == "nothing: to be authorized"
    assert found[6]["announces"] == f"port {PORT}"
    assert "secret" not in str(found)


def test_description_tells_what_is_no_message() -> None:
    helper = Sane()
    assert helper.describe(LINE.answered(HELLO)) == {"type": "out of turn"}
    assert helper.describe(LINE.sent(b"GET / HTTP")) == {"type": "not SANE"}
    play(helper, [LINE.sent(INIT[:14])])
    assert helper.describe(LINE.sent(INIT[14:])) == {"type": "more from the client"}

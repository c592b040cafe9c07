# SPDX-License-Identifier: GPL-2.0-or-later
"""Segments that the ends of a flow have not sent change nothing; all others do."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.engine import Decision
from cthelper.core.outcome import Finished
from cthelper.core.tuples import ORIGINAL, REPLY, Direction, Status
from tests.cases import cases
from tests.core.builders import cut, tcp
from tests.core.host import Host, Lines

# Where the bytes of the client and of the server begin, and both wrap soon.
CLIENT_FIRST = 2**32 - 20
SERVER_FIRST = 2**32 - 7
OTHER = {ORIGINAL: REPLY, REPLY: ORIGINAL}
FIRST = {ORIGINAL: CLIENT_FIRST, REPLY: SERVER_FIRST}


class Connection:
    """A flow whose segments have acknowledgments, as real ones do."""

    def __init__(self) -> None:
        self.host = Host(Lines)
        self.sent = {ORIGINAL: 0, REPLY: 0}

    def syn(self) -> None:
        """The client's first segment, which is not answered yet."""
        entry = self.host.entry
        self.host.entry = replace(entry, status=Status.CONFIRMED)
        self.segment(ORIGINAL, CLIENT_FIRST - 1, None, flags="S")

    def answer(self) -> None:
        """The server's first segment."""
        status = Status.CONFIRMED | Status.SEEN_REPLY
        self.host.entry = replace(self.host.entry, status=status)
        self.segment(REPLY, SERVER_FIRST - 1, CLIENT_FIRST, flags="SA")

    def handshake(self) -> "Connection":
        self.syn()
        self.answer()
        return self

    def segment(
        self,
        direction: Direction,
        sequence: int,
        acknowledged: int | None,
        payload: bytes = b"",
        flags: str = "PA",
    ) -> Decision:
        packet = tcp(
            payload,
            sequence,
            flags=flags,
            direction=direction,
            acknowledged=(acknowledged or 0) % 2**32,
        )
        return self.host.handle(packet, direction)

    def send(self, direction: Direction, payload: bytes) -> Decision:
        """The next bytes of a direction, which acknowledge all of the other's."""
        offset = self.sent[direction]
        self.sent[direction] += len(payload)
        return self.repeat(direction, offset, payload)

    def repeat(self, direction: Direction, offset: int, payload: bytes) -> Decision:
        return self.segment(
            direction,
            FIRST[direction] + offset,
            FIRST[OTHER[direction]] + self.sent[OTHER[direction]],
            payload,
        )

    @property
    def heard(self) -> list[tuple[Direction, bytes]]:
        return [(each.direction, each.payload) for each in self.host.messages]


@dataclass(frozen=True)
class Forged:
    """A segment by somebody who knows the ports alone."""

    direction: Direction
    sequence: int
    acknowledged: int | None
    payload: bytes
    flags: str

    def sent_to(self, connection: Connection) -> Decision:
        return connection.segment(
            self.direction,
            self.sequence,
            self.acknowledged,
            self.payload,
            self.flags,
        )


# Far from what the two ends are at, in either number.
FAR = st.integers(1 << 20, 2**32 - (1 << 20))


@st.composite
def forged(draw: st.DrawFn) -> Forged:
    """Anything whose numbers are not within the window."""
    direction = draw(st.sampled_from(Direction))
    far, any_number = draw(FAR), draw(st.integers(0, 2**32 - 1))
    flags = draw(st.sampled_from(["S", "SA", "A", "PA", "FA", "R", "RA", "", "P", "F"]))
    # A SYN counts by what it acknowledges, a segment by both numbers.
    sequence = FIRST[direction] + far
    acknowledged = FIRST[OTHER[direction]] + draw(FAR)
    if flags in ("R", "RA", "", "P", "F", "S"):
        sequence, acknowledged = any_number, draw(st.integers(0, 2**32 - 1))
    elif draw(st.booleans()) and flags != "SA":
        # Nor is one of them enough, but for the very next byte's.
        sequence = FIRST[direction] + draw(st.sampled_from([-60, -5, 31, 40]))
    payload = draw(st.sampled_from([b"", b"x", b"OPEN 6000\n", b"!" * 99]))
    return Forged(direction, sequence % 2**32, acknowledged % 2**32, payload, flags)


TALK = [
    (ORIGINAL, b"NOTHING 1\n"),
    (REPLY, b"OPEN 5000\n"),
    (ORIGINAL, b"OPEN 5001\nNOTHING 2\n"),
    (REPLY, b"NOTHING 3\n"),
]


@st.composite
def disturbed(draw: st.DrawFn) -> tuple[set[int], list[list[Forged]]]:
    """Where the talk is cut, and what is forged after each of its segments."""
    cuts = draw(st.sets(st.integers(1, 20), max_size=5))
    segments = 2 + sum(1 for _, text in TALK for _ in cut(text, cuts))
    after = st.lists(
        st.lists(forged(), max_size=3), min_size=segments, max_size=segments
    )
    return cuts, draw(after)


@given(disturbed())
def test_forged_segments_between_change_no_message(
    disturbances: tuple[set[int], list[list[Forged]]],
) -> None:
    cuts, between = disturbances
    connection = Connection()
    forgeries = iter(between)
    opened = []

    def disturb() -> None:
        for each in next(forgeries):
            assert each.sent_to(connection).events == ()

    connection.syn()
    disturb()
    connection.answer()
    disturb()
    for direction, text in TALK:
        for piece in cut(text, cuts):
            decision = connection.send(direction, piece)
            assert decision.events == ()
            opened += [each.destination.port for each in decision.expectations]
            disturb()
    assert connection.heard == [
        (direction, line)
        for direction, text in TALK
        for line in text.splitlines(keepends=True)
    ]
    assert opened == [5000, 5001]


@cases(
    "forgery",
    {
        "SYN": Forged(ORIGINAL, 7, None, b"", "S"),
        "SYN with data": Forged(ORIGINAL, 7, None, b"OPEN 6000\n", "S"),
        "SYN of the server": Forged(REPLY, 7, None, b"", "S"),
        "SYN/ACK": Forged(REPLY, 7, 8, b"", "SA"),
        "SYN/ACK of the client": Forged(ORIGINAL, 7, 8, b"", "SA"),
        "RST with text": Forged(ORIGINAL, CLIENT_FIRST, SERVER_FIRST, b"!", "RA"),
        "no flags": Forged(ORIGINAL, CLIENT_FIRST, SERVER_FIRST, b"!", ""),
        "PSH alone": Forged(ORIGINAL, CLIENT_FIRST, SERVER_FIRST, b"!", "P"),
        "far ahead": Forged(ORIGINAL, 1 << 30, 1 << 30, b"OPEN 6000\n", "PA"),
        "in the window, acknowledging what was not sent": Forged(
            ORIGINAL, CLIENT_FIRST + 5, SERVER_FIRST + 1000, b"5", "PA"
        ),
        "behind, other content": Forged(
            ORIGINAL, CLIENT_FIRST - 3, SERVER_FIRST - 70000, b"xxxxxxxx", "PA"
        ),
    },
)
@pytest.mark.parametrize("times", [1, 1000])
def test_forged_segment_changes_nothing(forgery: Forged, times: int) -> None:
    connection = Connection().handshake()
    for _ in range(times):
        assert forgery.sent_to(connection).events == ()
    assert connection.send(ORIGINAL, b"OPEN 50").events == ()
    for _ in range(times):
        assert forgery.sent_to(connection).events == ()
    assert len(connection.send(ORIGINAL, b"00\n").expectations) == 1
    assert len(connection.send(REPLY, b"OPEN 5001\n").expectations) == 1


def test_forged_syn_before_the_answer_does_not_take_the_place_of_the_clients() -> None:
    connection = Connection()
    connection.segment(ORIGINAL, CLIENT_FIRST - 1, None, flags="S")
    for number in range(100):
        connection.segment(ORIGINAL, 1000 * number, None, flags="S")
    connection.segment(REPLY, SERVER_FIRST - 1, CLIENT_FIRST, flags="SA")
    assert len(connection.send(ORIGINAL, b"OPEN 5000\n").expectations) == 1


def test_client_that_tries_again_with_another_number_is_read() -> None:
    # As after its process was ended: the entry is the same (tcp_conntracks: sSS, sSS).
    connection = Connection()
    connection.segment(ORIGINAL, 5_000_000, None, flags="S")
    connection.handshake()
    assert len(connection.send(ORIGINAL, b"OPEN 5000\n").expectations) == 1
    assert len(connection.send(REPLY, b"OPEN 5001\n").expectations) == 1


def test_forged_answer_that_comes_near_gives_way_to_the_servers() -> None:
    # The kernel bounds what it may acknowledge by 66000 bytes.
    connection = Connection()
    connection.syn()
    connection.segment(REPLY, 5_000_000, CLIENT_FIRST - 66_000, flags="SA")
    connection.answer()
    connection.segment(REPLY, 6_000_000, CLIENT_FIRST - 66_000, flags="SA")
    assert len(connection.send(REPLY, b"OPEN 5000\n").expectations) == 1


def test_answer_with_another_number_counts_until_the_server_has_spoken() -> None:
    # The first one was lost between us and the client; the server uses SYN cookies.
    connection = Connection()
    connection.segment(ORIGINAL, CLIENT_FIRST - 1, None, flags="S")
    connection.segment(REPLY, 5_000_000, CLIENT_FIRST, flags="SA")
    connection.segment(REPLY, SERVER_FIRST - 1, CLIENT_FIRST, flags="SA")
    assert len(connection.send(REPLY, b"OPEN 5000\n").expectations) == 1
    connection.segment(REPLY, 6_000_000, CLIENT_FIRST, flags="SA")
    assert len(connection.send(REPLY, b"OPEN 5001\n").expectations) == 1


NEW = {ORIGINAL: 70_000_000, REPLY: 80_000_000}


@pytest.mark.parametrize("speaker", list(Direction))
@pytest.mark.parametrize("before", [b"", b"OPEN 4000\n", b"OPE"])
def test_connection_that_both_ends_begin_anew_is_read(
    speaker: Direction, before: bytes
) -> None:
    # The kernel ignores the SYN and is in sync again with its SYN/ACK (tcp_packet).
    connection = Connection().handshake()
    connection.send(ORIGINAL, before)
    connection.segment(ORIGINAL, NEW[ORIGINAL] - 1, None, flags="S")
    connection.segment(REPLY, NEW[REPLY] - 1, NEW[ORIGINAL], flags="SA")
    decision = connection.segment(
        speaker, NEW[speaker], NEW[OTHER[speaker]], b"OPEN 5000\n"
    )
    assert len(decision.expectations) == 1
    assert [payload for _, payload in connection.heard] == [b"OPEN 5000\n"]


def test_connection_begins_anew_only_by_the_numbers_of_both_ends() -> None:
    connection = Connection().handshake()
    connection.send(ORIGINAL, b"OPEN 40")
    connection.segment(ORIGINAL, NEW[ORIGINAL] - 1, None, flags="S")
    # The server knows nothing of it: a forged answer, and data of either forger's.
    connection.segment(REPLY, NEW[REPLY] - 1, NEW[ORIGINAL] + 1, flags="SA")
    connection.segment(ORIGINAL, NEW[ORIGINAL], NEW[REPLY], b"OPEN 6000\n")
    assert len(connection.send(ORIGINAL, b"00\n").expectations) == 1


# The beginning.


def test_forged_first_segment_does_not_end_the_flow_before_it_begins() -> None:
    # The kernel takes up an entry for it, which the client's SYN will find.
    connection = Connection()
    host = connection.host
    seen = host.entry
    host.entry = replace(seen, status=Status.CONFIRMED)
    assert connection.segment(ORIGINAL, 5, 6, b"OPEN 6000\n").events == ()
    connection.segment(ORIGINAL, CLIENT_FIRST - 1, None, flags="S")
    host.entry = seen
    connection.segment(REPLY, SERVER_FIRST - 1, CLIENT_FIRST, flags="SA")
    assert len(connection.send(ORIGINAL, b"OPEN 5000\n").expectations) == 1


def test_forged_answer_before_the_servers_does_not_end_the_flow() -> None:
    # The kernel lets it through (tcp_conntracks: sIG), and the flow counts as answered.
    connection = Connection()
    connection.segment(ORIGINAL, CLIENT_FIRST - 1, None, flags="S")
    for acknowledged in (5, CLIENT_FIRST + 100):
        decision = connection.segment(REPLY, 6, acknowledged, b"OPEN 6000\n")
        assert (decision.events, decision.expectations) == ((), ())
    connection.segment(REPLY, SERVER_FIRST - 1, CLIENT_FIRST, flags="SA")
    assert len(connection.send(REPLY, b"OPEN 5000\n").expectations) == 1


def test_direction_whose_beginning_was_missed_is_mid_stream() -> None:
    # The SYN/ACK found the queue full.
    connection = Connection()
    connection.segment(ORIGINAL, CLIENT_FIRST - 1, None, flags="S")
    connection.send(ORIGINAL, b"NOTHING\n")
    assert connection.send(REPLY, b"OPEN 5000\n").events == (Finished("mid-stream"),)


# Honest traffic.


def test_segment_in_order_counts_whatever_it_acknowledges() -> None:
    # What it acknowledges found the queue full.
    connection = Connection().handshake()
    decision = connection.segment(
        REPLY, SERVER_FIRST, CLIENT_FIRST + 900_000, b"OPEN 5000\n"
    )
    assert len(decision.expectations) == 1


def test_fin_is_acknowledged() -> None:
    connection = Connection().handshake()
    connection.segment(ORIGINAL, CLIENT_FIRST, SERVER_FIRST, flags="FA")
    connection.segment(REPLY, SERVER_FIRST + 7, CLIENT_FIRST + 1, b"00\n")
    decision = connection.segment(REPLY, SERVER_FIRST, CLIENT_FIRST + 1, b"OPEN 50")
    assert len(decision.expectations) == 1


def test_segments_out_of_order_may_acknowledge_what_waits() -> None:
    connection = Connection().handshake()
    # The end of each line comes first; each acknowledges the other's.
    for direction in Direction:
        connection.sent[direction] = 4
        connection.send(direction, b" 5000\n")
    for direction in Direction:
        assert len(connection.repeat(direction, 0, b"OPEN").expectations) == 1


@given(
    st.permutations(range(8)),
    st.sets(st.integers(1, 24), max_size=7),
    st.lists(st.integers(0, 7), max_size=4),
)
def test_any_order_and_repetition_gives_the_messages(
    order: list[int], cuts: set[int], again: list[int]
) -> None:
    connection = Connection().handshake()
    connection.send(REPLY, b"NOTHING\n")
    text = b"NOTHING\n\nOPEN 5000\n"
    pieces, offset = [], 0
    for piece in cut(text, cuts):
        pieces.append((offset, piece))
        offset += len(piece)
    for number in [*order, *again]:
        if number < len(pieces):
            assert connection.repeat(ORIGINAL, *pieces[number]).events == ()
    assert [payload for way, payload in connection.heard if way is ORIGINAL] == (
        text.splitlines(keepends=True)
    )

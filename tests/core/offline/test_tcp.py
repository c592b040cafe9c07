# SPDX-License-Identifier: GPL-2.0-or-later
"""TCP's states: each way through the table, and what the table does not say.

A segment is written as in tcpdump, behind > from the side that opened the flow or <
from the other one: ``>S <SA >A >FA <A <FA >A``.
"""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.offline.tcp import (
    TCP_TIMEOUTS,
    Connection,
    TcpState,
    Verdict,
    is_reset,
    is_syn,
    sequence_space,
)

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
LETTERS: Final = {
    "F": FIN,
    "S": SYN,
    "R": RST,
    "P": PSH,
    "A": ACK,
    "U": URG,
    "E": ECE,
    "C": CWR,
}

HANDSHAKE: Final = ">S <SA >A"

# A way to each state.
WAYS: Final = {
    TcpState.NONE: "",
    TcpState.SYN_SENT: ">S",
    TcpState.SYN_RECV: ">S <SA",
    TcpState.ESTABLISHED: HANDSHAKE,
    TcpState.FIN_WAIT: f"{HANDSHAKE} >FA",
    TcpState.CLOSE_WAIT: f"{HANDSHAKE} >FA <A",
    TcpState.LAST_ACK: f"{HANDSHAKE} >FA <FA",
    TcpState.TIME_WAIT: f"{HANDSHAKE} >FA <FA >A",
    TcpState.CLOSE: f"{HANDSHAKE} <R",
    TcpState.SYN_SENT2: ">S <S",
}


def play(
    connection: Connection, words: str, *, end: int = 1000, acknowledged: int = 0
) -> list[Verdict]:
    """What becomes of each segment; all end and acknowledge the same."""
    return [
        connection.advance(
            sum(LETTERS[letter] for letter in word[1:]),
            end,
            acknowledged,
            reply=word[0] == "<",
        )
        for word in words.split()
    ]


def begun(words: str) -> Connection:
    """A connection after these segments, all of which pass."""
    connection = Connection()
    assert set(play(connection, words)) <= {Verdict.PASS}
    return connection


# tcp_conntracks in nf_conntrack_proto_tcp.c: by state, what comes next for S, SA, FA,
# A and R from the opener, and then from the other side. IG is ignored, IV invalid, RE
# begins another flow.
TABLE: Final = {
    TcpState.NONE: ("SS IV IV ES IV", "IV IV IV IV IV"),
    TcpState.SYN_SENT: ("SS IV IV IV CL", "S2 SR IV IG CL"),
    TcpState.SYN_RECV: ("IG SR FW ES CL", "IV IG FW SR CL"),
    TcpState.ESTABLISHED: ("IG IV FW ES CL", "IV IG FW ES CL"),
    TcpState.FIN_WAIT: ("IG IV LA CW CL", "IV IG LA CW CL"),
    TcpState.CLOSE_WAIT: ("IG IV LA CW CL", "IV IG LA CW CL"),
    TcpState.LAST_ACK: ("IG IV LA TW CL", "IV IG LA TW CL"),
    TcpState.TIME_WAIT: ("RE IV TW TW CL", "RE IG TW TW CL"),
    # Closed by a reset from the other side, so that a SYN begins nothing.
    TcpState.CLOSE: ("IG IV CL CL CL", "IV IG CL CL CL"),
    TcpState.SYN_SENT2: ("S2 SR IV IV CL", "S2 SR IV IG CL"),
}
NAMES: Final = {
    "SS": TcpState.SYN_SENT,
    "SR": TcpState.SYN_RECV,
    "ES": TcpState.ESTABLISHED,
    "FW": TcpState.FIN_WAIT,
    "CW": TcpState.CLOSE_WAIT,
    "LA": TcpState.LAST_ACK,
    "TW": TcpState.TIME_WAIT,
    "CL": TcpState.CLOSE,
    "S2": TcpState.SYN_SENT2,
}
VERDICTS: Final = {"IG": Verdict.IGNORE, "IV": Verdict.INVALID, "RE": Verdict.REOPEN}


@pytest.mark.parametrize("state", TcpState, ids=lambda state: state.name.lower())
def test_each_kind_of_segment_in_each_state(state: TcpState) -> None:
    for side, row in zip("><", TABLE[state], strict=True):
        for kind, wanted in zip(("S", "SA", "FA", "A", "R"), row.split(), strict=True):
            connection = begun(WAYS[state])
            assert connection.state == state
            # It acknowledges no SYN that was ignored.
            verdicts = play(connection, side + kind, acknowledged=5)
            assert verdicts == [VERDICTS.get(wanted, Verdict.PASS)], (side, kind)
            assert connection.state == NAMES.get(wanted, state), (side, kind)


# tcp_valid_flags.
VALID: Final = {"S", "SU", "SA", "R", "RA", "FA", "FAU", "A", "AU"}


@pytest.mark.parametrize("flags", range(256))
def test_combination_of_flags(flags: int) -> None:
    names = {letter for letter, bit in LETTERS.items() if flags & bit}
    valid = any(names - set("PEC") == set(each) for each in VALID)
    for state, words in WAYS.items():
        if state is TcpState.ESTABLISHED or not valid:
            connection = begun(words)
            verdict = connection.advance(flags, 0, 0, reply=False)
            # A SYN with an ACK comes from the other side.
            assert (verdict is not Verdict.INVALID) == (
                valid and not names >= {"S", "A"}
            )


@pytest.mark.parametrize(
    ("words", "verdicts", "state"),
    [
        # A segment that is invalid leaves the state alone.
        (f"{HANDSHAKE} >SF >A", "IV PASS", TcpState.ESTABLISHED),
        # Simultaneous open: IP_CT_TCP_SIMULTANEOUS_OPEN.
        (">S <S >SA <A", "PASS", TcpState.ESTABLISHED),
        (">S <S <SA >A", "PASS", TcpState.ESTABLISHED),
        # A repeated SYN of the opener forgets that the SYNs crossed only where it is
        # ignored.
        (">S <S >S >SA <A", "PASS", TcpState.ESTABLISHED),
        (">S <S >SA >S <A", "PASS", TcpState.SYN_RECV),
        # The answer to a SYN repeated has no bearing in SYN_RECV.
        (">S <SA <SA", "IG", TcpState.SYN_RECV),
        # Closed in good order, and used again: IP_CT_TCP_FLAG_CLOSE_INIT.
        (f"{HANDSHAKE} >FA <FA >A >S", "RE", TcpState.TIME_WAIT),
        (f"{HANDSHAKE} <FA >FA <A >S", "RE", TcpState.TIME_WAIT),
        (f"{HANDSHAKE} >FA <FA >A <S", "RE", TcpState.TIME_WAIT),
        # Aborted by the side that opens again: last_index and last_dir.
        (f"{HANDSHAKE} >R >S", "RE", TcpState.CLOSE),
        (f"{HANDSHAKE} <R >S", "IG", TcpState.CLOSE),
        (f"{HANDSHAKE} >R >A >S", "IG", TcpState.CLOSE),
        (">S <R >S", "IG", TcpState.CLOSE),
        # Closed in good order before the reset.
        (f"{HANDSHAKE} >FA <R >S", "RE", TcpState.CLOSE),
        # RFC 5961: the ACK that answers a SYN of the opener in LAST_ACK is no last ACK.
        (f"{HANDSHAKE} >FA <FA >S <A", "IG IG", TcpState.LAST_ACK),
        (f"{HANDSHAKE} >FA <FA >S <A <A", "IG IG PASS", TcpState.TIME_WAIT),
        (f"{HANDSHAKE} >FA <FA >S >A", "IG PASS", TcpState.TIME_WAIT),
        (f"{HANDSHAKE} >FA <FA <SA <A", "IG PASS", TcpState.TIME_WAIT),
        # In another state it is as any.
        (f"{HANDSHAKE} >FA <A >S <A", "IG PASS", TcpState.CLOSE_WAIT),
    ],
)
def test_sequence(words: str, verdicts: str, state: TcpState) -> None:
    connection = Connection()
    seen = play(connection, words, acknowledged=5)
    wanted = [VERDICTS.get(word, Verdict.PASS) for word in verdicts.split()]
    assert seen[-len(wanted) :] == wanted
    assert connection.state == state


# Where the SYN and the SYN-ACK come in the middle of what conntrack knows: it lets both
# through, and is in sync with the second one if that acknowledges the first.


@pytest.mark.parametrize(
    ("before", "acknowledged", "verdict", "state"),
    [
        (f"{HANDSHAKE}", 1001, Verdict.PASS, TcpState.SYN_RECV),
        (f"{HANDSHAKE}", 1002, Verdict.IGNORE, TcpState.ESTABLISHED),
        (f"{HANDSHAKE} >FA", 1001, Verdict.PASS, TcpState.SYN_RECV),
        (f"{HANDSHAKE} >FA <FA", 1001, Verdict.PASS, TcpState.SYN_RECV),
        (f"{HANDSHAKE} <R", 1001, Verdict.PASS, TcpState.SYN_RECV),
    ],
)
def test_answer_to_a_syn_that_was_ignored(
    before: str, acknowledged: int, verdict: Verdict, state: TcpState
) -> None:
    connection = begun(before)
    assert play(connection, ">S", end=1001) == [Verdict.IGNORE]
    answer = play(connection, "<SA", end=7001, acknowledged=acknowledged)
    assert answer == [verdict]
    assert connection.state == state


def test_another_segment_between_syn_and_answer_breaks_the_sync() -> None:
    connection = begun(HANDSHAKE)
    play(connection, ">S", end=1001)
    assert play(connection, "<A") == [Verdict.PASS]
    assert play(connection, "<SA", acknowledged=1001) == [Verdict.IGNORE]


def test_sync_with_an_ignored_syn_forgets_who_closed() -> None:
    connection = begun(f"{HANDSHAKE} >FA <FA")
    play(connection, ">S", end=1001)
    play(connection, "<SA", acknowledged=1001)
    # The new connection is reset by the server; without the FINs no SYN reopens it.
    assert play(connection, "<R >S") == [Verdict.PASS, Verdict.IGNORE]


def test_every_state_has_a_timeout() -> None:
    assert TCP_TIMEOUTS.keys() == set(TcpState) - {TcpState.NONE}
    assert all(seconds >= 10 for seconds in TCP_TIMEOUTS.values())


@pytest.mark.parametrize(
    ("flags", "syn", "reset", "space"),
    [
        (SYN, True, False, 1),
        (SYN | ECE | CWR, True, False, 1),
        (SYN | ACK, False, False, 1),
        (ACK, False, False, 0),
        (FIN | ACK, False, False, 1),
        (RST, False, True, 0),
        (RST | ACK, False, True, 0),
        (SYN | RST, False, True, 1),
        (SYN | FIN, True, False, 2),
        (0, False, False, 0),
    ],
)
def test_flags(flags: int, syn: bool, reset: bool, space: int) -> None:
    assert is_syn(flags) is syn
    assert is_reset(flags) is reset
    assert sequence_space(flags) == space


segments = st.tuples(
    st.sampled_from([SYN, SYN | ACK, FIN | ACK, ACK, RST, RST | ACK]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)


@given(
    st.lists(st.tuples(st.integers(0, 255), *[st.integers(0, 3)] * 2, st.booleans()))
)
def test_any_segments_leave_a_state_that_is_known(
    sent: list[tuple[int, int, int, bool]],
) -> None:
    connection = Connection()
    for flags, end, acknowledged, reply in sent:
        before = connection.state
        verdict = connection.advance(flags, end, acknowledged, reply=reply)
        assert connection.state in tuple(TcpState)
        if verdict is not Verdict.PASS:
            assert connection.state == before
        else:
            assert connection.state != TcpState.NONE


@given(st.lists(segments))
def test_closed_connection_stays_closed_until_it_is_opened_again(
    sent: list[tuple[int, int, int, bool]],
) -> None:
    connection = begun(f"{HANDSHAKE} >FA <FA >R")
    for flags, end, acknowledged, reply in sent:
        verdict = connection.advance(flags, end, acknowledged, reply=reply)
        if verdict is Verdict.REOPEN:
            assert is_syn(flags)
            return
        assert connection.state == TcpState.CLOSE

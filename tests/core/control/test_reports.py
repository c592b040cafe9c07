# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions and answers between processes: none waits for one that does not read."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.control.reports import TOO_LONG, Asker, Reporter, pair
from cthelper.core.records import Record


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    asking, answering = pair()
    with asking, answering:
        yield asking, answering


def twice(question: Record) -> Record:
    number = question["of"]
    if not isinstance(number, int):
        raise TypeError
    return {"twice": 2 * number}


def serve(answering: socket.socket, times: int) -> Thread:
    """Answer so many questions beside."""
    answering.settimeout(10)

    def work() -> None:
        reporter = Reporter(
            answering, {"twice": twice, "long": lambda _: {"a": "x" * 200_000}}
        )
        answering.settimeout(10)
        for _ in range(times):
            assert reporter.serve()

    thread = Thread(target=work)
    thread.start()
    return thread


def test_questions_are_answered_in_turn(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    asking, answering = ends
    thread = serve(answering, 3)
    asker = Asker(asking)
    assert [asker.ask("twice", 10, of=each) for each in range(3)] == [
        {"twice": 0},
        {"twice": 2},
        {"twice": 4},
    ]
    thread.join()


def test_answer_that_is_too_long_says_so(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    asking, answering = ends
    thread = serve(answering, 1)
    assert Asker(asking).ask("long", 10) == {TOO_LONG: True}
    thread.join()


def test_late_answer_is_not_taken_for_another(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    asking, answering = ends
    asker = Asker(asking)
    assert asker.ask("twice", 0.0, of=1) is None
    assert asker.ask("twice", 0.0, of=2) is None
    reporter = Reporter(answering, {"twice": twice})
    assert reporter.serve()
    assert reporter.serve()
    thread = serve(answering, 1)
    assert asker.ask("twice", 10, of=5) == {"twice": 10}
    thread.join()


def test_who_answers_never_waits_for_who_asks(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    asking, answering = ends
    reporter = Reporter(answering, {"fill": lambda _: {"a": "x" * 100_000}})
    for number in range(50):
        asking.send(json.dumps({"ask": "fill", "number": number}).encode())
        assert reporter.serve()
    assert reporter.serve()  # nobody asks
    asking.close()
    assert not reporter.serve()


def test_nobody_there_is_no_answer(ends: tuple[socket.socket, socket.socket]) -> None:
    asking, answering = ends
    answering.close()
    assert Asker(asking).ask("state", 10) is None


@given(st.binary(min_size=1, max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    asking, answering = pair()
    with asking, closing(Reporter(answering, {"twice": twice})) as reporter:
        asking.send(data)
        assert reporter.serve()
        answering.send(data)
        assert Asker(asking).ask("twice", 0.0, of=1) is None


def test_turn_is_not_waited_for_longer_than_the_answer(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    asker = Asker(ends[0])
    other = Thread(target=lambda: asker.ask("twice", 1.0, of=1))
    other.start()
    begun = time.monotonic()
    while not asker._lock.locked():
        time.sleep(0.001)
    assert asker.ask("twice", 0.05, of=2) is None
    assert time.monotonic() - begun < 0.9
    other.join()

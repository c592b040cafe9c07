# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue read in Python: what it gives out, and in which order it answers.

Of the native one test_native.py shows the same.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from cthelper.core.errors import QueueError
from cthelper.core.queue.binding import Binding
from cthelper.core.queue.library import LibraryQueue
from cthelper.core.queue.messages import batch, verdict
from cthelper.core.queue.protocol import Action, Statistics, Verdict
from tests.core.builders import tcp
from tests.core.queue.test_native import CONFIRMED, FLOWS, NUMBER, entry, message

ENTRY = entry(FLOWS[0], status=CONFIRMED)
REFUSED = struct.pack("=IHHIIi", 36, 2, 0, 0, 0, -2) + bytes(16)


class Bench:
    """A queue between the test, which is the kernel, and the test, which reads."""

    def __init__(self, ours: socket.socket, kernel: socket.socket) -> None:
        self.kernel = kernel
        self.queue = LibraryQueue(Binding(NUMBER, ours, fail_open=True), 4)

    def comes(self, *ids: int, payload: bytes = b"x") -> None:
        for id_ in ids:
            self.kernel.send(message(tcp(payload, 1), ENTRY, id_))

    def sent(self) -> bytes:
        """What has been sent since."""
        try:
            return self.kernel.recv(1 << 20)
        except BlockingIOError:
            return b""


@pytest.fixture
def bench() -> Iterator[Bench]:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    with closing(ours), closing(kernel):
        yield Bench(ours, kernel)


def accepts(last: int) -> bytes:
    return batch(NUMBER, Action.ACCEPT, last)


def test_plain_accepts_go_in_batches_around_the_others(bench: Bench) -> None:
    changed = Verdict(3, payload=b"changed")
    bench.comes(1)
    bench.comes(2, payload=b"")
    bench.comes(3, 4)
    bench.comes(5, payload=b"")
    assert [each.id for each in bench.queue.read(9)] == [1, 3, 4]
    bench.queue.answer([Verdict(1), changed, Verdict(4)])
    assert bench.sent() == accepts(2) + verdict(NUMBER, changed) + accepts(5)
    assert bench.queue.statistics == Statistics(received=5, answered=5, passed=2)


def test_batch_settles_no_packet_that_still_waits(bench: Bench) -> None:
    bench.comes(1, 2, 3)
    assert len(bench.queue.read(9)) == 3
    bench.queue.answer([Verdict(3), Verdict(2)])
    assert bench.sent() == verdict(NUMBER, Verdict(3)) + verdict(NUMBER, Verdict(2))
    bench.queue.answer([Verdict(1)])
    assert bench.sent() == accepts(1)


def test_what_passes_goes_on_at_once_where_nothing_else_has_come(bench: Bench) -> None:
    bench.comes(1, 2, payload=b"")
    assert bench.queue.read(9) == []
    assert bench.sent() == accepts(2)


def test_no_more_is_read_than_is_asked_for(bench: Bench) -> None:
    bench.comes(1, 2, 3)
    assert [each.id for each in bench.queue.read(2)] == [1, 2]
    assert [each.id for each in bench.queue.read(2)] == [3]


def test_gaps_and_refusals_are_counted(bench: Bench) -> None:
    bench.comes(4)
    bench.kernel.send(REFUSED)
    bench.comes(9)
    assert len(bench.queue.read(9)) == 2
    assert bench.queue.statistics == Statistics(received=2, bypassed=4, refused=1)


def test_packet_that_cannot_be_decoded_goes_on(bench: Bench) -> None:
    cut_off = struct.pack("=HH", 40, 1)
    bench.kernel.send(message(tcp(b"x", 1), cut_off, 7))
    assert bench.queue.read(9) == []
    assert bench.sent() == accepts(7)
    assert bench.queue.statistics.refused == 1


def test_socket_that_is_closed_is_an_error(bench: Bench) -> None:
    bench.comes(1)
    assert len(bench.queue.read(9)) == 1
    bench.queue.close()
    with pytest.raises(QueueError, match=f"cannot answer queue {NUMBER}"):
        bench.queue.answer([Verdict(1)])
    with pytest.raises(QueueError, match=f"cannot read queue {NUMBER}"):
        bench.queue.read(9)

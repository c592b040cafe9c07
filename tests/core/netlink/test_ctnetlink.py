# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of ctnetlink: which of them the kernel lets through, and how many are read.

The filter is a program that the kernel runs. It runs it here, too, on a socket of ours:
it does not matter to it who sends. The live tests have it run on what a kernel sends.
"""

import socket
import struct
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cthelper.core.netlink import ctnetlink
from cthelper.core.netlink.ctnetlink import EntryGone, Events
from cthelper.core.netlink.socket import NetlinkSocket
from cthelper.core.tuples import Status, flow_key
from tests.cases import cases
from tests.core.netlink.test_decoding import (
    BOTH,
    ID,
    NESTED,
    ORIGINAL,
    STATUS,
    TUPLE_MASTER,
    TUPLE_ORIG,
    ZONE,
    attribute,
    tuple_,
    u32,
)

NEW, DELETE = 0x100, 0x102
EXPECTATION_NEW, EXPECTATION_DELETE = 0x200, 0x202
TUPLE_ZONE = 3

CONFIRMED = Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED
ENDED = CONFIRMED | Status.DYING
# Inside of a tuple there are attributes with the numbers of an entry's status.
ZONED = attribute(NESTED | TUPLE_ORIG, attribute(TUPLE_ZONE, b"\xff\xff"))


def event(type_: int, *attributes: bytes) -> bytes:
    """A message as the kernel sends it: nlmsghdr, nfgenmsg, attributes."""
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), type_, 0, 0, 0) + body


def gone(status: int, identity: int = 5) -> bytes:
    """The end of an entry, its attributes in the kernel's order."""
    return event(DELETE, BOTH, u32(ID, identity), u32(STATUS, status), u32(8, 1))


class Kernel:
    """The other end of the events' socket."""

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        self.size = 0

    def send(self, datagram: bytes) -> None:
        self._theirs.send(datagram)

    def opened(
        self, _family: int, *, groups: tuple[int, ...], receive_buffer: int
    ) -> NetlinkSocket:
        assert groups == (3,)
        self.size = receive_buffer
        # Groups of netfilter are for root alone.
        end = NetlinkSocket(0)
        end.close()
        end._socket = self.ours
        return end

    def passed(self) -> list[bytes]:
        """What has passed the filter."""
        found = []
        while True:
            try:
                found.append(self.ours.recv(4096))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel()
    monkeypatch.setattr(ctnetlink, "NetlinkSocket", kernel.opened)
    yield kernel
    kernel.close()


@pytest.fixture
def events(kernel: Kernel) -> Events:
    return Events()


@pytest.mark.interpreted
@cases(
    "message,passes",
    {
        "end of a flow": (gone(ENDED), False),
        "end of a flow with a helper": (gone(ENDED | Status.HELPER), True),
        "end of an expected flow": (gone(ENDED | Status.EXPECTED), True),
        "of both": (gone(ENDED | Status.HELPER | Status.EXPECTED), True),
        "end of a flow in a zone": (
            event(DELETE, ZONED, attribute(ZONE, b"\xff\xff"), u32(STATUS, ENDED)),
            False,
        ),
        "end of a flow with a helper in a zone": (
            event(DELETE, ZONED, attribute(ZONE, bytes(2)), u32(STATUS, 0x2000)),
            True,
        ),
        "end with a status without a bit": (gone(0), False),
        "end with every other bit": (gone(0xFFFFDFFE), False),
        "end with a status that is cut off": (event(DELETE, BOTH + b"\5\0\3\0"), False),
        "end without a status": (event(DELETE, BOTH, u32(ID, 5)), False),
        "end without anything": (event(DELETE), False),
        "new flow": (event(NEW, BOTH, u32(STATUS, 0x2001)), False),
        "new flow that was expected": (
            event(NEW, BOTH, u32(STATUS, 0), tuple_(TUPLE_MASTER, ORIGINAL)),
            True,
        ),
        "new expectation": (event(EXPECTATION_NEW, u32(STATUS, 0)), True),
        "end of an expectation": (event(EXPECTATION_DELETE), True),
        "a message of netlink's own": (event(2), True),
    },
)
def test_kernel_lets_through_what_matters(
    kernel: Kernel, events: Events, message: bytes, passes: bool
) -> None:
    kernel.send(message)
    assert kernel.passed() == [message] * passes


@pytest.mark.interpreted
@given(status=st.integers(0, 0xFFFFFFFF))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_end_passes_by_two_bits_of_the_status(
    kernel: Kernel, events: Events, status: int
) -> None:
    kernel.send(gone(status))
    assert bool(kernel.passed()) is bool(status & 0x2001)


@pytest.mark.interpreted
@given(
    type_=st.sampled_from((NEW, DELETE, EXPECTATION_NEW)),
    attributes=st.binary(max_size=100),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_filter_takes_any_bytes(
    kernel: Kernel, events: Events, type_: int, attributes: bytes
) -> None:
    kernel.send(event(type_, attributes))
    assert len(kernel.passed()) <= 1
    # And it is as it was.
    kernel.send(gone(0x2000))
    assert kernel.passed() == [gone(0x2000)]


@pytest.mark.interpreted
def test_filter_takes_what_is_too_short(kernel: Kernel, events: Events) -> None:
    for length in range(21):
        kernel.send(gone(0x2000)[:length])
    assert not kernel.passed()


@pytest.mark.interpreted
def test_reading_stops_after_so_many_messages(kernel: Kernel, events: Events) -> None:
    for identity in range(8):
        kernel.send(gone(0x2000, identity))
        # What does not pass the filter does not count, what is not told of does.
        kernel.send(gone(0))
        kernel.send(event(EXPECTATION_DELETE))
    assert list(events.read(6)) == [EntryGone(flow_key(each, 0)) for each in range(3)]
    assert list(events.read()) == [EntryGone(flow_key(each, 0)) for each in range(3, 8)]
    assert not list(events.read())


@pytest.mark.interpreted
def test_who_stops_reading_has_the_rest_later(kernel: Kernel, events: Events) -> None:
    for identity in range(4):
        kernel.send(gone(0x2000, identity))
    assert list(islice(events.read(), 1)) == [EntryGone(flow_key(0, 0))]
    assert list(events.read()) == [EntryGone(flow_key(each, 0)) for each in (1, 2, 3)]


class Endless:
    """Whoever reads is given the next event."""

    def recv(self, _size: int) -> bytes:
        return gone(0x2000)


@pytest.mark.interpreted
def test_reading_ends_even_if_events_come_as_quickly_as_they_are_read(
    kernel: Kernel, events: Events
) -> None:
    events._socket._socket = Endless()  # type: ignore[assignment]
    # No event takes less room than this (the live tests see to it), and the kernel
    # doubles the size that it is told.
    assert len(list(events.read())) == 2 * kernel.size // 512

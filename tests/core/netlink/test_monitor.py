# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of entries and expectations, as the kernel sends it."""

import socket
import struct
from collections.abc import Iterator

import pytest

from cthelper.core.netlink import monitor as module
from cthelper.core.netlink.listing import Listed
from cthelper.core.netlink.monitor import Happened, Monitor
from cthelper.core.netlink.socket import NetlinkSocket
from cthelper.core.tuples import Expectation, Kind, Status
from tests.cases import cases
from tests.core.netlink.test_ctnetlink import Kernel
from tests.core.netlink.test_decoding import ORIGINAL, STATUS, tuple_, u32
from tests.core.netlink.test_listing import ends

NEW, DELETE, EXPECTATION_NEW, EXPECTATION_DELETE = 0x100, 0x102, 0x200, 0x202
CREATED = 0x600  # NLM_F_CREATE | NLM_F_EXCL
# CTA_EXPECT_MASTER, _TUPLE and _MASK.
EXPECTATION = b"".join(tuple_(kind, ORIGINAL) for kind in (1, 2, 3))


def message(type_: int, flags: int, attributes: bytes) -> bytes:
    """As the kernel sends it: nlmsghdr, nfgenmsg, attributes."""
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + attributes
    return struct.pack("=IHHII", 16 + len(body), type_, flags, 0, 0) + body


class Joined(Kernel):
    """The other end of the socket, which notes the groups."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []

    def made(self, _family: int, *, receive_buffer: int) -> NetlinkSocket:
        end = self.opened(_family, groups=(3,), receive_buffer=receive_buffer)
        vars(end)["join"] = self.groups.append
        return end


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    kernel = Joined()
    monkeypatch.setattr(module, "NetlinkSocket", kernel.made)
    yield kernel
    kernel.close()


def told(kernel: Kernel, monitor: Monitor, sent: bytes) -> list[Happened]:
    kernel.send(sent)
    return list(monitor.read(0.0))


@pytest.mark.interpreted
@cases(
    "type_,flags,attributes,kind",
    {
        "new": (NEW, CREATED, ends(6), Kind.NEW),
        "update": (NEW, 0, ends(6), Kind.UPDATE),
        "destroy": (DELETE, 0, ends(17), Kind.DESTROY),
        "of another transport": (NEW, CREATED, ends(1), None),
        "expectation": (EXPECTATION_NEW, CREATED, EXPECTATION, Kind.EXPECTATION_NEW),
        "its end": (EXPECTATION_DELETE, 0, EXPECTATION, Kind.EXPECTATION_DESTROY),
        "of nothing": (EXPECTATION_NEW, CREATED, b"", None),
        "another message": (0x103, 0, ends(6), None),
    },
)
def test_message_says_what_happened(
    kernel: Joined, type_: int, flags: int, attributes: bytes, kind: Kind | None
) -> None:
    monitor = Monitor(Kind, status=Status(0), buffer=1000)
    found = told(kernel, monitor, message(type_, flags, attributes))
    assert [each.kind for each in found] == ([] if kind is None else [kind])
    for each in found:
        is_expectation = kind in (Kind.EXPECTATION_NEW, Kind.EXPECTATION_DESTROY)
        subject = Expectation if is_expectation else Listed
        assert isinstance(each.subject, subject)


@pytest.mark.interpreted
def test_groups_are_those_of_the_kinds(kernel: Joined) -> None:
    Monitor((Kind.DESTROY, Kind.EXPECTATION_DESTROY), status=Status(0), buffer=1000)
    assert (kernel.groups, kernel.size) == ([3, 6], 1000)


@pytest.mark.interpreted
@pytest.mark.parametrize("type_", [NEW, DELETE])
def test_entries_come_by_their_status(kernel: Joined, type_: int) -> None:
    monitor = Monitor(Kind, status=Status.HELPER, buffer=1000)
    for status, passes in ((0x2001, True), (0x1FFF, False)):
        sent = message(type_, 0, ends(6) + u32(STATUS, status))
        assert bool(told(kernel, monitor, sent)) is passes
    sent = message(EXPECTATION_NEW, 0, EXPECTATION)
    assert told(kernel, monitor, sent)


@pytest.mark.interpreted
def test_nothing_waits_without_events(kernel: Joined) -> None:
    monitor = Monitor(Kind, status=Status(0), buffer=1000)
    assert list(monitor.read(0.01)) == []
    assert monitor.overruns == 0
    monitor.close()

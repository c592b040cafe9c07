# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of nf_tables: which of them are of the table."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.netlink import nftables
from cthelper.core.netlink.nftables import TableEvents
from cthelper.core.netlink.socket import Frame, NetlinkSocket, split
from tests.cases import cases

INET, IP = 1, 2
DELTABLE, DELCHAIN, DELRULE, NEWGEN, DESTROYTABLE = 2, 5, 8, 15, 26


def attribute(kind: int, value: bytes) -> bytes:
    data = struct.pack("=HH", len(value) + 4, kind) + value
    return data + bytes(-len(data) % 4)


def event(
    number: int,
    *attributes: bytes,
    family: int = INET,
    subsystem: int = 10,
) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    header = (16 + len(body), subsystem << 8 | number, 0, 0, 0)
    return struct.pack("=IHHII", *header) + body


OURS = attribute(1, b"cthelper\0")
GENERATION = event(NEWGEN, attribute(1, bytes(4)), family=0)


class Datagrams:
    """In the place of a socket: what the kernel has sent, or that it has lost some."""

    def __init__(self) -> None:
        self.waiting: list[bytes | OSError] = []

    def recv(self, _size: int) -> bytes:
        if not self.waiting:
            raise BlockingIOError
        first = self.waiting.pop(0)
        if isinstance(first, OSError):
            raise first
        return first

    def fileno(self) -> int:
        return 7

    def close(self) -> None:
        """It is none."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Datagrams:
    made = Datagrams()

    def opened(_family: int, *, groups: tuple[int, ...]) -> NetlinkSocket:
        assert groups == (7,)
        # Any family will do: a group of netfilter's is for root alone.
        end = NetlinkSocket(0)
        end.close()
        end._socket = made  # type: ignore[assignment]
        return end

    monkeypatch.setattr(nftables, "NetlinkSocket", opened)
    return made


@cases(
    "datagrams,touched",
    {
        "nothing": ([], False),
        "table": ([event(DELTABLE, OURS), GENERATION], True),
        "table, by nft destroy": ([event(DESTROYTABLE, OURS)], True),
        "chain": ([event(DELCHAIN, OURS, attribute(3, b"input\0"))], True),
        "rule, behind others": (
            [event(DELRULE, attribute(1, b"user\0")) + event(DELRULE, OURS)],
            True,
        ),
        "another table": ([event(DELTABLE, attribute(1, b"cthelper2\0"))], False),
        "a table of another family": ([event(DELTABLE, OURS, family=IP)], False),
        "a generation": ([GENERATION], False),
        "another subsystem": ([event(DELTABLE, OURS, subsystem=1)], False),
        "no table": ([event(DELTABLE)], False),
        "cut off": ([event(DELTABLE, struct.pack("=HH", 40, 1) + b"cth\0")], False),
        "events lost": ([OSError(errno.ENOBUFS, "")], True),
    },
)
def test_table_is_touched_by_events_of_its_own(
    kernel: Datagrams, datagrams: list[bytes | OSError], touched: bool
) -> None:
    events = TableEvents("inet cthelper")
    kernel.waiting += datagrams
    assert events.touched() is touched
    # Of each it is told once.
    assert events.touched() is False


@given(st.binary(max_size=64))
def test_any_bytes_are_an_event_or_none(data: bytes) -> None:
    events = TableEvents.__new__(TableEvents)
    events._family, events._table = INET, b"cthelper"
    for frame in [*split(data), Frame(10 << 8, 0, 0, 0, data)]:
        assert events._is_ours(frame) in (True, False)

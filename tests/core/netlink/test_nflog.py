# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that rules log: whatever comes, and how many did not."""

import errno
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import Truncated
from cthelper.core.netlink import nflog
from cthelper.core.netlink.nflog import Logged, PacketLog, read_logged
from cthelper.core.netlink.socket import NetlinkSocket
from cthelper.core.tuples import ORIGINAL, REPLY, UDP
from tests.core.netlink.test_decoding import (
    TUPLE_ORIG,
    TUPLE_REPLY,
    flow,
    tuple_,
)
from tests.core.netlink.test_nftables import Datagrams, attribute

HEADERS = bytes(20)
FLOW = flow(UDP, "192.0.2.1", "198.51.100.2")
ANSWER = flow(UDP, "198.51.100.2", "203.0.113.1")
PACKET_HDR, TIMESTAMP, PAYLOAD, SEQ, CT, CT_INFO = 1, 3, 9, 12, 18, 19
PREROUTING, INPUT, OUTPUT, POSTROUTING = 0, 1, 3, 4


def message(*attributes: bytes, subsystem: int = 4) -> bytes:
    body = struct.pack("=BBH", 0, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), subsystem << 8, 0, 0, 0) + body


def header(hook: int) -> bytes:
    return attribute(PACKET_HDR, struct.pack("!HBx", 0x0800, hook))


def number(value: int) -> bytes:
    return attribute(SEQ, struct.pack("!I", value))


def info(value: int) -> bytes:
    return attribute(CT_INFO, struct.pack("!I", value))


def test_packet_is_read_with_its_flow() -> None:
    logged = read_logged(
        message(
            header(PREROUTING),
            attribute(TIMESTAMP, struct.pack("!QQ", 1_700_000_000, 250_001)),
            attribute(PAYLOAD, b"packet"),
            number(7),
            attribute(CT, tuple_(TUPLE_ORIG, FLOW) + tuple_(TUPLE_REPLY, ANSWER)),
            info(4),
        )
    )
    assert (logged.number, logged.packet) == (7, b"packet")
    assert logged.time == 1_700_000_000_250_001_000
    assert logged.direction is REPLY
    assert logged.conntrack is not None
    assert logged.conntrack.original == FLOW
    assert logged.enters


@pytest.mark.parametrize(
    ("hook", "enters"),
    [(PREROUTING, True), (OUTPUT, True), (INPUT, False), (POSTROUTING, False)],
)
def test_hook_says_whether_it_enters(hook: int, enters: bool) -> None:
    assert read_logged(message(header(hook))).enters is enters


@pytest.mark.parametrize("value", [0, 1, 2, 7])
def test_direction_is_original_where_it_is_no_reply(value: int) -> None:
    logged = read_logged(message(info(value)))
    assert logged.direction is ORIGINAL
    assert (logged.time, logged.conntrack) == (None, None)


@given(st.binary(max_size=96))
def test_any_bytes_are_a_packet_or_truncated(data: bytes) -> None:
    with suppress(Truncated):
        assert isinstance(read_logged(HEADERS + data), Logged)


@given(
    st.sampled_from([PACKET_HDR, TIMESTAMP, PAYLOAD, SEQ, CT, CT_INFO]),
    st.binary(max_size=24),
)
def test_any_value_is_a_packet_or_truncated(kind: int, value: bytes) -> None:
    with suppress(Truncated):
        assert isinstance(read_logged(message(attribute(kind, value))), Logged)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Datagrams:
    made = Datagrams()

    class Ends(NetlinkSocket):
        def __init__(self, _family: int, *, receive_buffer: int) -> None:
            super().__init__(0)
            self.close()
            self._socket = made  # type: ignore[assignment]

        def send(self, *_: object) -> list[object]:  # type: ignore[override]
            return []

        def follow(self) -> None:
            pass

    monkeypatch.setattr(nflog, "NetlinkSocket", Ends)
    return made


@pytest.mark.interpreted
def test_packets_that_are_missing_are_counted(kernel: Datagrams) -> None:
    with PacketLog(5) as log:
        kernel.waiting += [message(number(0)), message(number(1), subsystem=1)]
        assert [each.number for each in log.packets()] == [0]
        assert log.missing == 0
        kernel.waiting += [OSError(errno.ENOBUFS, ""), OSError(errno.ENOBUFS, "")]
        assert list(log.packets()) == []
        assert log.missing == 2  # at least
        kernel.waiting.append(message(number(1 + 9)))
        assert len(list(log.packets())) == 1
        assert log.missing == 9
        kernel.waiting.append(message(number(11), struct.pack("=HH", 99, PAYLOAD)))
        assert list(log.packets()) == []
        assert log.missing == 10

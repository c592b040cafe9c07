# SPDX-License-Identifier: GPL-2.0-or-later
"""Netlink datagrams taken apart, and what the kernel says of an error."""

import errno
import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from cthelper.core.errors import Busy, NetlinkError, NotFound
from cthelper.core.netlink import socket as netlink_socket
from cthelper.core.netlink.socket import (
    NETLINK_ROUTE,
    Frame,
    NetlinkSocket,
    _error,
    _explanation,
    split,
)
from tests.cases import cases

HEADER = struct.Struct("=IHHII")
ERROR, CAPPED, ACK_TLVS = 2, 0x100, 0x200
MESSAGE, OFFSET = 1, 2
GETADDR, GETLINK = 22, 18


def frame(
    body: bytes = b"", type_: int = 20, flags: int = 2, sequence: int = 7
) -> bytes:
    return HEADER.pack(HEADER.size + len(body), type_, flags, sequence, 99) + body


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def test_datagram_of_one_message_is_that_message() -> None:
    data = frame(b"body")
    assert list(split(data)) == [Frame(20, 2, 7, 99, data)]


def test_messages_of_a_datagram_come_in_order_without_their_padding() -> None:
    first, second = frame(b"12345", sequence=1), frame(b"", type_=3, sequence=2)
    assert list(split(padded(first) + second)) == [
        Frame(20, 2, 1, 99, first),
        Frame(3, 2, 2, 99, second),
    ]


@pytest.mark.parametrize(
    "rest",
    [
        b"\0" * 15,
        frame(b"body")[:-1],
        HEADER.pack(15, 20, 0, 0, 0),
        HEADER.pack(0, 20, 0, 0, 0),
        HEADER.pack(0xFFFFFFFF, 20, 0, 0, 0),
    ],
    ids=["no header", "cut off", "length of 15", "length of 0", "length of 4 GiB"],
)
def test_what_is_no_whole_message_ends_the_datagram(rest: bytes) -> None:
    first = frame(b"body")
    assert list(split(first + rest)) == [Frame(20, 2, 7, 99, first)]


@given(st.lists(st.binary(max_size=9), max_size=5), st.binary(max_size=15))
def test_messages_come_out_as_they_went_in(bodies: list[bytes], rest: bytes) -> None:
    datagram = b"".join(padded(frame(body)) for body in bodies) + rest
    found = [each.data[HEADER.size :] for each in split(datagram)]
    assert found == bodies


@given(st.binary())
def test_any_bytes_split_into_pieces_of_themselves(data: bytes) -> None:
    for each in split(data):
        assert each.data in data
        assert len(each.data) >= HEADER.size


# Errors in words (NETLINK_EXT_ACK).


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + padded(value)


def refusal(
    *attributes: bytes, flags: int = ACK_TLVS, request: bytes = b"", type_: int = ERROR
) -> Frame:
    """An NLMSG_ERROR; the request it answers is in it, its body only if not capped."""
    asked = frame(request)
    if flags & CAPPED:
        asked = asked[: HEADER.size]
    body = struct.pack("=i", -errno.EINVAL) + padded(asked) + b"".join(attributes)
    (found,) = split(frame(body, type_=type_, flags=flags))
    return found


TEXT = attribute(MESSAGE, b"Unknown helper\0")


@cases(
    "found",
    {
        "message": refusal(TEXT),
        "after the request": refusal(TEXT, request=b"12345"),
        "after a capped request": refusal(
            TEXT, request=b"12345", flags=ACK_TLVS | CAPPED
        ),
        "after another attribute": refusal(attribute(OFFSET, bytes(4)), TEXT),
        "between others": refusal(
            attribute(OFFSET, bytes(5)), TEXT, attribute(OFFSET, bytes(4))
        ),
    },
)
def test_words_of_the_kernel_are_found(found: Frame) -> None:
    assert _explanation(found) == " (Unknown helper)"


@cases(
    "found",
    {
        "no attribute": refusal(),
        "no message among them": refusal(attribute(OFFSET, bytes(4))),
        "flag not set": refusal(TEXT, flags=0),
        "not an error": refusal(TEXT, type_=3),
        "length of 3": refusal(struct.pack("=HH", 3, MESSAGE)),
        "length of 0": refusal(b"\0\0\0\0", TEXT),
        "ends before the request": Frame(
            ERROR, ACK_TLVS, 7, 99, frame(struct.pack("=i", -1), ERROR, ACK_TLVS)
        ),
    },
)
def test_no_words_are_no_words(found: Frame) -> None:
    assert _explanation(found) == ""


def test_words_that_are_not_ascii_are_shown_as_far_as_they_are() -> None:
    found = refusal(attribute(MESSAGE, b"no \xff\0"))
    assert _explanation(found) == " (no \N{REPLACEMENT CHARACTER})"


def test_acknowledgement_without_a_code_is_an_error() -> None:
    error = _error(Frame(ERROR, 0, 7, 99, frame(b"", ERROR)), "ask")
    assert isinstance(error, NetlinkError)


# A real socket: every Linux has NETLINK_ROUTE, and anybody may read addresses.


def test_addresses_of_this_host_can_be_dumped() -> None:
    with NetlinkSocket(NETLINK_ROUTE) as socket:
        frames = socket.dump(ifaddrmsg(), GETADDR, "list addresses")
        again = list(socket.stream(ifaddrmsg(), GETADDR, "list addresses"))
    addresses = []
    for each in frames:
        message = ifaddrmsg(each.data)
        message.decode()
        addresses.append(ip_address(message.get_attr("IFA_ADDRESS")))
    assert all(each.type == 20 for each in frames)
    assert len(addresses) == len(frames)
    assert [each.type for each in again] == [each.type for each in frames]


def test_request_that_the_kernel_refuses_raises_its_error() -> None:
    with (
        NetlinkSocket(NETLINK_ROUTE) as socket,
        pytest.raises(NetlinkError, match=r"^get nothing: .*\(E[A-Z]+\)") as caught,
    ):
        socket.request(ifaddrmsg(), 0x7F, 0, "get nothing")
    assert caught.value.errno > 0
    with NetlinkSocket(NETLINK_ROUTE) as socket, pytest.raises(NetlinkError):
        list(socket.stream(ifaddrmsg(), 0x7F, "list nothing"))


def test_family_that_the_kernel_lacks_is_an_error() -> None:
    with pytest.raises(NetlinkError, match="open netlink socket"):
        NetlinkSocket(31)


class Failing:
    """A socket on which everything fails."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def _fails(self, *_: object) -> None:
        raise self._error

    send = setsockopt = recv = _fails


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOBUFS, ""), "kernel-enobufs"),
        (OSError(errno.ENOMEM, ""), "kernel-enomem"),
        (PermissionError(errno.EPERM, ""), "kernel-eperm"),
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), "kernel-econnrefused"),
        (BlockingIOError(errno.EAGAIN, ""), "kernel-etimedout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@cases(
    "step",
    {
        "request": lambda one: one.request(ifaddrmsg(), GETADDR, 0, "it"),
        "send": lambda one: one.send(2, b"", GETADDR, 0, "it"),
        "dump": lambda one: one.dump(ifaddrmsg(), GETADDR, "it"),
        "stream": lambda one: list(one.stream(ifaddrmsg(), GETADDR, "it")),
        "join": lambda one: one.join(1),
        "leave": lambda one: one.leave(1),
        "answer": lambda one: one._answers("it"),
    },
)
def test_what_fails_on_the_socket_itself_is_an_error_of_netlink(
    step: Callable[[NetlinkSocket], object], error: OSError, reason: str
) -> None:
    made = NetlinkSocket(NETLINK_ROUTE)
    made.close()
    made._socket = Failing(error)  # type: ignore[assignment]
    with pytest.raises(NetlinkError) as caught:
        step(made)
    assert caught.value.reason == reason


@pytest.mark.interpreted
def test_answer_that_does_not_come_is_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netlink_socket, "_ANSWER_TIME", struct.pack("@ll", 0, 10_000))
    with (
        NetlinkSocket(NETLINK_ROUTE) as made,
        pytest.raises(NetlinkError, match=r"^ask nothing: .*\(ETIMEDOUT\)"),
    ):
        made._answers("ask nothing")


def test_events_never_wait() -> None:
    with NetlinkSocket(NETLINK_ROUTE, groups=(1,)) as socket:
        assert not socket._socket.getblocking()
        assert all(isinstance(each, Frame) for each in socket.events())
        assert socket.overruns == 0


def test_errors_have_their_classes_and_codes() -> None:
    error = NetlinkError.of(errno.EBUSY, "expect it")
    assert type(error) is Busy
    assert str(error) == "expect it: Device or resource busy (EBUSY)"
    assert error.reason == "kernel-ebusy"
    assert type(NetlinkError.of(errno.ENOENT, "")) is NotFound
    assert type(NetlinkError.of(errno.ENOSPC, "")) is NetlinkError
    assert NetlinkError.of(4000, "").reason == "kernel-4000"

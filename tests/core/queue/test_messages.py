# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages to and from an NFQUEUE, byte for byte."""

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import Truncated
from cthelper.core.queue.messages import (
    batch,
    bind,
    decode,
    length,
    parameters,
    verdict,
)
from cthelper.core.queue.protocol import Action, Hook, QueuedPacket, Verdict
from cthelper.core.tuples import ORIGINAL, REPLY, UDP, Direction
from tests.core.netlink.test_decoding import BOTH, LEAST, attribute, u32, values

# include/uapi/linux/netfilter/nfnetlink_queue.h
PACKET_HEADER, INPUT, OUTPUT, PAYLOAD, CT, CT_INFO = 1, 5, 6, 10, 11, 12
NESTED = 0x8000

# struct nlmsghdr and nfgenmsg: the queue number stands in the latter's last field.
HEADERS = struct.Struct("=IHHII").size + 4

little = pytest.mark.skipif(
    sys.byteorder == "big", reason="netlink headers are in the host's byte order"
)


def unspaced(text: str) -> bytes:
    return bytes.fromhex(text.replace("|", ""))


@little
def test_parameters_ask_for_whole_packets_with_conntrack_and_fail_open() -> None:
    assert parameters(2077, fail_open=True) == unspaced(
        "30000000 0203 0100 00000000 00000000 | 00 00 081d"
        # NFQA_CFG_PARAMS: 65535 bytes, NFQNL_COPY_PACKET
        "0900 0200 0000ffff 02 000000"
        # NFQA_CFG_FLAGS and NFQA_CFG_MASK: NFQA_CFG_F_FAIL_OPEN | NFQA_CFG_F_CONNTRACK
        "0800 0500 00000003"
        "0800 0400 00000003"
    )
    # And without: the mask says that it is to be off.
    closed = parameters(2077, fail_open=False)
    assert closed.endswith(unspaced("0800 0500 00000002 0800 0400 00000003"))


@little
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # NFQNL_CFG_CMD_BIND, which alone is to be acknowledged.
        (bind(7), "1c000000 0203 0500 | 0800 0100 01000000"),
        (length(7, 0), "1c000000 0203 0100 | 0800 0300 00000000"),
        (length(7, 0x100000), "1c000000 0203 0100 | 0800 0300 00100000"),
        (
            batch(7, Action.DROP, 0x01020304),
            "20000000 0303 0100 | 0c00 0200 00000000 01020304",
        ),
    ],
    ids=["bind", "pause", "resume", "batch"],
)
def test_what_is_set_and_released_is_the_message_that_the_kernel_reads(
    message: bytes, expected: str
) -> None:
    start, _, attribute_ = expected.partition("|")
    headers = f"{start} 00000000 00000000 | 00 00 0007"
    assert message == unspaced(f"{headers} {attribute_}")


PLAIN = "0103 0100 00000000 00000000 | 00 00 0007 0c00 0200"


@little
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Verdict(0x01020304), f"20000000 {PLAIN} 00000001 01020304"),
        (Verdict(1, Action.REPEAT), f"20000000 {PLAIN} 00000004 00000001"),
        (
            Verdict(1, payload=b"abcde"),
            f"30000000 {PLAIN} 00000001 00000001"
            "0900 0a00 6162636465 000000 | 0400 0b80",
        ),
        (
            Verdict(1, conntrack=bytes.fromhex("0800 0700 0000012d")),
            f"2c000000 {PLAIN} 00000001 00000001 | 0c00 0b80 0800 0700 0000012d",
        ),
        (
            Verdict(1, payload=b""),
            f"28000000 {PLAIN} 00000001 00000001 | 0400 0a00 | 0400 0b80",
        ),
    ],
    ids=[
        "accept",
        "repeat",
        "payload",
        "timeout of the entry",
        "empty payload",
    ],
)
def test_verdict_is_the_message_that_the_kernel_reads(
    answer: Verdict, message: str
) -> None:
    assert verdict(7, answer) == unspaced(message)


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from(Action),
    st.none() | st.binary(max_size=40),
    st.binary(max_size=40),
)
def test_length_of_a_verdict_is_its_own(
    number: int,
    id_: int,
    action: Action,
    payload: bytes | None,
    conntrack: bytes,
) -> None:
    message = verdict(number, Verdict(id_, action, payload, conntrack))
    assert struct.unpack_from("=I", message) == (len(message),)
    assert len(message) % 4 == 0
    assert message[HEADERS - 2 : HEADERS] == number.to_bytes(2)


# From the queue.


def message(*attributes: bytes) -> bytes:
    return b"\xa5" * HEADERS + b"".join(attributes)


def header(id_: int = 1, hook: int = Hook.POSTROUTING) -> bytes:
    return attribute(PACKET_HEADER, struct.pack("!IHB", id_, 0x0800, hook))


def test_packet_is_decoded_with_its_conntrack_entry() -> None:
    data = message(
        header(0xFFFFFFFE, Hook.INPUT),
        u32(INPUT, 3),
        u32(OUTPUT, 4),
        attribute(PAYLOAD, b"packet"),
        attribute(NESTED | CT, BOTH),
        u32(CT_INFO, 3),
    )
    assert decode(data) == QueuedPacket(
        id=0xFFFFFFFE,
        hook=Hook.INPUT,
        payload=b"packet",
        conntrack=LEAST,
        direction=REPLY,
        indev=3,
        outdev=4,
    )


def test_least_message_is_a_packet_without_an_entry() -> None:
    expected = QueuedPacket(1, Hook.POSTROUTING, b"", None, ORIGINAL, 0, 0)
    assert decode(message(header())) == expected


@pytest.mark.parametrize(
    ("info", "direction"),
    [
        (0, ORIGINAL),
        (1, ORIGINAL),
        (2, ORIGINAL),
        (3, REPLY),
        (4, REPLY),
        (5, REPLY),
        (7, REPLY),
    ],
    ids=[
        "established",
        "related",
        "new",
        "established reply",
        "related reply",
        "new reply",
        "untracked",
    ],
)
def test_direction_goes_by_the_conntrack_info(info: int, direction: Direction) -> None:
    assert decode(message(header(), u32(CT_INFO, info))).direction is direction


def test_entry_of_another_transport_is_none() -> None:
    data = message(header(), attribute(NESTED | CT, b""))
    assert decode(data).conntrack is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(),
        message(attribute(PAYLOAD, b"packet")),
        message(attribute(PACKET_HEADER, bytes(6))),
        message(header(), u32(INPUT, 1)[:-1]),
        message(header(), attribute(OUTPUT, b"\0")),
        message(header(), attribute(CT_INFO, b"\0")),
        message(header(), attribute(NESTED | CT, struct.pack("=HH", 40, 1))),
    ],
    ids=[
        "empty",
        "headers alone",
        "no packet header",
        "short packet header",
        "attribute cut off",
        "interface of a byte",
        "info of a byte",
        "entry cut off",
    ],
)
def test_message_with_less_than_it_says_is_truncated(data: bytes) -> None:
    with pytest.raises(Truncated):
        decode(data)


@pytest.mark.parametrize(
    ("number", "hook"),
    [
        (0, Hook.PREROUTING),
        (1, Hook.INPUT),
        (2, Hook.FORWARD),
        (3, Hook.OUTPUT),
        (4, Hook.POSTROUTING),
    ],
)
def test_hook_goes_by_the_kernels_number(number: int, hook: Hook) -> None:
    assert decode(message(header(hook=number))).hook is hook


def test_unknown_hook_is_an_error() -> None:
    with pytest.raises(ValueError, match="9 is not a valid Hook"):
        decode(message(header(hook=9)))


attributes = st.lists(
    st.sampled_from([header(), header(hook=7), attribute(NESTED | CT, BOTH)])
    | st.builds(attribute, st.integers(0, 22), values),
    max_size=5,
).map(b"".join)


@given(st.binary() | attributes.map(message) | values.map(message))
def test_any_bytes_give_a_packet_truncated_or_value_error(data: bytes) -> None:
    try:
        packet = decode(data)
    except (Truncated, ValueError):
        return
    assert isinstance(packet, QueuedPacket)
    assert len(packet.payload) <= len(data)


@given(st.binary(max_size=64), st.integers(0, 0xFFFFFFFF), st.sampled_from(Hook))
def test_payload_comes_out_as_it_went_in(payload: bytes, id_: int, hook: Hook) -> None:
    packet = decode(message(header(id_, hook), attribute(PAYLOAD, payload)))
    assert (packet.id, packet.hook, packet.payload) == (id_, hook, payload)
    assert packet.conntrack is None


def test_entry_in_a_message_is_of_its_transport() -> None:
    packet = decode(message(header(), attribute(NESTED | CT, BOTH)))
    assert packet.conntrack is not None
    assert packet.conntrack.original.transport is UDP

# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``log group`` of nft gives: packets behind the kernel's attributes, in TLVs."""

import struct
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.offline.capture_files import (
    V4,
    V6,
    enhanced,
    interface,
    packets,
    pcap,
    read,
    section,
)
from tests.helpers import tshark

NFLOG: Final = 239
PAYLOAD: Final = 9
FAMILY: Final = {4: 2, 6: 10}
HEADER: Final = {4: 20, 6: 40}

# Of Linux 6.18: `log prefix "cthelper: " group 5` on output (header, prefix,
# interface, user, group, payload), and `log group 5 snaplen 40` on input (no user, but
# hardware address, type and header, and a time stamp).
SENT: Final = bytes.fromhex(
    "02000005 08000100 08000300 0f000a00 637468656c7065723a200000 08000500 00000001"
    "08000b00 00000000 08000e00 00000000 20000900"
    "4500001c53d140004011e8fd7f0000017f000001c62e1b580008fe1b"
)
RECEIVED: Final = bytes.fromhex(
    "02000005 08000100 08000100 05000a00 00000000 08000400 00000001"
    "10000800 00060000 0000000000000000 06000f00 03040000 06001100 000e0000"
    "12001000 0000000000000000000000000800 0000 14000300 000000006b0ab25e"
    "000000000006d077 20000900"
    "4500001c53d140004011e8fd7f0000017f000001c62e1b580008fe1b"
)


def tlv(kind: int, value: bytes, order: str = "<") -> bytes:
    """An attribute, padded to four bytes."""
    head = struct.pack(order + "HH", 4 + len(value), kind)
    return head + value + bytes(-len(value) % 4)


def logged(packet: bytes, order: str = "<", *, before: bytes | None = None) -> bytes:
    """A frame of NFLOG."""
    if before is None:
        before = tlv(1, b"\x08\0\3\0", order) + tlv(10, b"said so\0!\0", order)
    family = FAMILY[packet[0] >> 4]
    return bytes((family, 0, 0, 5)) + before + tlv(PAYLOAD, packet, order)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packet", [V4, V6], ids=["IPv4", "IPv6"])
def test_the_packet_is_found_behind_the_kernels_attributes(
    packet: bytes, order: str
) -> None:
    frame = logged(packet, order)
    assert packets(pcap([frame], order=order, link=NFLOG)) == [packet]
    in_blocks = section(order) + interface(NFLOG, order=order)
    assert packets(in_blocks + enhanced(frame, order=order)) == [packet]


def test_sections_of_either_order_follow_each_other() -> None:
    content = b"".join(
        section(order)
        + interface(NFLOG, order=order)
        + enhanced(logged(V4, order), order=order)
        for order in "<><"
    )
    assert packets(content) == [V4] * 3


def test_frames_of_a_kernel() -> None:
    # It was logged on its way out and on its way in.
    sent, received = packets(pcap([SENT, RECEIVED], link=NFLOG))
    assert sent == received == SENT[-28:]


@pytest.mark.parametrize("packet", [V4, V6], ids=["IPv4", "IPv6"])
def test_what_a_rules_snaplen_cut_is_one_warning_and_not_padded(packet: bytes) -> None:
    # Here the file says nothing of it: the kernel gave the frame like that.
    for size in range(21, len(packet)):
        frames, warnings, _ = read(pcap([logged(packet[:size])] * 2, link=NFLOG))
        assert [frame for _, _, frame, _ in frames] == [packet[:size]] * 2
        (warning,) = warnings
        assert f"frame 1 was cut to {size} of {len(packet)} bytes" in warning


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes((3, 0, 0, 5)) + tlv(PAYLOAD, V4),
        bytes((7, 0, 0, 5)) + tlv(PAYLOAD, V4),
        logged(V4)[: -len(V4) - 4],
        bytes((2, 0, 0, 5)) + struct.pack("<HH", 0, 1) + tlv(PAYLOAD, V4),
        bytes((2, 0, 0, 5)) + struct.pack("<HH", 3, 1) + tlv(PAYLOAD, V4),
        bytes((2, 0, 0, 5)) + tlv(PAYLOAD, b""),
        bytes((2, 0, 0, 5)) + tlv(PAYLOAD, b"\x05"),
    ],
    ids=[
        "nothing",
        "ARP",
        "bridge",
        "no payload",
        "length 0",
        "length 3",
        "empty payload",
        "no IP",
    ],
)
def test_frame_without_ip_is_counted_not_yielded(frame: bytes) -> None:
    assert read(pcap([frame], link=NFLOG)) == ([], [], 1)


@given(
    link=st.sampled_from([9, 50, 51, NFLOG]),
    head=st.sampled_from([b"", b"\2\0\0\5", b"\x0a\0\0\5", b"\xff\3", b"\x0f\0"]),
    frames=st.lists(st.binary(max_size=80), max_size=5),
    order=st.sampled_from("<>"),
)
def test_any_bytes_are_a_frame_or_none(
    link: int, head: bytes, frames: list[bytes], order: str
) -> None:
    content = pcap([head + each for each in frames], link=link, order=order)
    found, warnings, count = read(content)
    assert count == len(frames)
    assert all(0 < start <= len(frame) for _, _, frame, start in found)
    assert all("was cut to" in each for each in warnings)


@tshark.needed
def test_tshark_reads_the_same(tmp_path: Path) -> None:
    frames = [SENT, RECEIVED, logged(V4), logged(V6), logged(V4, before=b"")]
    capture = tmp_path / "nflog.pcap"
    capture.write_bytes(pcap(frames, link=NFLOG))
    ours = []
    for packet in packets(capture.read_bytes()):
        version = packet[0] >> 4
        source, destination = struct.unpack_from("!HH", packet, HEADER[version])
        ours.append([str(version), str(source), str(destination)])
    names = ["ip.version", "ipv6.version", "udp.srcport", "udp.dstport"]
    theirs = tshark.fields(capture, names)
    assert [[(v4 or v6)[:1], *ports] for v4, v6, *ports in theirs] == ours

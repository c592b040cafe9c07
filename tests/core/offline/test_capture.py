# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures of each format and link type, packed or not, against scapy where it can."""

import gzip
import importlib.util
import os
import struct
import sys
from decimal import Decimal
from itertools import product
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread, Timer
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.utils import PcapNgWriter, PcapReader, PcapWriter, RawPcapReader

from cthelper.core.offline.capture import Capture
from tests.core.offline.capture_files import (
    MACS,
    V4,
    V6,
    WHOLE,
    block,
    enhanced,
    ethernet,
    interface,
    packets,
    pcap,
    pcapng,
    read,
    refusal,
    section,
)
from tests.helpers.captures import PCAPS, PUBLIC

CAPTURES: Final = sorted(
    path for folder in (PCAPS, PUBLIC) for path in folder.rglob("*.pcap*")
)

TAG: Final = b"\x00\x07"
LINKS: Final = {
    "Ethernet": (1, MACS, {4: b"\x08\x00", 6: b"\x86\xdd"}),
    "802.1Q": (1, MACS + b"\x81\x00" + TAG, {4: b"\x08\x00", 6: b"\x86\xdd"}),
    "802.1ad, 802.1Q": (
        1,
        MACS + b"\x88\xa8" + TAG + b"\x81\x00" + TAG,
        {4: b"\x08\x00", 6: b"\x86\xdd"},
    ),
    "0x9100, three tags": (
        1,
        MACS + (b"\x91\x00" + TAG) * 2 + b"\x81\x00" + TAG,
        {4: b"\x08\x00", 6: b"\x86\xdd"},
    ),
    "PPPoE": (
        1,
        MACS + b"\x88\x64\x11\x00\x00\x01\x00\x20",
        {4: b"\x00\x21", 6: b"\x00\x57"},
    ),
    "cooked": (113, bytes(14), {4: b"\x08\x00", 6: b"\x86\xdd"}),
    "cooked, 802.1Q": (
        113,
        bytes(14) + b"\x81\x00" + TAG,
        {4: b"\x08\x00", 6: b"\x86\xdd"},
    ),
    "cooked v2": (
        276,
        b"",
        {4: b"\x08\x00" + bytes(18), 6: b"\x86\xdd" + bytes(18)},
    ),
    "cooked v2, 802.1Q": (
        276,
        b"\x81\x00" + bytes(18) + TAG,
        {4: b"\x08\x00", 6: b"\x86\xdd"},
    ),
    "cooked v2, PPPoE": (
        276,
        b"\x88\x64" + bytes(18) + b"\x11\x00\x00\x01\x00\x20",
        {4: b"\x00\x21", 6: b"\x00\x57"},
    ),
    "raw": (101, b"", {4: b"", 6: b""}),
    "raw, DLT 12": (12, b"", {4: b"", 6: b""}),
    "raw, DLT 14": (14, b"", {4: b"", 6: b""}),
    "raw IPv4": (228, b"", {4: b""}),
    "raw IPv6": (229, b"", {6: b""}),
    "NULL, little": (0, b"", {4: b"\x02\0\0\0", 6: b"\x0a\0\0\0"}),
    "NULL, big": (0, b"", {4: b"\0\0\0\x02", 6: b"\0\0\0\x0a"}),
    "NULL, NetBSD": (0, b"", {6: b"\x18\0\0\0"}),
    "NULL, FreeBSD": (0, b"", {6: b"\0\0\0\x1c"}),
    "NULL, macOS": (0, b"", {6: b"\x1e\0\0\0"}),
    "PPP": (9, b"", {4: b"\x00\x21", 6: b"\x00\x57"}),
    "PPP, framed": (9, b"\xff\x03", {4: b"\x00\x21", 6: b"\x00\x57"}),
    "PPP, one byte": (9, b"", {4: b"\x21", 6: b"\x57"}),
    "PPP, framed, one byte": (50, b"\xff\x03", {4: b"\x21", 6: b"\x57"}),
    "PPP in HDLC": (50, b"\xff\x03", {4: b"\x00\x21", 6: b"\x00\x57"}),
    "Cisco": (50, b"\x0f\x00", {4: b"\x08\x00", 6: b"\x86\xdd"}),
    "Cisco, multicast": (50, b"\x8f\x00", {4: b"\x08\x00", 6: b"\x86\xdd"}),
    "PPP in PPPoE": (
        51,
        b"\x11\x00\x00\x01\x00\x20",
        {4: b"\x00\x21", 6: b"\x00\x57"},
    ),
    "LOOP": (108, b"", {4: b"\0\0\0\x02", 6: b"\0\0\0\x18"}),
}


@pytest.mark.parametrize("case", LINKS)
def test_the_ip_header_is_found_on_every_link_type(case: str) -> None:
    link, head, kinds = LINKS[case]
    for version, kind in kinds.items():
        packet = V4 if version == 4 else V6
        assert packets(pcap([head + kind + packet], link=link)) == [packet]
        in_blocks = section() + interface(link) + enhanced(head + kind + packet)
        assert packets(in_blocks) == [packet]


@pytest.mark.parametrize("case", LINKS)
def test_a_frame_cut_within_its_link_header_is_counted(case: str) -> None:
    link, head, kinds = LINKS[case]
    whole = head + next(iter(kinds.values()))
    frames = [whole[:size] for size in range(len(whole) + 1)]
    assert read(pcap(frames, link=link)) == ([], [], len(frames))


@pytest.mark.parametrize(
    ("link", "frame"),
    [
        (1, bytes(Ether() / ARP())),
        (1, ethernet(b"\x42\x42\x03", 38)),
        (1, MACS + b"\x81\x00" * 20),
        (1, MACS + b"\x88\x64\x11\x00\x00\x01\x00\x20\xc0\x21" + V4),
        (113, bytes(14) + b"\x08\x06" + V4),
        (276, b"\x08\x06" + bytes(18) + V4),
        (101, b"\x50" + V4),
        (0, b"\x07\0\0\0" + V4),
        (9, b"\xc0\x21" + V4),
        (50, b"\x0f\x00\x80\x35" + V4),
        (51, b"\x11\x09\x00\x00\x00\x20\x00\x21" + V4),
        (239, b"\x03\0\0\5"),
    ],
    ids=[
        "ARP",
        "LLC",
        "tags only",
        "LCP",
        "cooked",
        "cooked v2",
        "raw",
        "NULL",
        "PPP",
        "Cisco",
        "PADI",
        "NFLOG",
    ],
)
def test_frames_without_ip_are_counted_not_yielded(link: int, frame: bytes) -> None:
    good = bytes(14) + b"\x08\x00" + V4 if link == 113 else frame
    frames, warnings, count = read(pcap([frame, good, frame], link=link))
    assert (warnings, count) == ([], 3)
    assert [number for number, *_ in frames] == ([2] if link == 113 else [])


def test_padding_behind_the_packet_stays() -> None:
    assert packets(pcap([ethernet(V4) + bytes(18)])) == [V4 + bytes(18)]


def test_unknown_link_type_is_one_warning_and_frames_count() -> None:
    frames, warnings, count = read(pcap([V4, V4, V4], link=127))
    assert (frames, count) == ([], 3)
    assert len(warnings) == 1
    assert "frame 1 has link type 127" in warnings[0]


def test_unknown_link_type_beside_a_known_one() -> None:
    content = section() + interface(127) + interface(101)
    content += enhanced(V4) + enhanced(V4, on=1) + enhanced(V4) + enhanced(V6, on=1)
    frames, warnings, count = read(content)
    assert [(number, frame) for number, _, frame, _ in frames] == [(2, V4), (4, V6)]
    assert count == 4
    assert len(warnings) == 1


def test_bits_above_the_link_type_are_not_the_link_type() -> None:
    # 4 bytes of frame check sequence, said to be there.
    assert packets(pcap([ethernet(V4)], link=1 | 0x24000000)) == [V4]


@pytest.mark.parametrize(("order", "nano"), list(product("<>", (False, True))))
def test_pcap_of_either_order_and_resolution(order: str, nano: bool) -> None:
    unit = 1000 if nano else 1
    times = [(1000, 999_999 * unit), (1001, 1 * unit), (1000, 0)]
    content = pcap([ethernet(V4)] * 3, order=order, nano=nano, times=times)
    frames, warnings, _ = read(content)
    assert warnings == []
    assert [(number, time) for number, time, *_ in frames] == [
        (1, 0.0),
        (2, 0.000002),
        # Earlier than the first frame.
        (3, -0.999999),
    ]


def test_time_counts_from_the_first_frame_even_where_it_holds_no_ip() -> None:
    frames, _, _ = read(pcap([bytes(Ether() / ARP()), ethernet(V4)]))
    assert [frame[:2] for frame in frames] == [(2, 1.0)]


@given(
    stamps=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 999_999)), min_size=1
    ),
    order=st.sampled_from("<>"),
)
def test_microseconds_are_exact(stamps: list[tuple[int, int]], order: str) -> None:
    frames, _, _ = read(pcap([ethernet(V4)] * len(stamps), order=order, times=stamps))
    exact = [Decimal(seconds) + Decimal(us) / 1_000_000 for seconds, us in stamps]
    assert [f"{time:.6f}" for _, time, _, _ in frames] == [
        f"{float(each - exact[0]):.6f}" for each in exact
    ]
    assert [round(time * 1_000_000) for _, time, _, _ in frames] == [
        (each - exact[0]) * 1_000_000 for each in exact
    ]


RESOLUTIONS: Final = {
    "default": ([], 1_000_000),
    "10^-3": ([(9, b"\x03")], 1000),
    "10^-9": ([(9, b"\x09")], 10**9),
    "2^-20": ([(9, b"\x94")], 2**20),
    "seconds": ([(9, b"\x00")], 1),
    "after a name": ([(2, b"eth0"), (9, b"\x09"), (0, b"")], 10**9),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("case", RESOLUTIONS)
def test_pcapng_resolutions(case: str, order: str) -> None:
    options, per_second = RESOLUTIONS[case]
    start = 1_700_000_000 * per_second
    content = section(order) + interface(order=order, options=options)
    for ticks in (start, start + per_second // 2, start + 3 * per_second):
        content += enhanced(ethernet(V4), ticks, order=order)
    frames, warnings, _ = read(content)
    assert warnings == []
    half = per_second // 2 / per_second
    assert [time for _, time, _, _ in frames] == [0.0, half, 3.0]


def test_interfaces_of_different_resolution_and_offset_share_one_clock() -> None:
    offset = struct.pack("<q", -100)
    content = section() + interface() + interface(101, options=[(9, b"\x09")])
    content += interface(options=[(14, offset)])
    content += enhanced(ethernet(V4), 5_000_000)
    content += enhanced(V6, 6_500_000_000, on=1)
    content += enhanced(ethernet(V4), 107_250_000, on=2)
    frames, warnings, _ = read(content)
    assert warnings == []
    assert [time for _, time, _, _ in frames] == [0.0, 1.5, 2.25]


def test_interfaces_belong_to_their_section() -> None:
    content = section() + interface(1) + interface(101) + enhanced(V4, on=1)
    content += section(">") + interface(113, order=">")
    content += enhanced(bytes(14) + b"\x86\xdd" + V6, 7, order=">")
    assert packets(content) == [V4, V6]


def test_simple_packets_have_no_time_and_no_limit() -> None:
    frame = ethernet(V4)
    simple = block(3, struct.pack("<I", len(frame)) + frame)
    content = section() + interface() + enhanced(frame, 1_000_000) + simple
    content += enhanced(frame, 3_000_000) + simple
    frames, warnings, _ = read(content)
    assert warnings == []
    assert [(number, time) for number, time, _, _ in frames] == [
        (1, 0.0),
        (2, 0.0),
        (3, 2.0),
        (4, 2.0),
    ]
    assert {frame[start:] for _, _, frame, start in frames} == {V4}


def test_simple_packet_is_cut_by_the_snap_length() -> None:
    frame = ethernet(V4)
    body = struct.pack("<I", len(frame)) + frame[:20]
    frames, warnings, _ = read(section() + interface(snaplen=20) + block(3, body))
    assert [each[2] for each in frames] == [frame[:20]]
    assert len(warnings) == 1


def test_obsolete_packets() -> None:
    frame = ethernet(V4)
    head = struct.pack("<HH4I", 1, 0, 0, 1_000_000, len(frame), len(frame))
    content = section() + interface(101) + interface() + block(2, head + frame)
    assert packets(content) == [V4]


@pytest.mark.parametrize(
    "other",
    [
        block(4, b""),
        block(5, bytes(12)),
        block(10, struct.pack("<II", 0x544C534B, 4000) + b"short"),
        block(0x80000001, b""),
        block(0xBAD, b"\xff" * 1000),
        block(0x0B16B00B, bytes(70_000)),
    ],
    ids=["names", "statistics", "secrets", "process", "custom", "long"],
)
def test_other_blocks_are_passed_over(other: bytes) -> None:
    content = section() + interface() + other + enhanced(ethernet(V4)) + other
    assert packets(content) == [V4]


def test_a_comment_does_no_harm() -> None:
    comment = struct.pack("<HH", 1, 5) + b"hello\0\0\0" + bytes(4)
    content = section() + interface() + enhanced(ethernet(V4), options=comment)
    assert packets(content) == [V4]


def test_a_frame_over_65535_bytes_is_whole() -> None:
    packet = V4 + bytes(65535 - len(V4))
    assert packets(pcap([ethernet(packet), ethernet(V4)])) == [packet, V4]
    assert packets(pcapng([ethernet(packet), ethernet(V4)])) == [packet, V4]


@pytest.mark.parametrize("write", [pcap, pcapng])
def test_frames_cut_by_the_snap_length_come_as_they_are(write: Any) -> None:
    frame = ethernet(V4)
    if write is pcap:
        content = pcap([frame, frame[:30], frame[:30]], lengths=[len(frame)] * 3)
    else:
        content = pcapng([frame]) + enhanced(frame[:30], length=len(frame)) * 2
    frames, warnings, _ = read(content)
    assert [each[2] for each in frames] == [frame, frame[:30], frame[:30]]
    assert len(warnings) == 1
    assert f"frame 2 was cut to 30 of {len(frame)} bytes" in warnings[0]


# --- packed files ---


def test_gzip_is_known_by_its_first_bytes() -> None:
    content = pcap([ethernet(V4)] * 3000)
    assert packets(gzip.compress(content)) == [V4] * 3000
    assert packets(gzip.compress(pcapng([ethernet(V6)]))) == [V6]
    # Several members, as `cat a.gz b.gz` makes them.
    halves = gzip.compress(content[:1000]) + gzip.compress(content[1000:])
    assert packets(halves) == [V4] * 3000


def test_zstd_is_refused_where_no_module_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    told = refusal(b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00")
    assert "zstd, and backports.zstd is not installed: " in told


def test_zstd() -> None:
    has_its_own = importlib.util.find_spec("compression") is not None
    zstd = importlib.import_module(
        "compression.zstd" if has_its_own else "backports.zstd"
    )
    frames = [ethernet(V4 + os.urandom(200)) for _ in range(3000)]
    packed = zstd.compress(pcap(frames))
    found, warnings, _ = read(packed)
    assert ([each[2] for each in found], warnings) == (frames, [])
    found, warnings, count = read(packed[: len(packed) // 2])
    assert [each[2] for each in found] == frames[:count]
    assert count > 100
    assert len(warnings) == 1


# --- while it is read ---


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = pcap([WHOLE] * 5000)
    writer = Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    with Capture(pipe, warn=pytest.fail) as capture:
        assert sum(1 for _ in capture) == 5000
        assert (capture.size, capture.position) == (0, len(content))
    writer.join()


def test_progress_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([ethernet(V4 + bytes(1000))] * 500))
    with Capture(path, warn=pytest.fail) as capture:
        assert (capture.frames, capture.size) == (0, path.stat().st_size)
        seen = [(capture.frames, capture.position) for _ in capture]
    assert [frames for frames, _ in seen] == list(range(1, 501))
    positions = [position for _, position in seen]
    assert positions == sorted(positions)
    # Not at once into memory, but to the end.
    assert positions[0] < capture.size == positions[-1]


def test_begin_is_when_the_first_frame_came(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    for content, begin in (
        (pcap([WHOLE] * 2, times=[(1000, 7), (999, 0)]), 1_000_000_007_000),
        (pcap([WHOLE], nano=True, times=[(1000, 7)]), 1_000_000_000_007),
        (pcap([bytes(14)], times=[(1000, 7)]), 1_000_000_007_000),
        (section() + interface() + enhanced(WHOLE, 1_000_007), 1_000_007_000),
        (pcap([]), 0),
    ):
        path.write_bytes(content)
        with Capture(path, warn=pytest.fail) as capture:
            list(capture)
        assert capture.begin == begin


def test_stop_ends_a_capture_without_a_warning(tmp_path: Path) -> None:
    content = pcap([ethernet(V4 + os.urandom(1000)) for _ in range(500)])
    plain, packed, pipe = (tmp_path / name for name in ("a.pcap", "a.gz", "pipe"))
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    os.write(writer, content[:5000])
    for path in (plain, packed, pipe):
        stop, held = Pipe(duplex=False)
        with stop, Capture(path, warn=pytest.fail, stop=stop) as capture:
            assert next(iter(capture))[0] == 1
            held.close()
            assert 1 <= sum(1 for _ in capture) < 400
    os.close(writer)


def test_capture_that_is_stopped_before_it_begins_is_empty(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    for begun in (b"", b"\xa1\xb2", pcap([])[:10], section()[:20], b"\x1f\x8b"):
        os.write(writer, begun)
        stop, held = Pipe(duplex=False)
        Timer(0.1, held.close).start()
        with stop, Capture(pipe, warn=pytest.fail, stop=stop) as capture:
            assert list(capture) == []
        assert capture.frames == 0
    os.close(writer)


# --- against scapy ---


def through_scapy(path: Path) -> list[tuple[int, float, bytes, int]]:
    """The frames as scapy's dissectors see them."""
    found = []
    with PcapReader(str(path)) as reader:
        first = Decimal(0)
        for number, packet in enumerate(reader, 1):
            time = Decimal(packet.time)
            if number == 1:
                first = time
            layer = packet
            while layer and not isinstance(layer, IP | IPv6):
                layer = layer.payload
            if layer:
                frame = packet.original
                start = len(frame) - len(layer.original)
                found.append((number, float(time - first), frame, start))
    return found


STACKS: Final = [
    Ether() / IP(V4),
    Ether() / IPv6(V6),
    Ether() / ARP(),
    Ether() / Dot1Q(vlan=3) / IP(V4),
    Ether() / Dot1AD(vlan=3) / Dot1Q(vlan=4) / IPv6(V6),
    Ether() / PPPoE(sessionid=1) / PPP() / IP(V4),
]


@pytest.mark.parametrize("writer", [PcapWriter, PcapNgWriter])
def test_what_scapy_writes_is_read_as_scapy_reads_it(
    writer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scapy.pcap"
    with writer(str(path)) as out:
        for at, packet in enumerate(STACKS):
            packet.time = 1_700_000_000 + at / 1024
            out.write(packet)
    with Capture(path, warn=pytest.fail) as capture:
        frames = list(capture)
    assert frames == through_scapy(path)
    assert [number for number, *_ in frames] == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    "path", sorted(PCAPS.rglob("*.pcap*")), ids=lambda path: path.name
)
def test_our_captures_are_read_as_scapy_reads_them(path: Path) -> None:
    with Capture(path, warn=pytest.fail) as capture:
        assert list(capture) == through_scapy(path)


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_every_frame_is_counted_as_scapy_counts(path: Path) -> None:
    with Capture(path, warn=pytest.fail) as capture:
        assert all(frame[start] >> 4 in (4, 6) for _, _, frame, start in capture)
    with RawPcapReader(str(path)) as reader:
        assert capture.frames == sum(1 for _ in reader)
    assert capture.position == capture.size

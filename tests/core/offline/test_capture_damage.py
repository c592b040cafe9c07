# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures that are cut, damaged or none: what is read of them, and the one warning."""

import gzip
import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from cthelper.core.errors import CaptureError
from cthelper.core.offline.capture import Capture
from tests.core.offline.capture_files import (
    V4,
    V6,
    WHOLE,
    block,
    enhanced,
    ethernet,
    interface,
    pcap,
    pcapng,
    read,
    refusal,
    section,
)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a pcap or pcapng file"),
        (b"\xd4\xc3", "not a pcap or pcapng file"),
        (b"hello, world", "not a pcap or pcapng file"),
        # Kuznetzov's pcap has longer record headers.
        (b"\x34\xcd\xb2\xa1" + bytes(20), "not a pcap or pcapng file"),
        (pcap([])[:23], "broken within the file header"),
        (section()[:-1], "broken within the file header"),
        (section().replace(b"\x01\x00", b"\x02\x00"), "broken within the file header"),
        (gzip.compress(b"", mtime=0), "not a pcap or pcapng file"),
        (gzip.compress(b"hello", mtime=0), "not a pcap or pcapng file"),
        (
            gzip.compress(gzip.compress(pcap([]), mtime=0), mtime=0),
            "not a pcap or pcapng file",
        ),
        (gzip.compress(pcap([]), mtime=0)[:12], "Compressed file ended before"),
        (b"\x1f\x8b\xff\xff" + bytes(20), "Unknown compression method"),
    ],
)
def test_no_capture_at_all(content: bytes, why: str) -> None:
    assert refusal(content).startswith(why)


@pytest.mark.parametrize("name", ["absent.pcap", "."])
def test_a_file_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"^/.*: "):
        Capture(tmp_path / name, warn=pytest.fail)


RECORD: Final = 16 + len(WHOLE)
BLOCK: Final = len(enhanced(WHOLE))
FIRST_BLOCK: Final = len(section() + interface())


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (
            pcap([WHOLE] * 2)[:-1],
            f"frame 1, at byte {24 + RECORD}: the file ends after",
        ),
        (pcap([WHOLE]) + bytes(15), f"frame 1, at byte {24 + RECORD}: the file ends"),
        (pcap([WHOLE]) + b"\xff" * 99, f"frame 1, at byte {24 + RECORD}: a frame of"),
        (pcapng([WHOLE] * 2)[:-1], f"frame 1, at byte {FIRST_BLOCK + BLOCK}: a block"),
        (pcapng([WHOLE]) + b"\x06", f"frame 1, at byte {FIRST_BLOCK + BLOCK}: a block"),
        (pcapng([WHOLE]) + bytes(8), "a block that is cut short or not valid"),
        (
            pcapng([WHOLE]) + b"\x06\0\0\0\xf0\xff\xff\xff",
            "a block that is cut short or not valid",
        ),
        (
            pcapng([WHOLE]) + b"\x06\0\0\0\xf0\xff\xff\xff" + bytes(99),
            "a block that is cut short or not valid",
        ),
        (
            pcapng([WHOLE]) + enhanced(WHOLE)[:-4] + bytes(4) + enhanced(WHOLE),
            f"frame 1, at byte {FIRST_BLOCK + BLOCK}: a block that",
        ),
        (pcapng([WHOLE]) + enhanced(WHOLE, on=1) + enhanced(WHOLE), "frame 1, at byte"),
        (section() + enhanced(WHOLE), f"frame 0, at byte {len(section())}"),
        (pcapng([WHOLE]) + block(6, b"short"), "frame 1, at byte"),
        (pcapng([WHOLE]) + block(1, b""), "frame 1, at byte"),
        (pcapng([WHOLE]) + section()[:20] + b"\xff" * 8, "frame 1, at byte"),
    ],
)
def test_damage_is_one_warning_that_says_where(content: bytes, where: str) -> None:
    frames, warnings, count = read(content)
    assert [frame for _, _, frame, _ in frames] == [WHOLE] * count
    assert len(warnings) == 1
    assert where in warnings[0]


@pytest.mark.parametrize(
    "content",
    [
        pcap([WHOLE, WHOLE + b"1", ethernet(V6)]),
        pcap([WHOLE, WHOLE + b"1", ethernet(V6)], order=">", nano=True),
        pcapng([WHOLE, WHOLE + b"1", ethernet(V6)]),
        pcapng([WHOLE], ">") + pcapng([ethernet(V6)]),
        gzip.compress(pcap([WHOLE, WHOLE + b"1", ethernet(V6)])),
    ],
    ids=["pcap", "pcap, big", "pcapng", "sections", "gzip"],
)
def test_a_capture_cut_anywhere_gives_a_prefix(content: bytes) -> None:
    whole, warnings, _ = read(content)
    assert warnings == []
    empty = 0
    for size in range(len(content)):
        try:
            frames, warnings, count = read(content[:size])
        except CaptureError:
            # There is no header yet.
            assert empty == size
            empty += 1
            continue
        assert frames == whole[: len(frames)] == whole[:count]
        assert len(warnings) <= 1
        if count == len(whole):
            # A gzip trailer is missing.
            assert len(warnings) == 1
    assert 4 < empty < 120


FRAMES: Final = st.lists(
    st.one_of(
        st.sampled_from([WHOLE, ethernet(V6), bytes(Ether() / ARP())]),
        st.binary(max_size=60),
    ),
    max_size=6,
)


@given(frames=FRAMES, data=st.data())
def test_any_capture_cut_anywhere(frames: list[bytes], data: st.DataObject) -> None:
    blocks = data.draw(st.booleans())
    content = pcapng(frames) if blocks else pcap(frames)
    whole, warnings, count = read(content)
    assert (warnings, count) == ([], len(frames))
    header = len(section()) if blocks else 24
    cut = data.draw(st.integers(header, len(content)))
    some, warnings, _ = read(content[:cut])
    assert some == whole[: len(some)]
    assert len(warnings) <= 1


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Bytes that are, begin like, or once were a capture."""
    magic = draw(
        st.sampled_from(
            [
                b"",
                pcap([]),
                pcap([], order=">"),
                section(),
                section() + interface(),
                pcap([WHOLE, ethernet(V6)], link=draw(st.integers(0, 300))),
                pcapng([WHOLE, ethernet(V6)]),
                pcapng([WHOLE], ">") + pcapng([WHOLE]),
                section() + interface(101, options=[(9, b"\x09")]) + enhanced(V4),
            ]
        )
    )
    content = bytearray(magic + draw(st.binary(max_size=80)))
    if content:
        places = st.lists(
            st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8
        )
        for at, value in draw(places):
            content[at] = value
    if draw(st.booleans()):
        packed = bytearray(gzip.compress(bytes(content)))
        if draw(st.booleans()):
            packed[draw(st.integers(0, len(packed) - 1))] = draw(st.integers(0, 255))
        return bytes(packed)
    return bytes(content)


@given(content=files())
def test_any_bytes_give_frames_warnings_or_a_capture_error(content: bytes) -> None:
    try:
        frames, warnings, count = read(content)
    except CaptureError:
        return
    numbers = [number for number, *_ in frames]
    assert numbers == sorted(set(numbers))
    assert all(0 <= start < len(frame) for _, _, frame, start in frames)
    assert len(frames) <= count
    kinds = ("broken after", "has link type", "was cut to")
    assert sum(sum(kind in each for each in warnings) > 1 for kind in kinds) == 0
    assert all(any(kind in each for kind in kinds) for each in warnings)


@pytest.mark.parametrize("damage", ["cut", "checksum", "inside", "garbage"])
def test_damaged_gzip_gives_what_was_before_the_damage(damage: str) -> None:
    # Frames that do not shrink, so the damage lies behind many of them.
    frames = [ethernet(V4 + os.urandom(200)) for _ in range(3000)]
    packed = bytearray(gzip.compress(pcap(frames)))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    elif damage == "checksum":
        packed[-8] ^= 1
    elif damage == "inside":
        packed[len(packed) // 2 :] = b"\xff" * 1000
    else:
        packed += b"garbage"
    found, warnings, count = read(bytes(packed))
    assert len(warnings) == 1
    assert f"broken after frame {count}, at byte" in warnings[0]
    # Damage gives some wrong bytes before it is noticed: the checksum comes last.
    sure = 1000 if damage == "inside" else count
    assert [each[2] for each in found][:sure] == frames[:sure]
    assert count > 1000
    if damage in ("checksum", "garbage"):
        assert count == 3000

# SPDX-License-Identifier: GPL-2.0-or-later
"""The formats by the batch: in whatever pieces they come, and what lies in them."""

import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.offline.ahead import Ahead, Source
from cthelper.core.offline.blocks import PCAP, Batch, Format, Pcap, Pcapng, single
from cthelper.core.offline.capture import Capture
from cthelper.core.offline.linktypes import FINDERS, NFLOG, logged, said_length
from tests.core.offline.capture_files import (
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
    section,
)
from tests.helpers import tshark
from tests.helpers.captures import PCAPS

EDITCAP: Final = shutil.which("editcap")

Told = tuple[object, ...]


class Noted:
    """Keeps what it is told of, among the frames that came before."""

    def __init__(self) -> None:
        self.all: list[Told] = []

    def ended(self, rest: int, offset: int, why: str) -> None:
        if rest:
            self.all.append(("ended", offset))

    def broken(self, offset: int, why: str) -> None:
        self.all.append(("broken", offset))

    def unknown(self, frame: int, link: int) -> None:
        self.all.append(("unknown", frame, link))

    def cut(self, frame: int, captured: int, length: int) -> None:
        self.all.append(("cut", frame, captured, length))


def opened(content: bytes, size: int, notes: Noted) -> Format:
    """What reads the content, which comes in pieces of at most `size` bytes."""
    file = io.BytesIO(content)
    ahead = Ahead(Source(lambda most: file.read(min(most, size)), (OSError,)))
    form = Pcap if content[:4] in PCAP else Pcapng
    return form(ahead, notes)


def through(content: bytes, size: int) -> list[Told]:
    """All frames and notes in their order; the number of frames is the last."""
    notes = Noted()
    form = opened(content, size, notes)
    batch: Batch | None = Batch(b"", [])
    while batch is not None:
        batch = form.read()
        if batch is not None:
            for number, time, begin, start, stop in batch.places:
                frame = batch.data[begin:stop]
                assert 0 <= begin <= start < stop <= len(batch.data)
                notes.all.append((number, time, frame, start - begin))
    # Once at the end it stays there.
    held = list(notes.all)
    assert form.read() is None
    return [*held, (form.number, form.first)]


RECORDS: Final = st.lists(
    st.tuples(
        st.sampled_from([WHOLE, ethernet(V6), b"", WHOLE[:20], b"\x81\0" * 30]),
        # Of which a part was captured.
        st.sampled_from([0, 0, 0, 7]),
    ),
    max_size=8,
)


@st.composite
def captures(draw: st.DrawFn) -> bytes:
    """A file of either format, whole or not."""
    records = draw(RECORDS)
    order = draw(st.sampled_from("<>"))
    link = draw(st.sampled_from([1, 1, 101, 127, 113, NFLOG]))
    if draw(st.booleans()):
        content = pcap(
            [frame for frame, _ in records],
            order=order,
            link=link,
            lengths=[len(frame) + more for frame, more in records],
        )
        header = 24
    else:
        content = section(order) + interface(link, order=order)
        header = len(section())
        for at, (frame, more) in enumerate(records):
            between = [
                b"",
                block(5, bytes(12), order),
                section(order) + interface(order=order, snaplen=40),
                block(3, struct.pack(order + "I", len(frame)) + frame, order),
            ]
            content += draw(st.sampled_from(between))
            content += enhanced(frame, at, order=order, length=len(frame) + more)
    damaged = bytearray(content)
    if draw(st.booleans()) and len(content) > header:
        damaged[draw(st.integers(header, len(content) - 1))] ^= draw(
            st.integers(1, 255)
        )
    return bytes(damaged[: draw(st.integers(header, len(content)))])


@given(content=captures(), size=st.integers(1, 200))
def test_pieces_in_which_a_file_comes_make_no_difference(
    content: bytes, size: int
) -> None:
    assert through(content, size) == through(content, len(content) + 1)


def test_batch_ends_before_a_frame_that_is_told_of() -> None:
    content = section() + interface() + interface(127)
    content += enhanced(WHOLE) + enhanced(WHOLE, length=99) + enhanced(WHOLE)
    content += enhanced(b"", on=1) + enhanced(WHOLE) + b"\x06"
    size = len(content)
    told = through(content, size)
    cut, unknown = ("cut", 2, len(WHOLE), 99), ("unknown", 4, 127)
    assert [each[0] for each in told[:-1]] == [1, "cut", 2, 3, "unknown", 5, "ended"]
    assert (told[1], told[4]) == (cut, unknown)
    assert told[6] == ("ended", size - 1)


def test_frame_is_a_batch_of_its_own() -> None:
    batch = single(7, 1.5, WHOLE, 14)
    assert (batch.data, batch.places, batch.at) == (
        WHOLE,
        [(7, 1.5, 0, 14, len(WHOLE))],
        0,
    )


# Lengths that lie


def test_block_that_says_it_is_longer_or_shorter_is_broken() -> None:
    whole = enhanced(WHOLE)
    for length in (0, 11, 13, 28, len(whole) - 4, len(whole) + 4, 1 << 24, 0xFFFFFFFF):
        lying = whole[:4] + struct.pack("<I", length) + whole[8:]
        frames, warnings, count = read(pcapng([WHOLE]) + lying + bytes(100))
        assert (len(frames), count) == (1, 1)
        (warning,) = warnings
        assert "frame 1, at byte" in warning


def test_frame_ends_where_its_block_does() -> None:
    head = struct.pack("<5I", 0, 0, 0, 4000, 4000)
    content = section() + interface() + block(6, head + WHOLE) + enhanced(WHOLE)
    frames, warnings, count = read(content)
    assert count == 2
    # What pads the block is within it.
    assert [frame[: len(WHOLE)] for _, _, frame, _ in frames] == [WHOLE] * 2
    assert len(frames[0][2]) < len(WHOLE) + 4
    (warning,) = warnings
    assert "of 4000 bytes" in warning


def test_length_that_is_no_multiple_of_four_is_padded() -> None:
    # As a program that counts no padding writes it.
    frame = WHOLE + bytes(-len(WHOLE) % 4) + b"x"
    size = 32 + len(frame)
    body = struct.pack("<5I", 0, 0, 0, len(frame), len(frame)) + frame
    odd = (
        struct.pack("<II", 6, size) + body + bytes(-size % 4) + struct.pack("<I", size)
    )
    assert packets(pcapng([WHOLE]) + odd + enhanced(WHOLE)) == [V4, frame[14:], V4]


def test_options_of_a_frame_are_not_read() -> None:
    # Flags, a process of a block that is passed over, and what is cut short.
    for options in (
        struct.pack("<HHI", 2, 4, 1),
        struct.pack("<HHH", 2, 2, 1),
        struct.pack("<HHI", 0x8001, 4, 0),
        struct.pack("<HH", 1, 4000),
        b"\0\0",
    ):
        content = section() + interface() + enhanced(WHOLE, options=options)
        assert packets(content + enhanced(WHOLE)) == [V4, V4]


def test_options_of_an_interface_that_lie() -> None:
    second = 1_000_000
    for option in (
        struct.pack("<HH", 9, 1),
        struct.pack("<HHI", 9, 2, 3),
        struct.pack("<HHI", 9, 4000, 3),
        struct.pack("<HHI", 14, 4, 3),
        b"\x09",
    ):
        body = struct.pack("<HHI", 1, 0, 0) + option
        content = section() + block(1, body)
        content += enhanced(WHOLE) + enhanced(WHOLE, second)
        frames, warnings, _ = read(content)
        assert warnings == []
        assert [time for _, time, *_ in frames] == [0.0, 1.0]


def test_time_of_any_resolution_is_exact() -> None:
    for exponent in (0x00, 0x06, 0x09, 0x0C, 0x7F, 0x80, 0xBF, 0xFF):
        ticks = (2 if exponent & 0x80 else 10) ** (exponent & 0x7F)
        last = min(3 * ticks, (1 << 64) - 1)
        content = section() + interface(options=[(9, bytes((exponent,)))])
        content += enhanced(WHOLE) + enhanced(WHOLE, last)
        frames, _, _ = read(content)
        assert frames[1][1] == last * 10**9 // ticks / 10**9


# Link layers


@given(
    link=st.sampled_from(sorted(FINDERS)),
    frame=st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                *(bytes(2), bytes(12), b"\x08\0", b"\x86\xdd", b"\x81\0\0\7", b"\x21"),
                *(b"\x88\x64\x11\0\0\1\0\x20", b"\xff\3", b"\0\x21", b"\x0f\0", V4),
                *(b"\2\0\0\0", b"\x0a\0\0\5", b"\x1f\0\x09\0", V6),
            ]
        ),
        max_size=8,
    ).map(b"".join),
    around=st.tuples(st.binary(max_size=30), st.binary(max_size=30)),
    more=st.sampled_from([b"", b"\x08\0", b"\0\x21" + V4, b"\x81\0\0\1\x08\0" + V4]),
)
def test_nothing_is_read_around_a_frame(
    link: int, frame: bytes, around: tuple[bytes, bytes], more: bytes
) -> None:
    before, behind = around
    data = before + frame + more + behind
    begin, stop = len(before), len(before) + len(frame)
    alone = FINDERS[link](frame, 0, len(frame))
    found = FINDERS[link](data, begin, stop)
    assert found == (-1 if alone < 0 else alone + begin)
    assert alone < len(frame)
    assert said_length(data, begin, stop) == said_length(frame, 0, len(frame))
    for order in "<>":
        place = logged(data, begin, stop, order)
        there = logged(frame, 0, len(frame), order)
        assert place == (
            there if there == (-1, -1) else tuple(map(begin.__add__, there))
        )


# As other programs read and write


@tshark.needed
@pytest.mark.skipif(EDITCAP is None, reason="editcap is not installed")
@pytest.mark.parametrize("form", ["pcap", "nsecpcap", "pcapng"])
def test_tshark_reads_what_editcap_writes_as_we_do(form: str, tmp_path: Path) -> None:
    assert EDITCAP is not None
    for path in sorted(PCAPS.rglob("*.pcap*"))[::5]:
        written = tmp_path / "written"
        subprocess.run([EDITCAP, "-F", form, path, written], check=True)
        with Capture(written, warn=pytest.fail) as capture:
            ours = [
                (number, f"{time:.6f}", len(frame), frame[start] >> 4)
                for number, time, frame, start in capture
            ]
        names = ["frame.number", "frame.time_relative", "frame.cap_len"]
        names += ["ip.version", "ipv6.version"]
        theirs = [
            (int(number), f"{float(time):.6f}", int(size), int((v4 or v6)[0]))
            for number, time, size, v4, v6 in tshark.fields(written, names)
            if v4 or v6
        ]
        assert ours == theirs

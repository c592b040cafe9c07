# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written as pcapng, and read again."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import rdpcap

from cthelper.core.offline.pcapng import Writer
from cthelper.core.tuples import UDP
from tests.core.builders import packet6, udp
from tests.core.offline.capture_files import read

BEGIN = 1_700_000_000_000_000_000


class Slow(io.RawIOBase):
    """Takes a few bytes at a time, as a pipe may."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        self.content += data[:7]
        return len(data[:7])


@given(st.lists(st.tuples(st.integers(0, 10**12), st.binary(max_size=40))))
def test_what_is_written_is_read(said: list[tuple[int, bytes]]) -> None:
    file = Slow()
    writer = Writer(file)
    time = BEGIN
    wanted = []
    for later, payload in said:
        time += later
        writer.packet(time, udp(payload))
        wanted.append((time, udp(payload)))
    assert writer.size == len(file.content)
    frames, warnings, _ = read(file.content)
    assert warnings == []
    begin = wanted[0][0] if wanted else 0
    assert [(frame, start) for _, _, frame, start in frames] == [
        (packet, 0) for _, packet in wanted
    ]
    for (_, seconds, _, _), (when, _) in zip(frames, wanted, strict=True):
        assert seconds == pytest.approx((when - begin) / 1e9, abs=1e-6)


def test_others_read_it(tmp_path: Path) -> None:
    path = tmp_path / "raw.pcapng"
    with io.FileIO(path, "wb") as file:
        writer = Writer(file)
        writer.packet(BEGIN + 5, udp(b"one"))
        writer.packet(BEGIN + 1_000, packet6(UDP, b"two"))
    first, second = rdpcap(str(path))
    assert [bytes(first), bytes(second)] == [udp(b"one"), packet6(UDP, b"two")]
    assert int(first.time) == BEGIN // 10**9

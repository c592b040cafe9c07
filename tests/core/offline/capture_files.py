# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures written by hand, without scapy, and what is read out of one."""

import struct
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from cthelper.core.errors import CaptureError
from cthelper.core.offline.capture import Capture, Frame

V4: Final = bytes(
    IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / b"four"
)
V6: Final = bytes(IPv6(src="2001:db8::1", dst="::2") / UDP(sport=1, dport=2) / b"six")
MACS: Final = bytes(12)
ETHERNET: Final = 1


# --- writing: what the formats say, without scapy ---


def pcap(
    frames: Iterable[bytes],
    *,
    order: str = "<",
    nano: bool = False,
    link: int = ETHERNET,
    times: Iterable[tuple[int, int]] | None = None,
    lengths: Iterable[int] | None = None,
) -> bytes:
    """A pcap file; a frame a second unless `times` has (seconds, fraction) of each."""
    frames = list(frames)
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    parts = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)]
    stamps = list(times or ((1000 + at, 0) for at in range(len(frames))))
    originals = list(lengths or map(len, frames))
    for frame, stamp, length in zip(frames, stamps, originals, strict=True):
        parts.append(struct.pack(order + "IIII", *stamp, len(frame), length) + frame)
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A pcapng block."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    """A section header."""
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    link: int = ETHERNET,
    *,
    order: str = "<",
    snaplen: int = 0,
    options: Iterable[tuple[int, bytes]] = (),
) -> bytes:
    """An interface description."""
    body = struct.pack(order + "HHI", link, 0, snaplen)
    for code, value in options:
        body += struct.pack(order + "HH", code, len(value))
        body += value + bytes(-len(value) % 4)
    return block(1, body, order)


def enhanced(
    frame: bytes,
    ticks: int = 0,
    *,
    order: str = "<",
    on: int = 0,
    length: int | None = None,
    options: bytes = b"",
) -> bytes:
    """An enhanced packet block."""
    original = len(frame) if length is None else length
    head = (on, ticks >> 32, ticks & 0xFFFFFFFF, len(frame), original)
    padded = frame + bytes(-len(frame) % 4) + options
    return block(6, struct.pack(order + "5I", *head) + padded, order)


def pcapng(frames: Iterable[bytes], order: str = "<") -> bytes:
    """One section with one interface; a frame a second."""
    return (
        section(order)
        + interface(order=order)
        + b"".join(
            enhanced(frame, at * 1_000_000, order=order)
            for at, frame in enumerate(frames)
        )
    )


def ethernet(packet: bytes, kind: int | None = None) -> bytes:
    """A frame around an IP packet."""
    if kind is None:
        kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return MACS + struct.pack("!H", kind) + packet


WHOLE: Final = ethernet(V4)


# --- reading ---


def read(content: bytes) -> tuple[list[Frame], list[str], int]:
    """The frames, the warnings and how many frames there are."""
    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        warnings: list[str] = []
        with Capture(Path(file.name), warn=warnings.append) as capture:
            frames = list(capture)
            assert capture.size == len(content)
            assert capture.position <= len(content)
        assert all("\n" not in each and file.name in each for each in warnings)
        return frames, warnings, capture.frames


def packets(content: bytes) -> list[bytes]:
    """The IP packets of a capture that needs no warning."""
    frames, warnings, _ = read(content)
    assert warnings == []
    return [frame[start:] for _, _, frame, start in frames]


def refusal(content: bytes) -> str:
    """Why a file is no capture, without its name."""
    with NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with pytest.raises(CaptureError) as caught:
            Capture(Path(file.name), warn=pytest.fail)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{file.name}: ")

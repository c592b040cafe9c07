# SPDX-License-Identifier: GPL-2.0-or-later
"""What fuzzing begins with: the captures in pcaps/, read anew each time."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from cthelper.core.offline.capture import Capture, Frame

PCAPS: Final = Path(__file__).parents[2] / "pcaps"


def captures(folder: str = "*") -> list[Path]:
    """The captures of one protocol, or all."""
    return sorted(PCAPS.glob(f"{folder}/*.pcap"))


def frames(capture: Path) -> list[Frame]:
    """All frames of a capture."""
    with Capture(capture, warn=_ignore) as opened:
        return list(opened)


@cache
def packets() -> tuple[bytes, ...]:
    """The IP packets of all captures, none twice."""
    return tuple(dict.fromkeys(_packets()))


def _packets() -> Iterator[bytes]:
    for capture in captures():
        for _, _, data, start in frames(capture):
            yield data[start:]


def _ignore(text: str) -> None:
    """Nobody reads what Capture warns of here."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""How far a long command has come: one line on a terminal, and nothing elsewhere."""

import sys
from collections.abc import Callable
from time import monotonic
from typing import Final, TextIO

# Seconds: what is done by then shows nothing.
_PATIENCE: Final = 1.0
_INTERVAL: Final = 0.1


class Progress:
    """Writes ``45% of 20 captures`` over itself, where `stream` is a terminal.

    Standard error may be the terminal that standard output is, too: `clear` comes
    before whatever is printed there, and standard output never sees a byte of it.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = total
        self._unit = unit
        self._clock = clock
        self._due = clock() + _PATIENCE
        self._shown = ""
        self.wanted = total > 0 and self._stream.isatty()

    def update(self, done: int) -> None:
        """So much of the total is done."""
        if not self.wanted or self._clock() < self._due:
            return
        self._due = self._clock() + _INTERVAL
        self._shown = f"{done * 100 // self._total:3}% of {self._total} {self._unit}"
        self._write(f"\r{self._shown}")

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._write(f"\r{' ' * len(self._shown)}\r")
            self._shown = ""

    def _write(self, text: str) -> None:
        print(text, end="", file=self._stream, flush=True)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C as a wish to end soon, and in order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from types import FrameType


class Interruption:
    """Whether SIGINT came. `stop` becomes readable then, here and in other processes.

    Only the first is taken like this; a second one raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.came = False
        self.stop, self._held = Pipe(duplex=False)

    def end(self) -> None:
        """Have `stop` readable, whether or not SIGINT came."""
        self._held.close()

    def close(self) -> None:
        """Nobody looks at `stop` any more."""
        self.end()
        self.stop.close()

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        self.came = True
        self.end()
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Note SIGINT while it is entered, unless it is ignored, as in the background."""
    noted = Interruption()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, noted.on_signal)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
        noted.close()

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

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The handler of SIGINT."""
        self.came = True
        self.end()
        signal.signal(number, signal.default_int_handler)


@contextmanager
def interruption(*further: signal.Signals) -> Iterator[Interruption]:
    """Note SIGINT while it is entered, unless it is ignored, as in the background.

    And `further` signals, in the same way.
    """
    noted = Interruption()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, *further)}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, noted.on_signal)
    try:
        yield noted
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        noted.close()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Have no signal end what is entered, nor the programs that it runs.

    Of Ctrl-C a terminal tells those, too.
    """
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.signal(each, signal.SIG_IGN) for each in ends}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

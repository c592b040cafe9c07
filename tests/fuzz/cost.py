# SPDX-License-Identifier: GPL-2.0-or-later
"""What a packet may cost: time of the thread's processor, and memory that is kept.

A fuzzer's instrumentation makes all code several times slower, so the limit on time is
far above the budget; what was slowest is kept, to be measured without it.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Final, TypeVar

T = TypeVar("T")

SECONDS: Final = 0.050
"""Processor time for one packet, under the fuzzer."""
NOTABLE: Final = 0.005
"""What is worth a line in the report, without the fuzzer."""


class Stopwatch:
    """The longest that one packet took since the last `restart`."""

    def __init__(self) -> None:
        self.longest = 0.0

    def restart(self) -> None:
        """Forget what was measured."""
        self.longest = 0.0

    def measure(self, call: Callable[[], T]) -> T:
        """What `call` gives, while the time of this thread's processor is taken."""
        begun = time.thread_time()
        try:
            return call()
        finally:
            self.longest = max(self.longest, time.thread_time() - begun)


WATCH: Final = Stopwatch()


def in_time(run: Callable[[], None]) -> None:
    """Run something whose packets WATCH measures. Raises AssertionError: too long.

    What takes too long does so twice: the machine may have had other things to do.
    """
    for attempt in (1, 2):
        WATCH.restart()
        run()
        if WATCH.longest <= SECONDS:
            return
        if attempt == 2:
            raise AssertionError(f"a packet took {WATCH.longest * 1000:.1f} ms")


# What is there once, whoever refers to it.
_SHARED: Final = (type, ModuleType, FunctionType)


def kept(roots: Iterable[object], shared: Iterable[object] = ()) -> int:
    """Bytes of all objects that can be reached, but for what is `shared`."""
    seen = set(map(id, shared))
    total = 0
    waiting = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _SHARED):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        waiting += gc.get_referents(each)
    return total

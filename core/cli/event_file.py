# SPDX-License-Identifier: GPL-2.0-or-later
"""Events in a file, one JSON object a line, for as long as anybody wants them."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cthelper.core.errors import CthelperError

_AGAIN_SECONDS: Final = 2.0


class EventFile:
    """Lines at the end of a file, which SIGHUP opens anew, as logrotate(8) wants it.

    What cannot be written, as where the disk is full, is counted, and told of before
    the next line that can be (``events-unwritten``). Raises CthelperError where the
    file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._opened()
        self._lost = 0
        signal.signal(signal.SIGHUP, lambda *_: self._open_anew())

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self._path, flags, 0o640)
        except OSError as error:
            raise CthelperError(
                f"{self._path}: cannot be written: {error.strerror}"
            ) from None

    def _open_anew(self) -> None:
        try:
            new = self._opened()
        except CthelperError:
            return  # what is open already goes on
        # Under the same number: a line may be about to be written.
        os.dup2(new, self._file, inheritable=False)
        os.close(new)

    def write(self, record: dict[str, Any]) -> None:
        """Write a record, or count it."""
        try:
            if self._lost:
                self._put({"event": "events-unwritten", "count": self._lost})
                self._lost = 0
            self._put(record)
        except OSError:
            self._lost += 1

    def _put(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        written = os.write(self._file, line)
        if written < len(line):
            # The next line begins a line.
            os.write(self._file, b"\n")


def forever(
    ask: Callable[[float | None], Iterator[dict[str, Any]]],
    since: float | None,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """The events of a daemon and of those that come after it.

    `ask` gives events from so many seconds ago on, and raises CthelperError where there
    is no daemon; `tell` is told that, once for each time, and it is asked again.
    """
    last = seen = ""
    told = False
    while True:
        try:
            for record in ask(since):
                told = False
                last = max(last, str(record.get("time", "")))
                # Those up to there were given before the daemon was gone.
                if last > seen or not seen:
                    yield record
        except CthelperError as error:
            if not told:
                tell(str(error))
                told = True
        sleep(_AGAIN_SECONDS)
        if last:
            seen = last
            now = datetime.now(UTC)
            since = (now - datetime.fromisoformat(last)).total_seconds() + 1.0

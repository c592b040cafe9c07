# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of one daemon after the other, for as long as anybody wants them."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from cthelper.core.errors import CthelperError

_AGAIN_SECONDS: Final = 2.0


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
            elapsed = (now - datetime.fromisoformat(last)).total_seconds()
            if elapsed < 0:
                # The clock was set back: times say nothing of what was given.
                last = seen = ""
                elapsed = 0.0
            since = elapsed + 1.0

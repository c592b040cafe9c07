# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper that takes too long is interrupted, by a signal of the supervisor's.

Where the supervisor dies the kernel sends it: so a server that nobody watches any more
comes to its loop, where it sees that, and ends.

Python runs the handler between two of its instructions, and in those of C that wait or
may take long (sleep, regular expressions, big numbers); compiled code runs it only
where it calls what is not compiled. It raises where a helper runs, and nowhere else:
cthelper's own code is never left halfway.
"""

import ctypes
import signal
from types import FrameType
from typing import Final

from cthelper.core.errors import Overrun
from cthelper.core.reader import RUNNING

SIGNAL: Final = signal.SIGUSR1
"""What interrupts a helper."""

_PR_SET_PDEATHSIG: Final = 1  # include/uapi/linux/prctl.h


def allow() -> None:
    """Have helpers of this process be interrupted from now on, in its main thread.

    Call it after the process has changed its user, which would undo a part of it.
    """
    signal.signal(SIGNAL, _interrupt)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(SIGNAL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])


def end_with_parent() -> None:
    """Have this process killed where its parent dies, until `allow`.

    Call it after the process has changed its user.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    if RUNNING.helper:
        raise Overrun("it took longer than budget.deadline allows")

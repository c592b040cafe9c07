# SPDX-License-Identifier: GPL-2.0-or-later
"""The signals that the daemon is told by: SIGTERM and SIGINT end it, SIGHUP reloads."""

import signal
import socket
from types import FrameType, TracebackType
from typing import Self


class Signals:
    """Notes signals while it is entered; each also writes a byte to `waker`.

    `stop` is whether the daemon shall end.
    """

    def __init__(self, waker: socket.socket) -> None:
        self._waker = waker
        self._reload = False
        self.stop = False

    def __enter__(self) -> Self:
        # Python's own handler writes here, so that a signal ends a wait.
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(-1)

    def taken_reload(self) -> bool:
        """Whether SIGHUP came since the last call."""
        came, self._reload = self._reload, False
        return came

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop = True

    def _on_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload = True


def waker_pair() -> tuple[socket.socket, socket.socket]:
    """What becomes readable, and what is written to for that; neither blocks."""
    woken, waker = socket.socketpair()
    for each in (woken, waker):
        each.setblocking(False)
    return woken, waker


def empty(source: socket.socket) -> None:
    """Read and forget all that waits in a socket that does not block."""
    try:
        while source.recv(256):
            pass
    except BlockingIOError:
        pass

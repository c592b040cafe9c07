# SPDX-License-Identifier: GPL-2.0-or-later
"""Says to the service manager how the daemon is: sd_notify(3), and an answer to
``cthelper reload``, which is what the unit's ExecReload runs.

Messages are datagrams of ``KEY=VALUE`` lines to the socket that NOTIFY_SOCKET names.
Without that variable nothing is said and nothing is due.
"""

import os
import signal
import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final

# A third of the time in which the service manager wants to hear of progress.
_PARTS: Final = 3
_MICROSECONDS: Final = 1_000_000
_ANSWER: Final = "reload"
_LONGEST: Final = 2048


class Notifier:
    """Tells the service manager; takes its variables out of `environment`.

    So the programs that the daemon starts do not speak in its name. `clock` gives
    seconds of CLOCK_MONOTONIC. Nothing here waits or raises: what cannot be said now
    is left out.
    """

    def __init__(
        self, environment: MutableMapping[str, str], clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._socket: socket.socket | None = None
        self._said = ""
        self._folder = environment.get("RUNTIME_DIRECTORY")
        address = environment.pop("NOTIFY_SOCKET", "")
        limit = environment.pop("WATCHDOG_USEC", "")
        process = environment.pop("WATCHDOG_PID", str(os.getpid()))
        self._interval: float | None = None
        if not address:
            return
        self._socket = _socket()
        try:
            self._socket.connect(_place(address))
        except OSError:
            self.close()
            return
        if limit.isdecimal() and int(limit) and process == str(os.getpid()):
            self._interval = int(limit) / _MICROSECONDS / _PARTS
        self._due = clock()

    def close(self) -> None:
        """Say nothing from now on: this is another process than the one asked."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._interval = self._folder = None

    @property
    def due(self) -> float | None:
        """When `alive` is to be called at the latest, by the clock; None: never."""
        return None if self._interval is None else self._due

    def alive(self) -> None:
        """There is progress. Call it as often as you like; it is said when it is due.

        That is three times in the interval of the watchdog (WatchdogSec=).
        """
        if self._interval is not None and self._due <= self._clock():
            self._due = self._clock() + self._interval
            self._say("WATCHDOG=1")

    def ready(self) -> None:
        """It serves: after its start, and after a reload whatever came of that."""
        self._say("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` follows."""
        now = int(self._clock() * _MICROSECONDS)
        self._say("RELOADING=1", f"MONOTONIC_USEC={now}")

    def reloaded(self, error: str | None) -> None:
        """A reload has come to its end, in an error or none: answers `reload`."""
        if self._folder is not None:
            with _socket() as answering, suppress(OSError):
                text = (error or "").encode("utf-8", "replace")[:_LONGEST]
                answering.sendto(text, str(Path(self._folder, _ANSWER)))

    def stopping(self) -> None:
        """It ends."""
        self._say("STOPPING=1")

    def status(self, text: str) -> None:
        """How it is, a line for people; said only where it has changed."""
        if text != self._said:
            self._said = text
            self._say(f"STATUS={' '.join(text.split())}")

    def _say(self, *lines: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.send("\n".join(lines).encode("utf-8", "replace"))


def reload(process: int, folder: Path, seconds: float) -> str:
    """Have the daemon with this id read its configuration again, and wait for the end.

    The error, or an empty string where it was taken. `folder` is the daemon's
    RUNTIME_DIRECTORY. Raises OSError; TimeoutError where no answer came.
    """
    place = folder / _ANSWER
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        asking.bind(str(place))
        try:
            asking.settimeout(seconds)
            os.kill(process, signal.SIGHUP)
            return asking.recv(_LONGEST).decode("utf-8", "replace")
        finally:
            place.unlink(missing_ok=True)


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def _place(address: str) -> str:
    """As the kernel has it: an abstract address begins with a zero byte, not an @."""
    return f"\0{address[1:]}" if address.startswith("@") else address

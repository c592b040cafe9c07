# SPDX-License-Identifier: GPL-2.0-or-later
"""What a supervisor and a worker say to each other: an order, then its answer.

A message is one packet of a socket pair. When one of the two dies the kernel closes its
end, whatever killed it, and the other one reads that.
"""

import enum
import hashlib
import json
import socket
from typing import Self

from cthelper.core.config import Config

# Above any message: the longest has a counter for each event and reason.
_RECEIVE = 1 << 17

Message = dict[str, object]


class Order(enum.StrEnum):
    """What a worker is told to do; `Server` says what each is."""

    PREPARE = "prepare"
    COMMIT = "commit"
    ABORT = "abort"
    DRAIN = "drain"
    LEAVE = "leave"


class Gone(Exception):
    """The other end is closed: its process has died."""


class Channel:
    """One end of the socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Both ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, message: Message) -> None:
        """Send a message. Raises Gone."""
        try:
            self._socket.sendall(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive(self, seconds: float) -> Message:
        """The next message. Raises Gone, and TimeoutError where none comes in time."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:  # what a timeout of 0 s gives
            raise TimeoutError from None
        except ConnectionResetError:
            raise Gone from None
        if not data:
            raise Gone
        message: Message = json.loads(data)
        return message


def fingerprint(config: Config) -> str:
    """The same for the same configuration, in a process and those that it forked."""
    return hashlib.sha256(repr(config).encode()).hexdigest()

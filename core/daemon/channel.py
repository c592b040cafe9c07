# SPDX-License-Identifier: GPL-2.0-or-later
"""What the supervisor and a server say to each other: an order, then its answer.

A message is one packet of a socket pair. When one of the two dies the kernel closes its
end, whatever killed it, and the other one reads that.
"""

import enum
import fcntl
import json
import os
import socket
from collections.abc import Sequence
from typing import Final, Self

from cthelper.core.config import Config
from cthelper.core.declaration import facts

# Above any message: the longest has a counter for each event and reason.
_RECEIVE = 1 << 17
_DESCRIPTORS = 253  # SCM_MAX_FD
_MFD_NOEXEC_SEAL = 8  # linux/memfd.h
_SEALS: Final = (
    fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
)

Message = dict[str, object]


class Order(enum.StrEnum):
    """What a server is told to do; `Server` says what each is."""

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

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and descriptors of this process with it. Raises Gone."""
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive(self, seconds: float, *, files: bool = False) -> Message:
        """The next message. Raises Gone, and TimeoutError where none comes in time.

        With `files` descriptors that came with it are its ``descriptors``, for the
        caller to close; without, the kernel closes them. What is no message is as if
        the other end were gone.
        """
        self._socket.settimeout(seconds)
        descriptors: list[int] = []
        try:
            if files:
                data, descriptors, _, _ = socket.recv_fds(
                    self._socket, _RECEIVE, _DESCRIPTORS
                )
            else:
                data = self._socket.recv(_RECEIVE)
        except BlockingIOError:  # what a timeout of 0 s gives
            raise TimeoutError from None
        except ConnectionResetError:
            raise Gone from None
        if not data:
            raise Gone
        try:
            message = json.loads(data)
        except ValueError:
            raise Gone from None
        if not isinstance(message, dict):
            raise Gone
        return {**message, "descriptors": descriptors} if descriptors else message


def handed(data: bytes) -> int:
    """A descriptor of a file that has these bytes, which are too many for a message.

    Nobody who gets it can change it: it is for all servers.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        file = os.memfd_create("cthelper", flags | _MFD_NOEXEC_SEAL)
    except OSError:  # Linux before 6.3
        file = os.memfd_create("cthelper", flags)
    with open(file, "wb", closefd=False) as writer:
        writer.write(data)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    return file


def taken(file: int) -> bytes:
    """What was handed to this process; closes the descriptor. Raises OSError."""
    try:
        # Other processes share the offset.
        return os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)


def fingerprint(config: Config) -> str:
    """The same for the same configuration, in a process and those that it forked.

    It does not matter whether a helper is there or a stand-in of it.
    """
    helpers = [facts(each.helper, each.options) for each in config.helpers.values()]
    # Python's own hash has the same key in all these processes.
    return f"{hash(repr((config, helpers))):x}"

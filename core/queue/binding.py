# SPDX-License-Identifier: GPL-2.0-or-later
"""Bound NFQUEUEs, apart from who reads them: one holds the socket, another one reads.

A queue is bound as long as somebody holds its socket (net/netfilter/nfnetlink_queue.c).
So whoever binds it can have packets pass by it, and release those that wait there,
whatever becomes of the process that reads them.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cthelper.core.errors import QueueError, advised
from cthelper.core.netlink.socket import SO_RCVBUFFORCE
from cthelper.core.queue.messages import batch, length, parameters
from cthelper.core.queue.protocol import Action

PROC: Final = Path("/proc/net/netfilter/nfnetlink_queue")
_CHUNK: Final = 1 << 16

# The receive buffer is what fills first: then the packets that pass by leave gaps in
# the packet ids and can be counted. Those beyond this length would leave none.
_LENGTH: Final = 1 << 20


class Binding:
    """A bound NFQUEUE, which begins paused. All methods raise QueueError.

    While it is paused packets pass by it, or with `fail_open` false are dropped. So do
    those that find the receive buffer full. `unbind` is called when it is closed.
    """

    def __init__(
        self,
        number: int,
        end: socket.socket,
        *,
        fail_open: bool,
        unbind: Callable[[], None] | None = None,
    ) -> None:
        self.number = number
        self.socket = end
        self._fail_open = fail_open
        self._unbind = unbind
        self._list = open_list()

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self.socket.fileno()

    def set_receive_buffer(self, size: int) -> None:
        """How many bytes of packets and their bookkeeping may wait to be read."""
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
        except OSError as error:
            raise _failure(f"set queue {self.number}", error) from None

    def set_fail_open(self, fail_open: bool) -> None:
        """Whether packets pass that find the queue full or paused."""
        self._fail_open = fail_open
        self._send(parameters(self.number, fail_open=fail_open))

    def pause(self) -> None:
        """Have no packet wait here from now on; those that do so already still wait.

        The kernel looks at the length and puts a packet in under one lock.
        """
        self._send(length(self.number, 0))

    def resume(self) -> None:
        """Have packets wait here to be read."""
        self._send(length(self.number, _LENGTH))

    def release(self) -> None:
        """Answer all that waits, read or not: accept it, or drop it if it fails closed.

        Whoever has read such a packet and answers it later is told ENOENT.
        """
        action = Action.ACCEPT if self._fail_open else Action.DROP
        row = bound_queues(self._list).get(self.number)
        if row is not None and row.waiting:
            self._send(batch(self.number, action, row.last))

    def close(self) -> None:
        """Let go of the socket; the kernel drops what waits when nobody has it."""
        if self._unbind is not None:
            self._unbind()
        if self._list is not None:
            os.close(self._list)
            self._list = None
        self.socket.close()

    def _send(self, message: bytes) -> None:
        try:
            self.socket.send(message)
        except OSError as error:
            raise _failure(f"set queue {self.number}", error) from None


def refusal(number: int, error: OSError | QueueError) -> QueueError:
    """What to say of a queue that cannot be bound."""
    if number in bound_queues():
        return QueueError(
            f"queue {number} is bound by another process: "
            "stop it, or set another queue number"
        )
    if isinstance(error, QueueError):
        return error
    return _failure(f"bind queue {number}", error)


def _failure(what: str, error: OSError) -> QueueError:
    why = f"cannot {what}: {error.strerror or error}"
    return QueueError(advised(why, error.errno or 0))


@dataclass(frozen=True, slots=True)
class BoundQueue:
    """A row of /proc/net/netfilter/nfnetlink_queue.

    Its owner's netlink port, how many packets wait there, the id of the last one that
    came, and how many packets were not given to its owner: they found the queue full,
    or its receive buffer. Where it fails open they have passed.
    """

    number: int
    port: int
    waiting: int
    last: int
    missed: int = 0


def open_list() -> int | None:
    """A descriptor of the kernel's list of bound queues, for who cannot open it later.

    It is root's, and a process may be out of descriptors. None: there is none.
    """
    try:
        return os.open(PROC, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def somebody_queues(processes: Path = Path("/proc")) -> bool:
    """Whether a queue is bound in the network namespace of any process seen here.

    As root. A queue whose owner has gone into another namespace since is found where
    any other process stayed in its old one.
    """
    asked = set()
    for process in processes.glob("[1-9]*"):
        try:
            namespace = os.readlink(process / "ns/net")
            if namespace not in asked:
                asked.add(namespace)
                if (process / "net/netfilter/nfnetlink_queue").read_bytes():
                    return True
        except OSError:
            # It has ended meanwhile, or its namespace has no queues at all.
            continue
    return False


def bound_queues(opened: int | None = None) -> dict[int, BoundQueue]:
    """The queues of this network namespace that are bound, by number.

    `opened` is a descriptor of the list where it was opened already; a signal handler
    may read it, too, at any time.
    """
    descriptor = open_list() if opened is None else opened
    if descriptor is None:
        return {}
    data = b""
    try:
        while more := os.pread(descriptor, _CHUNK, len(data)):
            data += more
    except OSError:
        return {}
    finally:
        if opened is None:
            os.close(descriptor)
    rows = [[int(field) for field in line.split()] for line in data.splitlines()]
    return {
        row[0]: BoundQueue(row[0], row[1], row[2], row[7], row[5] + row[6])
        for row in rows
    }

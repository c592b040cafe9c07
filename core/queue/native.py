# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue backend in C: an NFQUEUE bound here and served by _native.c.

What no helper need see never enters Python. The messages that carry attributes are
those of the other backend, `queue.verdict`.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cthelper.core.api import Prefilter
from cthelper.core.errors import QueueError, Truncated
from cthelper.core.netlink.socket import NETLINK_NETFILTER, SO_RCVBUFFORCE
from cthelper.core.packet import Segment
from cthelper.core.queue import _native
from cthelper.core.queue.protocol import (
    Action,
    Hook,
    Packet,
    Queue,
    Statistics,
    Touched,
    Verdict,
    bind,
    bound_queues,
    entry_of,
    length,
    parameters,
    verdict,
)
from cthelper.core.tuples import ORIGINAL, REPLY, TCP, UDP, FlowKey

# See library.py: the receive buffer is what fills first.
_LENGTH: Final = 1 << 20
_ERRNO: Final = struct.Struct("=16xi")
_ANSWER_SECONDS: Final = 5.0


class NativeQueue:
    """An NFQUEUE served in C; see `Queue`.

    `receive_buffer`, in bytes, bounds what waits in the kernel, `flows` those of which
    something is noted. Where the buffer is full packets pass, or with `fail_open` false
    are dropped. Raises QueueError where the queue cannot be bound.
    """

    def __init__(
        self,
        number: int,
        receive_buffer: int,
        flows: int = 65536,
        *,
        fail_open: bool = True,
    ) -> None:
        self.number = number
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER
            )
        except OSError as error:
            raise QueueError(f"cannot open queue {number}: {error}") from None
        try:
            self._bind(receive_buffer, fail_open=fail_open)
        except OSError as error:
            self._socket.close()
            if error.errno == errno.EPERM and number in bound_queues():
                raise QueueError(
                    f"queue {number} is bound by another process: "
                    "stop it, or set another queue number"
                ) from None
            raise QueueError(f"cannot bind queue {number}: {error}") from None
        self.native = native_queue(self._socket.fileno(), number, flows)

    def _bind(self, receive_buffer: int, *, fail_open: bool) -> None:
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        self._socket.settimeout(_ANSWER_SECONDS)
        # In one go: while a queue has no copy mode the kernel drops what comes to it.
        self._socket.send(
            bind(self.number)
            + length(self.number, _LENGTH)
            + parameters(self.number, fail_open=fail_open)
        )
        (code,) = _ERRNO.unpack_from(self._socket.recv(1 << 16))
        if code:
            raise OSError(-code, os.strerror(-code))
        self._socket.settimeout(0.0)

    @property
    def statistics(self) -> Statistics:
        """What has gone through it up to now."""
        return Statistics(*self.native.statistics())

    def fileno(self) -> int:
        """The descriptor that becomes readable when a packet waits."""
        return self._socket.fileno()

    def read(self, limit: int) -> Sequence[Packet]:
        """At most `limit` packets, and 64, that wait now and must be read."""
        try:
            return self.native.read(limit)
        except OSError as error:
            raise QueueError(f"cannot read queue {self.number}: {error}") from None

    def answer(self, verdicts: Sequence[Verdict]) -> None:
        """Release packets; when it returns they have gone on."""
        messages = [
            None
            if each.plain and each.action is Action.ACCEPT
            else verdict(self.number, each)
            for each in verdicts
        ]
        try:
            self.native.answer([each.id for each in verdicts], messages)
        except OSError as error:
            raise QueueError(f"cannot answer queue {self.number}: {error}") from None

    def filters(self, filters: Mapping[str, Prefilter]) -> None:
        """Give out only the datagrams that these helpers read, by kernel name."""
        self.native.filters(
            tuple(
                (name, each.request, each.reply, each.answers)
                for name, each in filters.items()
            )
        )

    def note(self, packet: Packet, *, quiet: bool, held: bool) -> None:
        """What is known of a packet's flow, see `Sieve.note`."""
        assert isinstance(packet, _native.Packet)  # noqa: S101 - read() gave it out
        self.native.note(packet, quiet, held)

    def forget(self, key: FlowKey) -> None:
        """A flow has ended."""
        self.native.forget(*key)

    def touched(self) -> list[Touched]:
        """The held flows of which packets have passed unseen since the last call."""
        return self.native.touched()

    def close(self) -> None:
        """Unbind. The kernel drops what still waits: answer everything before."""
        self._socket.close()


def wait(queues: Iterable[Queue], descriptor: int, seconds: float) -> bool:
    """Serve the queues in C until one has packets to be read, see `backends.Wait`.

    Raises QueueError.
    """
    natives = [each.native for each in queues if isinstance(each, NativeQueue)]
    try:
        return _native.wait(natives, descriptor, seconds)
    except OSError as error:
        raise QueueError(f"cannot read the queues: {error}") from None


def native_queue(descriptor: int, number: int, flows: int) -> _native.Queue:
    """C's side of a queue, on a bound socket."""
    return _native.Queue(
        descriptor,
        number,
        entry_of,
        (Truncated, ValueError),
        tuple(Hook),
        (ORIGINAL, REPLY),
        Segment,
        (TCP, UDP),
        flows,
    )

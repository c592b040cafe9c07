# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue backend in C: an NFQUEUE bound here and read by _native.c.

What no helper need see never enters Python. The messages that carry attributes are
those of the other backend, `messages.verdict`.
"""

import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from cthelper.core.api import Prefilter
from cthelper.core.errors import QueueError, Truncated
from cthelper.core.netlink.socket import NETLINK_NETFILTER
from cthelper.core.packet import Segment
from cthelper.core.queue import _native
from cthelper.core.queue.binding import Binding, refusal
from cthelper.core.queue.messages import bind, entry_of, length, parameters, verdict
from cthelper.core.queue.protocol import (
    Action,
    Hook,
    Packet,
    Queue,
    Statistics,
    Touched,
    Verdict,
)
from cthelper.core.tuples import ORIGINAL, REPLY, TCP, UDP, FlowKey

_ERRNO: Final = struct.Struct("=16xi")
_ANSWER_SECONDS: Final = 5.0


def bind_queue(number: int, receive_buffer: int, *, fail_open: bool) -> Binding:
    """Bind a queue; `receive_buffer`, in bytes, bounds what waits in the kernel.

    Raises QueueError.
    """
    end = None
    try:
        end = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        end.bind((0, 0))
        binding = Binding(number, end, fail_open=fail_open)
        binding.set_receive_buffer(receive_buffer)
        end.settimeout(_ANSWER_SECONDS)
        # In one go: while a queue has no copy mode the kernel drops what comes to it.
        end.send(
            bind(number) + length(number, 0) + parameters(number, fail_open=fail_open)
        )
        (code,) = _ERRNO.unpack_from(end.recv(1 << 16))
        if code:
            raise OSError(-code, os.strerror(-code))
        end.settimeout(0.0)
    except (OSError, QueueError) as error:
        if end is not None:
            end.close()
        raise refusal(number, error) from None
    return binding


class NativeQueue:
    """Reads an NFQUEUE in C; see `Queue`.

    Something is noted of at most `flows` flows.
    """

    def __init__(self, binding: Binding, flows: int) -> None:
        self.number = binding.number
        self._socket = binding.socket
        self.native = native_queue(self._socket.fileno(), binding.number, flows)

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
        self.native.forget(key)

    def touched(self) -> list[Touched]:
        """The held flows of which packets have passed unseen since the last call."""
        return self.native.touched()

    def close(self) -> None:
        """Read no more."""
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

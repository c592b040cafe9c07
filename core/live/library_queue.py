# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue backend on the netfilterqueue package.

The package binds the queue and gives plain verdicts. Its own interface knows nothing of
conntrack, but it reads through any object with ``recv()`` and its descriptor takes
messages of ours: so conntrack is asked for on that descriptor, the raw message that the
package parses is kept and decoded here, and verdicts that carry an expectation or
another payload are sent as messages of our own.
"""

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from cthelper.core.api import Prefilter
from cthelper.core.errors import QueueError, Truncated
from cthelper.core.flows import FlowKey
from cthelper.core.live.netlink import SO_RCVBUFFORCE
from cthelper.core.live.queue import (
    Action,
    Packet,
    QueuedPacket,
    Statistics,
    Touched,
    Verdict,
    bound_queues,
    decode,
    parameters,
    verdict,
)
from cthelper.core.live.sieve import Sieve

if TYPE_CHECKING:
    from netfilterqueue import Packet as LibraryPacket

# Attributes and a reassembled datagram of 64 KiB.
_RECEIVE: Final = 1 << 17
_NLMSG_ERROR: Final = 2
_NLMSG_TYPE: Final = struct.Struct("=4xH")
# The package warns above net.core.rmem_max; the real size is forced afterwards.
_LIBRARY_BUFFER: Final = 64 * 1024
# The receive buffer is what fills first: then the packets that pass by leave gaps in
# the packet ids and can be counted. Those beyond this length would leave none.
_LENGTH: Final = 1 << 20


class _Tap(socket.socket):
    """What the package reads from: one message a call, kept while it is parsed."""

    def __init__(self, descriptor: int, statistics: Statistics) -> None:
        super().__init__(fileno=descriptor)
        self._statistics = statistics
        self._buffer = bytearray(_RECEIVE)
        self.message = b""
        self.budget = 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """The next packet's message; BlockingIOError ends the package's loop."""
        self.message = b""
        while self.budget > 0:
            try:
                length = self.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._statistics.overruns += 1
                continue
            data = bytes(memoryview(self._buffer)[:length])
            if _NLMSG_TYPE.unpack_from(data)[0] == _NLMSG_ERROR:
                self._statistics.refused += 1
                continue
            self.budget -= 1
            self.message = data
            return data
        raise BlockingIOError(errno.EAGAIN, "enough for now")


class LibraryQueue:
    """An NFQUEUE bound with the netfilterqueue package; see `Queue`.

    `receive_buffer`, in bytes, bounds what waits in the kernel, `flows` those of which
    something is noted. Where the buffer is full packets pass, or with `fail_open` false
    are dropped. Raises QueueError where the package is not installed or the queue
    cannot be bound.
    """

    def __init__(
        self,
        number: int,
        receive_buffer: int,
        flows: int = 65536,
        *,
        fail_open: bool = True,
    ) -> None:
        try:
            from netfilterqueue import NetfilterQueue
        except ImportError:
            raise QueueError(
                "the package netfilterqueue is not installed: "
                "pip install 'cthelper[live]'"
            ) from None
        self.number = number
        self._statistics = Statistics()
        self._sieve = Sieve(flows)
        self._waiting: dict[int, LibraryPacket] = {}
        self._packets: list[QueuedPacket] = []
        self._last_id: int | None = None
        try:
            self._library = NetfilterQueue()
            self._tap = _Tap(os.dup(self._library.get_fd()), self._statistics)
        except OSError as error:
            raise QueueError(f"cannot open queue {number}: {error}") from None
        try:
            self._library.bind(
                number, self._receive, max_len=_LENGTH, sock_len=_LIBRARY_BUFFER
            )
        except OSError as error:
            self._tap.close()
            if number in bound_queues():
                raise QueueError(
                    f"queue {number} is bound by another process: "
                    "stop it, or set another queue number"
                ) from None
            raise QueueError(f"cannot bind queue {number}: {error}") from None
        self._tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        self._send(parameters(number, fail_open=fail_open))

    @property
    def statistics(self) -> Statistics:
        """What has gone through it up to now."""
        return self._statistics

    def fileno(self) -> int:
        """The descriptor that becomes readable when a packet waits."""
        return self._tap.fileno()

    def read(self, limit: int) -> list[QueuedPacket]:
        """At most `limit` packets that wait now; never waits itself."""
        self._tap.budget = limit
        try:
            self._library.run_socket(self._tap)
        except OSError as error:
            raise QueueError(f"cannot read queue {self.number}: {error}") from None
        packets = self._packets
        self._packets = []
        return packets

    def answer(self, verdicts: Sequence[Verdict]) -> None:
        """Release packets; when it returns they have gone on."""
        for each in verdicts:
            packet = self._waiting.pop(each.id)
            if each.plain and each.action is Action.ACCEPT:
                packet.accept()
            else:
                self._send(verdict(self.number, each))
            self._statistics.answered += 1

    def filters(self, filters: Mapping[str, Prefilter]) -> None:
        """Give out only the datagrams that these helpers read, by kernel name."""
        self._sieve.filters(filters)

    def note(self, packet: Packet, *, quiet: bool, held: bool) -> None:
        """What is known of a packet's flow, see `Sieve.note`."""
        if packet.conntrack is not None:
            self._sieve.note(packet.conntrack, quiet=quiet, held=held)

    def forget(self, key: FlowKey) -> None:
        """A flow has ended."""
        self._sieve.forget(key)

    def touched(self) -> list[Touched]:
        """The held flows of which packets have passed unseen since the last call."""
        return self._sieve.touched()

    def close(self) -> None:
        """Unbind. The kernel drops what still waits: answer everything before."""
        self._library.unbind()
        self._tap.close()

    def _send(self, message: bytes) -> None:
        try:
            self._tap.send(message)
        except OSError as error:
            raise QueueError(f"cannot answer queue {self.number}: {error}") from None

    def _receive(self, packet: "LibraryPacket") -> None:
        """Called by the package for each message that it has parsed."""
        if not self._tap.message:
            # The package read it by itself, while it waited for an acknowledgement: a
            # packet that came between binding and the first read. It passes.
            packet.accept()
            return
        try:
            queued = decode(self._tap.message)
        except (Truncated, ValueError):
            self._statistics.refused += 1
            packet.accept()
            return
        if self._last_id is not None:
            self._statistics.bypassed += (queued.id - self._last_id - 1) % (1 << 32)
        self._last_id = queued.id
        self._statistics.received += 1
        if self._sieve.passes(queued):
            self._statistics.passed += 1
            self._statistics.answered += 1
            packet.accept()
            return
        self._waiting[queued.id] = packet
        self._packets.append(queued)

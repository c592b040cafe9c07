# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue backend on the netfilterqueue package.

The package binds the queue and holds it. Its own interface knows nothing of conntrack,
and takes a call for each packet: so conntrack is asked for on its descriptor, messages
are read there and decoded here, and a batch is answered in one message of ours.
"""

import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from cthelper.core.api import Prefilter
from cthelper.core.errors import QueueError, Truncated, pip_install
from cthelper.core.queue.binding import Binding, refusal
from cthelper.core.queue.messages import Decoder, batch, id_of, verdict
from cthelper.core.queue.protocol import (
    Action,
    Packet,
    QueuedPacket,
    Statistics,
    Touched,
    Verdict,
)
from cthelper.core.queue.sieve import Sieve
from cthelper.core.tuples import FlowKey

if TYPE_CHECKING:
    from netfilterqueue import Packet as LibraryPacket

# Attributes and a reassembled datagram of 64 KiB.
_RECEIVE: Final = 1 << 17
# A netlink socket takes no more in one go than its buffer, by default 208 KiB.
_SEND: Final = 128 * 1024
_NLMSG_ERROR: Final = 2
_NLMSG_TYPE: Final = struct.Struct("=4xH")
# The package warns above net.core.rmem_max; the real size is forced afterwards.
_LIBRARY_BUFFER: Final = 64 * 1024


def bind_queue(number: int, receive_buffer: int, *, fail_open: bool) -> Binding:
    """Bind a queue; `receive_buffer`, in bytes, bounds what waits in the kernel.

    Raises QueueError, also where the package is not installed.
    """
    try:
        from netfilterqueue import NetfilterQueue
    except ImportError:
        raise QueueError(
            "the package netfilterqueue is not installed: "
            f"{pip_install('netfilterqueue')}"
        ) from None
    try:
        library = NetfilterQueue()
        library.bind(number, _accept, max_len=1, sock_len=_LIBRARY_BUFFER)
    except OSError as error:
        raise refusal(number, error) from None
    end = socket.socket(fileno=os.dup(library.get_fd()))
    binding = Binding(number, end, fail_open=fail_open, unbind=library.unbind)
    try:
        binding.set_receive_buffer(receive_buffer)
        binding.set_fail_open(fail_open)
        binding.pause()
    except QueueError:
        binding.close()
        raise
    return binding


class LibraryQueue:
    """Reads an NFQUEUE in Python; see `Queue`.

    Something is noted of at most `flows` flows.
    """

    def __init__(self, binding: Binding, flows: int) -> None:
        self.number = binding.number
        self._socket = binding.socket
        self._statistics = Statistics()
        self._sieve = Sieve(flows)
        self._decoder = Decoder()
        self._buffer = bytearray(_RECEIVE)
        # What has been read and not answered, and whether it was given out: what was
        # not passes, with the next answer.
        self._pending: dict[int, bool] = {}
        self._last_id: int | None = None

    @property
    def statistics(self) -> Statistics:
        """What has gone through it up to now."""
        return self._statistics

    def fileno(self) -> int:
        """The descriptor that becomes readable when a packet waits."""
        return self._socket.fileno()

    def read(self, limit: int) -> list[QueuedPacket]:
        """At most `limit` packets that wait now and must be read; never waits itself.

        The others go on with the next answer, or where there is none at once.
        """
        packets = []
        for _ in range(limit):
            data = self._receive()
            if data is None:
                break
            packet = self._decoded(data)
            if packet is not None:
                packets.append(packet)
        if not packets and self._pending and not any(self._pending.values()):
            self._send(self._whole({}))
        return packets

    def answer(self, verdicts: Sequence[Verdict]) -> None:
        """Release packets; when it returns they have gone on.

        In the order in which they came, which those that passed have, too.
        """
        own = {each.id: each for each in verdicts}
        if list(own) != [each for each, given in self._pending.items() if given]:
            # An acceptance of many would take with it what is still to be answered, and
            # is in the packets' order.
            for each in own:
                del self._pending[each]
            self._send([verdict(self.number, each) for each in verdicts])
        else:
            self._send(self._whole(own))
        self._statistics.answered += len(own)

    def _whole(self, own: Mapping[int, Verdict]) -> list[bytes]:
        """The messages that release all that has been read, in its order."""
        messages = []
        last = None
        for each in self._pending:
            answer = own.get(each)
            if answer is None or (answer.plain and answer.action is Action.ACCEPT):
                last = each
                continue
            if last is not None:
                messages.append(batch(self.number, Action.ACCEPT, last))
                last = None
            messages.append(verdict(self.number, answer))
        if last is not None:
            messages.append(batch(self.number, Action.ACCEPT, last))
        self._pending.clear()
        return messages

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
        """Read no more."""
        self._socket.close()

    def _send(self, messages: Sequence[bytes]) -> None:
        """Send messages, as many at a time as the socket takes."""
        rest = deque(messages)
        while rest:
            size = 0
            several: list[bytes] = []
            while (rest and size + len(rest[0]) <= _SEND) or not several:
                several.append(rest.popleft())
                size += len(several[-1])
            try:
                self._socket.send(b"".join(several))
            except OSError as error:
                raise QueueError(
                    f"cannot answer queue {self.number}: {error}"
                ) from None

    def _receive(self) -> bytes | None:
        """The next message with a packet; None: there is none now."""
        while True:
            try:
                size = self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise QueueError(
                        f"cannot read queue {self.number}: {error}"
                    ) from None
                self._statistics.overruns += 1
                continue
            data = bytes(memoryview(self._buffer)[:size])
            if _NLMSG_TYPE.unpack_from(data)[0] != _NLMSG_ERROR:
                return data
            self._statistics.refused += 1

    def _decoded(self, data: bytes) -> QueuedPacket | None:
        """The packet in a message, where it must be read."""
        statistics = self._statistics
        try:
            packet = self._decoder.decode(data)
        except (Truncated, ValueError):
            statistics.refused += 1
            unread = id_of(data)
            if unread is not None:
                self._pending[unread] = False
            return None
        if self._last_id is not None:
            statistics.bypassed += (packet.id - self._last_id - 1) % (1 << 32)
        self._last_id = packet.id
        statistics.received += 1
        passes = self._sieve.passes(packet)
        self._pending[packet.id] = not passes
        if not passes:
            return packet
        statistics.passed += 1
        statistics.answered += 1
        return None


def _accept(packet: "LibraryPacket") -> None:
    """Called by the package for a packet that it has read by itself.

    It does so while it waits for an acknowledgement, before the first read.
    """
    packet.accept()

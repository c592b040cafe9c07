# SPDX-License-Identifier: GPL-2.0-or-later
"""Which packets of the queue pass at once, so that no helper need be asked.

Three kinds: all of a flow of which nothing is left to inspect; TCP segments without a
payload, but those with SYN, FIN or RST; UDP datagrams that the helper's prefilter
leaves out. None is of a flow whose sequence numbers the kernel adjusts. The native
backend has the same in C (_native.c), and a test holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cthelper.core.api import Matches, Prefilter
from cthelper.core.flows import FlowKey, key_of
from cthelper.core.live.queue import Packet, Touched
from cthelper.core.packet import Segment
from cthelper.core.tuples import ORIGINAL, TCP, UDP, Conntrack, Status, Tuple

_ACK_ONLY: Final = 0x07  # none of FIN, SYN and RST
_TCP_FLAGS: Final = 13


@dataclass(slots=True)
class _State:
    """What is known of a flow. An id can come again, and then the tuple is another."""

    original: Tuple
    quiet: bool = False
    held: bool = False
    asked: bool = False


class Sieve:
    """Lets packets pass by what was noted of their flows.

    At most `limit` flows are known; of further ones nothing passes but segments without
    a payload and what prefilters leave out.
    """

    def __init__(self, limit: int = 65536) -> None:
        self._limit = limit
        self._flows: dict[FlowKey, _State] = {}
        self._filters: dict[str, Prefilter] = {}
        self._touched: dict[FlowKey, int] = {}
        self._lost = False

    def filters(self, filters: Mapping[str, Prefilter]) -> None:
        """Use these prefilters, by the names that helpers are registered under."""
        self._filters = dict(filters)

    def note(self, entry: Conntrack, *, quiet: bool, held: bool) -> None:
        """What is known of the flow of `entry`.

        `quiet`: nothing is left to inspect. `held`: it has expectations, so that
        `touched` must tell of its packets.
        """
        state = self._state(entry)
        if state is not None:
            state.quiet, state.held = quiet, held

    def forget(self, key: FlowKey) -> None:
        """The flow has ended."""
        self._flows.pop(key, None)
        self._touched.pop(key, None)

    def touched(self) -> list[Touched]:
        """The held flows of which packets have passed here since the last call."""
        touched = [(*key, timeout) for key, timeout in self._touched.items()]
        self._touched.clear()
        return touched

    def passes(self, packet: Packet) -> bool:
        """Whether the packet passes at once."""
        entry = packet.conntrack
        # In chain mode flows with SEQ_ADJUST have a verdict of their own (gate.py).
        if entry is None or entry.status & Status.SEQ_ADJUST:
            return False
        key = key_of(entry)
        state = self._flows.get(key)
        if state is not None and state.original != entry.original:
            self.forget(key)
            state = None
        quiet = state is not None and state.quiet and entry.confirmed
        if not quiet and self._must_be_read(packet, entry, state):
            return False
        if state is not None and state.held:
            self._touched[key] = entry.timeout
        return True

    def _must_be_read(
        self, packet: Packet, entry: Conntrack, state: _State | None
    ) -> bool:
        segment = packet.segment
        if segment is None:
            return True
        if segment.transport is TCP:
            return not (entry.confirmed and _acknowledges_only(packet.payload, segment))
        prefilter = self._filters.get(entry.helper or "")
        if prefilter is None or entry.original.transport is not UDP:
            return True
        payload = bytes(packet.payload[segment.start : segment.stop])
        if packet.direction is ORIGINAL:
            if not matches(prefilter.request, payload):
                return False
            if prefilter.answers:
                self._ask(entry)
            return True
        if prefilter.answers and not self._lost and (state is None or not state.asked):
            return False
        return matches(prefilter.reply, payload)

    def _ask(self, entry: Conntrack) -> None:
        state = self._state(entry)
        if state is None:
            self._lost = True
        else:
            state.asked = True

    def _state(self, entry: Conntrack) -> _State | None:
        key = key_of(entry)
        state = self._flows.get(key)
        if state is None or state.original != entry.original:
            if state is None and len(self._flows) >= self._limit:
                return None
            state = self._flows[key] = _State(entry.original)
        return state


def _acknowledges_only(packet: bytes | memoryview, segment: Segment) -> bool:
    flags = packet[segment.header + _TCP_FLAGS]
    return segment.start == segment.stop and not flags & _ACK_ONLY


def matches(alternatives: Matches | None, payload: bytes) -> bool:
    """Whether a datagram is one of those that a prefilter has in one direction."""
    if alternatives is None:
        return True
    size = len(payload) * 8
    number = int.from_bytes(payload[:64])
    width = min(size, 512)
    for alternative in alternatives:
        for offset, length, value in alternative:
            stop = offset + length
            if stop > width or number >> width - stop & (1 << length) - 1 != value:
                break
        else:
            return True
    return False

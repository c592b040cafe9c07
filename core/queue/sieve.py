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
from cthelper.core.packet import Segment
from cthelper.core.queue.protocol import Packet, Touched
from cthelper.core.tuples import ORIGINAL, TCP, UDP, Conntrack, FlowKey, Tuple, key_of

Masks = tuple[tuple[int, int, int], ...]
"""Alternatives: bits that must be there, and those of the first 512 that matter with
what they must be."""

_WIDTH: Final = 512
_ACK_ONLY: Final = 0x07  # none of FIN, SYN and RST
_TCP_FLAGS: Final = 13
# How often `touched` is called, once a second, until no answer is to come any more to
# who asked and was not noted: the kernel keeps a UDP flow without packets for 30 s, or
# for 120 s (nf_conntrack_udp_timeout_stream).
_UNNOTED: Final = 120


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
        self._filters: dict[str, tuple[Masks | None, Masks | None, bool]] = {}
        self._touched: dict[FlowKey, int] = {}
        # While it is not 0, some that asked are not noted: all answers are read.
        self._unnoted = 0

    def filters(self, filters: Mapping[str, Prefilter]) -> None:
        """Use these prefilters, by the names that helpers are registered under."""
        self._filters = {
            name: (compiled(each.request), compiled(each.reply), each.answers)
            for name, each in filters.items()
        }

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
        """The held flows of which packets have passed here since the last call.

        Call it every second.
        """
        self._unnoted = max(0, self._unnoted - 1)
        touched = list(self._touched.items())
        self._touched.clear()
        return touched

    def passes(self, packet: Packet) -> bool:
        """Whether the packet passes at once."""
        entry = packet.conntrack
        # Flows with SEQ_ADJUST have a verdict of their own (gate.py).
        if entry is None or entry.adjusted:
            return False
        state = self._known(entry)
        quiet = state is not None and state.quiet and entry.confirmed
        if not quiet and self._must_be_read(packet, entry, state):
            return False
        if state is not None and state.held:
            self._touched[key_of(entry)] = entry.timeout
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
        request, reply, answers = prefilter
        payload = bytes(packet.payload[segment.start : segment.stop])
        if packet.direction is ORIGINAL:
            if not matches(request, payload):
                return False
            if answers:
                self._ask(entry)
            return True
        if answers and not self._unnoted and (state is None or not state.asked):
            return False
        return matches(reply, payload)

    def _ask(self, entry: Conntrack) -> None:
        state = self._state(entry)
        if state is None:
            self._unnoted = _UNNOTED
        else:
            state.asked = True

    def _state(self, entry: Conntrack) -> _State | None:
        state = self._known(entry)
        if state is None and len(self._flows) < self._limit:
            state = self._flows[key_of(entry)] = _State(entry.original)
        return state

    def _known(self, entry: Conntrack) -> _State | None:
        """What is known of the flow of `entry`, if it is that and not one of its id."""
        key = key_of(entry)
        state = self._flows.get(key)
        original = entry.original
        # Comparing is dear, and an entry that was decoded before is the same object.
        if (
            state is not None
            and state.original is not original
            and state.original != original
        ):
            self.forget(key)
            return None
        return state


def _acknowledges_only(packet: bytes | memoryview, segment: Segment) -> bool:
    flags = packet[segment.header + _TCP_FLAGS]
    return segment.start == segment.stop and not flags & _ACK_ONLY


def compiled(alternatives: Matches | None) -> Masks | None:
    """The alternatives as `matches` wants them; None: all datagrams."""
    if alternatives is None:
        return None
    masks = []
    for alternative in alternatives:
        bits = mask = wanted = 0
        possible = True
        for offset, length, value in alternative:
            stop = offset + length
            if stop > _WIDTH or value >> length:
                possible = False
                break
            these = (1 << length) - 1 << _WIDTH - stop
            value <<= _WIDTH - stop
            possible = possible and not (wanted ^ value) & these & mask
            bits, mask, wanted = max(bits, stop), mask | these, wanted | value
        if possible:
            masks.append((bits, mask, wanted))
    return tuple(masks)


def matches(masks: Masks | None, payload: bytes) -> bool:
    """Whether a datagram is one of those that a prefilter has in one direction."""
    if masks is None:
        return True
    size = len(payload) * 8
    number = int.from_bytes(payload[: _WIDTH // 8]) << max(0, _WIDTH - size)
    return any(number & mask == wanted and bits <= size for bits, mask, wanted in masks)

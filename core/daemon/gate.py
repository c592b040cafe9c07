# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts, and the packets that are sent round before theirs.

The kernel takes expectations of a confirmed master alone. Where the master is not (the
first packet of a UDP flow), the packet is first sent round: a verdict has it repeat its
hook, which confirms the flow, so that it comes back with another id.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cthelper.core.daemon.log import Log
from cthelper.core.engine import Decision
from cthelper.core.netlink import encoding
from cthelper.core.queue.protocol import Action, Packet, Verdict
from cthelper.core.tuples import TCP, Conntrack, Expectation, Tuple

# Packets that repeat their hook come back within the same batch or the next one. One
# that does not has found the queue full, or a rule of a user's that changed meanwhile.
_ROUND_SECONDS: Final = 2.0
_ROUND_LIMIT: Final = 1024
# Packets of one flow under way that are alike. Whatever a kernel does with one that is
# to repeat its hook, it does not go round for ever.
_ALIKE: Final = 8


@dataclass(frozen=True, slots=True)
class _Round:
    """A packet under way back to the queue, and what is still to do for it."""

    deadline: float
    decision: Decision


class Gate:
    """Turns decisions into verdicts; sends packets round that must come back first.

    `give_up` is told of what is not expected, since its packet did not come back.
    """

    def __init__(
        self,
        log: Log,
        clock: Callable[[], float],
        give_up: Callable[[Sequence[Expectation]], None],
        *,
        adjusts_twice: bool,
    ) -> None:
        self._log = log
        self._give_up = give_up
        self._clock = clock
        self._adjusts_twice = adjusts_twice
        # By flow and packet: several of one flow may be under way. By the flow's tuple
        # and not its id: of two first packets at once one comes back with the entry of
        # the other (nf_ct_resolve_clash).
        # Several may be alike, too: a client that sends its request twice at once.
        self._rounds: dict[tuple[Tuple, int, bytes], deque[_Round]] = {}
        self._under_way = 0

    def sends_round(self, entry: Conntrack, decision: Decision) -> bool:
        """Whether a packet must come back before what it announces can be expected."""
        return bool(decision.expectations) and not entry.confirmed

    def send_round(
        self, packet: Packet, entry: Conntrack, decision: Decision
    ) -> Verdict:
        """The verdict that has a packet come back, its flow confirmed."""
        if self._under_way >= _ROUND_LIMIT:
            self._missed(self._taken(next(iter(self._rounds))))
        deadline = self._clock() + _ROUND_SECONDS
        alike = self._rounds.setdefault(_round_key(packet, entry), deque())
        alike.append(_Round(deadline, decision))
        self._under_way += 1
        return Verdict(packet.id, Action.REPEAT)

    def returned(self, packet: Packet, entry: Conntrack) -> Decision | None:
        """What was decided on a packet that comes back; None: it comes first.

        The verdict that sent it round has confirmed its flow (nf_conntrack_update in
        nf_conntrack_core.c): one of a flow that is not is another one, which is alike.
        """
        if not self._rounds:
            return None
        key = _round_key(packet, entry)
        alike = self._rounds.get(key, ())
        if len(alike) < (1 if entry.confirmed else _ALIKE):
            return None
        return self._taken(key)

    def _taken(self, key: tuple[Tuple, int, bytes]) -> Decision:
        """What was decided on the first of these that is under way, which it ends."""
        alike = self._rounds[key]
        first = alike.popleft()
        if not alike:
            del self._rounds[key]
        self._under_way -= 1
        return first.decision

    def verdict(
        self,
        packet: Packet,
        entry: Conntrack,
        decision: Decision,
        timeout: int | None = None,
    ) -> Verdict:
        """The verdict for a packet. What it announces is expected by now.

        It sets the entry's timeout to so many seconds where that is given.
        """
        if decision.drop:
            return Verdict(packet.id, Action.DROP)
        change = b"" if timeout is None else encoding.entry_timeout(timeout)
        return self.accept(packet, entry, decision.packet, change)

    def accept(
        self,
        packet: Packet,
        entry: Conntrack,
        payload: bytes | None = None,
        change: bytes = b"",
    ) -> Verdict:
        """The verdict that lets a packet go on.

        A kernel that adjusts TCP's sequence numbers twice (`Kernel`) does so when the
        verdict comes, for a flow with a helper in user space (nf_confirm_cthelper), and
        once more at the end of the hook (nf_confirm): so the hook ends here.
        """
        stop = (
            self._adjusts_twice
            and (payload is not None or entry.adjusted)
            and entry.original.transport is TCP
            and entry.confirmed
        )
        action = Action.STOP if stop else Action.ACCEPT
        return Verdict(packet.id, action, payload, conntrack=change)

    def give_up_waiting(self) -> None:
        """Count as refused what packets announced that did not come back in time."""
        now = self._clock()
        late = [
            key
            for key, alike in self._rounds.items()
            for each in alike
            if each.deadline <= now
        ]
        for key in late:
            self._missed(self._taken(key))

    def _missed(self, decision: Decision) -> None:
        self._give_up(decision.expectations)
        if decision.flow is not None:
            for expectation in decision.expectations:
                tell_refused(
                    self._log,
                    expectation,
                    decision.flow.name,
                    "not-returned",
                    "the flow's first packet did not come back to the queue",
                )


def tell_refused(
    log: Log, expectation: Expectation, helper: str, reason: str, detail: str
) -> None:
    """Log that the kernel has not got an expectation that was granted."""
    log.event(
        "refused",
        "warning",
        reason=reason,
        helper=helper,
        flow=expectation.master,
        expects=expectation,
        detail=detail,
    )


def _round_key(packet: Packet, entry: Conntrack) -> tuple[Tuple, int, bytes]:
    return entry.original, entry.zone, bytes(packet.payload)

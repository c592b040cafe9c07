# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets packets go once what they announce is expected. The one rule:

every expectation is acknowledged by the kernel before the packet is released.

The kernel takes expectations of a confirmed master alone. Where the master is not (the
first packet of a UDP flow), the packet is first sent round: a verdict has it repeat its
hook, which confirms the flow, so that it comes back with another id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cthelper.core.daemon.log import Log
from cthelper.core.engine import Decision
from cthelper.core.errors import Busy, ExpectationRefused, NetlinkError, NotFound
from cthelper.core.nat import leads
from cthelper.core.netlink import encoding
from cthelper.core.queue.protocol import Action, Packet, Verdict
from cthelper.core.tuples import TCP, Conntrack, Expectation, Tuple

# Packets that repeat their hook come back within the same batch or the next one. One
# that does not has found the queue full, or a rule of a user's that changed meanwhile.
_ROUND_SECONDS: Final = 2.0
_ROUND_LIMIT: Final = 1024


class Expecter(Protocol):
    """Puts expectations into the kernel."""

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        """The entry with this original tuple. Raises NetlinkError."""

    def expect(self, expectation: Expectation) -> Expectation:
        """Put one in; it is there when this returns. Raises NetlinkError.

        Returns what is there, which is another flow's that expects the same already.
        """

    def delete_expectation(self, expectation: Expectation) -> None:
        """Take one out. Raises NetlinkError."""


@dataclass(frozen=True, slots=True)
class _Round:
    """A packet under way back to the queue, and what is still to do for it."""

    deadline: float
    decision: Decision


class Gate:
    """Turns decisions into verdicts, expectations first.

    `lengthen` is called for an expectation that hangs on another master than its own,
    with that master's original tuple: it must live as long.
    """

    def __init__(
        self,
        expecter: Expecter,
        log: Log,
        clock: Callable[[], float],
        *,
        lengthen: Callable[[Tuple, Expectation], None],
    ) -> None:
        self._lengthen = lengthen
        self._expecter = expecter
        self._log = log
        self._clock = clock
        # By flow and packet: several of one flow may be under way. By the flow's tuple
        # and not its id: of two first packets at once one comes back with the entry of
        # the other (nf_ct_resolve_clash).
        self._rounds: dict[tuple[Tuple, int, bytes], _Round] = {}

    def place(
        self, entry: Conntrack, helper: str, expectations: Sequence[Expectation]
    ) -> list[Expectation] | None:
        """Put in all of these, or none; None: another that leads elsewhere is there.

        Returns those that were not there before. Raises ExpectationRefused where the
        kernel refuses for another reason.
        """
        made: list[Expectation] = []
        shared: list[tuple[Tuple, Expectation]] = []
        for expectation in expectations:
            try:
                present = self._expecter.expect(expectation)
                if present is expectation:
                    made.append(expectation)
                elif not self._leads_alike(entry, expectation, present):
                    self.withdraw(made)
                    return None
                elif present.master != expectation.master:
                    shared.append((present.master, expectation))
            except NetlinkError as error:
                self.withdraw(made)
                if isinstance(error, Busy):
                    return None
                raise ExpectationRefused(error.reason, str(error)) from None
        for master, expectation in shared:
            self._lengthen(master, expectation)
        for expectation in expectations:
            self._created(expectation, helper)
        return made

    def _leads_alike(
        self, entry: Conntrack, wanted: Expectation, present: Expectation
    ) -> bool:
        """Whether an expectation that is there leads to where the wanted one would.

        The expected flow goes to its own port, and is translated as its master is.
        Raises NetlinkError.
        """
        translation = wanted.translation
        if present.translation != translation:
            return False
        if present.master == wanted.master:
            return True
        other = self._expecter.get(present.master, present.zone)
        ours = leads(translation, entry.original, entry.reply)
        return ours == leads(translation, other.original, other.reply)

    def withdraw(self, expectations: Sequence[Expectation]) -> None:
        """Take out expectations that were put in, and of which nobody was told."""
        for expectation in expectations:
            try:
                self._expecter.delete_expectation(expectation)
            except NotFound:
                continue
            except NetlinkError as error:
                self._log.event(
                    "step-failed", "warning", reason=error.reason, detail=str(error)
                )

    def sends_round(self, entry: Conntrack, decision: Decision) -> bool:
        """Whether a packet must come back before what it announces can be expected."""
        return bool(decision.expectations) and not entry.confirmed

    def send_round(
        self, packet: Packet, entry: Conntrack, decision: Decision
    ) -> Verdict:
        """The verdict that has a packet come back, its flow confirmed."""
        if len(self._rounds) >= _ROUND_LIMIT:
            self._missed(self._rounds.pop(next(iter(self._rounds))).decision)
        deadline = self._clock() + _ROUND_SECONDS
        self._rounds[_round_key(packet, entry)] = _Round(deadline, decision)
        return Verdict(packet.id, Action.REPEAT)

    def returned(self, packet: Packet, entry: Conntrack) -> Decision | None:
        """What was decided on a packet that comes back; None: it comes first."""
        if not self._rounds:
            return None
        under_way = self._rounds.pop(_round_key(packet, entry), None)
        return None if under_way is None else under_way.decision

    def verdict(
        self,
        packet: Packet,
        entry: Conntrack,
        decision: Decision,
        timeout: int | None = None,
    ) -> Verdict:
        """The verdict for a packet, once what it announces is expected.

        It sets the entry's timeout to so many seconds where that is given.
        """
        if decision.drop:
            return Verdict(packet.id, Action.DROP)
        change = b"" if timeout is None else encoding.entry_timeout(timeout)
        if decision.flow is not None:
            for expectation in decision.expectations:
                self._put(expectation, decision.flow.name)
        return self.accept(packet, entry, decision.packet, change)

    def accept(
        self,
        packet: Packet,
        entry: Conntrack,
        payload: bytes | None = None,
        change: bytes = b"",
    ) -> Verdict:
        """The verdict that lets a packet go on.

        The kernel adjusts TCP's sequence numbers when the verdict comes, for a flow
        with a helper in user space (nf_confirm_cthelper), and once more at the end of
        the hook (nf_confirm): so the hook ends here. Seen on Linux 6.1, 6.12 and 7.2.
        """
        stop = (
            (payload is not None or entry.adjusted)
            and entry.original.transport is TCP
            and entry.confirmed
        )
        action = Action.STOP if stop else Action.ACCEPT
        return Verdict(packet.id, action, payload, conntrack=change)

    def give_up_waiting(self) -> None:
        """Count as refused what packets announced that did not come back in time."""
        now = self._clock()
        late = [key for key, each in self._rounds.items() if each.deadline <= now]
        for key in late:
            self._missed(self._rounds.pop(key).decision)

    def _missed(self, decision: Decision) -> None:
        if decision.flow is not None:
            for expectation in decision.expectations:
                self._refused(
                    expectation,
                    decision.flow.name,
                    "not-returned",
                    "the flow's first packet did not come back to the queue",
                )

    def _put(self, expectation: Expectation, helper: str) -> None:
        try:
            present = self._expecter.expect(expectation)
        except NetlinkError as error:
            self._refused(expectation, helper, error.reason, str(error))
        else:
            if present.master != expectation.master:
                self._lengthen(present.master, expectation)
            self._created(expectation, helper)

    def _created(self, expectation: Expectation, helper: str) -> None:
        self._log.event(
            "expectation",
            helper=helper,
            policy=expectation.policy,
            flow=expectation.master,
            expects=expectation,
            permanent=expectation.permanent,
            timeout=expectation.timeout,
        )

    def _refused(
        self, expectation: Expectation, helper: str, reason: str, detail: str
    ) -> None:
        self._log.event(
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

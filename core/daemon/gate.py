# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets packets go once what they announce is expected. The one rule:

every expectation is acknowledged by the kernel, or rides in the verdict itself, before
the packet is released.

Three ways in. A confirmed master: ctnetlink, acknowledged, errors seen. An unconfirmed
one (the first packet of a UDP flow), one expectation: in the verdict, whose errors the
kernel swallows; its event says that it is in. Unconfirmed and several: a verdict that
has the packet repeat its hook carries the first; the packet comes back with another id
and its flow confirmed, the others go in by ctnetlink, and then it goes on.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cthelper.core.daemon.log import Log
from cthelper.core.engine import Decision
from cthelper.core.errors import Busy, ExpectationRefused, NetlinkError, NotFound
from cthelper.core.nat import leads
from cthelper.core.netlink import encoding
from cthelper.core.queue.protocol import Action, Packet, Verdict
from cthelper.core.tuples import (
    TCP,
    Conntrack,
    Endpoint,
    Expectation,
    FlowKey,
    Network,
    Transport,
    Tuple,
    key_of,
)

# An expectation in a verdict is in the kernel when the verdict has been sent; its event
# is there at once and only waits to be read.
_EVENT_SECONDS: Final = 2.0
# Packets that repeat their hook at a time: they come back within the same batch or the
# next one.
_REPEATING_LIMIT: Final = 1024

_Identity = tuple[Transport, Network | None, int | None, Endpoint]


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
class _Repeating:
    """A packet under way back to the queue, and what is still to do for it."""

    received: bytes
    helper: str
    rest: tuple[Expectation, ...]
    packet: bytes | None


class Gate:
    """Turns decisions into verdicts, expectations first.

    `lengthen` is called for an expectation that hangs on another master than its own,
    with that master's original tuple: it must live as long. `chained` are the kernel's
    names of the helpers in chain mode.
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
        self._repeating: dict[FlowKey, _Repeating] = {}
        self._awaited: dict[_Identity, tuple[float, str, Expectation]] = {}
        self.chained: Collection[str] = ()

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

    def returned(self, packet: Packet, entry: Conntrack) -> Verdict | None:
        """The verdict for a packet that came back from repeating its hook, else None.

        It is never repeated again: what cannot go in now is refused.
        """
        waiting = self._repeating.get(key_of(entry))
        if waiting is None or waiting.received != packet.payload:
            return None
        del self._repeating[key_of(entry)]
        for expectation in waiting.rest:
            self._put(expectation, waiting.helper)
        return self.accept(packet, entry, waiting.packet)

    def verdict(
        self,
        packet: Packet,
        entry: Conntrack,
        decision: Decision,
        timeout: int | None = None,
    ) -> Verdict:
        """The verdict for a packet, once all that can be expected now is.

        It sets the entry's timeout to so many seconds where that is given.
        """
        if decision.drop:
            return Verdict(packet.id, Action.DROP)
        expectations = decision.expectations
        change = b"" if timeout is None else encoding.entry_timeout(timeout)
        if not expectations or decision.flow is None:
            return self.accept(packet, entry, decision.packet, change)
        helper = decision.flow.name
        if entry.confirmed:
            for expectation in expectations:
                self._put(expectation, helper)
            return self.accept(packet, entry, decision.packet, change)
        first, *rest = expectations
        self._await(first, helper)
        attributes = encoding.expectation(first)
        if not rest:
            return Verdict(packet.id, payload=decision.packet, expectation=attributes)
        if len(self._repeating) >= _REPEATING_LIMIT:
            del self._repeating[next(iter(self._repeating))]
        self._repeating[key_of(entry)] = _Repeating(
            bytes(packet.payload), helper, tuple(rest), decision.packet
        )
        return Verdict(packet.id, Action.REPEAT, expectation=attributes)

    def accept(
        self,
        packet: Packet,
        entry: Conntrack,
        payload: bytes | None = None,
        change: bytes = b"",
    ) -> Verdict:
        """The verdict that lets a packet go on.

        In chain mode the kernel adjusts TCP's sequence numbers when the verdict comes,
        for a flow with a helper in user space (nf_confirm_cthelper), and once more at
        the end of the hook (nf_confirm): so the hook ends here.
        """
        stop = (
            (payload is not None or entry.adjusted)
            and entry.original.transport is TCP
            and entry.confirmed
            and entry.helper in self.chained
        )
        action = Action.STOP if stop else Action.ACCEPT
        return Verdict(packet.id, action, payload, conntrack=change)

    @property
    def waits(self) -> bool:
        """Whether an expectation that rode in a verdict waits for its event."""
        return bool(self._awaited)

    def confirm(self, expectation: Expectation) -> None:
        """The kernel says that it has made this expectation."""
        awaited = self._awaited.pop(_identity(expectation), None)
        if awaited is not None:
            _, helper, wanted = awaited
            self._created(wanted, helper)

    def give_up_waiting(self, *, forget: bool = False) -> None:
        """Count as refused what rode in a verdict and never showed in an event.

        With `forget` events were lost: nothing is known of what is awaited.
        """
        if forget:
            self._awaited.clear()
        now = self._clock()
        late = [key for key, each in self._awaited.items() if each[0] <= now]
        for key in late:
            _, helper, expectation = self._awaited.pop(key)
            self._refused(expectation, helper, "kernel-silent", "no event")

    def _await(self, expectation: Expectation, helper: str) -> None:
        deadline = self._clock() + _EVENT_SECONDS
        self._awaited[_identity(expectation)] = deadline, helper, expectation

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


def _identity(expectation: Expectation) -> _Identity:
    return (
        expectation.transport,
        expectation.source,
        expectation.source_port,
        expectation.destination,
    )

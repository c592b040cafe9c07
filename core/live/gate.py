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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cthelper.core.engine import Decision
from cthelper.core.errors import NetlinkError
from cthelper.core.flows import FlowKey, key_of
from cthelper.core.live.ctnetlink import expectation_attributes
from cthelper.core.live.log import Log
from cthelper.core.live.queue import Action, QueuedPacket, Verdict
from cthelper.core.tuples import (
    Conntrack,
    Endpoint,
    Expectation,
    Network,
    Transport,
    Tuple,
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

    def expect(self, expectation: Expectation) -> Tuple:
        """Put one in; it is there when this returns. Raises NetlinkError.

        Returns the original tuple of the master that it hangs on, which is another one
        where that one expects the same already.
        """


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
        self._repeating: dict[FlowKey, _Repeating] = {}
        self._awaited: dict[_Identity, tuple[float, str, Expectation]] = {}

    def returned(self, packet: QueuedPacket, entry: Conntrack) -> Verdict | None:
        """The verdict for a packet that came back from repeating its hook, else None.

        It is never repeated again: what cannot go in now is refused.
        """
        waiting = self._repeating.get(key_of(entry))
        if waiting is None or waiting.received != packet.payload:
            return None
        del self._repeating[key_of(entry)]
        for expectation in waiting.rest:
            self._put(expectation, waiting.helper)
        return Verdict(packet.id, payload=waiting.packet)

    def verdict(
        self, packet: QueuedPacket, entry: Conntrack, decision: Decision
    ) -> Verdict:
        """The verdict for a packet, once all that can be expected now is."""
        expectations = decision.expectations
        if not expectations or decision.flow is None:
            return Verdict(packet.id, payload=decision.packet)
        helper = decision.flow.name
        if entry.confirmed:
            for expectation in expectations:
                self._put(expectation, helper)
            return Verdict(packet.id, payload=decision.packet)
        first, *rest = expectations
        self._await(first, helper)
        attributes = expectation_attributes(first)
        if not rest:
            return Verdict(packet.id, payload=decision.packet, expectation=attributes)
        if len(self._repeating) >= _REPEATING_LIMIT:
            del self._repeating[next(iter(self._repeating))]
        self._repeating[key_of(entry)] = _Repeating(
            packet.payload, helper, tuple(rest), decision.packet
        )
        return Verdict(packet.id, Action.REPEAT, expectation=attributes)

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
            master = self._expecter.expect(expectation)
        except NetlinkError as error:
            self._refused(expectation, helper, error.reason, str(error))
        else:
            if master != expectation.master:
                self._lengthen(master, expectation)
            self._created(expectation, helper)

    def _created(self, expectation: Expectation, helper: str) -> None:
        self._log.event(
            "expectation",
            helper=helper,
            policy=expectation.policy,
            flow=str(expectation.master),
            expects=str(expectation),
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
            flow=str(expectation.master),
            expects=str(expectation),
            detail=detail,
        )


def _identity(expectation: Expectation) -> _Identity:
    return (
        expectation.transport,
        expectation.source,
        expectation.source_port,
        expectation.destination,
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""What was asked for in a capture, frame by frame, and what became of it.

Only who explains a frame keeps it; `cthelper.core.nearest` reasons about it.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from cthelper.core.api import Expect
from cthelper.core.engine import Decision
from cthelper.core.nearest import Control, End, Moment, Pattern, Wish
from cthelper.core.offline.entries import Entry, Expected
from cthelper.core.offline.events import (
    Event,
    FaultEvent,
    FinishedEvent,
    MalformedEvent,
    MessageEvent,
    RefusedEvent,
    wished,
)
from cthelper.core.outcome import Finished
from cthelper.core.tuples import Tuple

# Wishes and control flows that are remembered: the latest.
_LIMIT: Final = 100_000


class History:
    """Wishes, refusals and control flows of a capture, the latest of them."""

    def __init__(self) -> None:
        self._now = Moment(0.0, 0, "")
        self._wishes: deque[Wish] = deque(maxlen=_LIMIT)
        self._live: dict[Expected, Wish] = {}
        self._controls: dict[Tuple, Control] = {}

    @property
    def wishes(self) -> Iterable[Wish]:
        """What was asked for, in its order."""
        return self._wishes

    @property
    def controls(self) -> Iterable[Control]:
        """The flows that helpers read."""
        return self._controls.values()

    def has(self, flow: Tuple) -> bool:
        """Whether it is a control flow, or would be."""
        return flow in self._controls

    def frame(self, number: int, time: float) -> None:
        """What follows happens in this frame; `time` never goes back."""
        self._now = _in_frame(number, time)

    def replaced(self, old: Sequence[Expected], new: Expected) -> None:
        """One goes on as another, and for all that it has taken the place of."""
        wishes = [self._live.pop(each) for each in old if each in self._live]
        if wishes:
            self._live[new] = wishes[0]
        for wish in wishes[1:]:
            wish.end, wish.ended = End.WITHDRAWN, self._now

    def asked(self, expected: Expected) -> None:
        """The table has what was asked for, made now or before."""
        known = self._live.get(expected)
        if known is not None:
            known.ask_again(self._now)
            return
        made = expected.expectation
        wish = Wish(expected.helper, Pattern.of(made), str(made), [self._now])
        self._live[expected] = wish
        self._wishes.append(wish)

    def ended(self, expected: Expected, how: End) -> None:
        """It is no longer in the table."""
        wish = self._live.pop(expected, None)
        if wish is None:
            return
        wish.end, wish.ended = how, self._now
        over = min(expected.expires, expected.master.expires)
        if how in (End.TIMEOUT, End.MASTER) and over <= self._now.time:
            # The table notices it when it looks.
            wish.ended = Moment(over, 0, f"at {over:.6f} s")

    def passed(self, decision: Decision | None, events: Iterable[Event]) -> None:
        """A helper read the frame."""
        flow = None if decision is None else decision.flow
        if decision is None or flow is None:
            self._miss(events)
            return
        control = self._control(flow.name, flow.original)
        for each in decision.events:
            if isinstance(each, Finished):
                control.trouble(_finished(each), self._now)
        for event in events:
            match event:
                case MessageEvent():
                    control.read = self._now
                    if any(isinstance(each, Expect) for each in event.effects):
                        control.asked = self._now
                case RefusedEvent():
                    refusal = f"{event.reason}: {event.detail}"
                    pattern = wished(event)
                    if pattern is None:
                        control.trouble(f"refused, {refusal}", self._now)
                    else:
                        self._refuse(event.helper, pattern, refusal)
                case MalformedEvent():
                    control.trouble(f"malformed, {event.reason}", self._now)
                case FaultEvent():
                    control.trouble(f"a bug of the helper, {event.error}", self._now)

    def _miss(self, events: Iterable[Event]) -> None:
        """A flow begins that should have had a helper, and has none."""
        for event in events:
            if isinstance(event, FinishedEvent):
                control = self._control(event.helper, event.flow)
                control.trouble(_finished(event), self._now)

    def _control(self, helper: str, flow: Tuple) -> Control:
        control = self._controls.get(flow)
        if control is None:
            control = self._controls[flow] = Control(helper, flow)
            if len(self._controls) > _LIMIT:
                del self._controls[next(iter(self._controls))]
        return control

    def _refuse(self, helper: str, pattern: Pattern, refusal: str) -> None:
        wish = Wish(helper, pattern, str(pattern), [self._now], refusal=refusal)
        self._wishes.append(wish)


def began(entry: Entry) -> Moment:
    """When a flow began."""
    return _in_frame(entry.frame, entry.began)


def _in_frame(number: int, time: float) -> Moment:
    return Moment(time, number, f"in frame {number}")


def _finished(event: Finished | FinishedEvent) -> str:
    why = f" ({event.detail})" if event.detail else ""
    return f"read no longer, {event.reason}{why}, since what came"

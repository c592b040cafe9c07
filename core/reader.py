# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a flow's helper read what is new in a packet, and does what the helper yields."""

import inspect
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Final, Protocol, assert_never

from cthelper.core import rewriting
from cthelper.core.api import (
    Done,
    Effect,
    Effects,
    Expect,
    Grant,
    Helper,
    Message,
    Rewrite,
)
from cthelper.core.config import HelperConfig
from cthelper.core.errors import (
    ExpectationRefused,
    HelperFault,
    Malformed,
    Oversized,
    StreamLost,
)
from cthelper.core.flows import Flow, Side
from cthelper.core.grants import Grants
from cthelper.core.outcome import Damaged, Fault, Located, Outcome, Refused
from cthelper.core.patches import Patch
from cthelper.core.tuples import ORIGINAL, Conntrack

FAULTS: Final = 5
"""A helper that faults this often within FAULT_WINDOW seconds is quarantined."""
FAULT_WINDOW: Final = 60.0


class Watch(Protocol):
    """Looks on while helpers read: for replay, which shows it."""

    def message(self, helper: Helper, message: Message) -> None:
        """`helper` is about to read `message`."""

    def effect(self, effect: Effect) -> None:
        """It has yielded this; the engine is about to do it."""


class Reader:
    """Runs helpers over messages. One that faults again and again is quarantined.

    `clock` gives seconds and only moves forward. `watch` is told of every message and
    effect. `quarantined` has the names of the helpers that are to read no more.
    """

    def __init__(
        self, grants: Grants, clock: Callable[[], float], watch: Watch | None
    ) -> None:
        self.quarantined: set[str] = set()
        self._grants = grants
        self._clock = clock
        self._watch = watch
        self._faults: dict[str, deque[float]] = {}

    def release(self) -> None:
        """End every quarantine, after helpers or configuration changed."""
        self.quarantined.clear()
        self._faults.clear()

    def read(
        self, packet: Located, flow: Flow, config: HelperConfig, outcome: Outcome
    ) -> None:
        """Have the helper read what is new in a packet."""
        entry, direction = packet.entry, packet.direction
        side = flow.side(direction)
        tuple_ = entry.original if direction is ORIGINAL else entry.reply
        try:
            helper = flow.helper or config.helper()
            flow.helper = helper
            for position, payload in self._messages(helper, side, packet):
                message = Message(
                    direction=direction,
                    transport=packet.segment.transport,
                    source=tuple_.source,
                    destination=tuple_.destination,
                    payload=payload,
                    original=entry.original,
                    reply=entry.reply,
                    now=self._clock(),
                    options=config.options,
                    forwarded=packet.forwarded,
                    group=flow.group and direction is ORIGINAL,
                    depth=flow.depth,
                    preceding=max(0, _distance(packet.sequence, position)),
                )
                if self._watch is not None:
                    self._watch.message(helper, message)
                try:
                    reaction = helper.on_message(message)
                    effect = next(reaction)
                except StopIteration:
                    continue
                except ExpectationRefused as error:
                    outcome.events.append(Refused(error.reason, error.detail, None))
                    continue
                read = Outcome()
                try:
                    done = self._react(
                        *(reaction, effect, message, entry, config, position, read)
                    )
                finally:
                    self._settle(packet, side, read, outcome)
                if done:
                    flow.finish("done")
                    break
            if side.malformed:
                side.malformed = 0
        except Malformed as error:
            outcome.events.append(Damaged(str(error)))
            flow.count_damage(direction)
        except StreamLost as error:
            flow.finish(error.reason)
        except Exception as error:  # the one place where a helper's bug arrives
            self._withdraw(outcome)
            outcome.events.append(self._fault(flow, config, error))

    def _messages(
        self, helper: Helper, side: Side, packet: Located
    ) -> Iterator[tuple[int, bytes]]:
        """The whole messages that this packet completes, and where each begins.

        That is the sequence number of the first byte; 0 of a datagram.
        """
        segment, stream = packet.segment, side.stream
        if stream is None:
            yield 0, packet.payload
            return
        fresh = stream.feed(segment.sequence, packet.payload, syn=segment.syn)
        if not fresh:
            return
        pending = side.pending = bytearray(side.pending) + fresh
        while pending:
            position = stream.next - len(pending)
            with memoryview(pending) as view:
                length = helper.frame(view.toreadonly())
            limit = helper.message_limit
            if length is None:
                if len(pending) > limit:
                    raise Oversized(f"no complete message in {len(pending)} bytes")
                return
            if not 0 < length <= len(pending):
                raise HelperFault(f"frame() returned {length} of {len(pending)} bytes")
            if length > limit:
                raise Oversized(f"message of {length} bytes, the limit is {limit}")
            payload = bytes(pending[:length])
            del pending[:length]
            yield position, payload

    def _react(
        self,
        reaction: Effects,
        effect: Effect,
        message: Message,
        entry: Conntrack,
        config: HelperConfig,
        position: int,
        outcome: Outcome,
    ) -> bool:
        """Do what the helper yields, from `effect` on; whether it is done."""
        refusal: ExpectationRefused | None = None
        done = False
        try:
            while True:
                if self._watch is not None:
                    self._watch.effect(effect)
                answer: Grant | None = None
                refused: ExpectationRefused | None = None
                match effect:
                    case Expect():
                        try:
                            granted = self._grants.grant(effect, message, entry, config)
                            outcome.granted.append(granted)
                            answer = granted.grant
                        except ExpectationRefused as error:
                            outcome.events.append(
                                Refused(error.reason, error.detail, effect)
                            )
                            refused = refusal = error
                    case Rewrite((start, stop), data):
                        # Without NAT what was granted is what stands there.
                        if start < 0 or message.payload[start:stop] != data:
                            outcome.patches.append(
                                Patch((position + start) % 2**32, stop - start, data)
                            )
                    case Done():
                        done = True
                    case _:
                        assert_never(effect)
                if refused is None:
                    effect = reaction.send(answer)
                else:
                    effect = reaction.throw(refused)
        except StopIteration:
            pass
        except ExpectationRefused as error:
            # One that the engine raised is counted; this one is the helper's own.
            if error is not refusal:
                outcome.events.append(Refused(error.reason, error.detail, None))
        return done

    def _settle(
        self, packet: Located, side: Side, read: Outcome, outcome: Outcome
    ) -> None:
        """Take over what one message led to, if it can be rewritten as it must be.

        Raises HelperFault.
        """
        outcome.events += read.events
        refused = None
        if read.patches:
            try:
                refused = rewriting.check(packet, side, outcome.patches, read.patches)
            except HelperFault:
                self._withdraw(read)
                raise
        if refused is None:
            outcome.granted += read.granted
            outcome.patches += read.patches
        else:
            self._withdraw(read)
            outcome.unrewritable = True
            outcome.events.append(refused)

    def _withdraw(self, outcome: Outcome) -> None:
        for granted in outcome.granted:
            self._grants.withdraw(granted)
        outcome.granted.clear()
        outcome.patches.clear()

    def _fault(self, flow: Flow, config: HelperConfig, error: Exception) -> Fault:
        name = flow.name
        now = self._clock()
        faults = self._faults.setdefault(name, deque(maxlen=FAULTS))
        faults.append(now)
        if len(faults) == FAULTS and now - faults[0] <= FAULT_WINDOW:
            self.quarantined.add(name)
        flow.finish("fault")
        where = _place(error, inspect.getfile(config.helper))
        text = f"{type(error).__name__}: {error}"
        return Fault(text, where, quarantined=name in self.quarantined)


def _distance(start: int, stop: int) -> int:
    """From one sequence number to another, signed."""
    return (stop - start + 2**31) % 2**32 - 2**31


def _place(error: Exception, file: str) -> str:
    """File and line: the innermost of the helper's own file, else the innermost."""
    stack = traceback.extract_tb(error.__traceback__)
    own = [each for each in stack if each.filename == file]
    place = (own or stack)[-1]
    return f"{PurePath(place.filename).name}:{place.lineno}"

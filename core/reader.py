# SPDX-License-Identifier: GPL-2.0-or-later
"""Has a flow's helper read what is new in a packet, and does what the helper yields."""

import inspect
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import PurePath
from typing import Final, Protocol, assert_never

from cthelper.core import rewriting
from cthelper.core.api import (
    Done,
    Effect,
    Expect,
    Grant,
    Helper,
    Message,
    Rewrite,
    Withdraw,
)
from cthelper.core.config import Budget, HelperConfig
from cthelper.core.errors import (
    ExpectationRefused,
    HelperFault,
    Malformed,
    Overrun,
    Oversized,
    RewriteRefused,
    StreamLost,
)
from cthelper.core.flows import Flow, Side
from cthelper.core.grants import Grants
from cthelper.core.outcome import Damaged, Fault, Located, Outcome, Refused
from cthelper.core.packet import has_ack_alone, read_control
from cthelper.core.patches import Patch
from cthelper.core.quarantine import Quarantine
from cthelper.core.sequence import MODULUS, distance
from cthelper.core.stream import Stream
from cthelper.core.tuples import ORIGINAL, Conntrack
from cthelper.core.window import Standing, judge

_NOT_FOLLOWED: Final = Stream(0)
"""Stands for a direction of which nothing is known any more."""

# What a helper yields that has ended. Compiled code hands a StopIteration on with a
# traceback, which takes long; where next() is given this, here, none is raised.
_ENDED: Final = object()

Reaction = Generator[object, Grant | None, None]
"""What a helper says that it does, which of a plugin may be anything."""


class _Running:
    """Whether code of a helper runs, which alone may be interrupted.

    A flag, since compiled code has no frames that could be looked at. It is set for a
    moment longer than the helper runs: what is raised then is taken for the helper's.
    """

    def __init__(self) -> None:
        self.helper = False


RUNNING: Final = _Running()
"""What daemon/interruption.py asks before it interrupts."""


class Watch(Protocol):
    """Looks on while helpers read: for replay, which shows it."""

    def message(self, helper: Helper, message: Message) -> None:
        """`helper` is about to read `message`."""

    def effect(self, effect: Effect) -> None:
        """It has yielded this; the engine is about to do it."""


class Reader:
    """Runs helpers over messages.

    `clock` gives seconds and only moves forward. `watch` is told of every message and
    effect, `quarantine` of every fault. Of one packet at most so many `messages` are
    read.
    """

    def __init__(
        self,
        grants: Grants,
        clock: Callable[[], float],
        watch: Watch | None,
        quarantine: Quarantine,
    ) -> None:
        self.messages = Budget().messages
        self._grants = grants
        self._clock = clock
        self._watch = watch
        self._quarantine = quarantine

    def read(
        self, packet: Located, flow: Flow, config: HelperConfig, outcome: Outcome
    ) -> None:
        """Have the helper read what is new in a packet, and rewrite it."""
        try:
            try:
                self._read(packet, flow, config, outcome)
            except Malformed as error:
                RUNNING.helper = False
                outcome.events.append(Damaged(str(error)))
                flow.count_damage(packet.direction)
            except StreamLost as lost:
                RUNNING.helper = False
                flow.finish(lost.reason)
                outcome.finish = lost.detail
            if flow.helper is not None:
                RUNNING.helper = True
                flow.kept = flow.helper.footprint()
                RUNNING.helper = False
            if outcome.patches or outcome.unwritten is not None:
                self._settle(packet, flow, outcome)
            else:
                self.repeat(packet, flow.side(packet.direction), outcome)
        # The one place where a helper's bug arrives, be it an Overrun or SystemExit.
        except BaseException as bug:
            RUNNING.helper = False
            self._withdraw(outcome)
            if isinstance(bug, MemoryError):
                flow.finish("memory")  # not the helper's fault, nor the flow's
            else:
                outcome.events.append(self._fault(packet, flow, config, bug))
            self.repeat(packet, flow.side(packet.direction), outcome)

    def repeat(self, packet: Located, side: Side, outcome: Outcome) -> None:
        """Rewrite what has been rewritten before in a packet that is not read."""
        if side.patches is not None:
            try:
                outcome.packet = rewriting.rewrite(packet, side)
            except RewriteRefused as error:
                self._unwritten(error, outcome)

    def _read(
        self, packet: Located, flow: Flow, config: HelperConfig, outcome: Outcome
    ) -> None:
        entry, direction = packet.entry, packet.direction
        side = flow.side(direction)
        tuple_ = entry.original if direction is ORIGINAL else entry.reply
        pending: bytearray | None = None
        if side.stream is not None:
            pending = self._pending(side.stream, packet, flow)
            if pending is None:
                return
        helper = flow.helper
        if helper is None:
            RUNNING.helper = True
            helper = config.helper()
            RUNNING.helper = False
            flow.helper = helper
        messages = self._messages(helper, side, packet, pending)
        for number, (position, payload) in enumerate(messages):
            if number == self.messages:
                flow.finish("too-many-messages")
                outcome.finish = f"over {number} messages in one packet"
                break
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
                preceding=max(0, distance(packet.sequence, position)),
            )
            if self._watch is not None:
                self._watch.message(helper, message)
            RUNNING.helper = True
            try:
                reaction: Reaction = helper.on_message(message)
                effect = next(reaction, _ENDED)
            except RewriteRefused as unwritten:
                RUNNING.helper = False
                outcome.unwritten = unwritten
                continue
            except ExpectationRefused as refused:
                RUNNING.helper = False
                outcome.events.append(Refused(refused.reason, refused.detail, None))
                continue
            RUNNING.helper = False
            if effect is _ENDED:
                continue
            done = self._react(
                *(reaction, effect, message, entry, config, position, outcome)
            )
            if done is not None:
                flow.finish(done.reason)
                outcome.finish = done.why
                break

    def _pending(self, stream: Stream, packet: Located, flow: Flow) -> bytearray | None:
        """What is to be cut into messages after a segment; None: nothing is new."""
        segment = packet.segment
        other = flow.other_side(packet.direction)
        # Most segments simply go on; what they acknowledge is of use to few.
        goes_on = segment.sequence == stream.next
        if (
            not goes_on
            or not stream.begun
            or not has_ack_alone(packet.data, segment)
            or other.patches is not None
        ):
            control = read_control(packet.data, segment)
            peer = other.stream or _NOT_FOLLOWED
            standing = judge(control, stream, peer, answered=packet.entry.answered)
            if standing is Standing.IGNORED:
                return None
            if standing is Standing.ANEW:
                flow.begin_anew()
        begun = stream.tail
        # What goes on exactly, with nothing beyond it, is all new.
        if not goes_on or stream.waits:
            packet.came = stream.came(packet.sequence, segment.stop - segment.start)
        fresh = stream.feed(packet.sequence, packet.payload)
        return bytearray(begun) + fresh if fresh else None

    def _messages(
        self,
        helper: Helper,
        side: Side,
        packet: Located,
        pending: bytearray | None,
    ) -> Iterator[tuple[int, bytes]]:
        """The whole messages in what is pending, and where each begins.

        That is the sequence number of the first byte; 0 of a datagram.
        """
        stream = side.stream
        if stream is None or pending is None:
            yield 0, packet.payload
            return
        end, limit = stream.next, stream.limit
        direction = packet.direction
        while pending:
            position = end - len(pending)
            with memoryview(pending) as view:
                RUNNING.helper = True
                length = helper.frame_of(direction, view.toreadonly())
                RUNNING.helper = False
            if length is None:
                if len(pending) > limit:
                    raise Oversized(f"no complete message in {len(pending)} bytes")
                break
            if not 0 < length <= len(pending):
                raise HelperFault(f"frame() returned {length} of {len(pending)} bytes")
            if length > limit:
                raise Oversized(f"message of {length} bytes, the limit is {limit}")
            payload = bytes(pending[:length])
            del pending[:length]
            yield position, payload
        stream.unread = len(pending)

    def _react(
        self,
        reaction: Reaction,
        effect: object,
        message: Message,
        entry: Conntrack,
        config: HelperConfig,
        position: int,
        outcome: Outcome,
    ) -> Done | None:
        """Do what the helper yields, from `effect` on; what says that it is done."""
        refusal: ExpectationRefused | None = None
        done: Done | None = None
        try:
            while effect is not _ENDED:
                if not isinstance(effect, Expect | Rewrite | Withdraw | Done):
                    raise HelperFault(f"yielded {effect!r}, which is no effect")
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
                        except HelperFault as fault:
                            # By way of the helper, whose line is to be named.
                            _resume(reaction, None, fault)
                            raise
                    case Rewrite((start, stop), data):
                        # Without NAT what was granted is what stands there.
                        if start < 0 or message.payload[start:stop] != data:
                            outcome.patches.append(
                                Patch((position + start) % MODULUS, stop - start, data)
                            )
                    case Withdraw(label):
                        outcome.withdrawn += self._grants.revoke(
                            label, entry, outcome.granted
                        )
                    case Done():
                        done = effect
                    case _:
                        assert_never(effect)
                effect = _resume(reaction, answer, refused)
        except RewriteRefused as unwritten:
            outcome.unwritten = unwritten
        except ExpectationRefused as error:
            # One that the engine raised is counted; this one is the helper's own.
            if error is not refusal:
                outcome.events.append(Refused(error.reason, error.detail, None))
        return done

    def _settle(self, packet: Located, flow: Flow, outcome: Outcome) -> None:
        """Rewrite a packet as was granted, or take back all that it announces.

        Raises HelperFault.
        """
        side = flow.side(packet.direction)
        peer = flow.other_side(packet.direction).stream
        acknowledged = None if peer is None else peer.acknowledges
        try:
            if outcome.unwritten is not None:
                raise outcome.unwritten
            outcome.packet = rewriting.rewrite(
                packet, side, outcome.patches, acknowledged
            )
        except RewriteRefused as error:
            self._withdraw(outcome)
            self._unwritten(error, outcome)
            # What the receiver has in another form stays in that form.
            with suppress(RewriteRefused):
                outcome.packet = rewriting.rewrite(packet, side)

    @staticmethod
    def _unwritten(error: RewriteRefused, outcome: Outcome) -> None:
        outcome.unwritten = error
        outcome.events.append(Refused(error.reason, error.detail, None))

    def _withdraw(self, outcome: Outcome) -> None:
        for granted in outcome.granted:
            self._grants.withdraw(granted)
        outcome.granted.clear()
        outcome.patches.clear()

    def _fault(
        self,
        packet: Located,
        flow: Flow,
        config: HelperConfig,
        error: BaseException,
    ) -> Fault:
        flow.finish("deadline" if isinstance(error, Overrun) else "fault")
        entry = packet.entry
        quarantined = self._quarantine.blame(
            flow.name,
            entry.original.source.address,
            entry.original.destination.address,
            packet.direction,
            assured=entry.assured,
        )
        where = _place(error, config.helper)
        text = f"{type(error).__name__}: {error}"
        return Fault(text, where, quarantined)


def _resume(
    reaction: Reaction, answer: Grant | None, error: Exception | None
) -> object:
    """What a helper yields next, once it is told; raises what it raises."""
    told: Iterator[object]
    if error is None:
        told = map(reaction.send, (answer,))
    else:
        told = map(reaction.throw, (error,))
    RUNNING.helper = True
    try:
        return next(told, _ENDED)
    finally:
        RUNNING.helper = False


def _place(error: BaseException, helper: type[Helper]) -> str:
    """File and line: the innermost of the helper's own file, else where it begins."""
    file = inspect.getfile(helper)
    stack = traceback.extract_tb(error.__traceback__)
    lines = [each.lineno for each in stack if each.filename == file]
    if not lines:
        with suppress(OSError):
            lines = [inspect.findsource(helper)[1] + 1]
    return ":".join([PurePath(file).name, *map(str, lines[-1:])])

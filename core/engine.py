# SPDX-License-Identifier: GPL-2.0-or-later
"""One packet in, one Decision out. No I/O: the daemon and replay share this.

Every packet is accepted. What a helper asks for comes out as expectations, which the
caller puts into the kernel before it releases the packet, and what went wrong comes
out as events, which it counts and logs.
"""

import inspect
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final, NamedTuple, Protocol, assert_never

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
from cthelper.core.flows import Flow, FlowTable, Side
from cthelper.core.grants import Granted, Grants, OnLink, Placer
from cthelper.core.guard import Guard
from cthelper.core.packet import Segment, locate, replace_payload
from cthelper.core.patches import Patch, Patches
from cthelper.core.tuples import (
    ORIGINAL,
    TCP,
    Address,
    Conntrack,
    Direction,
    Expectation,
    Network,
    is_group,
)

MALFORMED_IN_A_ROW: Final = 8
"""Datagrams. A malformed datagram says nothing about the next one, unlike a malformed
message in a stream; but a direction that brings nothing else is not the protocol's."""

FAULTS: Final = 5
"""A helper that faults this often within FAULT_WINDOW seconds is quarantined."""
FAULT_WINDOW: Final = 60.0

_GROWN_LIMIT: Final = 1280
"""Bytes of a packet that a rewrite has made longer: every link takes so many (RFC 8200,
section 5). A longer one might have to be fragmented, which TCP forbids."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An expectation was not made. `reason` is a code, `detail` says it in words.

    `wish` is what the helper asked for; None where it refused by itself.
    """

    reason: str
    detail: str
    wish: Expect | None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A message or a packet was malformed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The helper broke its contract; `where` is the file and line."""

    error: str
    where: str
    quarantined: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The flow is not inspected any longer."""

    reason: str


Event = Refused | Damaged | Fault | Finished


class Decision(NamedTuple):
    """What to do with one packet.

    The `expectations` go in before the packet goes on, in this order; those of `placed`
    are in. `packet` is the whole IP packet to send in place of the received one, or
    None: as it came. It goes on in any case but one: with `drop` it cannot be
    rewritten as it must be, and the configuration has such packets dropped. `flow` is
    None where no helper of ours inspects the packet.
    """

    flow: Flow | None = None
    expectations: tuple[Expectation, ...] = ()
    packet: bytes | None = None
    events: tuple[Event, ...] = ()
    placed: tuple[Expectation, ...] = ()
    drop: bool = False


NOTHING: Final = Decision()


class Watch(Protocol):
    """Looks on while helpers read: for replay, which shows it."""

    def message(self, helper: Helper, message: Message) -> None:
        """`helper` is about to read `message`."""

    def effect(self, effect: Effect) -> None:
        """It has yielded this; the engine is about to do it."""


@dataclass(slots=True)
class _Outcome:
    """What one packet, or one message of it, leads to, while it is collected.

    `unrewritable` is whether bytes must be rewritten and cannot be.
    """

    granted: list[Granted] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    unrewritable: bool = False

    @property
    def empty(self) -> bool:
        return not (self.granted or self.events or self.unrewritable)

    def expectations(self, *, placed: bool) -> tuple[Expectation, ...]:
        return tuple(
            expectation
            for each in self.granted
            if each.placed is placed
            for expectation in each.expectations
        )


@dataclass(slots=True)
class _Packet:
    """A packet of a flow, and where its payload is."""

    data: bytes | memoryview
    segment: Segment
    entry: Conntrack
    direction: Direction
    forwarded: bool

    @property
    def payload(self) -> bytes:
        return bytes(self.data[self.segment.start : self.segment.stop])

    @property
    def sequence(self) -> int:
        """The number of the payload's first byte; 0 in a datagram."""
        return self.segment.sequence + self.segment.syn


class Engine:
    """Runs helpers over packets.

    `helpers` maps the names that conntrack entries carry to what is configured for
    them; it may be replaced at any time, and flows begun before keep their instance.
    `clock` gives seconds and only moves forward. At most `flow_limit` flows are kept.
    `watch` is told of every message and effect.
    """

    def __init__(
        self,
        helpers: Mapping[str, HelperConfig],
        *,
        guard: Guard,
        on_link: OnLink,
        clock: Callable[[], float],
        flow_limit: int,
        placer: Placer | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.helpers = helpers
        self.flows = FlowTable(flow_limit)
        self._grants = Grants(guard, on_link, placer)
        self._on_link = on_link
        self._clock = clock
        self._watch = watch
        self._faults: dict[str, deque[float]] = {}
        self._quarantined: set[str] = set()

    @property
    def guard(self) -> Guard:
        """What expectations may open; it may be replaced at any time."""
        return self._grants.guard

    @guard.setter
    def guard(self, guard: Guard) -> None:
        self._grants.guard = guard

    def handle(
        self,
        packet: bytes | memoryview,
        entry: Conntrack,
        direction: Direction,
        *,
        forwarded: bool = False,
        segment: Segment | None = None,
    ) -> Decision:
        """Inspect one IP packet of the flow that `entry` describes.

        `forwarded` is whether the packet came in through an interface. `segment` is
        what `locate` finds in the packet, where that is known already.
        """
        flow = self.flows.find(entry)
        if flow is None:
            config = self.helpers.get(entry.helper or "")
            if config is None:
                return NOTHING
            flow = Flow.begin(entry, config.helper)
            flow.depth = self._grants.depth(entry)
            flow.group = self._to_group(entry)
            self.flows.add(flow)
        else:
            config = self.helpers.get(flow.name)
        side = flow.side(direction)
        inspected = flow.finished is None
        # Of a finished flow, what was rewritten may be sent again.
        if not inspected and side.patches is None:
            return Decision(flow)
        outcome = _Outcome()
        if inspected and config is None:
            flow.finish("helper-removed")
        elif inspected and flow.name in self._quarantined:
            flow.finish("quarantine")
        readable = flow.finished is None and side.parsed
        located = None
        if readable or side.patches is not None:
            try:
                if segment is None:
                    segment = locate(packet)
                if segment is not None:
                    located = _Packet(packet, segment, entry, direction, forwarded)
            except Malformed as error:
                if readable:
                    outcome.events.append(Damaged(str(error)))
                    self._count_damage(flow, direction)
        if located is not None and readable and config is not None:
            self._inspect(located, flow, config, outcome)
        if inspected and flow.finished is not None:
            outcome.events.append(Finished(flow.finished))
        replacement = None
        if located is not None and (outcome.patches or side.patches is not None):
            replacement = self._rewrite(located, side, outcome)
        if replacement is None and outcome.empty:
            return Decision(flow)
        return Decision(
            flow,
            outcome.expectations(placed=False),
            replacement,
            tuple(outcome.events),
            outcome.expectations(placed=True),
            drop=outcome.unrewritable
            and config is not None
            and config.nat.drop_unrewritable,
        )

    def release(self) -> None:
        """End every quarantine, after helpers or configuration changed."""
        self._quarantined.clear()
        self._faults.clear()

    def _to_group(self, entry: Conntrack) -> bool:
        """Whether the flow goes to a group, as `Message.group` has it."""
        source = entry.original.source.address
        destination = entry.original.destination.address
        networks: tuple[Network, ...] = ()
        if _may_be_broadcast(source, destination):
            # Nothing on-link is nothing to broadcast to.
            with suppress(ExpectationRefused):
                networks = self._on_link(source)
        return is_group(destination, networks)

    def _inspect(
        self, packet: _Packet, flow: Flow, config: HelperConfig, outcome: _Outcome
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
                read = _Outcome()
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
            self._count_damage(flow, direction)
        except StreamLost as error:
            flow.finish(error.reason)
        except Exception as error:  # the one place where a helper's bug arrives
            self._withdraw(outcome)
            outcome.events.append(self._fault(flow, config, error))

    def _messages(
        self, helper: Helper, side: Side, packet: _Packet
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
        outcome: _Outcome,
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
        self, packet: _Packet, side: Side, read: _Outcome, outcome: _Outcome
    ) -> None:
        """Take over what one message led to, if it can be rewritten as it must be.

        Raises HelperFault.
        """
        outcome.events += read.events
        refused = None
        if read.patches:
            try:
                refused = _check_patches(packet, side, outcome.patches, read.patches)
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

    def _withdraw(self, outcome: _Outcome) -> None:
        for granted in outcome.granted:
            self._grants.withdraw(granted)
        outcome.granted.clear()
        outcome.patches.clear()

    def _rewrite(self, packet: _Packet, side: Side, outcome: _Outcome) -> bytes | None:
        """The packet that takes the place of this one, or None."""
        patches = side.patches or Patches()
        if outcome.patches:
            patches.add(outcome.patches)
            if packet.segment.transport is TCP:
                side.patches = patches
        data = packet.payload
        result = patches.apply(packet.sequence, data)
        if result is None:
            outcome.unrewritable = True
            outcome.events.append(
                Refused(
                    "rewrite-cut", "a segment has a part of what was rewritten", None
                )
            )
            return None
        if result == data:
            return None
        return replace_payload(bytes(packet.data), packet.segment, result)

    def _count_damage(self, flow: Flow, direction: Direction) -> None:
        side = flow.damaged(direction)
        side.malformed += 1
        if flow.original.transport is TCP or side.malformed >= MALFORMED_IN_A_ROW:
            side.parsed = False
            # Not cleared: the exception's frames may hold views of the bytes.
            side.pending = b""
        if not (flow.sent.parsed or flow.answered.parsed):
            flow.finish("malformed")

    def _fault(self, flow: Flow, config: HelperConfig, error: Exception) -> Fault:
        name = flow.name
        now = self._clock()
        faults = self._faults.setdefault(name, deque(maxlen=FAULTS))
        faults.append(now)
        if len(faults) == FAULTS and now - faults[0] <= FAULT_WINDOW:
            self._quarantined.add(name)
        flow.finish("fault")
        where = _place(error, inspect.getfile(config.helper))
        text = f"{type(error).__name__}: {error}"
        return Fault(text, where, quarantined=name in self._quarantined)


def _check_patches(
    packet: _Packet, side: Side, earlier: list[Patch], patches: list[Patch]
) -> Refused | None:
    """Why the patches of a message cannot be made to its packet; None: they can.

    `earlier` are those of the packet's earlier messages. Raises HelperFault.
    """
    data = packet.payload
    over_tcp = packet.segment.transport is TCP
    if any(each.length < 0 for each in patches):
        raise HelperFault("rewrite of a span that ends before it begins")
    if over_tcp and not packet.entry.translated:
        raise HelperFault("rewrite of a TCP segment on a flow without NAT")
    if not all(each.is_inside(packet.sequence, len(data)) for each in patches):
        if not over_tcp:
            raise HelperFault("rewrite of a span that leaves the datagram")
        return Refused(
            "rewrite-passed", "bytes to be rewritten have gone on already", None
        )
    grown = sum(len(each.data) - each.length for each in patches)
    length = packet.segment.stop + grown
    if grown > 0 and length > _GROWN_LIMIT:
        return Refused("rewrite-too-long", f"a packet of {length} bytes", None)
    trial = Patches(side.patches or ())
    trial.add([*earlier, *patches])
    trial.apply(packet.sequence, data)
    return None


def _distance(start: int, stop: int) -> int:
    """From one sequence number to another, signed."""
    return (stop - start + 2**31) % 2**32 - 2**31


def _may_be_broadcast(source: Address, destination: Address) -> bool:
    """Whether some network with `source` has `destination` as its broadcast address.

    To ask which networks there are is dear, and this is seldom true: all bits of the
    two are alike but those at the end, which are ones.
    """
    if destination.version != 4 or source.version != 4:
        return False
    host = int(source) ^ int(destination)
    mask = (1 << host.bit_length()) - 1
    return host != 0 and int(destination) & mask == mask


def _place(error: Exception, file: str) -> str:
    """File and line: the innermost of the helper's own file, else the innermost."""
    stack = traceback.extract_tb(error.__traceback__)
    own = [each for each in stack if each.filename == file]
    place = (own or stack)[-1]
    return f"{PurePath(place.filename).name}:{place.lineno}"

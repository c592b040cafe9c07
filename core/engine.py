# SPDX-License-Identifier: GPL-2.0-or-later
"""One packet in, one Decision out. No I/O: the daemon and replay share this.

Every packet is accepted. What a helper asks for comes out as expectations, which the
caller puts into the kernel before it releases the packet, and what went wrong comes
out as events, which it counts and logs.
"""

import inspect
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import PurePath
from typing import Final, Protocol, assert_never

from cthelper.core.api import (
    Done,
    Effect,
    Expect,
    Grant,
    Helper,
    Hook,
    Message,
    Policy,
    Rewrite,
    Source,
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
from cthelper.core.guard import Guard
from cthelper.core.nat import grant, rewritten
from cthelper.core.packet import Segment, locate, replace_payload
from cthelper.core.tuples import (
    TCP,
    Address,
    Conntrack,
    Direction,
    Expectation,
    Network,
    Tuple,
    host_network,
    is_group,
)

OnLink = Callable[[Address], tuple[Network, ...]]
"""The networks that an address is on-link with; raises ExpectationRefused if none."""

MALFORMED_IN_A_ROW: Final = 8
"""Datagrams. A malformed datagram says nothing about the next one, unlike a malformed
message in a stream; but a direction that brings nothing else is not the protocol's."""

FAULTS: Final = 5
"""A helper that faults this often within FAULT_WINDOW seconds is quarantined."""
FAULT_WINDOW: Final = 60.0

CHAINS: Final = 4096
"""Flows whose expected flows are inspected, too, of which the depth is known."""


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
    """The flow is not inspected any longer, and may be detached from its helper."""

    reason: str


Event = Refused | Damaged | Fault | Finished


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one packet, which is accepted in any case.

    The `expectations` go in before the packet goes on, in this order. `packet` is the
    whole IP packet to send in place of the received one, or None: as it came. `flow`
    is None where no helper of ours inspects the packet; where ``flow.finished`` is set
    the flow waits to be detached.
    """

    flow: Flow | None = None
    expectations: tuple[Expectation, ...] = ()
    packet: bytes | None = None
    events: tuple[Event, ...] = ()


NOTHING: Final = Decision()


class Watch(Protocol):
    """Looks on while helpers read: for replay, which shows it."""

    def message(self, helper: Helper, message: Message) -> None:
        """`helper` is about to read `message`."""

    def effect(self, effect: Effect) -> None:
        """It has yielded this; the engine is about to do it."""


class _Outcome:
    """Effects and events of one packet, while they are collected."""

    def __init__(self) -> None:
        self.expectations: list[Expectation] = []
        self.rewrites: list[Rewrite] = []
        self.events: list[Event] = []


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
        watch: Watch | None = None,
    ) -> None:
        self.helpers = helpers
        self.guard = guard
        self.flows = FlowTable(flow_limit)
        self._on_link = on_link
        self._clock = clock
        self._watch = watch
        # Depth of the flows that may expect others with their helper, by original
        # tuple and zone.
        self._chains: OrderedDict[tuple[Tuple, int], int] = OrderedDict()
        self._faults: dict[str, deque[float]] = {}
        self._quarantined: set[str] = set()

    def handle(
        self,
        packet: bytes,
        entry: Conntrack,
        direction: Direction,
        *,
        forwarded: bool = False,
    ) -> Decision:
        """Inspect one IP packet of the flow that `entry` describes.

        `forwarded` is whether the packet came in through an interface.
        """
        flow = self.flows.find(entry)
        if flow is None:
            config = self.helpers.get(entry.helper or "")
            if config is None:
                return NOTHING
            flow = Flow.begin(entry, config.helper)
            flow.depth = self._depth(entry)
            flow.group = self._to_group(entry)
            self.flows.add(flow)
        elif flow.finished is not None:
            return Decision(flow)
        else:
            config = self.helpers.get(flow.name)
        outcome = _Outcome()
        replacement = None
        if config is None:
            flow.finish("helper-removed")
        elif flow.name in self._quarantined:
            flow.finish("quarantine")
        else:
            replacement = self._inspect(
                packet, entry, direction, forwarded, flow, config, outcome
            )
        if flow.finished is not None:
            outcome.events.append(Finished(flow.finished))
        return Decision(
            flow, tuple(outcome.expectations), replacement, tuple(outcome.events)
        )

    def release(self) -> None:
        """End every quarantine, after helpers or configuration changed."""
        self._quarantined.clear()
        self._faults.clear()

    def _depth(self, entry: Conntrack) -> int:
        if entry.master is None:
            return 0
        return self._chains.get((entry.master, entry.zone), 0) + 1

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
        self,
        packet: bytes,
        entry: Conntrack,
        direction: Direction,
        forwarded: bool,
        flow: Flow,
        config: HelperConfig,
        outcome: _Outcome,
    ) -> bytes | None:
        """Read one packet; returns the packet that takes its place, or None."""
        side = flow.sides[direction]
        if not side.parsed:
            return None
        try:
            segment = locate(packet)
            if segment is None:
                return None
            tuple_ = entry.original if direction is Direction.ORIGINAL else entry.reply
            helper = flow.helper or config.helper()
            flow.helper = helper
            for payload in self._messages(helper, side, packet, segment):
                message = Message(
                    direction=direction,
                    transport=segment.transport,
                    source=tuple_.source,
                    destination=tuple_.destination,
                    payload=payload,
                    original=entry.original,
                    reply=entry.reply,
                    now=self._clock(),
                    options=config.options,
                    forwarded=forwarded,
                    group=flow.group and direction is Direction.ORIGINAL,
                    depth=flow.depth,
                )
                if self._react(helper, message, entry, config, outcome):
                    flow.finish("done")
                    break
            side.malformed = 0
            return self._rewrite(packet, segment, outcome.rewrites)
        except Malformed as error:
            outcome.events.append(Damaged(str(error)))
            self._count_damage(flow, side, entry)
        except StreamLost as error:
            flow.finish(error.reason)
        except Exception as error:  # the one place where a helper's bug arrives
            outcome.expectations.clear()
            outcome.events.append(self._fault(flow, config, error))
        return None

    def _messages(
        self,
        helper: Helper,
        side: Side,
        packet: bytes,
        segment: Segment,
    ) -> Iterator[bytes]:
        """The whole messages that this packet completes."""
        data = packet[segment.start : segment.stop]
        if segment.transport is not TCP:
            yield data
            return
        pending = side.pending
        pending += side.stream.feed(segment.sequence, data, syn=segment.syn)
        while pending:
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
            yield payload

    def _react(
        self,
        helper: Helper,
        message: Message,
        entry: Conntrack,
        config: HelperConfig,
        outcome: _Outcome,
    ) -> bool:
        """Run the helper over one message; whether it is done with the flow."""
        refusal: ExpectationRefused | None = None
        done = False
        if self._watch is not None:
            self._watch.message(helper, message)
        try:
            reaction = helper.on_message(message)
            effect = next(reaction)
            while True:
                if self._watch is not None:
                    self._watch.effect(effect)
                answer: Grant | None = None
                refused: ExpectationRefused | None = None
                match effect:
                    case Expect():
                        try:
                            wanted = self._expectations(effect, message, entry, config)
                            outcome.expectations += wanted
                            answer = Grant(wanted[0].destination)
                        except ExpectationRefused as error:
                            outcome.events.append(
                                Refused(error.reason, error.detail, effect)
                            )
                            refused = refusal = error
                    case Rewrite():
                        start, stop = effect.span
                        if message.payload[start:stop] != effect.data:
                            outcome.rewrites.append(effect)
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
            # One that `_expectations` raised is counted; this one is the helper's own.
            if error is not refusal:
                outcome.events.append(Refused(error.reason, error.detail, None))
        return done

    def _expectations(
        self, wish: Expect, message: Message, entry: Conntrack, config: HelperConfig
    ) -> list[Expectation]:
        """The expectations that grant `wish`, one for each source network.

        Raises ExpectationRefused, and HelperFault for a policy that is not there.
        """
        class_, policy = _policy(config.policies, wish)
        # An expected flow comes in, and its master has been judged.
        local_only = Hook.PREROUTING not in config.hooks and not message.depth
        if message.forwarded and local_only:
            raise ExpectationRefused("forwarded", f"{message.source} is another host")
        self.guard.check(wish.endpoint, message.source.address, config.guard)
        version = message.source.address.version
        if wish.endpoint.address.version != version:
            raise ExpectationRefused(
                "address-family", f"{wish.endpoint} on a flow of IPv{version}"
            )
        opening = grant(entry, message.direction, wish.endpoint)
        networks: tuple[Network | None, ...]
        match wish.source:
            case Source.PEER:
                networks = (host_network(opening.source),)
            case Source.ON_LINK:
                networks = self._on_link(wish.endpoint.address)
            case Source.ANY:
                networks = (None,)
            case IPv4Network() | IPv6Network():
                if wish.source.version != wish.endpoint.address.version:
                    raise HelperFault(f"source {wish.source} for {wish.endpoint}")
                networks = (wish.source,)
        self.guard.charge(
            message.now,
            config.helper.name,
            entry.original.source.address,
            config.guard,
            len(networks),
        )
        if wish.helper == config.helper.name:
            self._chain(entry, message.depth)
        return [
            Expectation(
                master=entry.original,
                transport=wish.transport or message.transport,
                source=network,
                source_port=wish.source_port,
                destination=opening.destination,
                policy=policy.name,
                timeout=policy.timeout,
                class_=class_,
                permanent=wish.permanent,
                helper=wish.helper,
                zone=entry.zone,
            )
            for network in networks
        ]

    def _chain(self, entry: Conntrack, depth: int) -> None:
        """Remember how deep the master of a flow that is to be inspected is."""
        key = entry.original, entry.zone
        self._chains[key] = depth
        self._chains.move_to_end(key)
        if len(self._chains) > CHAINS:
            self._chains.popitem(last=False)

    def _rewrite(
        self, packet: bytes, segment: Segment, rewrites: list[Rewrite]
    ) -> bytes | None:
        if not rewrites:
            return None
        if segment.transport is TCP:
            raise HelperFault("rewrite of a TCP segment on a flow without NAT")
        payload = rewritten(packet[segment.start : segment.stop], rewrites)
        return replace_payload(packet, segment, payload)

    def _count_damage(self, flow: Flow, side: Side, entry: Conntrack) -> None:
        side.malformed += 1
        if entry.original.transport is TCP or side.malformed >= MALFORMED_IN_A_ROW:
            side.parsed = False
            # Not cleared: the exception's frames may hold views of the bytes.
            side.pending = bytearray()
        if not any(each.parsed for each in flow.sides.values()):
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


def _policy(policies: tuple[Policy, ...], wish: Expect) -> tuple[int, Policy]:
    for class_, policy in enumerate(policies):
        if policy.name == wish.policy:
            if class_ and wish.helper is None:
                raise HelperFault(
                    f"policy {policy.name!r} is not the first: the kernel applies it "
                    "only to an expectation that names a helper"
                )
            return class_, policy
    raise HelperFault(f"no policy {wish.policy!r}")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers over a capture: the daemon's way of a packet, without a kernel.

The engine and the care for masters are the daemon's own. A capture takes the place of
the queue, and a model of conntrack (`Table`) that of the kernel.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv6Network, ip_network
from typing import Final

from cthelper.core.api import (
    ANY,
    Effect,
    Expect,
    ExpectationRefused,
    Helper,
    Malformed,
    Message,
)
from cthelper.core.config import Config
from cthelper.core.engine import Decision, Engine
from cthelper.core.expecter import Expecter
from cthelper.core.grants import Placed
from cthelper.core.guard import Guard
from cthelper.core.masters import Masters
from cthelper.core.offline.blocks import Batch, single
from cthelper.core.offline.capture import Frame
from cthelper.core.offline.conntrack import Seen, State, Table
from cthelper.core.offline.entries import Entry
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    FaultEvent,
    FinishedEvent,
    FlowEvent,
    MalformedEvent,
    MessageEvent,
    RefusedEvent,
    RelatedEvent,
    Summary,
    WithdrawnEvent,
)
from cthelper.core.offline.expectations import Outcome
from cthelper.core.offline.history import History
from cthelper.core.offline.kernel import ModelKernel
from cthelper.core.offline.nat import Nat
from cthelper.core.outcome import Damaged, Fault, Finished, Refused
from cthelper.core.packet import COPIED
from cthelper.core.tuples import (
    ORIGINAL,
    Address,
    Conntrack,
    Expectation,
    Network,
    Tuple,
    collapsed,
    flow_key,
)

_LINK_LOCAL: Final = IPv6Network("fe80::/10")
_GUESSED_PREFIX: Final = {4: 24, 6: 64}
# Networks that are named for what they were kept out of; a scan comes from many.
_KEPT_OUT: Final = 8
# How often the daemon looks after finished flows.
_TICK_SECONDS: Final = 1.0


class Links:
    """What was on-link where the capture was taken.

    `networks` says it, all of them of one link, as the daemon takes all prefixes of an
    interface. Without one of an address' IP version the /24 or the /64 around it is
    taken. `warn` is told once of each such guess, and of the first that it kept out.
    """

    def __init__(
        self, networks: Collection[Network], warn: Callable[[str], None]
    ) -> None:
        self._networks = networks
        self._warn = warn
        self._guessed: set[Network] = set()
        self._kept_out: set[Network] = set()

    def on_link(self, address: Address) -> tuple[Network, ...]:
        """The networks of the hosts that share a link with `address`.

        Over IPv6 the link-local ones among them. A link-local address says nothing
        about which link it is on: all the networks are. Raises ExpectationRefused with
        reason ``off-link``.
        """
        if not self._networks:
            return self._guess(address)
        found = [each for each in self._networks if each.version == address.version]
        if not address.is_link_local:
            known = any(address in each for each in found)
        elif address.version == 6:
            # That there is no other network is a guess as well.
            known = True
            if not found:
                self._guessed.add(_LINK_LOCAL)
        else:
            known = bool(found)
        if not known:
            networks = ", ".join(map(str, self._networks))
            raise ExpectationRefused(
                "off-link", f"{address} is not in {networks}, which --network says"
            )
        return _with_link_local(found, address.version)

    def missed(self, flow: Tuple, missed: Sequence[Expectation]) -> None:
        """A flow began to where these were expected, and met none of them.

        Where a guess is what kept it out, the user is told what to say.
        """
        source, address = flow.source.address, flow.destination.address
        if not any(
            each.source in self._guessed
            and source not in each.source
            and each.source_port in (None, flow.source.port)
            for each in missed
            if each.source is not None
        ):
            return
        around = self._around(source)
        if around in self._kept_out or len(self._kept_out) == _KEPT_OUT:
            return
        self._kept_out.add(around)
        wanted = [around]
        if not address.is_link_local:
            wanted.insert(0, self._around(address))
        options = " ".join(f"--network {each}" for each in wanted)
        self._warn(
            f"{source} answered {address} from outside what is taken for on-link: "
            f"{options} would have let it in"
        )

    @staticmethod
    def _around(address: Address) -> Network:
        if address.is_link_local and address.version == 6:
            return _LINK_LOCAL
        prefix = _GUESSED_PREFIX[address.version]
        return ip_network(f"{address}/{prefix}", strict=False)

    def _guess(self, address: Address) -> tuple[Network, ...]:
        around = self._around(address)
        if around not in self._guessed:
            self._guessed.add(around)
            self._warn(
                f"nothing says what was on-link with {address}: {around} is taken; "
                "--network CIDR says it"
            )
        return _with_link_local([around], address.version)


def _with_link_local(networks: list[Network], version: int) -> tuple[Network, ...]:
    if version == 6:
        networks.append(_LINK_LOCAL)
    return collapsed(networks, version)


class Replay:
    """Runs the configured helpers over the frames of one capture.

    `networks` are those that were on-link where it was taken. `hosts` are the addresses
    of the machine that would have run the daemon: packets from others count as
    forwarded; empty: nothing does. `nat` is what was translated where the capture was
    taken. `warn` is told what the user should know. `history` is told of all that is
    asked for. With `watch` the messages and the flows are events, too, and `finished`
    holds the reason for each flow that is no longer inspected.
    """

    def __init__(
        self,
        config: Config,
        *,
        networks: Collection[Network] = (),
        hosts: Collection[Address] = (),
        nat: Nat | None = None,
        warn: Callable[[str], None],
        watch: bool = False,
        history: History | None = None,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._frame = 0
        self._time = 0.0
        self._due = 0.0
        self._history = history
        links = Links(networks, warn)
        self.table = Table(
            config.helpers,
            nat=nat,
            on_destroy=self._destroyed,
            on_miss=links.missed,
            history=history,
        )
        self.onlooker = _Onlooker() if watch else None
        self._kernel = ModelKernel(self.table)
        self._masters = Masters(
            self._kernel, self, self._clock, mark=config.daemon.mark
        )
        self.expecter = Expecter(
            *(self._kernel, self._masters, self, self._clock), lambda _: None
        )
        self.engine = Engine(
            config.helpers,
            guard=Guard(config.limits, lives=self._lives),
            on_link=links.on_link,
            clock=self._clock,
            flow_limit=config.daemon.flow_limit,
            placer=self.expecter,
            watch=self.onlooker,
            budget=config.budget,
        )
        self.finished: dict[str, str] = {}
        self._events: list[Event] = []
        self._expectations = 0
        self._related = 0
        self._refused = 0
        self._malformed = 0
        self._finished = 0
        self._watched: dict[int, FlowEvent] = {}

    def run(self, frames: Iterable[Frame]) -> Iterator[Event]:
        """The events of the capture in the order of its frames, a Summary last."""
        return self.run_batches(map(_alone, frames))

    def run_batches(self, batches: Iterable[Batch]) -> Iterator[Event]:
        """As `run`, of frames that were read by the batch, which is faster."""
        table = self.table
        take = table.pass_over if self.onlooker is None else table.look_at_each
        for batch in batches:
            while True:
                # The clocks of helpers and kernel move forward, those of captures not
                # always.
                seen = take(batch, self._due)
                if seen is not None:
                    number, time, *_ = batch.places[batch.at - 1]
                    self._pass(number, time, seen)
                    if self._events:
                        yield from self._take()
                elif batch.at < len(batch.places):
                    self._tick(batch.places[batch.at][1])
                else:
                    break
        yield from self._end()

    @property
    def now(self) -> float:
        """The clock of helpers and kernel, which moves forward only."""
        return self._kernel.now

    def step(
        self, number: int, time: float, data: bytes, start: int
    ) -> tuple[Seen | None, Decision | None, list[Event]]:
        """One frame: what conntrack and the engine made of it, and its events.

        None of conntrack: neither TCP nor UDP, or an incomplete packet; None of the
        engine: it was not asked.
        """
        if time >= self._due:
            self._tick(time)
        self._kernel.now = max(self.now, time)
        seen = self.table.track(number, self.now, data, start)
        decision = None if seen is None else self._pass(number, time, seen)
        return seen, decision, self._take()

    def _tick(self, time: float) -> None:
        """What the daemon does every second, until `time`."""
        while self._due <= time:
            if not (self._masters.busy or self.expecter.counts):
                self._due = time + _TICK_SECONDS
                return
            self._kernel.now = max(self.now, self._due)
            self._masters.sweep()
            self.expecter.sweep()
            self._due += _TICK_SECONDS

    def _pass(self, number: int, time: float, seen: Seen) -> Decision | None:
        self._frame = self._kernel.frame = number
        self._time = time
        entry = seen.entry
        if seen.state is State.INVALID or entry is None:
            return None
        met = seen.met
        if met is not None:
            self._add(
                RelatedEvent(
                    frame=self._frame,
                    time=self._time,
                    expectation_frame=met.frame,
                    helper=met.helper,
                    flow=entry.original,
                )
            )
            self.expecter.met(entry.original, met.master.original, 0)
        if self.onlooker is not None:
            self._count(entry, seen)
        if seen.missed is not None:
            name = seen.missed.name
            self._finish(
                entry.original, name, "mid-stream", "first segment seen is the server's"
            )
        if entry.helper is None:
            self.table.confirm(entry)
            return None
        return self._inspect(seen, entry)

    def event(self, event: str, level: str = "info", /, **fields: object) -> None:
        """What became of a master, which has no place among the events (Reporter)."""
        if event in ("marked", "kept") and self.onlooker is not None:
            self.finished[str(fields["flow"])] = str(fields["reason"])

    def _inspect(self, seen: Seen, entry: Entry) -> Decision:
        """As the daemon does it for a packet from the queue."""
        conntrack = entry.conntrack(self.now)
        decision = self.engine.handle(
            seen.packet[:COPIED],
            conntrack,
            seen.direction,
            forwarded=bool(self._hosts)
            and conntrack.original.source.address not in self._hosts,
            segment=seen.segment,
        )
        flow = decision.flow
        if flow is None:
            self.table.confirm(entry)
            return decision
        if self.onlooker is not None:
            self._read(self.onlooker, flow.name)
        self._report(seen, conntrack, flow.name, decision)
        for each in decision.withdrawn:
            self._add(
                WithdrawnEvent(
                    frame=self._frame,
                    time=self._time,
                    helper=flow.name,
                    expectation=each.expectation,
                    flows=each.flows,
                )
            )
        if flow.finished is not None:
            self._masters.finish(conntrack, flow.name, flow.finished)
        # The packet comes back confirmed before its expectations go in (gate.py).
        self.table.confirm(entry)
        if not self._expect(seen, entry, flow.name, decision):
            self._masters.passed(conntrack)
        return decision

    def _expect(
        self, seen: Seen, entry: Entry, helper: str, decision: Decision
    ) -> bool:
        """Have the model expect what a packet announces.

        Whether the verdict has lengthened the flow's life.
        """
        if not (decision.expectations or decision.placed):
            return False
        conntrack = entry.conntrack(self.now)
        answer = self.expecter.carry_out(
            conntrack, decision.expectations, decision.placed
        )
        ledger = self.engine.guard.ledger
        ledger.confirm([each.expectation for each in answer.placed])
        ledger.cancel([each for each, _ in answer.refused])
        for expectation, error in answer.refused:
            detail = _unwanted(expectation, error.reason)
            refused = Refused(error.reason, detail, _wish_of(expectation))
            self._refuse(seen, conntrack, helper, refused)
        for each in answer.placed:
            self._tell(seen, helper, each)
        if answer.timeout is None:
            return False
        self.table.keep(self.now, entry, answer.timeout)
        return True

    def _lives(self, expectation: Expectation) -> bool:
        """Whether the model has an expectation."""
        return self.table.covering(self.now, expectation) is not None

    def _tell(self, seen: Seen, helper: str, placed: Placed) -> None:
        """The kernel has the expectation."""
        if self._history is not None:
            present = self.table.covering(self.now, placed.expectation)
            if present is not None:
                self._history.asked(present)
        self._add(
            ExpectationEvent(
                frame=self._frame,
                time=self._time,
                helper=helper,
                direction=seen.direction,
                expectation=placed.expectation,
                how=placed.how,
                flows=placed.flows,
            )
        )

    def _refuse(
        self, seen: Seen, conntrack: Conntrack, helper: str, refused: Refused
    ) -> None:
        self._add(
            RefusedEvent(
                frame=self._frame,
                time=self._time,
                helper=helper,
                reason=refused.reason,
                detail=refused.detail,
                wish=refused.wish,
                peer=_receiver(seen, conntrack),
                transport=conntrack.original.transport,
            )
        )

    def _report(
        self,
        seen: Seen,
        conntrack: Conntrack,
        helper: str,
        decision: Decision,
    ) -> None:
        for event in decision.events:
            match event:
                case Refused():
                    self._refuse(seen, conntrack, helper, event)
                case Damaged(reason):
                    self._add(
                        MalformedEvent(
                            frame=self._frame,
                            time=self._time,
                            helper=helper,
                            reason=reason,
                        )
                    )
                case Fault(error, where):
                    self._add(
                        FaultEvent(
                            frame=self._frame,
                            time=self._time,
                            helper=helper,
                            error=error,
                            where=where,
                        )
                    )
                case Finished(reason, detail):
                    # Who is done has missed nothing.
                    if reason != "done":
                        self._finish(conntrack.original, helper, reason, detail)
                    watched = self._watched.get(conntrack.id)
                    if watched is not None:
                        self._watched[conntrack.id] = replace(watched, finished=reason)

    def _finish(self, flow: Tuple, helper: str, reason: str, detail: str) -> None:
        self._add(
            FinishedEvent(
                frame=self._frame,
                time=self._time,
                helper=helper,
                flow=flow,
                reason=reason,
                detail=detail,
            )
        )

    def _clock(self) -> float:
        return self.now

    def _add(self, event: Event) -> None:
        self._events.append(event)
        match event:
            case ExpectationEvent():
                self._expectations += 1
            case RelatedEvent():
                self._related += 1
            case RefusedEvent():
                self._refused += 1
            case MalformedEvent():
                self._malformed += 1
            case FinishedEvent():
                self._finished += 1

    def _take(self) -> list[Event]:
        events = self._events
        self._events = []
        return events

    def _end(self) -> Iterator[Event]:
        for entry_id in list(self._watched):
            self._events.append(self._watched.pop(entry_id))
        yield from self._take()
        yield Summary(
            packets=self.table.packets,
            flows=self.table.flows,
            expectations=self._expectations,
            related=self._related,
            refused=self._refused,
            malformed=self._malformed,
            finished=self._finished,
        )

    def _destroyed(self, entry: Entry) -> None:
        """The entry has ended, and the daemon would be told so."""
        key = flow_key(entry.id, 0)
        self._masters.forget(key)
        self.expecter.forget(key)
        self.engine.flows.remove(key)
        self.engine.guard.ledger.forget(key)
        watched = self._watched.pop(entry.id, None)
        if watched is not None:
            self._events.append(watched)

    # What only onlookers want

    def _count(self, entry: Entry, seen: Seen) -> None:
        known = self._watched.get(entry.id)
        if known is None:
            if entry.helper is None and seen.met is None:
                return
            known = FlowEvent(
                frame=self._frame,
                time=self._time,
                last_frame=self._frame,
                last_time=self._time,
                flow=entry.original,
                helper=None if entry.helper is None else entry.helper.name,
                packets=0,
                finished=None,
            )
        self._watched[entry.id] = replace(
            known,
            last_frame=self._frame,
            last_time=self._time,
            packets=known.packets + 1,
        )

    def _read(self, onlooker: "_Onlooker", helper: str) -> None:
        for reading in onlooker.take():
            message = reading.message
            self._add(
                MessageEvent(
                    frame=self._frame,
                    time=self._time,
                    helper=helper,
                    flow=message.original,
                    direction=message.direction,
                    payload=message.payload,
                    fields=reading.fields,
                    effects=tuple(reading.effects),
                )
            )


def _alone(frame: Frame) -> Batch:
    number, time, data, start = frame
    return single(number, time, data, start)


def _wish_of(expectation: Expectation) -> Expect:
    """What a helper may have asked for to get this."""
    return Expect(
        expectation.destination,
        expectation.policy or "",
        expectation.transport,
        expectation.source or ANY,
        expectation.source_port,
        expectation.permanent,
        expectation.helper,
    )


def _receiver(seen: Seen, conntrack: Conntrack) -> Address:
    """The own address of the message's receiver."""
    original = seen.direction is ORIGINAL
    sending = conntrack.reply if original else conntrack.original
    return sending.source.address


def _unwanted(expectation: Expectation, reason: str) -> str:
    why = {
        Outcome.CLASH.value: ": one packet could meet it and another one",
        Outcome.FULL.value: ": it has nf_conntrack_expect_max of them",
    }.get(reason, "")
    return f"the kernel refuses {expectation}{why}"


class _Reading:
    """A message, what the helper says about it, and the effects that it yields."""

    def __init__(self, message: Message, fields: dict[str, str]) -> None:
        self.message = message
        self.fields = fields
        self.effects: list[Effect] = []


class _Onlooker:
    """Keeps what the engine's helpers read and yield until it is taken."""

    def __init__(self) -> None:
        self._readings: list[_Reading] = []

    def message(self, helper: Helper, message: Message) -> None:
        try:
            fields = dict(helper.describe(message))
        except Malformed as error:
            fields = {"malformed": str(error)}
        except Exception as bug:  # a plugin's: it must not end the replay
            fields = {"describe() failed": f"{type(bug).__name__}: {bug}"}
        self._readings.append(_Reading(message, fields))

    def effect(self, effect: Effect) -> None:
        self._readings[-1].effects.append(effect)

    def take(self) -> list[_Reading]:
        """What has been read since the last call."""
        readings = self._readings
        self._readings = []
        return readings

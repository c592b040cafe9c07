# SPDX-License-Identifier: GPL-2.0-or-later
"""A stage for attacks: the daemon's inspection, between a queue and a model kernel.

What a server does with packets is the daemon's own (`Inspection`), with the log and its
counters; the kernel is the model that replay has. An attack is a row of a table: what
is sent, all that it may open, and what the log must say of it. `perform` plays it with
an honest session of the same helper before it, in its midst and after it.
"""

import gc
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import FrameType
from typing import Any, Final

from cthelper.core.api import Address, Helper, Network
from cthelper.core.config import Config, parse
from cthelper.core.daemon.inspection import Inspection
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import UNKNOWN
from cthelper.core.daemon.progress import Progress
from cthelper.core.ledger import Room
from cthelper.core.netlink.ctnetlink import ExpectationMet
from cthelper.core.offline.conntrack import Seen, State, Table
from cthelper.core.offline.entries import Entry
from cthelper.core.offline.kernel import ModelKernel
from cthelper.core.offline.replay import Links
from cthelper.core.packet import COPIED
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.protocol import (
    Action,
    Hook,
    QueuedPacket,
    Statistics,
    Touched,
    Verdict,
)
from cthelper.core.registry import builtin_helpers, register
from cthelper.core.tuples import (
    ORIGINAL,
    Conntrack,
    Direction,
    Expectation,
    FlowKey,
    Transport,
    flow_key,
)
from tests.attacks import wire
from tests.attacks.honest import SESSIONS, Session

CALLS_OF_A_MILLISECOND: Final = 7000
"""Calls of functions that Python makes in a millisecond of CPU, at the least: 60 ns a
call and 80 ns for what is between them, on the machine of docs/bench.md."""

MOST_CALLS: Final = CALLS_OF_A_MILLISECOND
"""What one packet may cost: a millisecond. Counted, since a clock would also tell how
busy the machine is that runs the tests."""

MOST_SECONDS: Final = 0.25
"""What one packet may take by the clock, for loops that call nothing; generous."""

EXPECT_MAX: Final = 4096
"""The kernel's limit (nf_conntrack_expect_max)."""

Step = bytes | float
"""A packet that comes, or seconds in which none does."""


class _Kernel(ModelKernel):
    """The model as the daemon asks it; it remembers all that was ever expected."""

    port = 1

    def __init__(self, table: Table, most: int) -> None:
        super().__init__(table)
        self.made: dict[str, Expectation] = {}
        self._most = most

    def room(self) -> Room:
        """As /proc and the kernel's statistics say it."""
        return Room(len(self._table.live(self.now)), self._most)

    def lives(self, expectation: Expectation) -> bool:
        """Whether one is there that covers it."""
        return self._table.covering(self.now, expectation) is not None

    def _put(self, expectation: Expectation) -> None:
        super()._put(expectation)
        self.made[str(expectation)] = expectation

    def replace_expectations(
        self, old: Sequence[Expectation], new: Expectation, seconds: int
    ) -> None:
        """Put in one in place of others."""
        super().replace_expectations(old, new, seconds)
        self.made[str(new)] = new


class _Links:
    """The gateway's own addresses, and the networks of its link to the clients."""

    def __init__(self, own: Iterable[str], networks: Iterable[str]) -> None:
        self._model = Links(tuple(map(ip_network, networks)), warn=lambda _: None)
        self._own = frozenset(map(ip_address, own))

    def on_link(self, address: Address) -> tuple[Network, ...]:
        """The networks of the hosts that share a link with it."""
        return self._model.on_link(address)

    def is_local(self, address: Address) -> bool:
        """Whether it is the gateway's own."""
        return address in self._own


@dataclass
class _Queue:
    """One packet waits, or none."""

    number: int = 2077
    statistics: Statistics = field(default_factory=Statistics)
    waiting: list[QueuedPacket] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def read(self, _limit: int) -> list[QueuedPacket]:
        """What waits."""
        taken, self.waiting = self.waiting, []
        return taken

    def answer(self, verdicts: Sequence[Verdict]) -> None:
        """Take the verdicts."""
        self.verdicts += verdicts

    def note(self, _packet: QueuedPacket, *, quiet: bool, held: bool) -> None:
        """Nothing passes unseen here."""

    def forget(self, _key: FlowKey) -> None:
        """Nothing is remembered."""

    def touched(self) -> list[Touched]:
        """Nothing passes unseen here."""
        return []


@dataclass
class Cost:
    """The dearest packet: calls of functions, seconds on the CPU; and all packets'."""

    calls: int = 0
    seconds: float = 0.0
    packets: int = 0
    total: float = 0.0


class Scene:
    """A gateway on which a server inspects packets, one after the other.

    `settings` is a configuration in TOML, `plugins` are helpers beside the built-in
    ones, and `expect_max` is the kernel's limit. With `count` the calls of functions
    are counted, which takes three times as long; without it no packet costs anything.
    """

    def __init__(
        self,
        settings: str = "",
        *,
        plugins: Sequence[type[Helper]] = (),
        expect_max: int = EXPECT_MAX,
        count: bool = True,
    ) -> None:
        known = register([*builtin_helpers().values(), *plugins])
        self.config: Config = parse(settings, Path("attack.toml"), known)
        self.now = 1000.0
        self.table = Table(
            self.config.helpers, expect_max=expect_max, on_destroy=self._ended
        )
        self.kernel = _Kernel(self.table, expect_max)
        self.kernel.now = self.now
        self.cost = Cost()
        self.queue = _Queue()
        self._count = count
        self._output = io.StringIO()
        self.log = Log("debug", "json", clock=self._clock, output=self._output)
        own = (wire.GATEWAY, wire.GATEWAY6, wire.GATEWAY_LOCAL6)
        self._links = _Links(own, (wire.LINK, wire.LINK6))
        self._calls = 0
        self.inspection = Inspection(
            self.config,
            self._links,  # type: ignore[arg-type]
            self.log,
            self._clock,
            self._follow,
            UNKNOWN,
            Progress(),
            Quarantine(self._clock),
            self.kernel,
            self.kernel,
            self._timer,
        )
        self._follows = False
        self._packets = 0
        self._ids = 0
        self._due = self.now

    def _clock(self) -> float:
        return self.now

    def _timer(self) -> float:
        """The clock, and what has been worked since it stands still."""
        return self.now + self._calls / CALLS_OF_A_MILLISECOND / 1000

    # What has become of it

    @property
    def counters(self) -> dict[str, int]:
        """The log's."""
        return self.log.counters

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(each) for each in self._output.getvalue().splitlines()]

    @property
    def said(self) -> set[str]:
        """The names of the counters that there is a line of."""
        return {
            ".".join(filter(None, (line["event"], line.get("reason"))))
            for line in self.lines
        }

    @property
    def opened(self) -> set[str]:
        """All that was ever expected."""
        return set(self.kernel.made)

    @property
    def live(self) -> list[str]:
        """What is expected now."""
        return [str(each.expectation) for each in self.table.live(self.now)]

    # What comes

    def play(self, steps: Iterable[Step]) -> list[bytes]:
        """Have packets come, and time pass; the packets that go on."""
        passed = []
        for step in steps:
            if isinstance(step, float):
                self.wait(step)
            else:
                passed.append(self.comes(step))
        return passed

    def wait(self, seconds: float) -> None:
        """Let time pass; the daemon does what is due every second."""
        until = self.now + seconds
        while self._due <= until:
            self.now = self.kernel.now = max(self.now, self._due)
            self.inspection.tick([self.queue])  # type: ignore[list-item]
            self._due += 1.0
        self.now = self.kernel.now = until

    def comes(self, packet: bytes, *, from_link: bool = False) -> bytes:
        """A packet comes; what goes on in its place.

        The gateway's own come through no link, unless told so; all others do.
        """
        seen = self.track(packet)
        if seen is None:
            return packet
        entry = seen.entry
        if seen.state is State.INVALID or entry is None:
            return packet
        if entry.helper is None:
            self.table.confirm(entry)
            return packet
        return self._inspected(seen, entry, from_link=from_link)

    def track(self, packet: bytes) -> Seen | None:
        """What conntrack says of a packet, and the daemon is told of it."""
        self._packets += 1
        self.kernel.frame = self._packets
        seen = self.table.track(self._packets, self.now, packet, 0)
        if seen is not None and seen.met is not None and self._follows:
            assert seen.entry is not None
            flow, master = seen.entry.original, seen.met.master.original
            self.inspection.told(ExpectationMet(flow, master, 0))
        return seen

    def admits(
        self, transport: Transport, source: tuple[str, int], to: tuple[str, int]
    ) -> bool:
        """Whether a new flow would be `ct state related`; it begins."""
        way = wire.flow(transport, source, to)
        packet = (
            wire.segment(way, b"", 1, 0, wire.SYN)
            if transport is Transport.TCP
            else wire.datagram(way, b"x")
        )
        seen = self.track(packet)
        assert seen is not None
        assert seen.entry is not None
        self.table.confirm(seen.entry)
        return seen.met is not None

    def _inspected(self, seen: Seen, entry: Entry, *, from_link: bool) -> bytes:
        """As the queue has it: a packet that repeats its hook comes back confirmed."""
        passed = seen.packet
        for _ in range(2):
            self._ids += 1
            conntrack = entry.conntrack(self.now)
            own = self._links.is_local(conntrack.original.source.address)
            indev = 0 if own and seen.direction is ORIGINAL and not from_link else 2
            verdict = self._verdict(passed[:COPIED], conntrack, seen.direction, indev)
            self.table.confirm(entry)
            if verdict.action is not Action.REPEAT:
                break
        assert verdict.action in (Action.ACCEPT, Action.STOP)
        if verdict.conntrack:
            seconds = int.from_bytes(verdict.conntrack[-4:])
            self.table.keep(self.now, entry, seconds)
        return passed if verdict.payload is None else verdict.payload

    def _verdict(
        self, packet: bytes, conntrack: Conntrack, direction: Direction, indev: int
    ) -> Verdict:
        queue = self.queue
        queue.waiting = [
            QueuedPacket(
                self._ids, Hook.POSTROUTING, packet, conntrack, direction, indev, 3
            )
        ]
        queue.verdicts.clear()
        with self._measured():
            self.inspection.serve(queue)  # type: ignore[arg-type]
        (verdict,) = queue.verdicts
        return verdict

    @contextmanager
    def _measured(self) -> Iterator[None]:
        before = self._calls

        def called(_frame: FrameType, event: str, _argument: object) -> None:
            self._calls += event in ("call", "c_call")

        # It goes through all objects of the process, nearly all of them the tests' own.
        gc.disable()
        began = time.thread_time()
        if self._count:
            sys.setprofile(called)
        try:
            yield
        finally:
            if self._count:
                sys.setprofile(None)
            seconds = time.thread_time() - began
            gc.enable()
            cost = self.cost
            cost.packets += 1
            cost.total += seconds
            cost.calls = max(cost.calls, self._calls - before)
            cost.seconds = max(cost.seconds, seconds)

    def _ended(self, entry: Entry) -> None:
        self.inspection.forget(flow_key(entry.id, 0))

    def _follow(self, expectations: bool) -> None:
        self._follows = expectations


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What is sent, and what must come of it.

    `helper` has the honest session beside the attack, from `HONEST`. `steps` are the
    attacker's packets and pauses. `opens` is all that may be expected because of it:
    what its hosts may have of each other without harm. `says` are counters of the log,
    each of which counts, and of which there is a line. `settings` is in TOML.
    `silent` is for what the kernel or the stream leaves out before anybody reads it:
    nothing is said, since nothing happened. `victims` is what must be expected in spite
    of the attack, beside the honest sessions'.
    """

    helper: str
    steps: Callable[[], Iterable[Step]]
    opens: frozenset[str] = frozenset()
    victims: frozenset[str] = frozenset()
    says: tuple[str, ...] = ()
    settings: str = ""
    silent: bool = False


def perform(attack: Attack, scene: Scene | None = None) -> Scene:
    """Play an attack; what must hold of any attack is asserted."""
    assert attack.silent is not bool(attack.says), "an attack leaves a trace, or none"
    scene = scene or Scene(attack.settings)
    session = SESSIONS[attack.helper]
    steps = list(attack.steps())
    half = len(steps) // 2
    allowed = attack.opens | attack.victims | honest(scene, session, 1)
    before = dict(scene.counters)
    scene.play(steps[:half])
    allowed |= honest(scene, session, 2)
    scene.play(steps[half:])
    allowed |= honest(scene, session, 3)
    assert scene.opened - allowed == set(), "opened"
    assert attack.victims - scene.opened == set(), "a victim's"
    for each in attack.says:
        assert scene.counters.get(each, 0) > before.get(each, 0), (each, scene.counters)
        assert each in scene.said
    assert scene.cost.calls <= MOST_CALLS, scene.cost
    assert scene.cost.seconds <= MOST_SECONDS, scene.cost
    return scene


def honest(scene: Scene, session: Session, number: int) -> set[str]:
    """An honest session: it gets its expectation, and its flow is let in."""
    wanted = session.expects(number)
    scene.play(session.packets(number))
    assert wanted in scene.live, f"honest session {number}: {wanted} is not expected"
    source, to = session.opens(number)
    assert scene.admits(session.transport, source, to), f"{wanted} lets nobody in"
    return {wanted}

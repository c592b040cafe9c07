# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``cthelper top`` asks the daemon, again and again, and what it keeps of that.

However many flows there are, it keeps so many rows as anybody looks at, and of all
others their counts alone, for rates.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cthelper.control import Control, ControlError
from cthelper.core.cli.control import flow_text
from cthelper.core.cli.status import age_text
from cthelper.core.cli.top_rows import MOST, Kind, Order, Rates, Tree, plain, tree_of

_REFUSED_SECONDS: Final = 600.0
_SECONDS: Final = 10.0
# What is amiss, in so many lines.
_PROBLEMS: Final = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: which flows, and which of them are kept."""

    filter: Mapping[str, object] = field(default_factory=dict)
    others: bool = False
    order: Order = field(default_factory=Order)

    def same_flows(self, other: "Wanted") -> bool:
        """Whether both ask for the same ones, in whatever order."""
        return (self.filter, self.others) == (other.filter, other.others)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the daemon has told: how many rows there are, and the first trees.

    `health` and `refused` are lines of text, the latest refusal first.
    """

    wanted: Wanted
    health: Sequence[str]
    trees: Sequence[Tree]
    refused: Sequence[str]
    controls: int
    expectations: int
    flows: int
    counted: bool

    @property
    def whole(self) -> bool:
        """Whether all trees are kept."""
        return len(self.trees) == self.controls

    @property
    def rows(self) -> int:
        """How many rows there are, with those that are not kept."""
        return self.controls + self.expectations + self.flows


class Reader:
    """Asks the daemon at a socket. What it has been told before it needs for rates."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self._today = today
        self._rates = Rates()
        self._refused: deque[Mapping[str, Any]] = deque(maxlen=MOST)
        self._filter: Mapping[str, object] | None = None
        self._asked: float | None = None

    def read(self, wanted: Wanted) -> Reading:
        """All that is shown. Raises ControlError."""
        try:
            # A new connection each time: the daemon may be another one by now.
            with Control(self._path, seconds=_SECONDS) as control:
                return self._read(control, wanted)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ControlError(
                "unreadable", "the daemon's answer makes no sense"
            ) from None

    def _read(self, control: Control, wanted: Wanted) -> Reading:
        health = tuple(health_lines(control.status(), self._today()))
        controls = expectations = flows = 0
        counted = True

        def counting() -> Iterator[Tree]:
            nonlocal controls, expectations, flows, counted
            for record in control.flows(others=wanted.others, **wanted.filter):
                controls += 1
                expectations += len(record["expectations"])
                flows += len(record["flows"])
                tree = tree_of(record, self._rates, self._clock())
                for each in tree.all():
                    counted &= each.timeout is None or (
                        each.kind is Kind.EXPECTS or each.packets is not None
                    )
                yield tree

        self._rates.begin(self._clock())
        trees = wanted.order.trees(counting())
        self._hear(control, wanted)
        return Reading(
            *(wanted, health, trees, tuple(map(refused_line, reversed(self._refused)))),
            *(controls, expectations, flows, counted),
        )

    def _hear(self, control: Control, wanted: Wanted) -> None:
        """What was refused since the last time."""
        if wanted.filter != self._filter:
            self._refused.clear()
            self._filter, self._asked = wanted.filter, None
        now = self._clock()
        since = _REFUSED_SECONDS
        if self._asked is not None:
            # A second more, as asking takes a while; what is known is not taken twice.
            since = now - self._asked + 1
        found = control.events(
            since=since, follow=False, events=["refused"], **wanted.filter
        )
        known = list(self._refused)
        self._refused.extend([each for each in found if each not in known])
        self._asked = now


def health_lines(found: Mapping[str, Any], today: float) -> Iterator[str]:
    """How the daemon is, by what `status` tells; what is amiss last."""
    supervisor, servers = found["supervisor"], found["servers"]
    parts = ["cthelper", f"health {plain(found['health'])}"]
    if supervisor is not None:
        parts[0] += f" {plain(supervisor['version'])}"
        parts.append(f"ruleset {'in place' if supervisor['ruleset'] else 'gone'}")
    answering = sum(bool(each["answers"]) for each in servers)
    parts.append(f"workers {answering} of {len(servers)}")
    if supervisor is not None:
        parts.append(f"up {age_text(today - supervisor['since'])}")
    yield "  ".join(parts)
    counts = {"refused": 0}
    for name, count in found["counters"].items():
        if name.partition(".")[0] == "refused":
            counts["refused"] += count
    for fate in ("bypassed", "dropped"):
        counts[fate] = sum(each.get(fate) or 0 for each in found["queues"])
    yield "  ".join(
        (
            *(f"{name} {n:,}" for name, n in counts.items() if n or name == "refused"),
            *(
                f"{plain(name)} {'not known' if fill is None else _fill(fill)}"
                for name, fill in found["tables"].items()
            ),
        )
    )
    problems = [plain(each) for each in found["problems"]]
    yield from (f"! {each}" for each in problems[:_PROBLEMS])
    if len(problems) > _PROBLEMS:
        yield f"! {len(problems) - _PROBLEMS} more: `cthelper status` has them all"


def _fill(fill: Mapping[str, int]) -> str:
    return f"{fill['used']:,} of {fill['most']:,}"


def refused_line(event: Mapping[str, Any]) -> str:
    """A refusal: when, of which helper, why, and what was asked for."""
    if isinstance(event.get("expects"), dict):
        what = flow_text(event["expects"])
    elif event.get("endpoint") is not None:
        what = f"{event.get('transport')} {event['endpoint']}"
    else:
        what = event.get("detail") or ""
    flow = event.get("flow")
    of = f", by {flow_text(flow)}" if isinstance(flow, dict) else ""
    text = (
        f"{event['time'][11:19]} {event.get('helper')} {event.get('reason')} {what}{of}"
    )
    return plain(text)


class Poller(threading.Thread):
    """Reads again and again, in a thread, and so one reading at a time.

    `deliver` gets each, or the error. A daemon that takes long is asked less often: it
    has as much rest as it has work.
    """

    def __init__(
        self,
        reader: Reader,
        wanted: Wanted,
        every: float,
        deliver: Callable[[Reading | ControlError], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Where the program ends nobody waits for an answer that does not come.
        super().__init__(name="cthelper-top", daemon=True)
        self._reader = reader
        self._wanted = wanted
        self._every = every
        self._deliver = deliver
        self._clock = clock
        self._begun: float | None = None
        self._wake = threading.Event()
        self._paused = self._ended = False

    def want(self, wanted: Wanted, *, at_once: bool) -> None:
        """Ask for this from now on."""
        self._wanted = wanted
        if at_once:
            self._wake.set()

    def pause(self, paused: bool) -> None:
        """Ask nothing more, or again."""
        self._paused = paused
        self._wake.set()

    def end(self) -> None:
        """Ask nothing any more."""
        self._ended = True
        self._wake.set()

    @property
    def late(self) -> float:
        """Seconds for which the answer is waited for; 0 where none is."""
        begun = self._begun
        return 0.0 if begun is None else self._clock() - begun

    def run(self) -> None:
        """Until the end."""
        while not self._ended:
            if self._paused:
                self._wake.wait()
            self._wake.clear()
            if self._paused or self._ended:
                continue
            begun = self._begun = self._clock()
            found: Reading | ControlError
            try:
                found = self._reader.read(self._wanted)
            except ControlError as error:
                found = error
            self._begun = None
            if not self._ended:
                self._deliver(found)
            self._wake.wait(max(self._every, self._clock() - begun))

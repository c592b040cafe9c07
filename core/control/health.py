# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper status``: what the processes tell of themselves, and what is amiss."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cthelper.core.queue.binding import BoundQueue
from cthelper.core.records import Record

# A table of the kernel's, or a budget, is nearly full.
_NEARLY: Final = 0.9

State = Mapping[str, Any]
"""What a process has answered; it is one of ours."""


@dataclass(frozen=True, slots=True)
class Fill:
    """How full something is, of how much."""

    used: int
    most: int

    def record(self) -> Record:
        """For JSON."""
        return {"used": self.used, "most": self.most}

    @property
    def nearly(self) -> bool:
        """Whether there is little room left."""
        return self.used >= self.most * _NEARLY


def status(
    supervisor: State | None,
    servers: Mapping[int, State | None],
    queues: Mapping[int, BoundQueue],
    entries: Fill | None,
    expectations: Fill | None,
    statistics: Record | None = None,
) -> Record:
    """The record of `cthelper status`.

    None stands for what has not answered. `entries` and `expectations` are the kernel's
    tables, `statistics` those of each helper, where they are kept.
    """
    counters: Counter[str] = Counter()
    for each in (supervisor, *servers.values()):
        counters.update({} if each is None else each["counters"])
    rows = [] if supervisor is None else list(_queues(supervisor, queues))
    problems = list(_problems(supervisor, servers, rows, entries, expectations))
    return {
        "health": "degraded" if problems else "ok",
        "problems": problems,
        "supervisor": None if supervisor is None else dict(supervisor),
        "servers": [_server(number, each) for number, each in servers.items()],
        "queues": rows,
        "tables": {
            "conntrack": None if entries is None else entries.record(),
            "expectations": None if expectations is None else expectations.record(),
        },
        "statistics": statistics,
        "counters": dict(sorted(counters.items())),
    }


def _server(number: int, state: State | None) -> Record:
    if state is None:
        return {"worker": number, "answers": False}
    return {"worker": number, "answers": True, **state}


def _queues(supervisor: State, queues: Mapping[int, BoundQueue]) -> Iterator[Record]:
    for number in supervisor["queues"]:
        row = queues.get(number)
        closed = number in supervisor["closed_queues"]
        yield {
            "queue": number,
            "bound": row is not None,
            "waiting": None if row is None else row.waiting,
            # Since it was bound; a kernel counts them in 32 bits.
            "dropped" if closed else "bypassed": None if row is None else row.missed,
        }


def _problems(
    supervisor: State | None,
    servers: Mapping[int, State | None],
    queues: Iterable[Record],
    entries: Fill | None,
    expectations: Fill | None,
) -> Iterator[str]:
    if supervisor is None:
        yield "the supervisor does not answer: it may be busy with nft"
        return
    serving = {each["worker"]: each["serving"] for each in supervisor["workers"]}
    for number, state in servers.items():
        if not serving.get(number):
            yield f"worker {number} does not serve: its flows pass, uninspected"
        elif state is None:
            yield f"worker {number} does not answer"
    for row in queues:
        if not row["bound"]:
            yield f"queue {row['queue']} is not bound"
    if not supervisor["ruleset"]:
        yield "the ruleset is gone: new flows are not inspected"
    reload = supervisor["reload"]
    if reload is not None and reload["error"] is not None:
        yield f"the last reload was refused: {reload['error']}"
    if supervisor["events_error"] is not None:
        yield f"no events are written to a file: {supervisor['events_error']}"
    for name, fill in (("conntrack", entries), ("expectation", expectations)):
        if fill is not None and fill.nearly:
            yield f"the kernel's {name} table has {fill.used} of {fill.most}"
    for number, state in servers.items():
        if state is None:
            continue
        for name, unit in (("flows", ""), ("memory", " bytes")):
            fill = Fill(**state[name])
            if fill.nearly:
                yield f"worker {number}: {name} at {fill.used} of {fill.most}{unit}"
        for helper in state["quarantined"]:
            yield f"worker {number}: helper {helper} is left out after faults"

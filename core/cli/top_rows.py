# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows of ``cthelper top``: a tree for each control flow, its order, and rates.

What the daemon tells is taken for text, and made into such as every terminal shows.
"""

import heapq
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from cthelper.core.cli.control import flow_text
from cthelper.core.cli.flows import parts_told

MOST: Final = 1000
"""Trees that are kept."""

_APART_SECONDS: Final = 1.0
# What is neither a letter nor a mark of ASCII: a terminal may take it for a command.
_UNSAFE: Final = re.compile(r"[^ -~]")
_DIGITS: Final = re.compile(r"(\d{1,9})", re.ASCII)


def plain(text: object) -> str:
    """Text that every terminal shows, and shows as it is."""
    return _UNSAFE.sub("?", str(text))


class Kind(Enum):
    """What a row stands for."""

    CONTROL = "control flow"
    EXPECTS = "expectation"
    EXPECTED = "expected flow"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tree. None is what is not known, or does not apply.

    `key` is the same at each reading; `read` is when it was read, of a clock that does
    not jump, and `timeout` what was left then. `before` and `after` what is left stands
    what else is known.
    """

    key: tuple[object, ...]
    kind: Kind
    flow: str
    state: str
    read: float
    helper: str = ""
    timeout: int | None = None
    packets: int | None = None
    bytes: int | None = None
    packet_rate: float | None = None
    byte_rate: float | None = None
    before: str = ""
    after: str = ""

    def left(self, now: float) -> int | None:
        """Seconds that it has left."""
        if self.timeout is None:
            return None
        return max(0, self.timeout - max(0, int(now - self.read)))

    def all(self, now: float) -> tuple[str, str]:
        """All that is known of it, in two lines."""
        first = f"{self.kind.value} {self.flow}"
        if self.timeout is None:
            return f"{first} has ended", ""
        return first, f"{self.before}, {self.left(now)} s{self.after}"


@dataclass(frozen=True, slots=True)
class Tree:
    """A control flow and what is below it."""

    head: Row
    rows: tuple[Row, ...]

    def all(self) -> Iterator[Row]:
        """Its rows, from the top."""
        yield self.head
        yield from self.rows


COLUMNS: Final = (
    *("flow", "helper", "state", "left"),
    *("packets", "bytes", "packets/s", "bytes/s"),
)
"""What trees are sorted by."""

_RISING: Final = ("flow", "helper", "state", "left")
_NUMBERS: Final = {
    "packets": "packets",
    "bytes": "bytes",
    "packets/s": "packet_rate",
    "bytes/s": "byte_rate",
}


@dataclass(frozen=True, slots=True)
class Order:
    """How rows are sorted: by a column, the usual way or the other one."""

    column: str = "bytes/s"
    turned: bool = False

    @property
    def falling(self) -> bool:
        """Whether what is largest comes first."""
        return (self.column not in _RISING) is not self.turned

    def trees(self, found: Iterable[Tree]) -> list[Tree]:
        """The first of those that come, no more than MOST, in their order.

        A tree counts with all that is in it: its packets together, and what of it ends
        next.
        """
        choose = heapq.nlargest if self.falling else heapq.nsmallest
        return [
            Tree(each.head, tuple(self._rows(each.rows)))
            for each in choose(MOST, found, key=self._of_tree)
        ]

    def _rows(self, rows: Iterable[Row]) -> list[Row]:
        return sorted(rows, key=self._of_row, reverse=self.falling)

    def _of_row(self, row: Row) -> tuple[Any, ...]:
        return self._of((row,), row)

    def _of_tree(self, tree: Tree) -> tuple[Any, ...]:
        return self._of(tree.all(), tree.head)

    def _of(self, rows: Iterable[Row], head: Row) -> tuple[Any, ...]:
        if self.column in _NUMBERS:
            name = _NUMBERS[self.column]
            counts = [getattr(each, name) for each in rows]
            value = sum((each for each in counts if each is not None), start=0.0)
            # Those of which nothing is known are below those that count nothing.
            return (value, all(each is not None for each in counts), head.flow)
        if self.column == "left":
            ends = [each.timeout for each in rows if each.timeout is not None]
            return (min(ends, default=-1), head.flow)
        text = {"helper": head.helper, "state": head.state}.get(self.column, "")
        return (text, *_natural(head.flow))


def _natural(text: str) -> list[tuple[int, str]]:
    """Text in parts, among which numbers are compared as numbers."""
    return [
        (int(part), "") if place % 2 else (-1, part)
        for place, part in enumerate(_DIGITS.split(text))
    ]


class Rates:
    """Packets and bytes a second, of entries that two readings have both seen.

    The two are a second apart, or more: one that comes sooner, as the user has pressed
    a key, is held against the one that the last was held against.
    """

    def __init__(self) -> None:
        self._before: dict[object, tuple[float, int, int]] = {}
        self._now: dict[object, tuple[float, int, int]] = {}
        self._begun = -math.inf

    def begin(self, now: float) -> None:
        """A reading begins: what the last one has not seen is forgotten."""
        if now - self._begun >= _APART_SECONDS:
            self._before = self._now
        self._begun, self._now = now, {}

    def of(
        self, id_: object, now: float, packets: int, size: int
    ) -> tuple[float | None, float | None]:
        """Those of an entry; None where it is new, or began to count anew."""
        self._now[id_] = now, packets, size
        then, *counts = self._before.get(id_, (now, 0, 0))
        if now <= then or packets < counts[0] or size < counts[1]:
            return None, None
        return (packets - counts[0]) / (now - then), (size - counts[1]) / (now - then)


def tree_of(record: Mapping[str, Any], rates: Rates, now: float) -> Tree:
    """A control flow's record. Raises KeyError, TypeError, ValueError."""
    flow = plain(flow_text(record["flow"]))
    if record["gone"]:
        head = Row(("gone", flow, record["zone"]), Kind.CONTROL, flow, "has ended", now)
    else:
        head = _entry(("entry", record["id"]), Kind.CONTROL, record, rates, now)
    expects = (_expects(head.key, each, now) for each in record["expectations"])
    flows = (
        _entry((*head.key, each["id"]), Kind.EXPECTED, each, rates, now)
        for each in record["flows"]
    )
    return Tree(head, (*expects, *flows))


def _expects(above: tuple[object, ...], record: Mapping[str, Any], now: float) -> Row:
    flow = plain(flow_text(record["expects"]))
    kind = "permanent" if record["permanent"] else "once"
    return Row(
        *((*above, flow), Kind.EXPECTS, flow, "expects", now),
        timeout=int(record["timeout"]),
        before=f"{plain(record['policy'])}, {kind}",
    )


def _entry(
    key: tuple[object, ...],
    kind: Kind,
    record: Mapping[str, Any],
    rates: Rates,
    now: float,
) -> Row:
    counted = record["packets"] is not None
    packets = sum(record["packets"]) if counted else None
    size = sum(record["bytes"]) if counted else None
    packet_rate = byte_rate = None
    if packets is not None and size is not None:
        packet_rate, byte_rate = rates.of(record["id"], now, packets, size)
    before, after = parts_told(record)
    state = record["state"] or ("answered" if record["answered"] else "unanswered")
    if kind is Kind.CONTROL and record["inspection"] in ("inspected", "finished"):
        state = record["inspection"]
    return Row(
        key,
        kind,
        plain(flow_text(record["flow"])),
        plain(state),
        now,
        helper=plain(record["helper"] or ""),
        timeout=int(record["timeout"]),
        packets=packets,
        bytes=size,
        packet_rate=packet_rate,
        byte_rate=byte_rate,
        before=plain(", ".join(before)),
        after=plain("".join(f", {each}" for each in after)),
    )

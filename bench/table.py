# SPDX-License-Identifier: GPL-2.0-or-later
"""What was measured, beside what is aimed at: a table, JSON and a plot."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench import BACKENDS, PEER

Rounds = Sequence[Mapping[str, Mapping[str, float]]]
"""For each round, by variant and figure, what was measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: `value` is the median of the rounds, `low` to `high` their range.

    `unit` is what they are, such as "x conntrackd" for a ratio to it. A `target` is the
    least that is wanted, or with `at_most` the most; None: it is only reported. `also`
    is a figure of the other side's, for the reader.
    """

    name: str
    variant: str
    unit: str
    value: float
    low: float
    high: float
    target: float | None = None
    at_most: bool = False
    also: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: there is none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def verdict(self) -> str:
        """The target and whether it is met, in words."""
        if self.target is None:
            return "reported"
        sign = "<=" if self.at_most else ">="
        return f"{sign} {self.target:g} {'met' if self.met else 'MISSED'}"


# Figure, what it is, target by backend (None: none; latency and new flows are judged
# with the backend that runs by default), and whether it is the most.
_RATIOS: Final = (
    ("null packets/CPU-s", "NULL calls, packets per CPU-s", (2.0, 1.0), False),
    ("null p50 us", "NULL call, latency p50", (1.0, None), True),
    ("null p90 us", "NULL call, latency p90", (1.2, None), True),
    ("null p99 us", "NULL call, latency p99", (None, None), True),
    ("getport packets/CPU-s", "GETPORT, packets per CPU-s", (2.0, 1.0), False),
    ("getport p50 us", "GETPORT, latency p50", (1.0, None), True),
    ("getport p90 us", "GETPORT, latency p90", (1.2, None), True),
    ("getport p99 us", "GETPORT, latency p99", (None, None), True),
    ("new flows/s", "new control flows, expectations per s", (1.5, None), False),
    ("start s", "start to ready, s", (None, None), True),
)
_TRANSFERS: Final = (
    ("TNS / untagged", "transfer after ACCEPT"),
    ("redirected / untagged", "transfer of a redirected session"),
)


def live_rows(rounds: Rounds, memory: Mapping[str, float]) -> list[Row]:
    """The rows of what bench.live has measured. Rounds that lack a figure are left out.

    `memory` is what many real flows took; empty: it was not measured.
    """
    rows = []
    for figure, name, targets, at_most in _RATIOS:
        for variant, target in zip(BACKENDS, targets, strict=True):
            ratios = [
                each[variant][figure] / each[PEER][figure]
                for each in rounds
                if figure in each[variant] and figure in each[PEER]
            ]
            theirs = _median(rounds, PEER, figure)
            ours = _median(rounds, variant, figure)
            also = f"{ours:,.4g} to {theirs:,.4g}" if ratios else ""
            rows += _row(name, variant, "x conntrackd", ratios, target, at_most, also)
    for figure, name in _TRANSFERS:
        theirs = _median(rounds, PEER, figure)
        for variant in BACKENDS:
            ratios = [
                each[variant][figure] for each in rounds if figure in each[variant]
            ]
            also = f"conntrackd {theirs:.2f}"
            rows += _row(name, variant, "x untagged", ratios, 0.95, False, also)
    if memory:
        name = f"{memory['flows']:,.0f} real flows, memory"
        also = f"{memory['expectations']:,.0f} expectations"
        values = [memory["MiB"]]
        rows += _row(name, BACKENDS[0], "MiB above idle", values, None, True, also)
    return rows


def forwarding_rows(result: Mapping[str, Any]) -> list[Row]:
    """The row of what bench.forwarding has measured."""
    name = "packets of flows without a helper, per CPU-s"
    return _row(name, "ruleset", "x no ruleset", result["ratios"], 0.99, False, "")


def memory_rows(result: Mapping[str, Any]) -> list[Row]:
    """The rows of what bench.memory has measured."""
    flows, churn = result["flows"], result["churn"]
    rows = []
    for kind in ("resident", "traced"):
        held, *later = result[kind]
        name = f"{flows:,} tracked flows, {kind}"
        rows += _row(name, "engine", "MiB above idle", [held], 60.0, True)
        growth = later[-1] / later[0]
        name = f"the same after a churn of {churn:,}"
        rows += _row(name, "engine", "x its begin", [growth], 1.02, True)
    return rows


def start_rows(result: Mapping[str, Any]) -> list[Row]:
    """The row of what bench.start has measured."""
    name = "start: imports, configuration, ruleset"
    return _row(name, "host", "s of CPU", result["seconds"], 0.5, True)


def replay_rows(result: Mapping[str, Any]) -> list[Row]:
    """The rows of what bench.replay has measured."""
    rates = result["rates"]["cthelper replay"]
    rows = _row("replay", "host", "packets per CPU-s", rates, 300_000.0, False)
    for name, theirs in result["rates"].items():
        if name != "cthelper replay":
            ratios = [one / other for one, other in zip(rates, theirs, strict=True)]
            target = 5.0 if name == "tshark -T fields" else None
            rows += _row("replay", "host", f"x {name}", ratios, target, False)
    return rows


def _row(
    name: str,
    variant: str,
    unit: str,
    values: Sequence[float],
    target: float | None,
    at_most: bool,
    also: str = "",
) -> list[Row]:
    """The row, or none where nothing could be measured."""
    if not values:
        return []
    middle = statistics.median(values)
    return [
        Row(
            *(name, variant, unit, middle, min(values), max(values)),
            *(target, at_most, also),
        )
    ]


def _median(rounds: Rounds, variant: str, figure: str) -> float:
    values = [each[variant][figure] for each in rounds if figure in each[variant]]
    return statistics.median(values) if values else float("nan")


def text(rows: Iterable[Row]) -> str:
    """The table, as Markdown."""
    lines = [
        "| what | of | median (range) | in | target | figures |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spread = f"{_number(row.low)}-{_number(row.high)}"
        value = _number(row.value) + (f" ({spread})" if row.low != row.high else "")
        cells = (row.name, row.variant, value, row.unit, row.verdict, row.also)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


_COUNTED: Final = "\n## Instructions\n\n"


def with_counted(page: str, counted: str) -> str:
    """docs/bench.md with what was counted (`bench.instructions`) at its end."""
    return page.partition(_COUNTED)[0] + _COUNTED + counted


def with_compared(page: str, compared: str) -> str:
    """docs/bench.md with what was compared at its begin; what was counted stays."""
    _, heading, counted = page.partition(_COUNTED)
    return compared + heading + counted


def document(rows: Iterable[Row], **about: object) -> dict[str, object]:
    """What is written as JSON: what the measurements are about, and the rows."""
    return {**about, "rows": [asdict(row) | {"met": row.met} for row in rows]}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw how far each row with a target is from it, as PNG or SVG by the suffix."""
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.target is not None][::-1]
    figure = Figure(figsize=(9, 0.34 * len(shown) + 1.2))
    axes = figure.add_subplot()
    for place, row in enumerate(shown):
        target = row.target or 1.0
        # To the right of 1 is better than the target, whichever way it counts.
        share = target / row.value if row.at_most else row.value / target
        colour = "#2b7a4b" if row.met else "#b8432f"
        axes.barh(place, share, color=colour)
        axes.text(share * 1.05, place, _number(row.value), va="center", fontsize=8)
    axes.axvline(1.0, color="#333333", linewidth=1)
    axes.set_yticks(
        range(len(shown)), [f"{row.name} ({row.variant})" for row in shown], fontsize=8
    )
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    axes.set_xlabel("share of the target: 1 is just met, more is better")
    axes.margins(x=0.12)
    plain = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, bbox_inches="tight", metadata=plain)

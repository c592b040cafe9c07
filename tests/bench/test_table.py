# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks' table: ratios within a round, their medians, and the verdicts."""

import json
import tracemalloc
from pathlib import Path

import pytest

from bench.memory import main as measure_memory
from bench.table import (
    Row,
    document,
    forwarding_rows,
    live_rows,
    memory_rows,
    plot,
    replay_rows,
    start_rows,
    text,
)

RATE, P50, SHARE = "getport packets/CPU-s", "null p50 us", "TNS / untagged"


def round_of(theirs: float, ours: float, **more: float) -> dict[str, dict[str, float]]:
    """A round in which each daemon has a rate."""
    return {"conntrackd": {RATE: theirs}, "native": {RATE: ours, **more}} | {
        "netfilterqueue": {}
    }


def test_ratio_is_the_median_of_those_within_each_round() -> None:
    rounds = [round_of(100, 150), round_of(200, 500), round_of(10, 30)]
    (row,) = live_rows(rounds, {})
    assert (row.value, row.low, row.high) == (2.5, 1.5, 3.0)
    assert (row.variant, row.unit, row.target) == ("native", "x conntrackd", 2.0)
    assert row.met
    assert row.also == "150 to 100"


def test_round_that_lacks_a_figure_is_left_out_of_its_row() -> None:
    rounds = [round_of(100, 150), {"conntrackd": {}, "native": {RATE: 1.0}}]
    rounds[1]["netfilterqueue"] = {}
    (row,) = live_rows(rounds, {})
    assert row.value == 1.5
    assert row.met is False


def test_transfer_is_beside_the_same_one_untagged() -> None:
    rounds = [
        {"conntrackd": {SHARE: 0.2}, "native": {SHARE: 0.96}, "netfilterqueue": {}}
    ]
    (row,) = live_rows(rounds, {})
    assert (row.value, row.unit, row.met) == (0.96, "x untagged", True)
    assert row.also == "conntrackd 0.20"


def test_ruleset_may_cost_a_hundredth_of_other_traffic() -> None:
    (row,) = forwarding_rows({"ratios": [0.9951, 0.98, 0.996]})
    assert (row.value, row.target, row.met) == (0.9951, 0.99, True)


def row(value: float, target: float | None, *, at_most: bool = False) -> Row:
    return Row("it", "native", "s", value, value, value, target, at_most)


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (row(2.0, 2.0), ">= 2 met"),
        (row(1.99, 2.0), ">= 2 MISSED"),
        (row(0.5, 0.5, at_most=True), "<= 0.5 met"),
        (row(0.51, 0.5, at_most=True), "<= 0.5 MISSED"),
        (row(7.0, None), "reported"),
    ],
)
def test_verdict_says_target_and_whether_it_is_met(made: Row, verdict: str) -> None:
    assert made.verdict == verdict
    assert f"| {verdict} |" in text([made])


def test_host_benchmarks_have_their_rows() -> None:
    memory = {"flows": 1000, "churn": 5000, "resident": [50.0, 55.0, 60.0]}
    rows = memory_rows({**memory, "traced": [101.0, 102.0, 102.0]})
    assert [each.met for each in rows] == [True, False, False, True]
    (started,) = start_rows({"seconds": [0.1, 0.3, 0.2]})
    assert (started.value, started.met) == (0.2, True)
    rates = {"cthelper replay": [100.0, 300.0], "tshark": [50.0, 50.0]}
    whole, beside = replay_rows({"rates": rates})
    assert (whole.value, whole.met) == (200.0, False)
    assert (beside.value, beside.unit, beside.met) == (4.0, "x tshark", None)


def test_memory_of_flows_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    amount = ["--kind=traced", "--flows=50", "--churn=100"]
    monkeypatch.setattr("sys.argv", ["bench.memory", *amount])
    try:
        assert measure_memory() == 0
    finally:
        tracemalloc.stop()
    held, *later = json.loads(capsys.readouterr().out)
    assert 0.01 < held < 1
    assert len(later) == 10


ROWS = [row(2.0, 2.0), row(0.51, 0.5, at_most=True), row(7.0, None)]


@pytest.mark.bench
def test_plot_is_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "plot.svg"
    plot(ROWS, file)
    assert file.read_text(encoding="utf-8").count("<svg ") == 1


def test_document_has_every_row() -> None:
    written = json.loads(json.dumps(document(ROWS, rounds=5)))
    assert written["rounds"] == 5
    assert [each["met"] for each in written["rows"]] == [True, False, None]

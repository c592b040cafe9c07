# SPDX-License-Identifier: GPL-2.0-or-later
"""What is exposed of a status, and that the page, rules and dashboard know no other."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as latest
from prometheus_client.parser import text_string_to_metric_families as plain_families

from cthelper.core.cli.exposition import _EVENTS, METRICS, exposition, samples
from cthelper.core.control.health import Fill, status
from cthelper.core.control.statistics import Statistics
from cthelper.core.queue.binding import BoundQueue
from tests.core.control.test_tree import expectation, listed, tuple_of

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "docs" / "metrics"
PAGE: Final = (ROOT / "docs" / "metrics.md").read_text("utf-8")

# It has no types.
openmetrics_families: Callable[[str], Iterable[Metric]] = (
    latest.text_string_to_metric_families
)


def supervisor(**more: object) -> dict[str, Any]:
    return {
        **{"version": "1", "code": "compiled", "backend": "native", "kernel": "6.1"},
        **{"pid": 1, "since": 1000.5, "counters": {"started": 1}},
        "workers": [
            {"worker": 0, "pid": 2, "serving": True},
            {"worker": 1, "pid": None, "serving": False},
        ],
        "helpers": {"line": {"policies": ["data"]}, "tns": {"policies": ["data"]}},
        **{"queues": [2077, 2078, 2079], "closed_queues": [2078]},
        **{"ruleset": True, "reload": {"time": 2000.0, "error": "line 1"}},
        "events_error": None,
        **more,
    }


def server(**counters: int) -> dict[str, Any]:
    return {
        **{"pid": 2, "expectations": 3, "quarantined": ["tns"]},
        "flows": {"used": 1, "most": 100},
        "memory": {"used": 1000, "most": 4096},
        "counters": {
            **{"expectation": 2, "refused.third-party-address": 4, "packets": 9},
            **{"bypassed": 1, "verdicts_refused": 5, **counters},
        },
    }


def found(**more: object) -> dict[str, Any]:
    return status(
        supervisor(**more),
        {0: server(), 1: None},
        {2077: BoundQueue(2077, 1, 4, 9, 5), 2078: BoundQueue(2078, 1, 6, 9, 7)},
        Fill(2, 65536),
        Fill(1, 4096),
        counted().totals(),
    )


def counted() -> Statistics:
    """Two announcements that were met; one of the flows has ended."""
    statistics = Statistics(0.0)
    for master, seconds in ((1, 0.02), (2, 60.0)):
        statistics.announced(expectation(master, 7000), 0.0)
        statistics.begun(listed(10 + master, master=tuple_of(master)), seconds)
    statistics.ended(listed(11, master=tuple_of(1)))
    return statistics


def values(told: dict[str, Any] | None) -> dict[tuple[str, ...], float]:
    """The value of each sample, by its name and its labels' values."""
    taken = [((name, *labels), value) for name, labels, value in samples(told)]
    assert len(dict(taken)) == len(taken)
    return dict(taken)


def test_every_metric_is_exposed_and_its_value_is_the_status() -> None:
    given_ = values(found())
    assert {name for name, *_ in given_} == METRICS.keys()
    assert (
        given_.items()
        >= {
            ("cthelper_up",): 1,
            ("cthelper_build_info", "1", "compiled", "native", "6.1"): 1,
            ("cthelper_start_time_seconds",): 1000.5,
            ("cthelper_healthy",): 0,
            # A worker, a queue, a reload, and a helper that is left out.
            ("cthelper_problems",): 4,
            ("cthelper_ruleset_in_place",): 1,
            ("cthelper_config_last_reload_successful",): 0,
            ("cthelper_config_last_reload_timestamp_seconds",): 2000,
            ("cthelper_helpers",): 2,
            ("cthelper_worker_serving", "0"): 1,
            ("cthelper_worker_serving", "1"): 0,
            ("cthelper_worker_answering", "0"): 1,
            ("cthelper_worker_answering", "1"): 0,
            ("cthelper_worker_flows", "0"): 1,
            ("cthelper_worker_flows_limit", "0"): 100,
            ("cthelper_worker_memory_bytes", "0"): 1000,
            ("cthelper_worker_memory_limit_bytes", "0"): 4096,
            ("cthelper_worker_expectations", "0"): 3,
            ("cthelper_worker_quarantined_helpers", "0"): 1,
            ("cthelper_packets_total", "0"): 9,
            ("cthelper_verdicts_refused_total", "0"): 5,
            ("cthelper_events_total", "0", "expectation", ""): 2,
            ("cthelper_events_total", "0", "refused", "third-party-address"): 4,
            ("cthelper_events_total", "0", "helper-fault", ""): 0,
            ("cthelper_events_total", "supervisor", "started", ""): 1,
            ("cthelper_events_total", "supervisor", "worker-died", ""): 0,
            ("cthelper_queue_bound", "2077"): 1,
            ("cthelper_queue_bound", "2079"): 0,
            ("cthelper_queue_waiting_packets", "2077"): 4,
            ("cthelper_queue_bypassed_packets_total", "2077"): 5,
            ("cthelper_queue_dropped_packets_total", "2078"): 7,
            ("cthelper_table_entries", "conntrack"): 2,
            ("cthelper_table_entries_limit", "conntrack"): 65536,
            ("cthelper_table_entries", "expectations"): 1,
            ("cthelper_table_entries_limit", "expectations"): 4096,
            ("cthelper_announcements_total", "line"): 2,
            ("cthelper_data_flows_total", "line"): 2,
            ("cthelper_data_flows_live", "line"): 1,
            ("cthelper_data_packets_total", "line"): 5,
            ("cthelper_data_bytes_total", "line"): 500,
            ("cthelper_setup_seconds_bucket", "line", "0.01"): 0,
            ("cthelper_setup_seconds_bucket", "line", "0.03"): 1,
            ("cthelper_setup_seconds_bucket", "line", "30.0"): 1,
            ("cthelper_setup_seconds_bucket", "line", "+Inf"): 2,
            ("cthelper_setup_seconds_count", "line"): 2,
            ("cthelper_setup_seconds_sum", "line"): 60.02,
        }.items()
    )
    # What the queues tell is not told twice.
    assert ("cthelper_events_total", "0", "bypassed", "") not in given_


def test_what_is_not_known_is_absent() -> None:
    assert values(None) == {("cthelper_up",): 0}
    told = values(found(reload=None))
    assert ("cthelper_config_last_reload_successful",) not in told
    busy = values(status(None, {0: server()}, {}, None, None))
    assert busy["cthelper_up",] == 1
    assert busy["cthelper_healthy",] == 0
    assert busy["cthelper_worker_flows", "0"] == 1
    assert ("cthelper_build_info",) not in {key[:1] for key in busy}


def test_daemon_of_before_has_no_statistics() -> None:
    before = found()
    del before["statistics"]
    mine, without = values(found()), values(before)
    assert without.items() <= mine.items()
    assert not [name for name, *_ in without if "setup" in name or "_data_" in name]


@pytest.mark.parametrize("told", [None, found()], ids=["down", "up"])
def test_both_formats_are_read_back(told: dict[str, Any] | None) -> None:
    mine = values(told)
    for openmetrics in (True, False):
        text, kind = exposition(told, openmetrics=openmetrics)
        assert ("openmetrics" in kind) is openmetrics
        assert text.endswith(b"# EOF\n") is openmetrics
        read = openmetrics_families if openmetrics else plain_families
        back = [each for family in read(text.decode()) for each in family.samples]
        assert {
            (each.name, *(each.labels[label] for label in METRICS[each.name].labels)):
                each.value
            for each in back
        } == mine  # fmt: skip


def test_counters_by_the_thousand_are_few_samples_that_never_fall() -> None:
    many = {f"refused.reason-{number}": 1 for number in range(5000)}
    told = found(counters=many)
    taken = values(told)
    mine = {key: each for key, each in taken.items() if key[1:2] == ("supervisor",)}
    assert len(mine) == _EVENTS + 1
    assert sum(mine.values()) == 5000
    others = ("cthelper_events_total", "supervisor", "others", "")
    # What comes later, whatever its name, takes nobody's place.
    later = values(found(counters={**many, "aaa": 1}))
    assert later == {**taken, others: taken[others] + 1}


@given(
    st.dictionaries(st.text(), st.integers(1, 1 << 64), max_size=20),
    st.dictionaries(st.text("ab.-") | st.just("others"), st.integers(1, 9)),
)
def test_any_counters_make_an_exposition_that_is_read_back(
    odd: dict[str, int], plain: dict[str, int]
) -> None:
    told = found(counters={**plain, **odd})
    text, _ = exposition(told, openmetrics=True)
    back = list(openmetrics_families(text.decode()))
    (events,) = (each for each in back if each.name == "cthelper_events")
    mine = [each for each in events.samples if each.labels["worker"] == "supervisor"]
    assert len(mine) <= _EVENTS + 1
    assert sum(each.value for each in mine) == pytest.approx(
        sum({**plain, **odd}.values())
    )


def test_page_has_every_metric_in_the_same_words() -> None:
    rows = re.findall(r"^\| `(cthelper_\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert dict(rows) == {
        name: f"{each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | "
        f"{each.help}"
        for name, each in METRICS.items()
    }


def test_rules_and_dashboard_name_no_metric_that_is_not_exposed() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    asked = [
        *expressions(dashboard),
        *re.findall(r"expr: (.*)", (FOLDER / "alerts.yml").read_text("utf-8")),
    ]
    assert len(asked) > 25
    named = [set(re.findall(r"\bcthelper_\w+", each)) for each in asked]
    assert all(named)
    assert set().union(*named) <= METRICS.keys()
    # What labels are matched by or summed over.
    labels = {label for each in METRICS.values() for label in each.labels}
    for each in asked:
        for group in re.findall(r"\bby \(([^)]*)\)", each):
            assert set(group.split(", ")) <= labels | {"instance"}, each
        for matched in re.findall(r"(\w+)=~?\"", each):
            assert matched in labels | {"instance"}, each


def test_dashboard_is_one_that_grafana_imports() -> None:
    """As its JSON model has it; Grafana itself is not asked."""
    board = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    assert board["id"] is None
    assert board["title"]
    assert re.fullmatch(r"[\w-]{1,40}", board["uid"])
    assert board["schemaVersion"] >= 36
    assert {each["name"] for each in board["templating"]["list"]} == {
        "datasource",
        "instance",
    }
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        cells = {
            (place["x"] + x, place["y"] + y)
            for x in range(place["w"])
            for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [each["refId"] for each in panel["targets"]] == [
            *"ABCDEFGH"[: len(panel["targets"])]
        ]


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """What its panels ask Prometheus for."""
    return [each["expr"] for panel in dashboard["panels"] for each in panel["targets"]]

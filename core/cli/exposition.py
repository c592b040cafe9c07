# SPDX-License-Identifier: GPL-2.0-or-later
"""What `cthelper metrics` exposes of a daemon's status; docs/metrics.md has the table.

Labels are bounded: numbers of workers and queues, and codes of ours. The counters of a
worker are its process's and begin at 0 with it, so each has its worker's label: a sum
over workers would fall where one dies, and be taken for a counter that began anew.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prometheus_client.core import Metric

# Names of counters that become labels, no two the same, and how many of a process.
# All others are counted together: a plugin's refusals have reasons that are its own.
_NAME: Final = re.compile(r"([\w-]{1,40})(?:\.([\w.-]{1,60}))?", re.ASCII)
_EVENTS: Final = 250
_OTHERS: Final = "others"
# Also where they never happened, so that the first one is seen as an increase.
_RARE: Final = {
    "supervisor": ("ruleset-lost", "worker-died", "worker-stuck", "controller-died"),
    "server": ("helper-fault", "log-lost"),
}
_PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
# Of a server's counters those that are no events, and have metrics of their own.
_TALLIES: Final = ("packets", "verdicts_refused", "bypassed", "dropped")

# What names of samples have behind their metric's (OpenMetrics 1.0).
_SUFFIXES: Final = {
    "counter": ("_total",),
    "info": ("_info",),
    "histogram": ("_bucket", "_count", "_sum"),
}

Sample = tuple[str, tuple[str, ...], float]
"""A metric's name, its labels' values, and its value."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """A metric: what it is, and its labels."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = {
    "cthelper_up": Exposed("gauge", "1 where the daemon has answered, else 0"),
    "cthelper_build_info": Exposed(
        "info",
        "which cthelper runs, on which kernel",
        ("version", "code", "backend", "kernel"),
    ),
    "cthelper_start_time_seconds": Exposed(
        "gauge", "when the daemon began, in seconds since 1970"
    ),
    "cthelper_healthy": Exposed(
        "gauge", "1 where cthelper status finds nothing amiss, else 0"
    ),
    "cthelper_problems": Exposed("gauge", "how much is amiss by cthelper status"),
    "cthelper_ruleset_in_place": Exposed(
        "gauge", "1 where the daemon's table is in the kernel, else 0"
    ),
    "cthelper_config_last_reload_successful": Exposed(
        "gauge",
        "1 where the last reload was taken, 0 where it was refused; absent "
        "where there was none",
    ),
    "cthelper_config_last_reload_timestamp_seconds": Exposed(
        "gauge", "when the last reload was taken or refused, in seconds since 1970"
    ),
    "cthelper_helpers": Exposed("gauge", "helpers that the daemon has registered"),
    "cthelper_worker_serving": Exposed(
        "gauge", "1 where the worker serves its queues, else 0", ("worker",)
    ),
    "cthelper_worker_answering": Exposed(
        "gauge", "1 where the worker tells how it is, else 0", ("worker",)
    ),
    "cthelper_worker_flows": Exposed(
        "gauge", "flows that the worker remembers", ("worker",)
    ),
    "cthelper_worker_flows_limit": Exposed(
        "gauge", "how many it may remember, flow_limit", ("worker",)
    ),
    "cthelper_worker_memory_bytes": Exposed(
        "gauge", "what it keeps of its flows", ("worker",)
    ),
    "cthelper_worker_memory_limit_bytes": Exposed(
        "gauge", "how much it may keep, memory of the budget", ("worker",)
    ),
    "cthelper_worker_expectations": Exposed(
        "gauge", "live expectations that the worker accounts for", ("worker",)
    ),
    "cthelper_worker_quarantined_helpers": Exposed(
        "gauge", "helpers that the worker leaves out after faults", ("worker",)
    ),
    "cthelper_packets_total": Exposed(
        "counter", "packets that the worker has received", ("worker",)
    ),
    "cthelper_verdicts_refused_total": Exposed(
        "counter", "verdicts that the kernel has refused", ("worker",)
    ),
    "cthelper_events_total": Exposed(
        "counter",
        "events of the log, written or not; worker is a number, or supervisor",
        ("worker", "event", "reason"),
    ),
    "cthelper_queue_bound": Exposed(
        "gauge", "1 where somebody has bound the queue, else 0", ("queue",)
    ),
    "cthelper_queue_waiting_packets": Exposed(
        "gauge", "packets that wait in the queue", ("queue",)
    ),
    "cthelper_queue_bypassed_packets_total": Exposed(
        "counter", "packets that have passed a full queue, uninspected", ("queue",)
    ),
    "cthelper_queue_dropped_packets_total": Exposed(
        "counter", "packets that a full queue has dropped: it fails closed", ("queue",)
    ),
    "cthelper_table_entries": Exposed(
        "gauge",
        "entries of the kernel's table, conntrack or expectations, of all programs",
        ("table",),
    ),
    "cthelper_table_entries_limit": Exposed(
        "gauge", "how many the kernel's table may have", ("table",)
    ),
    "cthelper_announcements_total": Exposed(
        "counter", "expectations that were put in", ("helper",)
    ),
    "cthelper_data_flows_total": Exposed(
        "counter", "flows that were expected", ("helper",)
    ),
    "cthelper_data_flows_live": Exposed("gauge", "those that are there", ("helper",)),
    "cthelper_data_packets_total": Exposed(
        "counter", "packets of those that have ended, both directions", ("helper",)
    ),
    "cthelper_data_bytes_total": Exposed(
        "counter", "bytes of those that have ended, both directions", ("helper",)
    ),
    "cthelper_setup_seconds_bucket": Exposed(
        "histogram",
        "from an announcement to the first packet of the flow that met it",
        ("helper", "le"),
    ),
    "cthelper_setup_seconds_count": Exposed(
        "histogram", "how many announcements were met", ("helper",)
    ),
    "cthelper_setup_seconds_sum": Exposed(
        "histogram", "the seconds of all of them", ("helper",)
    ),
}
"""All that are exposed, by the names of their samples."""


def families(found: Mapping[str, Any] | None) -> "list[Metric]":
    """The metrics of a status; None: no daemon has answered."""
    from prometheus_client.core import Metric

    made: dict[str, Metric] = {}
    for name, labels, value in samples(found):
        exposed = METRICS[name]
        bare = name
        for suffix in _SUFFIXES.get(exposed.kind, ()):
            bare = bare.removesuffix(suffix)
        family = made.get(bare)
        if family is None:
            family = made[bare] = Metric(bare, exposed.help, exposed.kind)
        pairs = dict(zip(exposed.labels, labels, strict=True))
        family.add_sample(name, pairs, value)
    return list(made.values())


def exposition(
    found: Mapping[str, Any] | None, *, openmetrics: bool
) -> tuple[bytes, str]:
    """Their text and its type, in OpenMetrics or in Prometheus' own format."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest
    from prometheus_client.openmetrics import exposition as latest
    from prometheus_client.registry import Collector

    class Found(Collector):
        def collect(self) -> "Iterable[Metric]":
            return families(found)

    registry = CollectorRegistry()
    registry.register(Found())
    if openmetrics:
        # It has no types.
        generate_openmetrics: Callable[[Collector], bytes] = latest.generate_latest
        return generate_openmetrics(registry), latest.CONTENT_TYPE_LATEST
    return generate_latest(registry), _PLAIN


def samples(found: Mapping[str, Any] | None) -> Iterator[Sample]:
    """The same, without a library; those of one metric need not be together."""
    yield "cthelper_up", (), float(found is not None)
    if found is None:
        return
    yield "cthelper_healthy", (), float(found["health"] == "ok")
    yield "cthelper_problems", (), float(len(found["problems"]))
    if found["supervisor"] is not None:
        yield from _supervisor(found["supervisor"])
    for server in found["servers"]:
        yield from _server(server)
    for queue in found["queues"]:
        yield from _queue(queue)
    for table, fill in found["tables"].items():
        if fill is not None:
            yield "cthelper_table_entries", (table,), fill["used"]
            yield "cthelper_table_entries_limit", (table,), fill["most"]
    # A daemon that runs on after an upgrade may not know of any.
    if (statistics := found.get("statistics")) is not None:
        for helper, tally in statistics["helpers"].items():
            yield from _tally(helper, tally)


def _supervisor(told: Mapping[str, Any]) -> Iterator[Sample]:
    build = (told["version"], told["code"], told["backend"], told["kernel"])
    yield "cthelper_build_info", build, 1.0
    yield "cthelper_start_time_seconds", (), told["since"]
    yield "cthelper_ruleset_in_place", (), float(told["ruleset"])
    yield "cthelper_helpers", (), float(len(told["helpers"]))
    if (reload := told["reload"]) is not None:
        taken = float(reload["error"] is None)
        yield "cthelper_config_last_reload_successful", (), taken
        name = "cthelper_config_last_reload_timestamp_seconds"
        yield name, (), reload["time"]
    for each in told["workers"]:
        serving = float(each["serving"])
        yield "cthelper_worker_serving", (str(each["worker"]),), serving
    yield from _events("supervisor", told["counters"], _RARE["supervisor"])


def _server(told: Mapping[str, Any]) -> Iterator[Sample]:
    labels = (str(told["worker"]),)
    yield "cthelper_worker_answering", labels, float(told["answers"])
    if not told["answers"]:
        return
    flows, memory, counters = told["flows"], told["memory"], told["counters"]
    yield "cthelper_worker_flows", labels, flows["used"]
    yield "cthelper_worker_flows_limit", labels, flows["most"]
    yield "cthelper_worker_memory_bytes", labels, memory["used"]
    yield "cthelper_worker_memory_limit_bytes", labels, memory["most"]
    yield "cthelper_worker_expectations", labels, told["expectations"]
    quarantined = float(len(told["quarantined"]))
    yield "cthelper_worker_quarantined_helpers", labels, quarantined
    yield "cthelper_packets_total", labels, counters.get("packets", 0)
    refused = counters.get("verdicts_refused", 0)
    yield "cthelper_verdicts_refused_total", labels, refused
    events = {name: n for name, n in counters.items() if name not in _TALLIES}
    yield from _events(labels[0], events, _RARE["server"])


def _queue(told: Mapping[str, Any]) -> Iterator[Sample]:
    labels = (str(told["queue"]),)
    yield "cthelper_queue_bound", labels, float(told["bound"])
    if told["bound"]:
        yield "cthelper_queue_waiting_packets", labels, told["waiting"]
        fate = "dropped" if "dropped" in told else "bypassed"
        yield f"cthelper_queue_{fate}_packets_total", labels, told[fate]


def _tally(helper: str, told: Mapping[str, Any]) -> Iterator[Sample]:
    labels = (helper,)
    yield "cthelper_announcements_total", labels, told["announced"]
    yield "cthelper_data_flows_total", labels, told["flows"]
    yield "cthelper_data_flows_live", labels, told["live"]
    yield "cthelper_data_packets_total", labels, told["packets"]
    yield "cthelper_data_bytes_total", labels, told["bytes"]
    setup, below = told["setup"], 0
    for end, count in setup["classes"]:
        below += count
        bound = "+Inf" if end is None else str(float(end))
        yield "cthelper_setup_seconds_bucket", (helper, bound), below
    yield "cthelper_setup_seconds_count", labels, setup["count"]
    yield "cthelper_setup_seconds_sum", labels, setup["seconds"]


def _events(
    worker: str, counters: Mapping[str, int], rare: Iterable[str]
) -> Iterator[Sample]:
    """One for each name of a counter, and beyond so many one for all others.

    Counters come in the order in which they began, so that what has a sample of its own
    keeps it, and what all others count never falls.
    """
    own = others = 0
    for name, count in {**dict.fromkeys(rare, 0), **counters}.items():
        found = _NAME.fullmatch(name)
        if own < _EVENTS and found is not None and name != _OTHERS:
            own += 1
            labels = worker, found[1], found[2] or ""
            yield "cthelper_events_total", labels, count
        else:
            others += count
    if others:
        yield "cthelper_events_total", (worker, _OTHERS, ""), others

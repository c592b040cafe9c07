# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands print of a daemon that is asked, and their exit codes."""

import json
import string
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.cli import main
from cthelper.core.cli.control import filter_text, read_filter
from cthelper.core.control import watching
from cthelper.core.control.matching import Filter
from cthelper.core.control.statistics import Statistics
from cthelper.core.errors import UsageError
from cthelper.core.netlink.monitor import Happened
from cthelper.core.records import Record
from cthelper.core.tuples import Kind, flow_key
from tests.core.builders import CLIENT, SERVER, flow_tuple
from tests.core.control.controlled import Told, World, controller
from tests.core.control.test_tree import expectation, listed, tuple_of


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "socket")
    world.kernel.table = [
        listed(1, helper="line"),
        listed(10, master=tuple_of(1)),
        listed(11, master=tuple_of(9)),
    ]
    world.kernel.expected = [expectation(1, 7001)]
    world.server.flows = [[flow_key(1, 0), "done"]]
    with controller(world):
        yield world


class Ran:
    """A command's exit code, and what it printed."""

    def __init__(
        self, world: World, capsys: pytest.CaptureFixture[str], *words: str
    ) -> None:
        self.code = main([*words, "--socket", str(world.path)])
        self.out, self.err = capsys.readouterr()


def test_status_is_one_screen(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    state = cast(Record, world.supervisor.state)
    state["since"] = time.time() - 90_000
    done = Ran(world, capsys, "status")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "cthelper 1, compiled, native backend, Linux 6.1, process 1 for 1 d 1 h",
        "health       ok",
        "ruleset      in place",
        "reload       none since the start",
        "helpers      line",
        "worker 0     process 2: 1 of 100 flows, 1000 B of 1.0 MiB, 3 expectations",
        "conntrack    2 of 65,536 in the kernel's table",
        "expectations 1 of 4,096 in the kernel's table",
        "counted      expectation 2, started 1",
    ]
    state["ruleset"] = False
    state["reload"] = {"time": 0.0, "error": "line 1"}
    done = Ran(world, capsys, "status")
    assert done.code == 1
    assert "health       degraded\n  !          the ruleset is gone: " in done.out
    assert "reload       1970-01-01 00:00:00+00:00 refused: line 1\n" in done.out
    done = Ran(world, capsys, "status", "--json")
    assert done.code == 1
    assert json.loads(done.out)["health"] == "degraded"


def test_flows_are_shown_as_trees(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Ran(world, capsys, "flows")
    assert (done.code, done.err) == (0, "")
    counted = "ESTABLISHED, 0 s, 5 packets, 500 B"
    assert done.out.splitlines() == [
        f"tcp {CLIENT}:1 > {SERVER}:7000  line, finished (done), {counted}",
        f"  expects tcp {CLIENT} > {SERVER}:7001  data, once, 30 s",
        f"  expected tcp {CLIENT}:10 > {SERVER}:7000  {counted}",
        f"tcp {CLIENT}:9 > {SERVER}:7000  has ended",
        f"  expected tcp {CLIENT}:11 > {SERVER}:7000  {counted}",
    ]
    done = Ran(world, capsys, "flows", "--json", "--sport", "1", "-p", "tcp")
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == [1]
    done = Ran(world, capsys, "flows", "-s", "10.9.0.0/16")
    assert (done.code, done.out) == (0, "")


def test_flows_are_deleted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    done = Ran(world, capsys, "flows", "delete", "--data", "--sport", "1")
    assert done.code == 0
    assert done.out.endswith("\n2 entries deleted\n")
    assert [each.entry.id for each in world.kernel.table] == [11]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("flows", "delete"), "flows delete: say which flows, or --all"),
        (("flows", "--data"), "--data is for flows delete"),
        (("flows", "--event", "new"), "--event is for flows events"),
        (("stats",), "statistics are off: [control] statistics = true"),
        (("stats", "-n", "-1"), "-n -1: say 0 or more"),
        (("flows", "--state", "open"), "OPEN is no state: NONE"),
        (("expectations", "delete"), "expectations delete: say which, or flush all"),
        (("events", "--no-follow"), "--no-follow is for --since"),
    ],
)
def test_what_makes_no_sense_is_refused(
    world: World,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    error: str,
) -> None:
    done = Ran(world, capsys, *words)
    # What the daemon refuses is no wrong usage.
    assert done.code == (1 if "--state" in words or words == ("stats",) else 2)
    assert done.err.startswith(f"cthelper: {error}")
    assert done.out == ""


def test_expectations_are_listed_added_and_deleted(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    first = f"tcp {CLIENT} > {SERVER}:7001  line data, once, 30 s, of tcp {CLIENT}:1 > "
    assert Ran(world, capsys, "expectations", "list").out.startswith(first)
    done = Ran(
        *(world, capsys, "expectations", "add", "udp", f"{SERVER}:53", "--permanent"),
        *("--flow", "tcp", f"{CLIENT}:1", f"{SERVER}:7000", "--from-port", "53"),
    )
    assert done.out == (
        f"udp any port 53 > {SERVER}:53  line data, permanent, 30 s, of "
        f"tcp {CLIENT}:1 > {SERVER}:7000\n"
    )
    done = Ran(world, capsys, "expectations", "delete", "--dport", "53")
    assert done.out.endswith("\n1 expectations deleted\n")
    assert Ran(world, capsys, "expectations", "flush").out.startswith(first)
    assert world.kernel.expected == []


def test_events_are_a_line_each(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: Record = {
        "helper": "line",
        "policy": "data",
        "flow": flow_tuple(),
        "expects": expectation(1, 7001),
        "detail": "two words",
        "said": "\x1b[2J\nforged",
        "label": None,
    }
    world.server.recent.add(time.time(), "expectation", "info", fields)
    done = Ran(world, capsys, "events", "--since", "1h", "--no-follow")
    time_, _, line = done.out.partition(" ")
    assert time_.endswith("+00:00")
    assert line == (
        f"expectation line tcp {CLIENT}:40000 > {SERVER}:7000 "
        f'expects tcp {CLIENT} > {SERVER}:7001 policy=data detail="two words" '
        r'said="\u001b[2J\nforged"'
        "\n"
    )
    done = Ran(world, capsys, "events", "--since", "9", "--no-follow", "--event", "x")
    assert (done.code, done.out) == (0, "")


def test_entries_are_shown_as_they_come_and_go(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = replace(listed(10), ended=1_700_000_000_000_000_000)
    monitor = Told(
        [
            Happened(Kind.NEW, listed(2, helper="line")),
            Happened(Kind.EXPECTATION_NEW, expectation(2, 7001)),
        ],
        [Happened(Kind.UPDATE, listed(50)), Happened(Kind.DESTROY, ended)],
    )
    monkeypatch.setattr(watching, "Monitor", monitor.opened)
    done = Ran(world, capsys, "flows", "events", "--all")
    assert done.code == 1
    assert done.err.startswith("cthelper: read events: ")
    assert [line.partition(" ")[2] for line in done.out.splitlines()] == [
        f"new tcp {CLIENT}:2 > {SERVER}:7000  line, ESTABLISHED, 0 s, 5 packets, 500 B",
        f"expectation-new tcp {CLIENT} > {SERVER}:7001  line data, once, 30 s, "
        f"of tcp {CLIENT}:2 > {SERVER}:7000",
        f"update tcp {CLIENT}:50 > {SERVER}:7000  ESTABLISHED, 0 s, 5 packets, 500 B",
        f"destroy tcp {CLIENT}:10 > {SERVER}:7000  ESTABLISHED, 5 packets, 500 B, "
        f"expected by tcp {CLIENT}:1 > {SERVER}:7000",
        "events-missed 2 times: they came faster than they were read",
    ]
    done = Ran(world, capsys, "flows", "events", "--json", "--event", "destroy")
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [each["event"] for each in told] == ["destroy", "events-missed"]
    assert told[0]["ended"] == "2023-11-14T22:13:20.000+00:00"
    assert monitor.asked == [Kind.DESTROY]


def test_statistics_are_a_table(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = Statistics(1_700_000_000.0)
    statistics.compare(world.kernel.table)
    for master, seconds in ((1, 0.002), (3, 45.0)):
        statistics.announced(
            replace(expectation(master, 7000), timeout=60), 10.0 * master
        )
        flow = listed(20 + master, master=tuple_of(master))
        statistics.begun(flow, 10.0 * master + seconds)
        statistics.ended(flow)
    world.collect(statistics)
    done = Ran(world, capsys, "stats")
    assert (done.code, done.err) == (0, "")
    service = f"tcp {SERVER}:7000"
    assert done.out.splitlines() == [
        "since 2023-11-14 22:13:20+00:00",
        "HELPER  PEER       SERVICE                ANNOUNCED  FLOWS  LIVE  PACKETS  "
        "  BYTES    SETUP   SLOWEST",
        f"line    {CLIENT}  {service}          2      3     1       15  "
        "1.5 KiB  0.003 s  45.000 s",
    ]
    done = Ran(world, capsys, "stats", "--by", "helper", "-n", "1", "--sort", "flows")
    assert done.out.splitlines()[1].split()[:3] == ["HELPER", "ANNOUNCED", "FLOWS"]
    assert done.out.splitlines()[2].split()[:3] == ["line", "2", "3"]
    done = Ran(world, capsys, "stats", "-d", "10.0.0.0/8")
    assert done.out == "since 2023-11-14 22:13:20+00:00\n"
    done = Ran(world, capsys, "stats", "--json")
    head, row = (json.loads(each) for each in done.out.splitlines())
    assert head["helpers"]["line"]["flows"] == row["flows"] == 3
    assert (row["bytes"], row["live_bytes"]) == (1000, 500)
    done = Ran(world, capsys, "status", "--json")
    assert json.loads(done.out)["statistics"] == head


def test_status_that_may_not_be_asked_is_not_degraded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is not in the group, and a file that is no socket."""
    (tmp_path / "file" / "socket").parent.write_text("")
    assert main(["status", "--socket", str(tmp_path / "file" / "socket")]) == 2
    assert capsys.readouterr().err.endswith("Not a directory\n")


def test_nobody_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "no daemon answers: is `cthelper run` running?"
    for words, code in ((("status",), 2), (("flows",), 1), (("events",), 1)):
        assert main([*words, "--socket", str(tmp_path / "none")]) == code
        assert capsys.readouterr().err == f"cthelper: {tmp_path}/none: {said}\n"


@pytest.mark.parametrize(
    ("text", "filter_"),
    [
        ("", {}),
        ("-p udp", {"transport": "udp"}),
        ("-ptcp --dport=111", {"transport": "tcp", "dport": 111}),
        (
            "-s 10.0.0.0/8 -d fd77::1",
            {"source": "10.0.0.0/8", "destination": "fd77::1"},
        ),
        ("--helper 'a b' --zone 7", {"helper": "a b", "zone": 7}),
        ("--state established", {"state": "ESTABLISHED"}),
        ("--orig-port-src 5", {"sport": 5}),
    ],
)
def test_filter_is_read_as_the_commands_read_it(
    text: str, filter_: dict[str, object]
) -> None:
    assert read_filter(text) == filter_


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("sunrpc", "unrecognized arguments: sunrpc"),
        ("-p icmp", "argument -p/--proto/--protonum: invalid choice: 'icmp'"),
        ("--dport x", "argument --dport/--orig-port-dst: invalid int value: 'x'"),
        ("--dport 70000", "dport 70000 is no number from 0 to 65535"),
        ("-s nowhere", "'nowhere' does not appear to be an IPv4 or IPv6 network"),
        ("--state open", "OPEN is no state"),
        ("--helper 'a", "no closing quotation"),
        ("-s", "argument -s/--src/--orig-src: expected one argument"),
    ],
)
def test_filter_that_says_nothing_is_refused(text: str, error: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_filter(text)
    assert str(raised.value).startswith(error)


WORDS = st.sampled_from(
    ["-p", "tcp", "-s", "10.0.0.1", "--dport", "--dp", "7", "--", "'", "-h", "--zone="]
)


@given(st.text() | st.lists(WORDS | st.text(max_size=3)).map(" ".join))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        found = read_filter(text)
    except UsageError:
        return
    assert Filter.read(found).record().keys() <= found.keys()
    assert read_filter(filter_text(found)) == found


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "transport": st.sampled_from(["tcp", "udp"]),
            "source": st.ip_addresses().map(str),
            "dport": st.integers(0, 65535),
            "helper": st.text(string.printable),
            "state": st.sampled_from(["ESTABLISHED", "CLOSE"]),
            "zone": st.integers(0, 65535),
        },
    )
)
def test_filter_is_read_as_it_was_written(filter_: dict[str, object]) -> None:
    assert read_filter(filter_text(filter_)) == filter_

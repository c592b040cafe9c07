# SPDX-License-Identifier: GPL-2.0-or-later
"""The log: what a line looks like, what is left out of a flood, what is counted."""

import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.daemon.log import Log, Value

BURST = 50
PER_SECOND = 5


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Written:
    """A log, its clock and its output."""

    def __init__(self, level: str = "debug", form: str = "text") -> None:
        self.clock = Clock()
        self.output = io.StringIO()
        self.log = Log(level, form, clock=self.clock, output=self.output)

    @property
    def lines(self) -> list[str]:
        """The lines so far, without their times."""
        return [
            re.sub(r"^time=\S+ ", "", line)
            for line in self.output.getvalue().splitlines()
        ]


def line_of(**fields: Value) -> str:
    """The fields as a text line shows them."""
    written = Written()
    written.log.event("seen", **fields)
    (line,) = written.lines
    return line.removeprefix("level=info event=seen").lstrip()


def test_common_fields_end_every_line() -> None:
    output = io.StringIO()
    log = Log("info", "text", clock=Clock(), output=output, common={"worker": 1})
    log.event("seen", helper="sunrpc")
    log.event("seen")
    seen = [
        line.partition(" level=info ")[2] for line in output.getvalue().splitlines()
    ]
    assert seen == ["event=seen helper=sunrpc worker=1", "event=seen worker=1"]


def test_text_line_begins_with_time_level_and_event() -> None:
    written = Written()
    written.log.event("refused", "warning", reason="nat", port=7)
    match = re.fullmatch(
        r"time=(\S+) level=warning event=refused reason=nat port=7\n",
        written.output.getvalue(),
    )
    assert match
    age = datetime.now(UTC) - datetime.fromisoformat(match[1])
    assert 0 <= age.total_seconds() < 60
    assert re.fullmatch(r"....-..-..T..:..:..\.\d{3}\+00:00", match[1])


def test_json_line_holds_the_same_fields_with_their_types() -> None:
    written = Written(form="json")
    written.log.event("refused", "error", reason="nat", port=7, permanent=True, at=None)
    record = json.loads(written.output.getvalue())
    assert list(record) == [
        "time",
        "level",
        "event",
        "reason",
        "port",
        "permanent",
        "at",
    ]
    del record["time"]
    assert record == {
        "level": "error",
        "event": "refused",
        "reason": "nat",
        "port": 7,
        "permanent": True,
        "at": None,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("word", "word"),
        ("tcp 192.0.2.1:1 > 192.0.2.2:2", '"tcp 192.0.2.1:1 > 192.0.2.2:2"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "no"', '"say \\"no\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("two\nlines", '"two\\nlines"'),
        ("\x1b[31mred", '"\\u001b[31mred"'),
        ("\x7f", '"\\u007f"'),
        ("\u2028", '"\\u2028"'),
        ("é", "é"),
        ("a\xa0b", '"a\\u00a0b"'),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
    ],
    ids=repr,
)
def test_value_that_is_not_one_word_is_quoted(value: Value, text: str) -> None:
    assert line_of(value=value) == f"value={text}"


@given(st.text())
def test_any_text_stays_on_its_line_and_can_be_read_back(value: str) -> None:
    line = line_of(first=value, second="end")
    assert line.isprintable()
    assert line.endswith(" second=end")
    text = line.removeprefix("first=").removesuffix(" second=end")
    assert (json.loads(text) if text.startswith('"') else text) == value


@given(st.text("ab =", max_size=8))
def test_a_shell_reads_the_same_words(value: str) -> None:
    assert shlex.split(line_of(first=value)) == [f"first={value}"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_below_the_level_are_counted_and_not_written(form: str) -> None:
    written = Written("warning", form)
    for level in ("debug", "info", "warning", "error"):
        written.log.event("seen", level)
    assert len(written.lines) == 2
    assert written.log.counters == {"seen": 4}


def test_level_and_format_can_be_changed() -> None:
    written = Written("error")
    written.log.event("seen", "info")
    written.log.configure("info", "json")
    written.log.event("seen", "info")
    (line,) = written.lines
    assert json.loads(line)["event"] == "seen"


def test_events_are_counted_by_their_reason() -> None:
    log = Written().log
    log.event("started")
    log.event("refused", reason="nat")
    log.event("refused", reason="low-port")
    log.event("refused", reason="nat")
    assert log.counters == {"started": 1, "refused.nat": 2, "refused.low-port": 1}


def test_flood_is_cut_after_a_burst_and_counted_in_full() -> None:
    written = Written()
    for _ in range(BURST + 10):
        written.log.event("refused", reason="nat")
    assert len(written.lines) == BURST
    assert written.log.counters == {"refused.nat": BURST + 10}


def test_first_line_after_a_flood_says_how_many_were_left_out() -> None:
    written = Written()
    for _ in range(BURST + 10):
        written.log.event("refused", reason="nat")
    written.clock.now += 2.5 / PER_SECOND
    written.log.event("refused", reason="nat")
    written.log.event("refused", reason="nat")
    assert written.lines[BURST:] == [
        "level=info event=refused reason=nat suppressed=10",
        "level=info event=refused reason=nat",
    ]


def test_lines_go_on_at_the_rate() -> None:
    written = Written()
    for _ in range(BURST):
        written.log.event("refused", reason="nat")
    for _ in range(10):
        written.clock.now += 1
        for _ in range(PER_SECOND + 2):
            written.log.event("refused", reason="nat")
    assert len(written.lines) == BURST + 10 * PER_SECOND


def test_silence_gives_no_more_than_one_burst() -> None:
    written = Written()
    written.log.event("refused", reason="nat")
    written.clock.now += 1e6
    for _ in range(BURST + 10):
        written.log.event("refused", reason="nat")
    assert len(written.lines) == 1 + BURST


def test_flood_of_one_reason_hides_no_other() -> None:
    written = Written()
    for _ in range(BURST * 2):
        written.log.event("refused", reason="nat")
    written.log.event("refused", reason="low-port")
    written.log.event("malformed", reason="nat")
    written.log.event("refused")
    assert written.lines[BURST:] == [
        "level=info event=refused reason=low-port",
        "level=info event=malformed reason=nat",
        "level=info event=refused",
    ]


def test_lines_below_the_level_use_nothing_up() -> None:
    written = Written("info")
    for _ in range(BURST * 2):
        written.log.event("seen", "debug")
    written.log.event("seen", "info")
    assert written.lines == ["level=info event=seen"]


# Lines that cannot be written


class Failing(io.StringIO):
    """Takes lines, or fails."""

    error: OSError | None = None

    def write(self, text: str, /) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left"), BrokenPipeError(), BlockingIOError()],
    ids=["full disc", "no reader", "slow reader"],
)
def test_lines_that_cannot_be_written_are_counted_and_told_as_soon_as_they_can(
    error: OSError,
) -> None:
    output = Failing()
    log = Log("info", "text", clock=Clock(), output=output, common={"worker": 1})
    output.error = error
    for _ in range(3):
        log.event("seen")
    log.event("below", "debug")
    assert log.counters == {"seen": 3, "below": 1, "log-lost": 3}
    output.error = None
    log.event("seen")
    log.event("seen")
    lines = [line.partition(" ")[2] for line in output.getvalue().splitlines()]
    assert lines == [
        "level=warning event=log-lost lines=3 worker=1",
        "level=info event=seen worker=1",
        "level=info event=seen worker=1",
    ]
    assert log.counters["log-lost"] == 3


def test_line_that_says_how_many_were_left_out_says_it_when_it_can_be_written() -> None:
    written = Written()
    written.log = Log(clock=written.clock, output=(output := Failing()))
    for _ in range(BURST + 10):
        written.log.event("seen")
    output.error = BrokenPipeError()
    written.clock.now += 1
    written.log.event("seen")
    output.error = None
    written.log.event("seen")
    assert output.getvalue().endswith(" event=seen suppressed=10\n")


# Where the journal reads standard error, lines have priorities.


@pytest.mark.parametrize(
    ("journal", "marks"),
    [("{}", ["<3>", "<4>", "<6>", "<7>"]), ("{}1", [""] * 4), (None, [""] * 4)],
    ids=["journal", "another stream", "no journal"],
)
def test_lines_for_the_journal_begin_with_their_priority(
    journal: str | None, marks: list[str]
) -> None:
    ours, theirs = socket.socketpair()
    found = os.fstat(theirs.fileno())
    stream = f"{found.st_dev}:{found.st_ino}"
    script = (
        "from cthelper.core.cli.options import complain, warn\n"
        "from cthelper.core.daemon.log import Log\n"
        "log = Log('debug', clock=lambda: 0.0)\n"
        "for level in ('error', 'warning', 'info', 'debug'):\n"
        "    log.event('seen', level)\n"
        "complain('no')\n"
        "warn('odd')\n"
    )
    environment = {"PATH": os.environ["PATH"]}
    if journal is not None:
        environment["JOURNAL_STREAM"] = journal.format(stream)
    with closing(ours):
        with closing(theirs):
            subprocess.run(
                [sys.executable, "-c", script],
                env=environment,
                stderr=theirs.fileno(),
                check=True,
            )
        with ours.makefile() as file:
            *lines, error, warning = file.read().splitlines()
    assert [line.partition("time=")[0] for line in lines] == marks
    assert (error, warning) == (
        f"{marks[0]}cthelper: no",
        f"{marks[1]}cthelper: warning: odd",
    )


@pytest.mark.parametrize(
    ("reason", "counter"), [({}, "lost"), ({"reason": "full"}, "lost.full")]
)
def test_what_happened_often_is_counted_so_and_told_once(
    reason: dict[str, str], counter: str
) -> None:
    written = Written()
    written.log.event("lost", **reason)
    written.log.several("lost", 40, "warning", **reason, packets=40)
    assert written.log.counters == {counter: 41}
    assert len(written.lines) == 2
    assert written.lines[1].endswith("packets=40")


def test_reasons_without_end_are_counted_together() -> None:
    written = Written()
    for number in range(5000):
        written.log.event("refused", reason=f"made-up-{number}" + "x" * 200)
    assert len(written.log.counters) <= 801
    assert sum(written.log.counters.values()) == 5000
    assert written.log.counters["others"] > 4000
    # It fits into one answer of the control socket.
    assert len(json.dumps(written.log.counters)) < 100_000
    before = written.log.counters["others"]
    written.log.several("refused", 3, reason="made-up-again")
    assert written.log.counters["others"] == before + 3

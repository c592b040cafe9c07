# SPDX-License-Identifier: GPL-2.0-or-later
"""Times in UTC, and differences between two replays."""

import re
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.offline.events import Begin
from cthelper.core.offline.report import differences, json_line
from cthelper.core.records import Record


@pytest.mark.parametrize(
    ("begin", "time", "utc"),
    [
        (0, 0.0, "1970-01-01T00:00:00.000000+00:00"),
        (1_795_330_962_246_932_000, 0.00048, "2026-11-22T07:02:42.247412+00:00"),
        # Nanoseconds are cut, as tshark cuts them.
        (1_795_330_962_999_999_999, 0.0, "2026-11-22T07:02:42.999999+00:00"),
        (1_795_330_962_000_000_000, -0.5, "2026-11-22T07:02:41.500000+00:00"),
        ((2**32 - 1) * 1_000_000_000, 0.0, "2106-02-07T06:28:15.000000+00:00"),
        (253_402_300_800 * 1_000_000_000, 0.0, None),
        (2**200, 0.0, None),
        (-(2**63) * 1_000_000_000, 0.0, None),
    ],
)
def test_utc(begin: int, time: float, utc: str | None) -> None:
    assert Begin(begin).utc(time) == utc


@given(st.integers(-(2**70), 2**70), st.floats(-1e12, 1e12))
def test_any_time_is_one_of_the_calendar_or_none(begin: int, time: float) -> None:
    utc = Begin(begin).utc(time)
    if utc is None:
        return
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", utc)
    distance = datetime.fromisoformat(utc) - datetime.fromisoformat("1970-01-01T00Z")
    exact = (begin + round(time * 1_000_000_000)) // 1000
    assert distance == timedelta(microseconds=exact)


def event(frame: int, capture: str = "a.pcap", **more: object) -> Record:
    return {"event": "related", "capture": capture, "frame": frame, **more}


def test_differences_come_in_the_order_of_captures_and_frames() -> None:
    old = [event(1), event(3, x=1), event(2, "b.pcap")]
    new = [event(3, x=2), event(1, "b.pcap"), event(2, "b.pcap")]
    assert list(differences(old, new)) == [
        f"- {json_line(event(1))}",
        f"- {json_line(event(3, x=1))}",
        f"+ {json_line(event(3, x=2))}",
        f"+ {json_line(event(1, 'b.pcap'))}",
    ]


def test_record_that_stands_there_twice_counts_twice() -> None:
    assert list(differences([event(1)], [event(1)] * 2)) == [f"+ {json_line(event(1))}"]


records = st.lists(st.builds(event, st.integers(1, 4), st.sampled_from("ab")))


@given(records, records)
def test_differences_turn_the_old_records_into_the_new_ones(
    old: list[Record], new: list[Record]
) -> None:
    result = list(map(json_line, old))
    for line in differences(old, new):
        if line.startswith("- "):
            result.remove(line[2:])
        else:
            result.append(line[2:])
    assert sorted(result) == sorted(map(json_line, new))


@given(records)
def test_a_replay_does_not_differ_from_itself(old: list[Record]) -> None:
    assert list(differences(old, old[::-1])) == []

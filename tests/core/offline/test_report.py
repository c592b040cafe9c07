# SPDX-License-Identifier: GPL-2.0-or-later
"""Differences between two replays."""

from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.offline.events import Record
from cthelper.core.offline.report import differences, json_line


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

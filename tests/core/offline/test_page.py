# SPDX-License-Identifier: GPL-2.0-or-later
"""The page's data: what is told of each event, and what leads where.

What a browser makes of it is told by test_page_browser.py.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import CthelperError
from cthelper.core.grants import How
from cthelper.core.offline.events import Event, Notice
from cthelper.core.offline.page import page_file, render
from cthelper.core.tuples import REPLY
from tests.core.builders import CLIENT, SERVER, endpoint, flow_tuple
from tests.core.offline.page_events import (
    ANNOUNCEMENT,
    CALL,
    CONTROL,
    CONTROL_FLOW,
    DATA_FLOW,
    EXPECTATION,
    FINISHED,
    HOSTILE,
    MALFORMED,
    REFUSED,
    RELATED,
    STORY,
    SUMMARY,
    WITHDRAWN,
    hostile,
)

# Elements that HTML does not close.
VOID: Final = frozenset({"meta", "input", "col"})

Row = dict[str, Any]


class Document(HTMLParser):
    """Reads the page as HTML does, and keeps what is in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, Mapping[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(
        self, tag: str, attrs: Sequence[tuple[str, str | None]]
    ) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        if self.open[-1:] == ["style"]:
            self.styles.append(data)


def data(*pages: tuple[str, Sequence[Event]]) -> Row:
    """The page's data, as a browser finds it."""
    block, _ = Document(render(pages)).scripts
    loaded: Row = json.loads(block)
    return loaded


def rows(*events: Event) -> list[Row]:
    found: list[Row] = data(("a.pcap", events))["events"]
    return found


def row(kind: str, *events: Event) -> Row:
    """The only event of this kind."""
    (found,) = [each for each in rows(*events) if each["kind"] == kind]
    return found


def facts(found: Row) -> dict[str, str]:
    return dict(found["facts"])


def targets(found: Row, everything: list[Row]) -> dict[str, list[str]]:
    """The kinds of events that the links lead to."""
    links: dict[str, list[str]] = {}
    for why, number in found["links"]:
        links.setdefault(why, []).append(everything[number]["kind"])
    return links


# Events


def test_events_are_in_the_order_of_their_frames() -> None:
    found = [(each.get("frame"), each["kind"]) for each in rows(*STORY)]
    assert found == [
        (None, "notice"),
        (1, "flow"),
        (4, "message"),
        (6, "message"),
        (6, "expectation"),
        (9, "flow"),
        (9, "related"),
        (14, "refused"),
        (15, "malformed"),
        (16, "fault"),
        (17, "finished"),
    ]


@pytest.mark.parametrize(
    ("kind", "what", "flow"),
    [
        ("notice", "a.pcap: cut short", None),
        (
            "expectation",
            "tcp 192.0.2.1 > 198.51.100.2:43173 (data, one flow, 60 s)",
            "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
        ),
        (
            "related",
            "met what frame 6 announced: tcp 192.0.2.1 > 198.51.100.2:43173",
            "tcp 192.0.2.1:40001 > 198.51.100.2:43173",
        ),
        (
            "refused",
            "port-zero: port 0 cannot be expected",
            "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
        ),
        (
            "malformed",
            "port 70000 is over 65535",
            "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
        ),
        ("fault", "KeyError: 7", "tcp 192.0.2.1:40000 > 198.51.100.2:7000"),
        (
            "finished",
            "gap, 7 bytes wait beyond a missing segment",
            "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
        ),
    ],
)
def test_event_is_told_in_a_line(kind: str, what: str, flow: str | None) -> None:
    found = row(kind, *STORY)
    assert (found["what"], found.get("flow")) == (what, flow)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "expectation",
            {
                "expects": "tcp 192.0.2.1 > 198.51.100.2:43173",
                "policy": "data",
                "permanent": "no, admits one flow",
                "timeout": "60 s",
                "end": "met in frame 9",
                "master flow": "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
                "announced in": "reply direction",
            },
        ),
        (
            "related",
            {
                "flow": "tcp 192.0.2.1:40001 > 198.51.100.2:43173",
                "met": "tcp 192.0.2.1 > 198.51.100.2:43173",
                "announced": "0.250000 s before",
                "master flow": "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
            },
        ),
        (
            "refused",
            {
                "reason": "port-zero",
                "detail": "port 0 cannot be expected",
                "asked for": "192.0.2.0/24 > 198.51.100.2:0 (data, one flow)",
                "receiver of the message": "192.0.2.1",
            },
        ),
        ("malformed", {"reason": "port 70000 is over 65535"}),
        ("fault", {"error": "KeyError: 7", "where": "line.py:12"}),
        (
            "finished",
            {
                "reason": "gap",
                "detail": "7 bytes wait beyond a missing segment",
                "flow": "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
            },
        ),
    ],
)
def test_event_is_told_in_full(kind: str, told: dict[str, str]) -> None:
    assert facts(row(kind, *STORY)) == told


def test_message_has_bytes_fields_and_effects() -> None:
    found = row("message", ANNOUNCEMENT)
    assert base64.b64decode(found["bytes"]) == ANNOUNCEMENT.payload
    assert found["fields"] == [["type", "reply"], ["port", "43173"]]
    assert found["what"] == "type: reply; port: 43173"
    assert found["effects"] == [
        "expect peer > 198.51.100.2:43173 (data, one flow)",
        "rewrite bytes 5 to 10: 34 33 31 37 33",
        "done: the flow announces nothing more",
    ]
    assert found["announces"]


def test_message_without_fields_is_told_by_its_length() -> None:
    assert row("message", replace(CALL, fields={}))["what"] == "6 bytes"


def test_flows_say_their_role() -> None:
    control, data_ = (
        each for each in rows(CONTROL_FLOW, DATA_FLOW) if each["kind"] == "flow"
    )
    assert control["what"] == (
        "control flow, 14 packets to frame 20, helper finished: gap"
    )
    assert data_["what"] == "expected flow, 1 packet to frame 18"


@pytest.mark.parametrize(
    ("flows", "what", "end"),
    [
        (0, "", 1.0),
        (1, " (one flow of others' still comes)", 60.5),
        (3, " (3 flows of others' still come)", 60.5),
        (None, " (others' flows still come)", 60.5),
    ],
)
def test_withdrawal_ends_the_life_of_an_expectation(
    flows: int | None, what: str, end: float
) -> None:
    told = replace(CONTROL_FLOW, last_frame=90, last_time=90.0)
    withdrawn = replace(WITHDRAWN, flows=flows)
    story = (told, CALL, ANNOUNCEMENT, EXPECTATION, withdrawn)
    found = row("withdrawn", *story)
    text = f"tcp 192.0.2.1 > 198.51.100.2:43173{what}"
    assert found["what"] == facts(found)["withdrawn"] == text
    everything = rows(*story)
    assert targets(found, everything) == {
        "expectation": ["expectation"],
        "flow": ["flow"],
    }
    (lane,) = data(("a.pcap", story))["captures"][0]["lanes"]
    assert lane["expectations"][0]["end"] == end
    assert len(lane["marks"]) == 3


# What leads where


def test_links_lead_from_message_to_flow_and_back() -> None:
    everything = rows(*STORY)
    by_kind = {each["kind"]: targets(each, everything) for each in everything}
    assert by_kind["expectation"] == {
        "message": ["message"],
        "master flow": ["flow"],
        "met by": ["related"],
    }
    assert by_kind["related"] == {"expectation": ["expectation"], "flow": ["flow"]}
    announcement = next(each for each in everything if each.get("announces"))
    assert targets(announcement, everything) == {
        "flow": ["flow"],
        "led to": ["expectation"],
    }
    control = everything[1]
    assert targets(control, everything) == {
        "in this flow": [
            "message",
            "message",
            "expectation",
            "refused",
            "malformed",
            "fault",
            "finished",
        ]
    }


@pytest.mark.parametrize("kind", ["message", "expectation", "related", "flow"])
def test_event_leads_to_the_bytes_of_its_message(kind: str) -> None:
    everything = rows(*STORY)
    last = [each for each in everything if each["kind"] == kind][-1]
    message = everything[last["message"]]
    assert base64.b64decode(message["bytes"]) == ANNOUNCEMENT.payload


@pytest.mark.parametrize("event", [REFUSED, MALFORMED])
def test_what_a_message_led_to_leads_to_it(event: Event) -> None:
    assert not isinstance(event, Notice)
    message = replace(CALL, frame=14 if event is REFUSED else 15)
    everything = rows(CONTROL_FLOW, message, event)
    assert [each.get("message") for each in everything] == [None, 1, 1]
    assert everything[2]["flow"] == str(CONTROL)


def test_of_several_messages_in_a_frame_the_one_that_asked_is_meant() -> None:
    first = replace(ANNOUNCEMENT, payload=b"first")
    second = replace(CALL, frame=6, time=0.5, payload=b"second", direction=REPLY)
    found = row("expectation", CONTROL_FLOW, first, second, EXPECTATION)
    assert found["message"] == 1


def test_flow_of_an_event_that_names_none_is_not_guessed() -> None:
    other = replace(CONTROL_FLOW, flow=flow_tuple(source=(CLIENT, 40009)))
    assert "flow" not in row("malformed", CONTROL_FLOW, other, MALFORMED)


def test_tuple_that_comes_again_is_another_flow() -> None:
    again = replace(CONTROL_FLOW, frame=30, time=300.0, last_frame=40, last_time=301.0)
    late = replace(CALL, frame=31, time=300.5)
    everything = rows(CALL, CONTROL_FLOW, late, again)
    flows = [each["links"] for each in everything if each["kind"] == "message"]
    assert flows == [[["flow", 0]], [["flow", 2]]]


def test_permanent_expectation_is_met_by_many() -> None:
    wide = replace(
        EXPECTATION,
        expectation=replace(
            EXPECTATION.expectation, permanent=True, source=ip_network("192.0.2.0/24")
        ),
        flows=None,
    )
    other = replace(
        RELATED,
        frame=12,
        flow=flow_tuple(source=("192.0.2.77", 999), destination=(SERVER, 43173)),
    )
    everything = rows(wide, RELATED, other)
    assert targets(everything[0], everything) == {"met by": ["related", "related"]}
    assert facts(everything[0])["end"] == "after the capture's end"


def test_shared_expectation_is_met_by_as_many_as_asked_for_it() -> None:
    again = replace(EXPECTATION, frame=7, time=0.6, how=How.SHARED, flows=2)
    flows = [replace(RELATED, frame=frame, time=frame / 10) for frame in (9, 11, 13)]
    everything = rows(EXPECTATION, again, *flows)
    first, second, *met = everything
    assert targets(first, everything) == {
        "renewed by": ["expectation"],
        "met by": ["related", "related"],
    }
    assert [bool(each["links"]) for each in met] == [True, True, False]
    assert facts(first)["end"] == "met in frame 11"
    assert second["what"].endswith("(data, 2 flows, 60 s)")
    assert facts(second)["permanent"] == "no, admits 2 flows"


def test_of_several_expectations_in_a_frame_the_one_that_admits_is_met() -> None:
    elsewhere = replace(
        EXPECTATION,
        expectation=replace(
            EXPECTATION.expectation, destination=endpoint(SERVER, 43174)
        ),
    )
    everything = rows(elsewhere, EXPECTATION, RELATED)
    assert everything[2]["links"] == [["expectation", 1]]


@pytest.mark.parametrize(
    ("later", "end", "how"),
    [
        (Notice(text="nothing"), None, "after the capture's end"),
        (RELATED, 0.75, "met in frame 9"),
        (replace(CALL, frame=99, time=70.0), 60.5, "timeout, at 60.500000 s"),
    ],
    ids=["capture ends", "met", "timeout"],
)
def test_expectation_ends(later: Event, end: float | None, how: str) -> None:
    page = data(("a.pcap", [CONTROL_FLOW, EXPECTATION, later]))
    made = page["captures"][0]["lanes"][0]["expectations"][0]
    assert made["end"] == end
    assert facts(page["events"][made["event"]])["end"] == how


def test_expectation_that_is_renewed_lives_on() -> None:
    renewal = replace(EXPECTATION, frame=8, time=10.0)
    late = replace(CALL, frame=99, time=80.0)
    page = data(("a.pcap", [CONTROL_FLOW, EXPECTATION, renewal, late]))
    first, second = (each for each in page["events"] if each["kind"] == "expectation")
    assert facts(second)["renews"] == "what frame 6 announced"
    assert facts(first)["end"] == facts(second)["end"] == "timeout, at 70.000000 s"
    assert targets(first, page["events"])["renewed by"] == ["expectation"]
    assert targets(second, page["events"])["renews"] == ["expectation"]
    (made,) = page["captures"][0]["lanes"][0]["expectations"]
    assert made["end"] == 70.0
    assert [page["events"][each] for each in made["renewals"]] == [second]


@pytest.mark.parametrize("end", ["met", "timeout"])
def test_expectation_after_the_end_of_another_is_a_new_one(end: str) -> None:
    before = [EXPECTATION, RELATED] if end == "met" else [EXPECTATION]
    again = replace(EXPECTATION, frame=19, time=1.0 if end == "met" else 70.0)
    page = data(("a.pcap", [CONTROL_FLOW, *before, again]))
    assert len(page["captures"][0]["lanes"][0]["expectations"]) == 2


def test_lane_holds_all_of_a_control_flow() -> None:
    page = data(("a.pcap", STORY))
    (lane,) = page["captures"][0]["lanes"]
    kinds = [page["events"][number]["kind"] for number in lane["marks"]]
    assert lane["label"] == str(CONTROL)
    assert page["events"][lane["flow"]]["helper"] == "line"
    assert kinds == ["message", "message", "refused", "malformed", "fault", "finished"]
    (made,) = lane["expectations"]
    (met,) = made["met"]
    assert page["events"][made["event"]]["kind"] == "expectation"
    assert page["events"][met["related"]]["kind"] == "related"
    assert page["events"][met["flow"]]["what"].startswith("expected flow")


def test_every_event_on_the_wire_has_a_place_in_the_time_line() -> None:
    # Without flows, as where their entries are not told of.
    page = data(("a.pcap", [CALL, EXPECTATION, RELATED, REFUSED, MALFORMED, FINISHED]))
    drawn = set()
    for lane in page["captures"][0]["lanes"]:
        drawn.update(lane["marks"])
        for made in lane["expectations"]:
            drawn.add(made["event"])
            drawn.update(met["related"] for met in made["met"])
    assert drawn == set(range(len(page["events"])))


def test_captures_keep_apart() -> None:
    page = data(("a.pcap", STORY), ("b.pcap", STORY), ("c.pcap", [SUMMARY]))
    count = len(page["events"]) // 2
    assert [each["capture"] for each in page["events"]] == [0] * count + [1] * count
    for each in page["events"][count:]:
        assert all(number >= count for _, number in each["links"])
    assert [each["label"] for each in page["captures"]] == [
        "a.pcap",
        "b.pcap",
        "c.pcap",
    ]
    assert page["captures"][2]["summary"] == (
        "20 packets, 2 flows, 1 expectation, 1 related, 1 refused, 1 malformed, "
        "1 finished"
    )


def test_capture_of_nothing_has_a_page() -> None:
    assert data(("a.pcap", [])) == {
        "captures": [
            {"label": "a.pcap", "summary": "", "begin": 0.0, "end": 0.0, "lanes": []}
        ],
        "events": [],
    }


# The document


def test_page_is_well_formed() -> None:
    text = render([("a.pcap", STORY)])
    document = Document(text)
    assert text.startswith("<!doctype html>\n")
    assert document.open == []
    tags = [tag for tag, _ in document.elements]
    assert tags.count("title") == tags.count("main") == tags.count("h1") == 1
    assert ("html", {"lang": "en"}) in document.elements
    ids = [each["id"] for _, each in document.elements if "id" in each]
    assert len(ids) == len(set(ids))
    assert "{{" not in text


def test_page_names_nothing_to_load() -> None:
    text = render([("a.pcap", STORY)])
    for _, attributes in Document(text).elements:
        assert not attributes.keys() & {"src", "href", "style", "action", "srcset"}
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"""(src|href)\s*=\s*["']?|url\(|@import|fetch\(""", text)
    # The name of a namespace is no address of anything.
    assert re.findall(r"https?://[^\"\s]+", text) == ["http://www.w3.org/2000/svg"]


def test_policy_admits_nothing_but_the_style_and_the_script() -> None:
    document = Document(render([("a.pcap", STORY)]))
    (policy,) = [
        attributes["content"]
        for _, attributes in document.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (style,) = document.styles
    _, script = document.scripts

    def hash_of(content: str) -> str:
        digest = hashlib.sha256(content.encode()).digest()
        return base64.b64encode(digest).decode()

    assert policy is not None
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{hash_of(script)}'",
        f"style-src 'sha256-{hash_of(style)}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_hostile_text_stays_in_the_data() -> None:
    text = render([hostile()])
    harmless = render([("a.pcap", STORY)])
    assert Document(text).elements == Document(harmless).elements
    assert HOSTILE not in text
    page = data(hostile())
    assert page["captures"][0]["label"] == HOSTILE
    message = next(each for each in page["events"] if each["kind"] == "message")
    assert message["fields"] == [[HOSTILE, HOSTILE]]
    assert base64.b64decode(message["bytes"]).decode() == HOSTILE


@given(text=st.text(), payload=st.binary())
def test_any_text_is_data(text: str, payload: bytes) -> None:
    message = replace(CALL, payload=payload, fields={text: text})
    events: list[Event] = [Notice(text=text), message]
    page = data((text, events))
    assert base64.b64decode(page["events"][1]["bytes"]) == payload
    assert page["events"][0]["facts"][0][1].isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b\n", r"a\x00b\n"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("caf\u00e9 \u2713", "caf\u00e9 \u2713"),
        ("\udcff", r"\udcff"),
    ],
    ids=["controls", "direction of writing", "printable", "no Unicode"],
)
def test_what_is_not_printed_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert facts(row("notice", Notice(text=text)))["notice"] == shown


def test_cell_of_the_table_is_bounded_and_the_detail_is_not() -> None:
    found = row("malformed", replace(MALFORMED, reason="x" * 5000))
    assert len(found["what"]) < 1000
    assert facts(found)["reason"] == "x" * 5000


def test_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    pages = [("a.pcap", STORY), hostile()]
    for name in ("one.html", "two.html"):
        with page_file(tmp_path / name) as write:
            write(pages)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_longer_page_of_before_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("x" * 1_000_000)
    with page_file(file) as write:
        assert file.stat().st_size == 1_000_000
        write([])
    assert file.read_text() == render([])


@pytest.mark.parametrize(
    ("name", "why"),
    [("none/page.html", "No such file or directory"), ("", "Is a directory")],
)
def test_file_that_cannot_be_written_is_named_at_once(
    name: str, why: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    with (
        pytest.raises(CthelperError) as caught,
        page_file(file),
    ):
        pytest.fail("the file was opened")
    assert str(caught.value) == f"{file}: cannot be written: {why}"


def test_full_disk_is_named() -> None:
    with pytest.raises(CthelperError) as caught, page_file(Path("/dev/full")) as write:
        write([])
    assert str(caught.value) == (
        "/dev/full: cannot be written: No space left on device"
    )


@pytest.mark.parametrize("old", [None, "the page of before"])
def test_page_that_is_never_written_leaves_all_as_it_was(
    old: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    if old is not None:
        file.write_text(old)
    with pytest.raises(CthelperError, match="on the way"), page_file(file):
        raise CthelperError("on the way")
    assert (file.read_text() if file.exists() else None) == old

# SPDX-License-Identifier: GPL-2.0-or-later
"""The page in a real browser: Chromium without a display, opened from a file."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from cthelper.core.cli import main
from cthelper.core.offline.events import Event
from cthelper.core.offline.page import page_file
from tests.core.offline.page_events import HOSTILE, STORY, hostile, many

if TYPE_CHECKING:
    from tests.core.offline.browser import Chromium, Page

pytestmark = pytest.mark.browser

ROOT: Final = Path(__file__).parents[3]

Pages = list[tuple[str, tuple[Event, ...]]]


@pytest.fixture(scope="module")
def chromium() -> Iterator["Chromium"]:
    """A browser for the tests of this file."""
    from tests.core.offline.browser import Chromium

    with closing(Chromium()) as chromium:
        yield chromium


@pytest.fixture
def page(
    request: pytest.FixtureRequest, chromium: "Chromium", tmp_path: Path
) -> Iterator["Page"]:
    """The page of the parameter's captures, else of one; checked at the end."""
    pages: Pages = getattr(request, "param", [("a.pcap", STORY)])
    file = tmp_path / "page.html"
    with page_file(file) as write:
        write(pages)
    opened = chromium.page(file)
    opened.open()
    yield opened
    opened.check()


def test_every_event_has_a_row(page: "Page") -> None:
    assert page.kinds() == [
        "notice",
        "flow",
        "message",
        "message",
        "expectation",
        "flow",
        "related",
        "refused",
        "malformed",
        "fault",
        "finished",
    ]
    assert page.text("#count") == "11 of 11 events"
    assert page.driver.title == "a.pcap - cthelper replay"
    assert page.cells(3) == [
        "6",
        "0.500000",
        "message",
        "line",
        "tcp 192.0.2.1:40000 > 198.51.100.2:7000",
        "type: reply; port: 43173",
    ]
    assert not page.one("#detail").is_displayed()


def test_click_shows_fields_and_bytes(page: "Page") -> None:
    page.row(3).click()
    detail = page.detail()
    assert detail["type"] == "reply"
    assert detail["port"] == "43173"
    assert page.texts("#detail li") == [
        "expect peer > 198.51.100.2:43173 (data, one flow)",
        "rewrite bytes 5 to 10: 34 33 31 37 33",
        "done: the flow announces nothing more",
    ]
    assert page.dump() == [
        "0000  4f 50 45 4e 20 34 33 31  37 33 0a 00 01 02 03 04  OPEN 43173......",
        "0010  05 06 07 08 09 0a 0b 0c  0d 0e 0f                 ...........",
    ]


def test_links_lead_to_what_met_the_expectation_and_back(page: "Page") -> None:
    page.row(4).click()
    assert page.detail()["end"] == "met in frame 9"
    assert page.dump()[0].endswith("OPEN 43173......")
    page.one("#detail .to[data-to='6']").click()
    assert page.text("#detail h2 span") == "frame 9 related"
    assert page.dump()[0].endswith("OPEN 43173......")
    page.driver.back()
    assert page.text("#detail h2 span") == "frame 6 expectation"


def test_mark_in_the_time_line_shows_its_event(page: "Page") -> None:
    page.one("#timeline svg g[data-event='3'] path").click()
    assert page.text("#detail h2 span") == "frame 6 message"
    assert page.row(3).get_attribute("aria-selected") == "true"
    page.one("#timeline .labels [data-event='4']").click()
    assert page.text("#detail h2 span") == "frame 6 expectation"


def test_time_line_zooms_around_the_selected_event(page: "Page") -> None:
    page.open("event=3")
    mark = "#timeline g[data-event='3'] > svg"
    whole = page.one(mark).get_attribute("x")
    page.one("[aria-label='Zoom in, around the selected event']").click()
    assert page.one(mark).get_attribute("x") == "50.0000%"
    page.one("[aria-label='Zoom out']").click()
    assert page.one(mark).get_attribute("x") == whole
    assert len(page.all("#timeline g.chosen")) == 1


def test_time_line_zooms_to_what_is_dragged_over(page: "Page") -> None:
    mark = page.one("#timeline g[data-event='3'] > svg")
    before = mark.get_attribute("x")
    track = page.one("#timeline .lane > svg")
    page.drag(track, 200)
    # What the pointer left was dragged over, not clicked on.
    assert not page.one("#detail").is_displayed()
    after = page.one("#timeline g[data-event='3'] > svg")
    assert after.get_attribute("x") != before
    page.one("#timeline .zoom button:last-child").click()
    whole = page.one("#timeline g[data-event='3'] > svg")
    assert whole.get_attribute("x") == before


def test_filter_by_text_kind_and_helper(page: "Page") -> None:
    page.one("#text").send_keys("RELATED 43173")
    assert page.kinds() == ["related"]
    assert page.text("#count") == "1 of 11 events"
    page.one("#text").clear()
    page.one("#text").send_keys("expect peer")
    assert page.kinds() == ["message"]
    page.one("#text").clear()
    page.one("#text").send_keys("nowhere")
    assert page.kinds() == []
    page.one("#all").click()
    page.one(".kind.message input").click()
    page.one(".kind.flow input").click()
    assert "message" not in page.kinds()
    # The counts go on saying what there would be.
    assert page.text(".kind.message b") == "2"
    assert page.address == "hide=message+flow"
    page.one("#helper option[value='line']").click()
    assert "notice" not in page.kinds()


@pytest.mark.parametrize(
    "page", [[("a.pcap", STORY), ("b.pcap", STORY[:2])]], indirect=True
)
def test_filter_by_capture(page: "Page") -> None:
    assert page.texts("#rows .caption") == ["a.pcap", "b.pcap"]
    page.one("#capture option[value='1']").click()
    assert page.kinds() == ["notice", "message"]
    shown = [each.is_displayed() for each in page.all("#timeline .capture")]
    assert shown == [False, True]


def test_address_restores_selection_and_filter(page: "Page") -> None:
    page.one("#text").send_keys("43173")
    page.row(6).click()
    kept, kinds = page.address, page.kinds()
    page.open(kept)
    assert page.kinds() == kinds
    assert page.one("#text").get_attribute("value") == "43173"
    assert page.text("#detail h2 span") == "frame 9 related"
    assert page.row(6).get_attribute("aria-selected") == "true"


@pytest.mark.parametrize(
    "address",
    ["event=99", "event=-1", "event=x", "capture=7", "hide=x", "helper=%F0", "%"],
)
def test_address_of_another_page_does_no_harm(page: "Page", address: str) -> None:
    page.open(address)
    assert not page.one("#detail").is_displayed()
    if not address.startswith("helper"):
        assert page.text("#count") == "11 of 11 events"


def test_keys_lead_through_the_table(page: "Page") -> None:
    page.press("/")
    assert page.focus() == "text"
    page.press("ARROW_DOWN")
    assert (page.focus(), page.selected()) == ("table", ["0"])
    outline = page.one("#events").value_of_css_property("outline-style")
    assert outline == "solid"
    page.press("ARROW_DOWN", "ARROW_DOWN", "ARROW_DOWN")
    assert page.selected() == ["3"]
    assert page.one("#table").get_attribute("aria-activedescendant") == "row-3"
    assert page.text("#detail h2 span") == "frame 6 message"
    page.press("ENTER")
    assert page.focus() == "detail"
    page.press("ESCAPE")
    assert (page.focus(), page.selected()) == ("table", ["3"])
    page.press("END", "ARROW_DOWN")
    assert page.selected() == ["10"]
    page.press("HOME", "ARROW_UP")
    assert page.selected() == ["0"]
    page.press("ESCAPE")
    assert not page.one("#detail").is_displayed()
    assert page.address == ""


def test_keys_go_on_from_a_row_that_the_filter_hides(page: "Page") -> None:
    page.open("event=3&hide=message")
    page.driver.execute_script("document.getElementById('table').focus()")
    page.press("ARROW_DOWN")
    assert page.selected() == ["4"]
    page.open("event=3&hide=message")
    page.driver.execute_script("document.getElementById('table').focus()")
    page.press("ARROW_UP")
    assert page.selected() == ["1"]


@pytest.mark.parametrize("page", [[hostile(), ("a.pcap", STORY)]], indirect=True)
def test_hostile_text_stays_text(page: "Page") -> None:
    for number in range(8):
        page.row(number).click()
        assert HOSTILE in page.text("#detail")
    page.one("#text").send_keys(HOSTILE)
    page.driver.refresh()
    assert page.one("#text").get_attribute("value") == HOSTILE
    assert page.all("img") == []
    assert len(page.all("script")) == 2
    assert page.driver.title == "2 captures - cthelper replay"
    assert HOSTILE in page.texts("#timeline h2 span")


@pytest.mark.parametrize("page", [[("a.pcap", many(10_000))]], indirect=True)
def test_ten_thousand_events(page: "Page") -> None:
    assert page.text("#count") == "10500 of 10500 events"
    # What is not in sight is not drawn.
    assert len(page.kinds()) < 200
    assert len(page.all("#timeline .lane > svg")) < 100
    page.row(0).click()
    page.press("END")
    assert page.selected() == ["10499"]
    assert page.row(10499).is_displayed()
    page.one("#text").send_keys(":1024 > message")
    assert page.text("#count") == "20 of 10500 events"
    assert page.dump() == [f"0000  {'4f 50 45 4e 3f 0a':48}  OPEN?."]


def test_on_a_phone_nothing_is_wider_than_the_screen(page: "Page") -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    try:
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.open("event=3")
        width = page.driver.execute_script(
            "return document.documentElement.scrollWidth"
        )
        assert width <= 390
        assert re.fullmatch(r"0000  ([0-9a-f]{2} ){8} .{8}", page.dump()[0])
        page.one("#detail h2 button").click()
        assert not page.one("#detail").is_displayed()
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_replay_writes_what_the_browser_shows(
    chromium: "Chromium", tmp_path: Path
) -> None:
    capture = ROOT / "pcaps/sunrpc/rpc-nfsv3-nfs-ls-tcp.pcap"
    file, config = tmp_path / "replay.html", tmp_path / "cthelper.toml"
    config.write_text("")
    arguments = ["replay", str(capture), "--html", str(file), "--config", str(config)]
    assert main(arguments) == 0
    page = chromium.page(file)
    page.open("text=announces+program")
    assert page.kinds() == ["message", "message"]
    page.press("/", "ARROW_DOWN")
    assert page.detail()["announces"] == "program 100005 at tcp 10.77.2.2:43173"
    # RFC 5531: the record's mark, the xid, a reply, accepted; RFC 1833: the port.
    assert page.dump()[0].startswith("0000  80 00 00 1c ")
    assert page.dump()[1].endswith("00 00 a8 a5  ................")
    page.check()

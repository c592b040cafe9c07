# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of ``cthelper top`` under keys, by textual's own pilot."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.pilot import Pilot

from cthelper.core.cli import INTERRUPTED
from cthelper.core.cli.top_reading import Reader, Wanted
from cthelper.core.cli.top_rows import COLUMNS, MOST, Order
from cthelper.core.cli.top_screen import (
    Help,
    Top,
    columns,
    cut,
    head_line,
    left_text,
    size_text,
)
from cthelper.core.control.health import Fill
from cthelper.core.records import Record
from cthelper.core.tuples import UDP
from tests.core.cli.canned import STATUS, Canned, records, serving
from tests.core.cli.test_top_reading import many
from tests.core.cli.top_scene import (
    RPC,
    Clock,
    draw,
    entry,
    flow,
    picture,
    prepared,
    scene,
    text_of,
)
from tests.core.control.controlled import World, controller

PICTURE: Final = Path(__file__).parents[3] / "docs" / "top.svg"
SECONDS: Final = 20.0


class Seat:
    """Somebody before the screen."""

    def __init__(self, top: Top, pilot: "Pilot[int]", clock: Clock) -> None:
        self.top = top
        self.clock = clock
        self._pilot = pilot

    async def lines(self) -> list[str]:
        """What is shown."""
        await self._pilot.pause()
        return text_of(picture(self.top))

    async def press(self, *keys: str) -> list[str]:
        """What is shown after these keys."""
        await self._pilot.press(*keys)
        return await self.lines()

    async def resize(self, width: int, height: int) -> list[str]:
        await self._pilot.resize_terminal(width, height)
        return await self.lines()

    async def until(self, meant: Callable[[list[str]], bool]) -> list[str]:
        """What is shown, once that is what is meant."""
        deadline = time.monotonic() + SECONDS
        while not meant(lines := await self.lines()):
            assert time.monotonic() < deadline, "\n".join(lines)
            await self._pilot.pause(0.05)
        return lines

    async def pass_(self, seconds: float) -> list[str]:
        """What is shown after so long."""
        self.clock.now += seconds
        self.top._draw()
        return await self.lines()


Story = Callable[[Seat], Awaitable[None]]


def play(
    top: Top, clock: Clock, story: Story, size: tuple[int, int] = (80, 24)
) -> int | None:
    """What the screen ends with that is shown to somebody."""

    async def played() -> int | None:
        async with top.run_test(size=size) as pilot:
            await story(Seat(top, pilot, clock))
        # The clock may tick once more while the screen is taken apart.
        top._draw()
        return top.return_value

    return asyncio.run(played())


def see(world: World, story: Story, wanted: Wanted | None = None) -> int | None:
    """The same of a scene, once it is shown."""

    async def once_shown(seat: Seat) -> None:
        await seat.until(lambda lines: any(" | row " in each for each in lines))
        await story(seat)

    return play(*prepared(world, wanted), once_shown)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = scene(tmp_path / "socket")
    with controller(world):
        yield world


COUNT: Final = re.compile(r"(.* \| )?by [a-z]+")


def flows(lines: list[str]) -> list[str]:
    """The control flows that are shown."""
    at = next(at for at, line in enumerate(lines) if line.startswith("FLOW "))
    rows = takewhile(lambda line: not COUNT.match(line), lines[at + 1 :])
    return [each.split("  ")[0] for each in rows if each[:1].strip()]


def count(lines: list[str]) -> str:
    """The line below the tree; empty where another one is there."""
    return next(filter(COUNT.match, lines), "")


@pytest.mark.parametrize(
    ("number", "thousand", "text"),
    [
        (None, 1000, "-"),
        (0, 1000, "0"),
        (0.4, 1000, "0"),
        (999, 1000, "999"),
        (999.5, 1000, "1.0k"),
        (1000, 1024, "1.0k"),
        (1536, 1024, "1.5k"),
        (99_900, 1000, "99.9k"),
        (99_960, 1000, "100k"),
        (999_499, 1000, "999k"),
        (999_500, 1000, "1.0M"),
        (10**15, 1000, "1000T"),
    ],
)
def test_numbers_have_five_characters(
    number: float | None, thousand: int, text: str
) -> None:
    assert size_text(number, thousand) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (999, "999s"), (1000, "16m"), (431_999, "119h")],
)
def test_times_have_five_characters(seconds: int | None, text: str) -> None:
    assert left_text(seconds) == text


@pytest.mark.parametrize("width", [1, 20, 79, 80, 99, 100, 250])
def test_columns_fill_the_screen(width: int) -> None:
    assert set(columns(width)) <= set(COLUMNS)
    assert len(head_line(width)) == max(width, len(head_line(1)))


@given(st.text(), st.integers(1, 30))
def test_line_that_is_cut_off_says_so(text: str, width: int) -> None:
    found = cut(text, width)
    assert len(found) == width
    assert found.endswith("~") or found.rstrip() == text.rstrip()


def test_picture_in_the_manual_is_what_is_shown() -> None:
    assert text_of(PICTURE.read_text("utf-8")) == text_of(draw())
    assert "url(http" not in PICTURE.read_text("utf-8")


def test_everything_is_on_a_small_screen(world: World) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.lines()
        assert len(lines) <= 24
        assert lines[:2] == [
            "cthelper 0.1.0  health ok  ruleset in place  workers 1 of 1  up 3 d 2 h",
            "refused 2  conntrack 1,204 of 65,536  expectations 4 of 4,096",
        ]
        assert [each.split() for each in lines[2:5]] == [
            ["FLOW", "HELPER", "STATE", "LEFT", "BYTES", "B/S"],
            [
                *("tcp", "10.77.1.30:40122", ">", "192.0.2.80:21"),
                *("ftp", "inspected", "119h", "2.3k", "65"),
            ],
            [
                *("tcp", "10.77.1.30:40140", ">", "192.0.2.80:50007"),
                *("ESTABLISHED", "119h", "693M", "11.3M"),
            ],
        ]
        assert max(map(len, lines)) <= 80
        assert count(lines) == (
            "by bytes/s | row 1 of 14 | 6 control, 4 expected, 4 data flows"
        )
        assert "REFUSED 2" in lines
        assert any(each.startswith("23:58:37 ftp third-party-") for each in lines)

    see(world, story)


def test_time_left_counts_down_between_two_readings(world: World) -> None:
    async def story(seat: Seat) -> None:
        def expects(lines: list[str]) -> str:
            (line,) = (each for each in lines if "192.0.2.80:50021" in each)
            return line.split()[-3]

        assert expects(await seat.lines()) == "112s"
        assert expects(await seat.pass_(5)) == "107s"
        assert expects(await seat.pass_(1000)) == "0s"

    see(world, story)


@pytest.mark.parametrize(
    ("keys", "first", "by"),
    [
        ((), "tcp 10.77.1.30:40122", "bytes/s"),
        (("r",), "tcp 10.77.1.7:51002", "bytes/s turned"),
        (("s",), "tcp 10.77.1.7:51002", "flow"),
        (("s", "r"), "udp 10.77.1.4:50111", "flow turned"),
        (("S",), "tcp 10.77.1.30:40122", "packets/s"),
        (("1",), "tcp 10.77.1.7:51002", "flow"),
        (("2",), "udp 10.77.1.4:50111", "helper"),
        (("3",), "udp 10.77.1.2:5353", "state"),
        (("4",), "tcp 10.77.1.7:51002", "left"),
        (("5",), "tcp 10.77.1.30:40122", "packets"),
        (("8",), "tcp 10.77.1.30:40122", "bytes/s"),
    ],
)
def test_keys_sort(world: World, keys: tuple[str, ...], first: str, by: str) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.press(*keys)
        assert flows(lines)[0].startswith(f"{first} ")
        assert count(lines).startswith(f"by {by} | ")

    see(world, story)


def test_filter_is_typed_in_conntracks_words(world: World) -> None:
    async def story(seat: Seat) -> None:
        await seat.press("slash", *"--dport x", "enter")
        lines = await seat.lines()
        assert any(
            each.startswith("! argument --dport/--orig-port-dst: invalid int value")
            for each in lines
        )
        # Letters are letters there, and no keys.
        lines = await seat.press("escape")
        assert "filter" not in count(lines)
        assert len(flows(lines)) == 6
        await seat.press("slash", *"--helper=ftp", "enter")
        lines = await seat.until(lambda each: len(flows(each)) == 2)
        assert " | --helper=ftp | " in count(lines)
        await seat.until(lambda each: "REFUSED 1" in each)
        # What was typed is there to be changed, and empty it means all.
        await seat.press("slash", *["backspace"] * 20, "enter")
        await seat.until(lambda each: len(flows(each)) == 6)

    see(world, story)


def test_filter_of_the_command_line_is_the_first(world: World) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.lines()
        assert flows(lines) == ["udp 10.77.1.2:34513 > 10.77.2.2:111"]
        assert count(lines).startswith("by flow turned | -p udp --dport=20048 | ")

    wanted = Wanted({"transport": "udp", "dport": 20048}, order=Order("flow", True))
    see(world, story, wanted)


def test_what_has_no_helper_is_shown_where_it_is_asked_for(world: World) -> None:
    async def story(seat: Seat) -> None:
        assert len(flows(await seat.lines())) == 6
        await seat.press("a")
        lines = await seat.until(lambda each: " | row 1 of 15 | " in count(each))
        assert " | --all | " in count(lines)
        assert any(each.startswith("udp 10.1.1.1:5 ") for each in lines)
        await seat.press("a")
        await seat.until(lambda each: " | row 1 of 14 | " in count(each))

    other = flow(UDP, ("10.1.1.1", 5), ("10.1.1.2", 6))
    world.kernel.table.append(entry(other, 90, 10))
    see(world, story)


def test_pause_stands_still_and_still_sorts(world: World) -> None:
    async def story(seat: Seat) -> None:
        before = await seat.press("p")
        assert count(before).startswith("PAUSED | ")
        world.kernel.table = [entry(RPC, 1, 10, helper="sunrpc")]
        assert await seat.pass_(5) == before
        assert flows(await seat.press("1"))[0].startswith("tcp 10.77.1.7:51002")
        assert len(flows(await seat.press("8"))) == 6
        await seat.press("space")
        lines = await seat.until(lambda each: len(flows(each)) == 1)
        assert "PAUSED" not in count(lines)

    see(world, story)


def test_new_filter_ends_the_pause(world: World) -> None:
    async def story(seat: Seat) -> None:
        await seat.press("p", "slash", *"--helper tns", "enter")
        lines = await seat.until(lambda each: len(flows(each)) == 1)
        assert "PAUSED" not in count(lines)

    see(world, story)


def test_all_of_the_chosen_row_is_told_and_it_stays_chosen(world: World) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.press("down", "down")
        assert "expectation tcp 10.77.1.30 > 192.0.2.80:50021" in lines
        assert "data, once, 112 s" in lines
        lines = await seat.press("1")
        assert "expectation tcp 10.77.1.30 > 192.0.2.80:50021" in lines
        assert " | row 3 " not in count(lines)
        lines = await seat.press("end")
        assert " | row 14 of 14 | " in count(lines)
        lines = await seat.press("pagedown", "down", "home", "k")
        assert " | row 1 of 14 | " in count(lines)
        lines = await seat.press("pagedown", "j")
        assert " | row 14 of 14 | " in count(lines)
        # Where it is the first one what is first is shown.
        lines = await seat.press("home", "8")
        assert "control flow tcp 10.77.1.30:40122 > 192.0.2.80:21" in lines

    see(world, story)


def test_screen_changes_its_size(world: World) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.resize(120, 30)
        head = next(each for each in lines if each.startswith("FLOW "))
        assert head.split() == [
            *("FLOW", "HELPER", "STATE", "LEFT", "PKTS", "PKT/S", "BYTES", "B/S")
        ]
        assert any("> [fd77:2::80]:50008 " in each for each in lines)
        lines = await seat.resize(20, 5)
        assert len(lines) <= 5
        lines = await seat.resize(1, 1)
        assert len(lines) <= 1
        lines = await seat.resize(80, 24)
        assert " | row 1 of 14 | " in count(lines)

    see(world, story)


def test_keys_are_listed(world: World) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.press("question_mark")
        assert lines[0] == "cthelper top: keys"
        assert any(each.startswith("q  Ctrl-C") for each in lines)
        assert max(map(len, lines)) < 80
        assert len(lines) < 24
        # It goes on below.
        await seat.pass_(3)
        lines = await seat.press("escape")
        assert any("192.0.2.80:50021" in each and "109s" in each for each in lines)

    see(world, story)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (("q",), 0),
        (("ctrl+c",), INTERRUPTED),
        (("question_mark", "q"), 0),
        (("question_mark", "ctrl+c"), INTERRUPTED),
        (("slash", "q", "ctrl+c"), INTERRUPTED),
        (("p", "q"), 0),
    ],
)
def test_keys_end_it(world: World, keys: tuple[str, ...], code: int) -> None:
    async def story(seat: Seat) -> None:
        await seat.press(*keys)

    assert see(world, story) == code


def test_what_is_amiss_is_said(world: World) -> None:
    async def story(seat: Seat) -> None:
        lines = await seat.lines()
        assert "health degraded  ruleset gone" in lines[0]
        assert lines[2] == "! the ruleset is gone: new flows are not inspected"
        assert lines[3].startswith("! the last reload was refused: [red]x?y")
        assert lines[4] == "! the kernel's conntrack table has 65000 of 65536"
        assert lines[5] == "! 3 more: `cthelper status` has them all"

    state = cast(Record, world.supervisor.state)
    state["ruleset"] = False
    state["reload"] = {"time": 0.0, "error": "[red]x\x1by" + "z" * 200}
    own = cast(Record, world.server.state)
    own["quarantined"] = ["a", "b", "c"]
    world.commands._entries = lambda: Fill(65_000, 65_536)
    see(world, story)


EVIL: Final = "[bold]\x1b[2J\x9b31m[/bold]\u202e\u0301\n[@click=app.quit]x"


def test_text_of_the_daemon_is_text(tmp_path: Path) -> None:
    ends = {"transport": EVIL, "source": EVIL, "destination": EVIL}
    entry_ = {
        **{"gone": False, "flow": ends, "reply": ends, "zone": 0, "id": EVIL},
        **{"helper": EVIL, "inspection": "finished", "reason": EVIL, "state": EVIL},
        **{"answered": True, "timeout": 30, "packets": None, "bytes": None},
    }
    expects = {"expects": ends, "policy": EVIL, "permanent": False, "timeout": 3}
    refused = {"time": EVIL, "helper": EVIL, "reason": EVIL, "detail": EVIL}
    status = {
        **STATUS,
        **{"health": EVIL, "problems": [EVIL], "counters": {EVIL: 1}},
        "tables": {EVIL: {"used": 1, "most": 2}},
        "supervisor": {"version": EVIL, "since": 0.0, "ruleset": True},
    }
    canned = Canned(
        tmp_path / "socket",
        status=records(status),
        flows=records({**entry_, "expectations": [expects], "flows": [entry_]}),
        events=records(refused),
    )

    async def story(seat: Seat) -> None:
        lines = await seat.until(lambda each: any("data flows" in x for x in each))
        text = "\n".join([*lines, *await seat.press("down"), *await seat.press("down")])
        assert text.isascii()
        assert text.replace("\n", "").isprintable()
        assert "[bold]?[2J?31m[/bold]???[@click=app.quit]x" in text
        assert "nf_conntrack_acct is off" in count(lines)

    with serving(canned):
        play(Top(Reader(canned.path), Wanted(), 3600.0), Clock(), story, (250, 24))


def test_daemon_that_goes_away_is_said_to_be_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    top = Top(Reader(path), Wanted(order=Order("flow")), 0.05)

    async def story(seat: Seat) -> None:
        await seat.until(lambda each: each[0].startswith("! "))
        with serving(Canned(path, flows=many(2))):
            lines = await seat.until(lambda each: len(flows(each)) == 2)
            assert lines[0] == "cthelper  health ok  workers 0 of 0"
        lines = await seat.until(lambda each: each[0].startswith("! "))
        assert lines[0].endswith("~") or "no daemon answers" in lines[0]
        assert lines[1].startswith("! since ")
        # What was known last is there still.
        assert len(flows(lines)) == 2
        with serving(Canned(path, flows=many(3))):
            lines = await seat.until(lambda each: len(flows(each)) == 3)
            assert lines[0] == "cthelper  health ok  workers 0 of 0"

    assert play(top, Clock(), story, (120, 24)) is None


def test_daemon_that_answers_slowly_leaves_the_keys_alive(tmp_path: Path) -> None:
    canned = Canned(tmp_path / "socket", flows=many(3))
    clock = Clock()
    top = Top(Reader(canned.path), Wanted(), 0.01, clock=clock)

    async def story(seat: Seat) -> None:
        await seat.until(lambda each: len(flows(each)) == 3)
        canned.go_on.clear()
        while top._poller.late == 0:
            seat.clock.now += 0.01
            await asyncio.sleep(0.01)
        lines = await seat.pass_(7)
        assert count(lines).startswith("ASKED 7 S AGO | ")
        assert (await seat.press("question_mark"))[0] == "cthelper top: keys"
        await seat.press("escape")
        lines = await seat.press("1")
        assert " | by flow | " in count(lines)
        assert canned.most_at_once == 1
        # And nobody who quits waits for it.
        begun = time.monotonic()
        await seat.press("q")
        assert time.monotonic() - begun < SECONDS / 10

    with serving(canned):
        assert play(top, clock, story) == 0
        canned.go_on.set()


def test_very_many_flows_do_not_freeze_the_screen(tmp_path: Path) -> None:
    canned = Canned(tmp_path / "socket", flows=many(100_000))
    top = Top(Reader(canned.path), Wanted(order=Order("flow")), 3600.0)

    async def story(seat: Seat) -> None:
        # A key is answered while they are read, and not only after that.
        top.simulate_key("question_mark")
        slowest, before = 0.0, time.monotonic()
        helped = False
        while top._reading is None:
            await asyncio.sleep(0.01)
            slowest = max(slowest, time.monotonic() - before)
            before = time.monotonic()
            helped |= isinstance(top.screen, Help)
        assert helped
        assert slowest < 1.5
        await seat.press("escape")
        lines = await seat.until(lambda each: len(flows(each)) > 5)
        assert count(lines).startswith(
            f"by flow | 99,000 MORE ROWS | row 1 of {MOST:,} | 100,000 control, "
        )
        begun = time.monotonic()
        for key in ("end", "pageup", "home"):
            await seat.press(key)
        assert time.monotonic() - begun < SECONDS / 10
        # The others are found by asking.
        await seat.press("r")
        await seat.until(lambda each: flows(each)[0].startswith("udp 10.1.134.159:7 "))

    with serving(canned):
        play(top, Clock(), story)

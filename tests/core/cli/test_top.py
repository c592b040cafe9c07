# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper top`` on terminals: real keys and a real screen, by tmux."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.cli import INTERRUPTED, main
from cthelper.core.errors import pip_install
from tests.core.cli.canned import Canned, serving
from tests.core.cli.process import started
from tests.core.cli.screen import SECONDS, Screen
from tests.core.cli.test_terminal import terminal
from tests.core.cli.top_scene import scene
from tests.core.control.controlled import World, controller

# Colours of text and background, of eight, of 256 and of any.
COLOUR: Final = re.compile(r"\x1b\[(?:[\d;]*;)?(?:[349][0-7]|10[0-7]|[34]8;[25])[;m]")


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    with closing(Screen(tmp_path)) as screen:
        yield screen


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = scene(tmp_path / "socket")
    with controller(world):
        yield world


@pytest.mark.tmux
def test_keys_do_on_a_terminal_what_they_say(screen: Screen, world: World) -> None:
    screen.start("--socket", str(world.path), "--every", "1", "--sort", "flow")
    screen.seen(" | row 1 of 14 | ")
    lines = screen.seen("q Quit ? Keys ")
    assert len(lines) <= 24
    assert lines[0].startswith(
        "cthelper 0.1.0  health ok  ruleset in place  workers 1 of 1 "
    )
    assert re.match(r"FLOW +HELPER +STATE +LEFT BYTES +B/S$", lines[2])
    assert lines[3].startswith("tcp 10.77.1.7:51002 > 10.77.2.9:1521 ")
    assert lines[-1].startswith("q Quit ? Keys s Sort r Reverse / Filter a All p Pause")
    screen.press("s")
    screen.seen("by helper | row 1 of 14")
    screen.press("r", "Down", "NPage")
    screen.seen("by helper turned | row 14 of 14")
    screen.press("?")
    screen.seen("cthelper top: keys")
    screen.press("Escape")
    screen.seen("by helper turned")
    screen.press("/")
    screen.seen("filter, such as")
    screen.type("-p udp --dport 5353")
    screen.press("Enter")
    screen.seen("by helper turned | -p udp --dport=5353 | row 1 of 1 | 1 control, ")
    screen.press("p")
    screen.seen("PAUSED | by helper")
    world.kernel.table.clear()
    screen.press("Space")
    screen.seen("0 control, 0 expected, 0 data flows")
    screen.tmux("resize-window", "-x", "120", "-y", "30")
    screen.seen(" PKTS PKT/S BYTES ")
    screen.press("q")
    screen.seen("ended 0")


@pytest.mark.tmux
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("C-c", INTERRUPTED),
        (signal.SIGINT, INTERRUPTED),
        (signal.SIGTERM, 0),
    ],
    ids=str,
)
def test_terminal_is_left_as_it_was(
    screen: Screen, world: World, how: str | signal.Signals, code: int
) -> None:
    screen.start("--socket", str(world.path))
    screen.seen(" | row 1 of 14 | ")
    if isinstance(how, str):
        screen.press(how)
    else:
        os.kill(screen.process, how)
    lines = screen.seen(" echo ")
    assert lines[0] == f"ended {code}"
    assert not any(" -icanon" in each or " -echo " in each for each in lines)


@pytest.mark.tmux
def test_nothing_is_left_where_the_connection_breaks(
    screen: Screen, world: World
) -> None:
    screen.start("--socket", str(world.path))
    screen.seen(" | row 1 of 14 | ")
    process = Path(f"/proc/{screen.process}")
    screen.close()
    deadline = time.monotonic() + SECONDS
    while process.exists() and "zombie" not in (process / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.tmux
@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "linux"}, True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False),
        ({"TERM": "vt100"}, False),
        ({"TERM": "xterm-mono"}, False),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_terminal_without_colours_shows_the_same(
    screen: Screen, world: World, variables: dict[str, str], coloured: bool
) -> None:
    screen.start("--socket", str(world.path), **variables)
    screen.seen(" | row 1 of 14 | ")
    lines = screen.seen("q Quit ? Keys ")
    assert "\n".join(lines).isascii()
    shown = "\n".join(screen.lines("-e"))
    assert (COLOUR.search(shown) is not None) is coloured
    # The chosen row, which its place tells, too.
    assert "\x1b[7m" in shown or ";7m" in shown


@pytest.mark.tmux
def test_daemon_goes_away_and_comes_back(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(Canned(path)):
        screen.start("--socket", str(path), "--every", "1")
        screen.seen("cthelper  health ok")
    lines = screen.until(lambda lines: lines[0].startswith("! "))
    assert lines[1].startswith("! since ")
    slow = Canned(path)
    with serving(slow):
        screen.seen("cthelper  health ok")
        # Nor does whoever quits wait for it.
        slow.go_on.clear()
        screen.seen("ASKED 4 S AGO")
        screen.press("q")
        screen.seen("ended 0")


# Where there is no screen.


def test_nobody_there_is_said_in_one_line(tmp_path: Path) -> None:
    with (
        terminal() as seen,
        started(
            *("top", "--socket", str(tmp_path / "none")),
            **dict.fromkeys(("stdin", "stdout", "stderr"), seen.end),
        ) as process,
    ):
        assert process.wait(SECONDS) == 2
    said = "no daemon answers: is `cthelper run` running?"
    assert seen.seen.decode() == f"cthelper: {tmp_path}/none: {said}\n"


@pytest.mark.parametrize(
    ("end", "name"), [("stdin", "input"), ("stdout", "output"), ("stderr", "error")]
)
def test_no_terminal_is_said_in_one_line(tmp_path: Path, end: str, name: str) -> None:
    with terminal() as seen, (tmp_path / "other").open("w+b") as other:
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), seen.end)
        ends[end] = other.fileno()
        with started("top", "--socket", str(tmp_path / "none"), **ends) as process:
            assert process.wait(SECONDS) == 2
        other.seek(0)
        written = other.read()
    assert (written + seen.seen).decode() == (
        f"cthelper: top: standard {name} is no terminal\n"
    )


def test_terminal_that_cannot_place_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with (
        terminal() as seen,
        started(
            *("top", "--socket", str(tmp_path / "none")),
            **dict.fromkeys(("stdin", "stdout", "stderr"), seen.end),
        ) as process,
    ):
        assert process.wait(SECONDS) == 2
    assert seen.seen == b"cthelper: top: a terminal of type dumb has no full screen\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--every", "0"), "--every 0 is too often"),
        (("--dport", "70000"), "dport 70000 is no number from 0 to 65535"),
        (("--state", "open"), "OPEN is no state: NONE"),
        (("-s", "nowhere"), "'nowhere' does not appear to be an IPv4 or IPv6 network"),
    ],
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], error: str
) -> None:
    assert main(["top", *words]) == 2
    assert capsys.readouterr().err.startswith(f"cthelper: {error}")


def test_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    assert main(["top"]) == 1
    how = pip_install("textual")
    assert capsys.readouterr().err == f"cthelper: textual is not installed: {how}\n"


def test_other_commands_do_not_load_it() -> None:
    program = (
        "import sys; from cthelper.core.cli import parser; parser(); "
        "print(*{'textual', 'rich', 'curses'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"

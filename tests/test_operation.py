# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/operation.md has every command, every event of the log, and why flows finish."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.api import DONE
from cthelper.core.cli import main
from cthelper.core.config import Config
from cthelper.core.daemon import supervisor

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = (ROOT / "docs" / "operation.md").read_text("utf-8")
CORE: Final = [
    path
    for path in sorted((ROOT / "core").rglob("*.py"))
    if path.parent.name not in ("cli", "offline")
]


def first_arguments(*functions: str) -> Iterator[str]:
    """The texts that these functions and methods are called with first."""
    for path in CORE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=name) | ast.Name(id=name),
                    args=[argument, *_],
                ) if name in functions:
                    for each in ast.walk(argument):
                        if isinstance(each, ast.Constant) and type(each.value) is str:
                            yield each.value


def reasons_of_done() -> Iterator[str]:
    """The reasons that helpers give a flow up for."""
    for path in sorted((ROOT / "helpers").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="Done"),
                    args=[_, ast.Constant(value=str(reason))],
                ):
                    yield reason


def rows(title: str) -> dict[str, str]:
    """A section's table: the first column to the rest."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.MULTILINE))


def test_every_command_is_in_the_table_and_helped_in_the_same_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    commands = re.findall(r"^    ([a-z]+)\b", text, re.MULTILINE)
    shown = rows("Commands")
    names = [re.findall(r"[a-z]+", each)[1] for each in shown]
    assert sorted(commands) == sorted(set(names))
    words = " ".join(text.split())
    for name, meaning in zip(names, shown.values(), strict=True):
        if names.count(name) == 1:  # the others are actions of one command
            assert f"{name} {meaning.partition(' ([')[0]}" in words


def test_every_event_is_in_the_table() -> None:
    events = {
        *first_arguments("event", "several", "_write"),
        "keep-failed",
        "mark-failed",
    }
    shown = {name for each in rows("The log") for name in re.findall(r"[\w-]+", each)}
    assert events == shown


def test_every_reason_that_a_flow_finishes_for_is_in_the_table() -> None:
    reasons = {*first_arguments("finish", "StreamLost")} - {"stream-lost"}
    reasons |= {DONE.reason, *reasons_of_done()}
    words = rows("The log")["`finished`"]
    named = re.findall(r"`([\w-]+)`", words.partition("`reason`")[2])
    assert {each for each in reasons if re.fullmatch(r"[a-z-]+", each)} == set(named)


def test_what_needs_a_restart_is_named() -> None:
    line = re.search(r"^- (`workers`.*) of `\[daemon\]`;$", PAGE, re.MULTILINE)
    assert line
    assert re.findall(r"`(\w+)`", line[1]) == list(supervisor._FIXED)
    assert set(supervisor._FIXED) <= set(Config(helpers={}).daemon.__slots__)

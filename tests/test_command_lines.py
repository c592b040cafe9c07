# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command line in the pages is taken by the parser, and is run by a test."""

import argparse
import re
from pathlib import Path
from typing import Final

import pytest

from cthelper.core import cli
from tests.command_lines import (
    FOLLOWED,
    PAGES,
    ROOT,
    TROUBLESHOOTING,
    Line,
    calls,
    lines,
    lines_of,
    variants,
)
from tests.live.test_documents import SCENES
from tests.pages import run

LINES: Final = lines()
CALLS: Final = [(line, call) for line in LINES for call in calls(line.text)]
CAPTURE: Final = ROOT / "pcaps" / "sunrpc" / "rpc-showmount-e.pcap"

# What no test runs as it stands, by its beginning, and why.
ELSEWHERE: Final = {
    "PYTHONPATH=.": "it wants Dask: tests/core/cli/test_replay.py has it",
    "install -D": "tests/live/test_systemd.py puts a plugin there, and reloads",
    "pip install": "it downloads; tests/test_packaging.py installs the wheel",
    "python3 -m venv": "the same",
    "script/demo": "it is a test by itself: it fails where a step does",
    "script/install": "tests/live/test_install.py, in a machine with systemd",
    "script/test": "it runs the tests",
    "systemctl": "tests/live/test_systemd.py and test_install.py, with systemd",
    "tcpdump": "it is no dependency; any program that captures will do",
}
# What is in prose and no whole command.
_INLINE: Final = re.compile(r"`cthelper ([a-z][^`]*)`")


def parsed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Fail where the parser refuses them."""
    try:
        cli.parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{arguments}: {capsys.readouterr().err}", pytrace=False)


@pytest.mark.parametrize(("line", "call"), CALLS, ids=[str(each) for each, _ in CALLS])
def test_arguments_are_those_of_the_command(
    line: Line, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in variants(call):
        parsed(arguments, capsys)


def test_variants_have_each_alternative_and_all_options() -> None:
    assert variants("flows a|b [--json] [-s ADDRESS]... [--x 1 | --y [PORT]]") == [
        ["flows", "a", "--json", "-s", "10.77.1.2", "--x", "1"],
        ["flows", "b", "--json", "-s", "10.77.1.2", "--y", "7111"],
    ]
    assert variants("explain 'tcp a > b' \"c d\" ...") == [
        ["explain", "tcp a > b", "c d", "-s", "10.77.1.2"]
    ]


def test_lines_are_found_with_prompts_comments_and_output() -> None:
    page = ROOT / "docs" / "replay.md"
    assert any(each.output.startswith("pcaps/") for each in lines_of(page))
    assert calls("A=1 x/cthelper check; sed x | cthelper replay -") == [
        "check",
        "replay -",
    ]
    assert len(LINES) > 60
    assert {each.page for each in LINES} > {"README.md", TROUBLESHOOTING, *FOLLOWED}


def options(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """The options of the command that the words name."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word in words:
                if word in action.choices:
                    return found | options(action.choices[word], words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_prose_are_there_with_their_options(page: Path) -> None:
    for text in _INLINE.findall(page.read_text("utf-8")):
        words = re.findall(r"[\w-]+", text.replace("\\|", " "))
        assert words[0] in command_names(), text
        named = {each for each in words if each.startswith("-") and each.strip("-")}
        assert named <= options(cli.parser(), words), text


def command_names() -> set[str]:
    """The names of all commands."""
    (commands,) = (
        each
        for each in cli.parser()._actions
        if isinstance(each, argparse._SubParsersAction)
    )
    return set(commands.choices)


# Who runs them


def own(line: Line) -> bool:
    """Whether a line is run here: it needs no kernel, and no other test runs it."""
    shown_alone = line.page not in FOLLOWED and line.output
    followed = line.page in FOLLOWED and line.language
    return bool(calls(line.text)) and not (line.is_live or shown_alone or followed)


OWN: Final = [
    each for each in LINES if own(each) and not each.text.startswith(tuple(ELSEWHERE))
]


@pytest.mark.parametrize("line", OWN, ids=str)
def test_line_runs(line: Line, tmp_path: Path) -> None:
    """What needs no kernel, in a folder where a reader may be."""
    (tmp_path / "yours.pcap").write_bytes(CAPTURE.read_bytes())
    for call in calls(line.text):
        run(f"cthelper {call} <yours.pcap", tmp_path)


def test_every_line_is_run_by_a_test() -> None:
    left = [
        each
        for each in LINES
        if not (
            own(each)
            or each.is_live
            or (each.page in FOLLOWED and each.language)
            or (calls(each.text) and each.output)  # tests/test_readme.py
            or each.text.startswith(tuple(ELSEWHERE))
        )
    ]
    assert left == []


@pytest.mark.parametrize("beginning", ELSEWHERE)
def test_exception_is_one_still(beginning: str) -> None:
    assert any(each.text.startswith(beginning) for each in LINES)


def test_every_symptom_has_a_scene() -> None:
    found = {each.heading for each in LINES if each.page == TROUBLESHOOTING}
    assert found == SCENES.keys()


# Configuration


TABLES: Final = [
    pytest.param(text, id=f"{page.name}: {text.splitlines()[0]}")
    for page in PAGES
    if page.name != "helpers.md"
    for text in re.findall(
        r"^```toml\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
]


@pytest.mark.parametrize("text", TABLES)
def test_configuration_in_the_pages_is_right(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text(text)
    assert cli.main(["check", "--config", str(file)]) == 0, capsys.readouterr().err

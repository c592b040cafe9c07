# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in README and docs print what is shown, where they need no kernel."""

import re
import shlex
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.cli import main
from tests.pages import blocks

ROOT: Final = Path(__file__).parents[1]
SHOWN: Final = [
    found
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for found in re.findall(
        r"^```\n\$ cthelper (.*)\n((?:.*\n)*?)```$", page.read_text("utf-8"), re.M
    )
]


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[each[0] for each in SHOWN])
def test_command_prints_what_is_shown(
    command: str,
    output: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == output


def test_commands_were_found() -> None:
    assert len(SHOWN) >= 2


def test_readme_fits_on_a_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) < 1000


def test_troubleshooting_shows_what_replay_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    (shown,) = blocks(page, "text")
    monkeypatch.chdir(ROOT)
    assert main(["replay", "pcaps/field/tns-pool.pcap"]) == 0
    assert shown in capsys.readouterr().out

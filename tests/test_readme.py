# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's commands that need neither root nor a kernel print what it shows."""

import re
import shlex
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.cli import main

ROOT: Final = Path(__file__).parents[1]
SHOWN: Final = re.findall(
    r"^```\n\$ cthelper (.*)\n((?:.*\n)*?)```$",
    (ROOT / "README.md").read_text("utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[each[0] for each in SHOWN])
def test_command_prints_what_the_readme_shows(
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's guide, plugins/README.md: its code runs and gives what it shows."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.contract import check
from cthelper.core.registry import find_helpers
from tests.pages import BLOCK, LINK, ROOT, blocks, commands, follow, lay_out, saved

GUIDE: Final = (ROOT / "plugins" / "README.md").read_text("utf-8")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files that the page has its reader save."""
    return lay_out(GUIDE, tmp_path)


def test_commands_give_what_the_page_shows(desk: Path) -> None:
    follow(GUIDE, desk)


def test_module_of_the_page_is_a_sound_helper(desk: Path) -> None:
    helper = find_helpers(None, [desk / "xdmcp.py"])["xdmcp"].helper
    check(helper)
    assert helper.ports == (177,)


def test_code_of_the_page_is_typed_and_in_form(desk: Path) -> None:
    settings = str(ROOT / "pyproject.toml")
    files = "xdmcp.py test_xdmcp.py"
    for line in (
        f"mypy --strict {files}",
        f"ruff format --check --no-cache --config {settings} {files}",
        f"ruff check --no-cache --ignore S101 --config {settings} {files}",
    ):
        done = subprocess.run(
            [sys.executable, "-m", *line.split()],
            cwd=desk,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_every_block_of_code_is_tested() -> None:
    assert blocks(GUIDE, "python") == [text for _, text in saved(GUIDE)]
    known = {"", "console", "nft", "python", "sh"}
    assert {language for language, _ in BLOCK.findall(GUIDE)} == known
    assert len(list(commands(GUIDE))) > 4


@pytest.mark.parametrize("link", LINK.findall(GUIDE))
def test_link_leads_somewhere(link: str) -> None:
    assert (ROOT / "plugins" / link).exists()

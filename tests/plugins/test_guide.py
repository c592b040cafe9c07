# SPDX-License-Identifier: GPL-2.0-or-later
"""The author's guide, plugins/README.md: its code runs and gives what it shows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.contract import check
from cthelper.core.registry import find_helpers

ROOT: Final = Path(__file__).parents[2]
GUIDE: Final = (ROOT / "plugins" / "README.md").read_text("utf-8")

_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SAVE: Final = re.compile(
    r"Save this as `([\w.]+)`:\n\n```python\n(.*?)^```$", re.S | re.M
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and what it prints; None: that is not shown."""

    line: str
    output: str | None


def blocks(language: str) -> list[str]:
    return [text for name, text in _BLOCK.findall(GUIDE) if name == language]


def commands() -> Iterator[Command]:
    """What can be run without root, in the order of the page."""
    for language, text in _BLOCK.findall(GUIDE):
        if language == "sh":
            yield Command(" && ".join(text.splitlines()), None)
        elif language == "console":
            for each in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, output = each.partition("\n")
                yield Command(line, output)


def run(line: str, folder: Path) -> str:
    """Run a line in a shell where cthelper is installed; what it prints."""
    scripts = Path(sys.executable).parent
    path = f"{scripts}:{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == (2 if done.stdout.startswith("cthelper: ") else 0), (
        f"{line}\n{done.stdout}"
    )
    return done.stdout


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with the files that the page has its reader save."""
    for name, text in _SAVE.findall(GUIDE):
        (tmp_path / name).write_text(text)
    (tmp_path / "pcaps").symlink_to(ROOT / "pcaps")
    return tmp_path


def test_commands_give_what_the_page_shows(desk: Path) -> None:
    for command in commands():
        output = run(command.line, desk)
        if command.output is not None:
            assert output.replace(f"{desk}/", "…/") == command.output, command.line


def test_module_of_the_page_is_a_sound_helper(desk: Path) -> None:
    helper = find_helpers(None, [desk / "tftp.py"])["tftp"].helper
    check(helper)
    assert helper.ports == (69,)


def test_code_of_the_page_is_typed_and_in_form(desk: Path) -> None:
    settings = str(ROOT / "pyproject.toml")
    for line in (
        "mypy --strict tftp.py test_tftp.py",
        f"ruff format --check --no-cache --config {settings} tftp.py test_tftp.py",
        f"ruff check --no-cache --ignore S101 --config {settings} tftp.py test_tftp.py",
    ):
        done = subprocess.run(
            [sys.executable, "-m", *line.split()],
            cwd=desk,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_every_block_of_code_is_tested() -> None:
    assert blocks("python") == [text for _, text in _SAVE.findall(GUIDE)]
    known = {"", "console", "nft", "python", "sh"}
    assert {language for language, _ in _BLOCK.findall(GUIDE)} == known
    assert len(list(commands())) > 4


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", GUIDE))
def test_link_leads_somewhere(link: str) -> None:
    assert (ROOT / "plugins" / link).exists()

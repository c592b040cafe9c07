# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages whose code and commands a reader can follow: what is in them, and its run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"\]\(([^)]+)\)")
# Told of helpers whose names this machine's kernel has built in, and another's has not.
_NAME_TAKEN: Final = re.compile(
    r"^cthelper: warning: .*: the kernel module \S+ has the name .*\n", re.MULTILINE
)
_SAVE: Final = re.compile(
    r"Save this as\s`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and what it prints; None: that is not shown."""

    line: str
    output: str | None


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return [text for name, text in BLOCK.findall(page) if name == language]


def saved(page: str) -> list[tuple[str, str]]:
    """Name and text of each file that the page has its reader save."""
    return _SAVE.findall(page)


def commands(page: str) -> Iterator[Command]:
    """What can be run without root, in the order of the page."""
    for language, text in BLOCK.findall(page):
        if language == "sh":
            yield Command(" && ".join(text.splitlines()), None)
        elif language == "console":
            for each in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, output = each.partition("\n")
                yield Command(line, output)


def lay_out(page: str, folder: Path) -> Path:
    """A folder with the files that the page has its reader save, and the captures."""
    for name, text in saved(page):
        (folder / name).write_text(text)
    (folder / "pcaps").symlink_to(ROOT / "pcaps")
    return folder


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
    output = _NAME_TAKEN.sub("", done.stdout)
    assert done.returncode == (2 if output.startswith("cthelper: ") else 0), (
        f"{line}\n{done.stdout}"
    )
    return output


def follow(page: str, folder: Path) -> None:
    """Run all commands of a page, which must print what it shows."""
    for command in commands(page):
        output = run(command.line, folder)
        if command.output is not None:
            assert output.replace(f"{folder}/", "…/") == command.output, command.line

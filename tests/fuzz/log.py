# SPDX-License-Identifier: GPL-2.0-or-later
"""What was run: a line for each target, commit and command, in executions.tsv.

Each run adds to its line, so that one that was broken off goes on where it was, and the
file stays small.
"""

import fcntl
import os
import shutil
import subprocess
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LOG: Final = Path(__file__).with_name("executions.tsv")
_COLUMNS: Final = ("target", "commit", "command", "executions", "seconds", "crashes")


@dataclass(frozen=True, slots=True)
class Line:
    """How often a target ran at a commit, by one command, and what it found."""

    target: str
    commit: str
    command: str
    executions: int
    seconds: int
    crashes: int

    @property
    def rate(self) -> int:
        """Executions a second."""
        return self.executions // max(1, self.seconds)


def read(path: Path | None = None) -> list[Line]:
    """All lines; none where nothing was run."""
    path = path or LOG
    if not path.exists():
        return []
    lines = []
    for row in path.read_text("utf-8").splitlines()[1:]:
        target, made_at, command, *numbers = row.split("\t")
        executions, seconds, crashes = map(int, numbers)
        lines.append(Line(target, made_at, command, executions, seconds, crashes))
    return lines


def add(line: Line, path: Path | None = None) -> None:
    """Count a run. Several processes may do so at a time."""
    path = path or LOG
    # The folder, for the file may not be there.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        _write(_counted(read(path), line), path)
    finally:
        os.close(folder)


def _counted(lines: list[Line], line: Line) -> list[Line]:
    """The lines with one more run."""
    for at, old in enumerate(lines):
        if astuple(old)[:3] == astuple(line)[:3]:
            lines[at] = replace(
                old,
                executions=old.executions + line.executions,
                seconds=old.seconds + line.seconds,
                crashes=old.crashes + line.crashes,
            )
            return lines
    return [*lines, line]


def _write(lines: list[Line], path: Path) -> None:
    rows = [_COLUMNS, *(map(str, astuple(each)) for each in sorted(lines, key=astuple))]
    path.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")


def totals(lines: list[Line]) -> dict[str, int]:
    """Executions of each target."""
    result: dict[str, int] = {}
    for each in lines:
        result[each.target] = result.get(each.target, 0) + each.executions
    return result


def commit() -> str:
    """What is checked out, with a plus where the tree differs from it."""
    head = _git("rev-parse", "--short=10", "HEAD")
    others = ":!tests/fuzz/executions.tsv", ":!docs/fuzzing.md"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return f"{head or 'unknown'}{'+' if changed else ''}"


def _git(*arguments: str) -> str:
    """What git says; empty where the tree is not in it, or git is not installed."""
    if shutil.which("git") is None:
        return ""
    run = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands in this process."""

from dataclasses import dataclass

import pytest

from cthelper.core.cli import main


@dataclass(frozen=True, slots=True)
class Result:
    """What a command has left behind."""

    code: int
    output: str
    errors: str


class Runner:
    """Runs commands, and takes what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        try:
            code: int | str | None = main(arguments)
        except SystemExit as stop:  # argparse's way
            code = stop.code
        assert isinstance(code, int)
        output, errors = self._capsys.readouterr()
        return Result(code, output, errors)

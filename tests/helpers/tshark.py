# SPDX-License-Identifier: GPL-2.0-or-later
"""tshark as another reader: the fields that it finds in a capture."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

needed: Final = pytest.mark.tshark


def fields(capture: Path, names: Iterable[str], *options: str) -> list[list[str]]:
    """The values of these fields, a list for each frame; empty ones are not there."""
    wanted = [part for name in names for part in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(capture), "-T", "fields", *options, *wanted],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]

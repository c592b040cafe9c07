# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the command line's tests."""

from pathlib import Path

import pytest

from tests.core.cli.runner import Runner


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """A configuration with all defaults, whatever this machine has in /etc."""
    file = tmp_path / "empty.toml"
    file.write_text("")
    return str(file)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """What runs commands."""
    return Runner(capsys)

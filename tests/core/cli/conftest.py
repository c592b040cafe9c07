# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the command line's tests."""

import shutil
from pathlib import Path

import pytest

from tests.core.cli.process import ROOT
from tests.core.cli.runner import Runner


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """A configuration with all defaults, whatever this machine has in /etc."""
    file = tmp_path / "empty.toml"
    file.write_text("")
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of plugins that holds the worked example."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    shutil.copyfile(ROOT / "plugins" / "iperf.py", folder / "iperf.py")
    (folder / "iperf.py").chmod(0o644)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """What runs commands."""
    return Runner(capsys)

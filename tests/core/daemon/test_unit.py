# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd unit gives no more than the daemon needs."""

import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

UNIT: Final = Path(str(files("cthelper.core.daemon").joinpath("cthelper.service")))
EXPOSURE: Final = 1.5


def settings(name: str) -> list[str]:
    """The words of all lines of a key."""
    lines = re.findall(rf"^{name}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
    return " ".join(lines).split()


@pytest.mark.systemd
def test_exposure_is_what_it_shall_be() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", UNIT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Of an unknown key it warns.
    assert done.stderr == ""
    (exposure,) = re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= EXPOSURE, done.stdout


def test_capabilities_that_are_handed_on_are_all_that_it_can_have() -> None:
    needed = ["CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"]
    assert settings("AmbientCapabilities") == needed
    assert settings("CapabilityBoundingSet") == needed


def test_what_is_not_held_to_it_is_the_question_alone() -> None:
    free = [each for each in settings("Exec[A-Za-z]*") if each.startswith(("+", "!"))]
    assert free == ["+/opt/cthelper/bin/cthelper"]
    assert settings("ExecStartPre") == [*free, "ask", settings("ExecStart")[-1]]

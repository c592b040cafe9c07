# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd unit gives no more than the daemon needs."""

import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.cli.metrics import _LISTEN as LISTEN

FOLDER: Final = Path(str(files("cthelper.core.daemon").joinpath("")))
UNIT: Final = FOLDER / "cthelper.service"
METRICS: Final = FOLDER / "cthelper-metrics.service"


def settings(name: str, unit: Path = UNIT) -> list[str]:
    """The words of all lines of a key."""
    lines = re.findall(rf"^{name}=(.*)$", unit.read_text("utf-8"), re.MULTILINE)
    return " ".join(lines).split()


@pytest.mark.systemd
@pytest.mark.parametrize(
    ("unit", "most"), [(UNIT, 1.5), (METRICS, 1.1)], ids=lambda each: str(each)[-15:]
)
def test_exposure_is_what_it_shall_be(unit: Path, most: float) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Of an unknown key it warns.
    assert done.stderr == ""
    (exposure,) = re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= most, done.stdout


def test_capabilities_that_are_handed_on_are_all_that_it_can_have() -> None:
    needed = ["CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"]
    assert settings("AmbientCapabilities") == needed
    assert settings("CapabilityBoundingSet") == needed


def test_what_is_not_held_to_it_is_the_question_alone() -> None:
    free = [each for each in settings("Exec[A-Za-z]*") if each.startswith(("+", "!"))]
    assert free == ["+/opt/cthelper/bin/cthelper"]
    assert settings("ExecStartPre") == [*free, "ask", settings("ExecStart")[-1]]


def test_metrics_are_asked_for_as_nobody_from_this_host_alone() -> None:
    assert settings("CapabilityBoundingSet", METRICS) == []
    assert settings("ExecStart", METRICS)[1:] == ["metrics", "--listen", LISTEN]
    assert settings("IPAddressAllow", METRICS) == ["localhost"]

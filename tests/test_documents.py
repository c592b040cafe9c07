# SPDX-License-Identifier: GPL-2.0-or-later
"""What script/docs has written is what it would write."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.registry import builtin_helpers

ROOT: Final = Path(__file__).parents[1]
PROTOCOLS: Final = (ROOT / "docs" / "protocols.md").read_text("utf-8")

# How many faults of each of conntrackd's helpers are known.
FAULTS: Final = {"dhcpv6": 11, "mdns": 6, "rpc": 12, "slp": 9, "tns": 12}


def test_generated_documents_are_as_the_code_is() -> None:
    done = subprocess.run(
        [sys.executable, "script/docs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", FAULTS)
def test_every_known_fault_has_a_test(name: str) -> None:
    numbers = re.findall(rf"^\| {name} (\d+) \|", PROTOCOLS, re.MULTILINE)
    assert [int(each) for each in numbers] == list(range(1, FAULTS[name] + 1))


@pytest.mark.parametrize("name", builtin_helpers())
def test_every_helper_says_what_it_handles(name: str) -> None:
    section = PROTOCOLS.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| .*\[`test_", section, re.MULTILINE)) > 5

# SPDX-License-Identifier: GPL-2.0-or-later
"""What is installed for which purpose, and what becomes of tests that lack a part."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Final

import pytest

from tests.parts import PARTS, Part

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUP: Final = (ROOT / "script" / "setup").read_text("utf-8")
SCRIPTS: Final = sorted((ROOT / "script").iterdir())
# The purposes, as the script's head has them.
PURPOSES: Final = set(re.findall(r"^#   (\w+) ", SETUP, re.MULTILINE))
LACKING: Final = Part(
    "cluster", ("pytest", "no_such_package"), ("sh", "no-such-program")
)


def test_each_purpose_has_a_group_of_python_packages() -> None:
    assert set(PROJECT["dependency-groups"]) == PURPOSES


def test_unknown_purpose_is_refused() -> None:
    done = subprocess.run(
        [ROOT / "script" / "setup", "nonsense"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no such purpose: nonsense" in done.stderr


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_scripts_ask_for_purposes_that_are_there(script: str) -> None:
    text = (ROOT / "script" / script).read_text("utf-8")
    asked = re.findall(r'^\s*(?:script/setup |.*needed=")([^"\n]+)', text, re.MULTILINE)
    assert set(" ".join(asked).split()) <= PURPOSES | {"$needed"}


def test_quick_run_leaves_out_what_needs_more_than_it_installs() -> None:
    (chosen,) = re.findall(
        r'-m "(not live and .*)"', (ROOT / "script/test").read_text()
    )
    large = {name for name, part in PARTS.items() if part.purpose != "test"}
    assert set(chosen.split(" and ")) == {f"not {each}" for each in large | {"live"}}


@pytest.mark.parametrize(("ci", "outcome"), [("", "skip"), ("true", "fail")])
def test_missing_part_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", ci)
    exception = {"skip": pytest.skip.Exception, "fail": pytest.fail.Exception}[outcome]
    with pytest.raises(exception) as raised:
        LACKING.demand()
    assert raised.value.msg == (
        "not installed: no_such_package, no-such-program: script/setup cluster"
    )


def test_part_that_is_there_is_not_complained_of() -> None:
    Part("cluster", ("pytest",), ("sh",)).demand()

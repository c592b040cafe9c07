# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of captures: its manifest, and what a replay of each capture gives.

tests/golden/pcaps holds the records; ``pytest tests/test_pcaps.py --update-golden``
writes them anew, for people to look at the difference.
"""

import hashlib
import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.config import parse
from cthelper.core.offline.corpus import Job, replay_job
from cthelper.core.offline.events import Event, ExpectationEvent, record
from cthelper.core.offline.report import json_line
from cthelper.core.registry import builtin_helpers, register
from cthelper.plugins.iperf import Iperf
from cthelper.testing import expectations
from tests.helpers.captures import PCAPS, manifest

ROOT: Final = Path(__file__).parents[1]
GOLDEN: Final = ROOT / "tests" / "golden" / "pcaps"
HELPERS: Final = register([*builtin_helpers().values(), Iperf])
CAPTURES: Final = sorted(str(each.relative_to(PCAPS)) for each in PCAPS.rglob("*.pcap"))


def test_manifest_and_folder_agree() -> None:
    entries = manifest()
    assert list(entries) == CAPTURES
    assert {name: entry["sha256"] for name, entry in entries.items()} == {
        name: hashlib.sha256((PCAPS / name).read_bytes()).hexdigest()
        for name in CAPTURES
    }


def test_manifest_says_where_each_capture_comes_from_and_what_it_holds() -> None:
    for name, entry in manifest().items():
        always = entry.keys() - {"on_link", "expects", "settings"}
        assert always == {"origin", "sha256", "holds"}, name
        for key in ("origin", "holds"):
            assert entry[key].strip(), name
            assert "\n" not in entry[key], name


def test_no_golden_file_is_left_over() -> None:
    found = sorted(str(each.relative_to(GOLDEN)) for each in GOLDEN.rglob("*.jsonl"))
    assert found == sorted(str(Path(each).with_suffix(".jsonl")) for each in CAPTURES)


def replay(name: str, settings: str) -> list[Event]:
    job = Job(
        capture=PCAPS / name,
        read_config=lambda: parse(settings, Path("pcaps.toml"), HELPERS),
        networks=tuple(map(ip_network, manifest()[name].get("on_link", []))),
    )
    return list(replay_job(job))


# Not those of the examples among the plugins.
SERVED: Final = [name for name, entry in manifest().items() if "expects" in entry]


@pytest.mark.parametrize("name", SERVED)
def test_expectations_are_those_that_the_manifest_tells_by_hand(name: str) -> None:
    entry = manifest()[name]
    told = entry["expects"]
    made = expectations(replay(name, entry.get("settings", "")))
    assert made == [(each["frame"], each["text"]) for each in told]
    assert all(each["why"].strip() for each in told)


@pytest.mark.parametrize("name", SERVED)
def test_nothing_but_a_port_that_needs_a_privilege_is_opened_to_everybody(
    name: str,
) -> None:
    """By default: else any process of this host could open any port of it."""
    opened = [
        each.expectation
        for each in replay(name, "")
        if isinstance(each, ExpectationEvent) and each.expectation.source is None
    ]
    assert {each.destination.port for each in opened} <= {546}


@pytest.mark.parametrize("name", CAPTURES)
def test_replay_gives_the_golden_records(name: str, update_golden: bool) -> None:
    records = [record(event, name) for event in replay(name, "")]
    text = "".join(f"{json_line(each)}\n" for each in records if each is not None)
    golden = GOLDEN / Path(name).with_suffix(".jsonl")
    if update_golden:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_golden_files_are_not_written_where_nobody_looks() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--update-golden", "--collect-only", "-q"],
        env={**os.environ, "CI": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--update-golden is for people" in done.stderr

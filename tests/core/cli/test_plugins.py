# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins on the command line: a configured folder, and ``--plugin``."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import Final

import pytest

from cthelper.core.cli import options
from cthelper.core.cli.options import configured, declared_by, made_of
from cthelper.core.config import read_file
from cthelper.core.daemon.channel import fingerprint
from cthelper.core.daemon.examiner import Examiner
from cthelper.core.daemon.privileges import find_user, plan
from cthelper.core.errors import RegistryError
from cthelper.core.registry import Given, Point
from cthelper.core.sources import Sources, read_sources
from tests.core.cli.process import ROOT
from tests.core.cli.runner import Runner
from tests.core.test_registry import good

IPERF: Final = ROOT / "plugins" / "iperf.py"
CAPTURE: Final = ROOT / "pcaps" / "iperf" / "iperf-tradeoff.pcap"


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> str:
    """A configuration that names the folder, and the helper in it."""
    file = tmp_path / "cthelper.toml"
    file.write_text(f"plugins.folder = '{folder}'\nhelpers.iperf.ports = [2121]\n")
    return str(file)


def test_plugin_is_listed_with_its_source(
    run: Runner, folder: Path, config: str
) -> None:
    result = run("helpers", "--config", config)
    assert (result.code, result.errors) == (0, "")
    (row,) = [line for line in result.output.splitlines() if line.startswith("iperf ")]
    assert row == (
        "iperf           tcp 5001               "
        f"iperf 2's flows from the server to the client (-d, -r). [{folder}/iperf.py]"
    )
    page = run("helpers", "iperf", "--config", config).output
    assert f"\nsource         {folder}/iperf.py\n" in page
    # The documentation is the module's.
    assert "payloads.h" in page


def test_plugin_is_configured_as_any_helper(run: Runner, config: str) -> None:
    result = run("ruleset", "show", "--config", config)
    assert (result.code, result.errors) == (0, "")
    assert 'tcp dport 2121 ct helper set "iperf-tcp"' in result.output


def test_replay_takes_a_plugin_from_a_file(run: Runner, empty: str) -> None:
    plugin = ("--plugin", str(IPERF))
    result = run("replay", "--config", empty, "--json", *plugin, str(CAPTURE))
    assert (result.code, result.errors) == (0, "")
    expectation, related, summary = map(json.loads, result.output.splitlines())
    assert (expectation["frame"], expectation["helper"]) == (4, "iperf")
    assert expectation["expects"]["destination"] == "10.91.1.2:5001"
    assert (related["frame"], related["expectation_frame"]) == (13, 4)
    assert summary["related"] == 1


def test_replay_in_other_processes_takes_it_as_well(run: Runner, empty: str) -> None:
    options = ("--config", empty, "--json", "--plugin", str(IPERF), str(CAPTURE))
    here = run("replay", *options)
    elsewhere = run("replay", "--jobs", "1", *options)
    assert elsewhere == here


@pytest.mark.parametrize(
    "command",
    [
        ("run",),
        ("ruleset", "show"),
        ("ruleset", "check"),
        ("helpers",),
        ("replay", str(CAPTURE)),
    ],
    ids=lambda command: command[0],
)
def test_plugin_that_is_refused_is_2_and_one_line(
    run: Runner, folder: Path, config: str, command: tuple[str, ...]
) -> None:
    file = folder / "iperf.py"
    file.write_text(file.read_text().replace("ports = (5001,)", "ports = (0,)"))
    result = run(*command, "--config", config)
    assert (result.code, result.output) == (2, "")
    (line,) = result.errors.splitlines()
    assert line.startswith(f"cthelper: {file}:")
    assert line.endswith(
        ": Iperf.ports = (0,): must be one or more of 1 to 65535, each once, in a tuple"
    )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution of somebody else's whose entry point cannot be loaded."""
    site = tmp_path / "site"
    info = site / "cthelper_x-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cthelper-x\nVersion: 1.2\n"
    )
    (info / "entry_points.txt").write_text("[cthelper.helpers]\nx = absent_x:X\n")
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "command",
    [("ruleset", "show"), ("helpers",), ("replay", str(CAPTURE))],
    ids=lambda command: command[0],
)
def test_broken_entry_point_is_left_out_with_a_warning(
    run: Runner, config: str, command: tuple[str, ...]
) -> None:
    # Nor does what is configured for it keep the others from running.
    with open(config, "a", encoding="utf-8") as file:
        file.write("helpers.x = { ports = [7000], mode = 'its own' }\n")
    result = run(*command, "--config", config)
    assert result.code == 0
    assert "iperf" in result.output
    assert result.errors == (
        "cthelper: warning: cthelper-x 1.2: entry point x = 'absent_x:X': "
        "ModuleNotFoundError: No module named 'absent_x': left out\n"
    )


@pytest.mark.usefixtures("installed")
def test_broken_entry_point_is_a_warning_of_the_configuration(config: str) -> None:
    """So the daemon logs it at each start and reload, and counts it."""
    read = configured(read_file(Path(config)), argparse.Namespace())
    (warning,) = read.warnings
    assert warning.startswith("cthelper-x 1.2: entry point x = 'absent_x:X'")
    assert "iperf" in read.helpers


def test_plugin_twice_is_2_and_one_line(run: Runner, folder: Path, config: str) -> None:
    result = run("helpers", "--config", config, "--plugin", str(IPERF))
    assert (result.code, result.output) == (2, "")
    (line,) = result.errors.splitlines()
    assert line.startswith(f"cthelper: {IPERF}:")
    assert line.endswith(f": Iperf.name = 'iperf': is taken by {folder}/iperf.py")


def test_folder_that_is_not_there_is_2_and_one_line(
    run: Runner, folder: Path, config: str
) -> None:
    shutil.rmtree(folder)
    result = run("helpers", "--config", config)
    assert (result.code, result.output) == (2, "")
    assert result.errors == (
        f'cthelper: {config}: plugins.folder = "{folder}": '
        "must be a folder that is there\n"
    )


# Whose code is run where

TRAP: Final = """
import os, sys
sys.modules["cthelper_trap"] = sys
os.close(os.open({written!r}, os.O_WRONLY | os.O_CREAT))
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def trap(folder: Path) -> Iterator[Path]:
    """The plugin, where running it leaves a file, and what is not confined a module."""
    written = folder / "written"
    file = folder / "iperf.py"
    code = TRAP.format(written=str(written))
    file.write_text(
        f"{file.read_text()}\ntry:\n{indent(code, '    ')}\nexcept OSError: 0\n"
    )
    yield written
    sys.modules.pop("cthelper_trap", None)


@needs_root
@pytest.mark.parametrize(
    "command",
    [
        *(("check",), ("helpers",), ("helpers", "iperf"), ("helpers", "--toml")),
        *(("ruleset", "show"), ("doctor",)),
    ],
    ids=" ".join,
)
def test_root_runs_no_code_of_plugins_himself(
    run: Runner, config: str, trap: Path, command: tuple[str, ...]
) -> None:
    result = run(*command, "--config", config)
    assert "iperf" in result.output or command == ("check",)
    assert "configuration: " not in result.errors
    assert not trap.exists()
    assert "cthelper_trap" not in sys.modules


@needs_root
def test_supervisor_has_them_examined_and_servers_import_them(
    config: str, trap: Path
) -> None:
    sources = read_sources(Path(config))
    user = find_user("nobody")
    ask = Examiner(replace(plan("nobody"), user=user))
    declared = declared_by(sources, ask)
    assert not trap.exists()
    assert "cthelper_trap" not in sys.modules
    made = made_of(Sources.unpacked(declared.sources))
    assert "cthelper_trap" in sys.modules
    assert fingerprint(made) == fingerprint(declared.config)
    assert made.helpers["iperf"].helper is not declared.config.helpers["iperf"].helper


def test_who_is_not_root_imports_his_own(
    run: Runner, config: str, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "privileged", lambda: False)
    assert run("helpers", "--config", config).code == 0
    assert trap.exists()


def test_nothing_is_forked_where_there_is_no_plugin(
    run: Runner, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", None)
    for command in ("check", "helpers"):
        assert run(command, "--config", empty).code == 0


@pytest.mark.usefixtures("installed")
def test_what_could_not_be_examined_is_kept_from_servers(
    tmp_path: Path, config: str
) -> None:
    (tmp_path / "site" / "absent_x.py").write_text("import os\nos._exit(3)\n")
    sources = read_sources(Path(config))
    readable = (*plan("nobody").readable, tmp_path)
    ask = Examiner(replace(plan("nobody"), user=None, readable=readable))
    declared = declared_by(sources, ask)
    (warning,) = declared.config.warnings
    assert warning == (
        "cthelper-x 1.2: entry point x = 'absent_x:X': ends its process (exit code 3) "
        "at line 2 of absent_x: left out"
    )
    made = made_of(Sources.unpacked(declared.sources))
    assert made.warnings == declared.config.warnings
    assert fingerprint(made) == fingerprint(declared.config)


def test_servers_have_the_entry_points_that_were_taken(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name may be of several distributions, and one class have several names."""
    points = [
        Point("x", "absent_x:X", "one 1"),
        Point("x", "site_x:X", "two 1"),
        Point("y", "site_x:X", "two 1"),
        Point("z", "absent_x:X", "two 1"),
    ]
    (tmp_path / "site_x.py").write_text(good("x", 7000, "X"))
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins = read_sources(Path(config)).helpers.plugins
    sources = Sources(read_file(Path(config)), Given(plugins, points))
    declared = declared_by(sources, lambda work, *_: work())
    kept = Sources.unpacked(declared.sources).helpers
    assert kept.points == [points[1]]
    assert [each.name for each in kept.broken] == ["x", "y", "z"]
    made = made_of(Sources.unpacked(declared.sources))
    assert fingerprint(made) == fingerprint(declared.config)
    sys.modules.pop("site_x")


@pytest.mark.usefixtures("installed")
def test_entry_point_that_breaks_after_it_was_examined_is_refused(config: str) -> None:
    with pytest.raises(RegistryError, match="No module named 'absent_x'"):
        made_of(read_sources(Path(config)))


def test_user_that_is_not_there_keeps_no_plugin_from_being_examined(
    run: Runner, config: str
) -> None:
    with open(config, "a", encoding="utf-8") as file:
        file.write("daemon.user = 'no-such-user'\n")
    assert run("check", "--config", config).errors == ""
    assert run("run", "--config", config).errors == (
        f'cthelper: {config}: daemon.user = "no-such-user": there is no user '
        "no-such-user: adduser --system --group no-such-user\n"
    )

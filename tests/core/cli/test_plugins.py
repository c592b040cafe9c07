# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins on the command line: a configured folder, and ``--plugin``."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.cli.options import configured
from cthelper.core.config import read_file
from tests.core.cli.process import ROOT
from tests.core.cli.runner import Runner

FTP: Final = ROOT / "plugins" / "ftp.py"
CAPTURE: Final = ROOT / "pcaps" / "ftp" / "ftp-curl-pasv-pyftpdlib.pcap"


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> str:
    """A configuration that names the folder, and the helper in it."""
    file = tmp_path / "cthelper.toml"
    file.write_text(f"plugins.folder = '{folder}'\nhelpers.ftp.ports = [2121]\n")
    return str(file)


def test_plugin_is_listed_with_its_source(
    run: Runner, folder: Path, config: str
) -> None:
    result = run("helpers", "--config", config)
    assert (result.code, result.errors) == (0, "")
    (row,) = [line for line in result.output.splitlines() if line.startswith("ftp ")]
    assert row == (
        "ftp             tcp 21                 "
        f"FTP's data flows, active and passive, IPv4 and IPv6. [{folder}/ftp.py]"
    )
    page = run("helpers", "ftp", "--config", config).output
    assert f"\nsource         {folder}/ftp.py\n" in page
    # The documentation is the module's.
    assert "RFC 2428" in page


def test_plugin_is_configured_as_any_helper(run: Runner, config: str) -> None:
    result = run("ruleset", "show", "--config", config)
    assert (result.code, result.errors) == (0, "")
    assert 'tcp dport 2121 ct helper set "ftp-tcp"' in result.output


def test_replay_takes_a_plugin_from_a_file(run: Runner, empty: str) -> None:
    plugin = ("--plugin", str(FTP))
    result = run("replay", "--config", empty, "--json", *plugin, str(CAPTURE))
    assert (result.code, result.errors) == (0, "")
    expectation, related, summary = map(json.loads, result.output.splitlines())
    assert (expectation["frame"], expectation["helper"]) == (14, "ftp")
    assert expectation["expects"]["destination"] == "10.77.2.2:35437"
    assert (related["frame"], related["expectation_frame"]) == (15, 14)
    assert summary["related"] == 1


def test_replay_in_other_processes_takes_it_as_well(run: Runner, empty: str) -> None:
    options = ("--config", empty, "--json", "--plugin", str(FTP), str(CAPTURE))
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
    file = folder / "ftp.py"
    file.write_text(file.read_text().replace("ports = (21,)", "ports = (0,)"))
    result = run(*command, "--config", config)
    assert (result.code, result.output) == (2, "")
    (line,) = result.errors.splitlines()
    assert line.startswith(f"cthelper: {file}:")
    assert line.endswith(
        ": Ftp.ports = (0,): must be one or more of 1 to 65535, each once, in a tuple"
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
    assert "ftp" in result.output
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
    assert "ftp" in read.helpers


def test_plugin_twice_is_2_and_one_line(run: Runner, folder: Path, config: str) -> None:
    result = run("helpers", "--config", config, "--plugin", str(FTP))
    assert (result.code, result.output) == (2, "")
    (line,) = result.errors.splitlines()
    assert line.startswith(f"cthelper: {FTP}:")
    assert line.endswith(f": Ftp.name = 'ftp': is taken by {folder}/ftp.py")


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

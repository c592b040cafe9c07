# SPDX-License-Identifier: GPL-2.0-or-later
"""script/install in a machine with systemd: install, upgrade and uninstall.

As docs/install.md has it, command for command. What pip would download and compile is
not there: in its place the command is this tree's, and the rest is as it is.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.command_lines import ROOT, lines
from tests.live.world import until

CONFIG: Final = Path("/etc/cthelper/cthelper.toml")
COMMAND: Final = Path("/opt/cthelper/bin/cthelper")
DROP_IN: Final = Path("/etc/systemd/system/cthelper.service.d/override.conf")
PLUGIN: Final = Path("/etc/cthelper/plugins/mine.py")
YOURS: Final = {str(each) for each in (CONFIG, DROP_IN, PLUGIN)}
YOUR_CONFIG: Final = "helpers.mdns.enabled = false\n"
A_PLUGIN: Final = """
from cthelper.core.api import Helper, Policy, Transport

class Mine(Helper):
    name = "mine"
    transports = frozenset({Transport.UDP})
    ports = (4203,)
    policies = (Policy("one", 1, 30),)

    def on_message(self, message):
        yield from ()
"""
SECONDS: Final = 90.0
# What needs the network, and what stands for what it makes.
_LEFT_OUT: Final = "/usr/bin/python3 -m venv /opt/cthelper\n"
_TREE: Final = Path("/opt/tree")
_MADE: Final = {
    "pip": "#!/bin/sh\n",
    "python": f'#!/bin/sh\nexec {_TREE}/.venv/bin/python -B "$@"\n',
    "cthelper": f"#!/bin/sh\nPYTHONPATH={_TREE}/src "
    f'exec {_TREE}/.venv/bin/python -B -m cthelper "$@"\n',
}

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not Path("/run/vm/command").exists(), reason="needs script/vm --systemd"
    ),
]


def run(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, as root's own has its PATH."""
    return subprocess.run(
        ["/bin/sh", "-c", line],
        env={**os.environ, "PATH": f"/usr/local/sbin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def follow(heading: str, install: str) -> None:
    """Run what stands below a heading; `install` is in the place of script/install."""
    found = [
        each.text
        for each in lines()
        if (each.page, each.heading) == ("docs/install.md", heading)
    ]
    assert found
    for line in found:
        done = run(line.replace("script/install", install))
        # What it finds may be wrong with an emulated machine.
        assert done.returncode == 0 or line == "cthelper doctor", (line, done)


def files() -> set[str]:
    """What there is where programs are installed."""
    found: set[str] = set()
    for place in ("/opt", "/etc", "/usr/local"):
        for folder, folders, names in os.walk(place):
            found.update(str(Path(folder) / name) for name in names)
            # That is the project, and very large.
            folders[:] = [each for each in folders if Path(folder, each) != _TREE]
    return found


def serves() -> bool:
    """Whether the daemon is well, and its table is there."""
    table = run("nft list table inet cthelper").returncode == 0
    return table and run("cthelper status").returncode == 0


def make() -> None:
    """What the line that is left out would make."""
    COMMAND.parent.mkdir(parents=True, exist_ok=True)
    for name, text in _MADE.items():
        (COMMAND.parent / name).write_text(text)
        (COMMAND.parent / name).chmod(0o755)


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The script, in a folder that has the project's others."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "script").mkdir()
    for name in ("core", "pyproject.toml", "script/manual"):
        (folder / name).symlink_to(ROOT / name)
    text = (ROOT / "script" / "install").read_text()
    assert text.count(_LEFT_OUT) == 1
    script = folder / "script" / "install"
    script.write_text(text.replace(_LEFT_OUT, ""))
    script.chmod(0o755)
    if not _TREE.exists():
        _TREE.mkdir()
        assert run(f"mount --bind {ROOT} {_TREE}").returncode == 0
    yield str(script)
    run("systemctl stop cthelper")


def test_what_is_installed_is_upgraded_and_goes_again(install: str) -> None:
    run(f"{install} --uninstall")  # what another test has left
    CONFIG.unlink(missing_ok=True)
    before = files()
    make()
    follow("Install", install)
    assert until(serves, SECONDS)
    assert run("man -w cthelper cthelper.toml cthelper-plugin").returncode == 0
    # What is yours.
    CONFIG.write_text(YOUR_CONFIG)
    for each, text in ((PLUGIN, A_PLUGIN), (DROP_IN, "")):
        each.parent.mkdir(mode=0o755)
        each.write_text(text)
    (CONFIG.parent / "discovery.toml").write_text("")
    follow("Upgrade", install)
    assert until(serves, SECONDS)
    assert CONFIG.read_text() == YOUR_CONFIG
    assert (CONFIG.parent / "discovery.toml").read_text()
    assert "5353" not in run("nft list table inet cthelper").stdout
    follow("Uninstall", install)
    assert run("systemctl is-active cthelper").stdout == "inactive\n"
    assert "cthelper" not in run("nft list ruleset").stdout
    assert run("nfct helper list").stdout == ""
    assert files() - before == YOURS
    assert before <= files()
    assert run("getent passwd cthelper").returncode == 2
    # Once more: there is nothing to do.
    again = run(f"{install} --uninstall")
    assert again.returncode == 0, again
    assert again.stdout.splitlines() == [
        "uninstalled.",
        "yours, and left: /etc/cthelper",
        f"yours, and left: {DROP_IN.parent}",
    ]


def test_daemon_that_no_unit_has_started_is_not_taken_its_files(install: str) -> None:
    make()
    daemon = subprocess.Popen([COMMAND, "run"], stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: run(f"{COMMAND} status").returncode == 0, SECONDS)
        refused = run(f"{install} --uninstall")
        assert refused.returncode == 1
        assert "a daemon is running that no unit has started" in refused.stderr
        assert COMMAND.exists()
    finally:
        daemon.kill()
        daemon.wait()
    # What it has left in the kernel goes, too.
    assert run("nft list table inet cthelper").returncode == 0
    assert run(f"{install} --uninstall").returncode == 0
    assert run("nft list table inet cthelper").returncode == 1
    assert not COMMAND.exists()


def test_wrong_usage_is_told(install: str) -> None:
    done = run(f"{install} --remove")
    assert done.returncode == 2
    assert done.stderr == "usage: script/install [--uninstall]\n"

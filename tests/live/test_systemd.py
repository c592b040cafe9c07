# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd unit, in an emulated machine that has booted with systemd.

`script/live tests/live/test_systemd.py` boots one (script/vm --systemd). The daemon is
this tree's, at the place that the unit names; the unit is as it is shipped. It runs
once and is led through a life.
"""

import grp
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import pytest

from tests.live.world import until

ROOT: Final = Path(__file__).parents[2]
UNITS: Final = Path("/run/systemd/system")
CONFIG: Final = Path("/etc/cthelper/cthelper.toml")
COMMAND: Final = "/opt/cthelper/bin/cthelper"
SOCKET: Final = Path("/run/cthelper/control.sock")
SECONDS: Final = 90.0

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        not Path("/run/vm/command").exists(), reason="needs script/vm --systemd"
    ),
]

# The tree is where the unit lets the daemon look: not in a home, not below /tmp.
_COMMAND: Final = """#!/bin/sh
PYTHONPATH=/opt/tree/src exec /opt/tree/.venv/bin/python -B -m cthelper "$@"
"""
# It is run by nobody who has a capability but CAP_NET_ADMIN, nor as root.
_PLUGIN: Final = """
import os
from cthelper.core.api import Helper, Policy, Transport

assert 0 not in os.getresuid()
held = [each for each in open("/proc/self/status") if each.startswith("CapPrm")]
assert int(held[0].split()[1], 16) in (0, 1 << 12), held
try:
    open("/run/cthelper/written", "w")
except OSError:
    pass
else:
    raise RuntimeError("it could write")

class Answer(Helper):
    name = "answer"
    transports = frozenset({Transport.UDP})
    ports = (4203,)
    policies = (Policy("one", 1, 30),)

    def on_message(self, message):
        yield from ()
"""
# What waits for network-pre.target, as what brings the interfaces up does.
_LATER: Final = """[Unit]
Requires=network-pre.target
After=network-pre.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'nft list table inet cthelper >/run/later.table'
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


def systemctl(*arguments: str) -> int:
    """The exit code."""
    return run("systemctl", *arguments).returncode


def shown(name: str) -> str:
    """A property of the service."""
    return run("systemctl", "show", "-P", name, "cthelper").stdout.strip()


def journal(*arguments: str) -> list[str]:
    """The service's messages."""
    text = run("journalctl", "-u", "cthelper", "-o", "cat", *arguments).stdout
    return text.splitlines()


def status() -> dict[str, Any]:
    """What the daemon says of itself."""
    answer: dict[str, Any] = json.loads(run(COMMAND, "status", "--json").stdout)
    return answer


def page_has(first: str) -> str:
    """A block of docs/control.md, by its first line, without that."""
    page = (ROOT / "docs" / "control.md").read_text()
    block = page.partition(f"```\n{first}\n")[2].partition("```\n")[0]
    assert block
    return block


def table() -> str:
    """The daemon's table; nothing where it is not loaded."""
    return run("nft", "list", "table", "inet", "cthelper").stdout


def serves_mdns() -> bool:
    """Whether its rule is there; the helper's object and chain stay until a restart."""
    return "dport 5353" in table()


def await_that(ready: Callable[[], object]) -> None:
    assert until(ready, SECONDS), "\n".join(journal("-n", "50"))


def serves_again(before: str) -> bool:
    """Whether another process than that one serves."""
    return shown("ActiveState") == "active" and shown("MainPID") != before


def configure(text: str) -> None:
    CONFIG.write_text(text)


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The unit and the command where they belong; the service is not started yet."""
    Path("/opt/tree").mkdir()
    assert run("mount", "--bind", str(ROOT), "/opt/tree").returncode == 0
    command = Path(COMMAND)
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)
    CONFIG.parent.mkdir(exist_ok=True)
    configure("")
    unit = (ROOT / "core" / "daemon" / "cthelper.service").read_text()
    (UNITS / "cthelper.service").write_text(unit)
    (UNITS / "later.service").write_text(_LATER)
    assert systemctl("daemon-reload") == 0
    version = run("systemctl", "--version").stdout.splitlines()[0]
    print(f"{version}, Linux {os.uname().release}, Python {sys.version}")
    yield
    systemctl("stop", "cthelper")


def test_what_waits_for_network_pre_starts_once_the_table_is_loaded() -> None:
    assert systemctl("start", "cthelper", "later") == 0, "\n".join(journal())
    assert "ct helper" in Path("/run/later.table").read_text()
    assert shown("ActiveState") == "active"
    assert shown("StatusText").startswith("1 of 1 workers serve ")
    assert "mdns" in shown("StatusText")


def test_it_is_asked_how_it_is_by_root_alone() -> None:
    await_that(lambda: run(COMMAND, "status").returncode == 0)
    assert status()["health"] == "ok"
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    refused = run(*nobody, COMMAND, "status")
    assert refused.returncode == 2
    assert refused.stderr == f"cthelper: {SOCKET}: Permission denied\n"


def test_reload_is_done_when_it_returns() -> None:
    pid = shown("MainPID")
    assert serves_mdns()
    configure("helpers.mdns.enabled = false\n")
    assert systemctl("reload", "cthelper") == 0
    assert not serves_mdns()
    assert "mdns" not in shown("StatusText")
    assert (shown("MainPID"), shown("ActiveState")) == (pid, "active")


def test_plugin_is_examined_and_served_and_a_wrong_one_fails_the_reload() -> None:
    folder = Path("/etc/cthelper/plugins")
    folder.mkdir(mode=0o700)
    plugin = folder / "answer.py"
    before = shown("MainPID")
    plugin.write_text(_PLUGIN)
    plugin.chmod(0o600)
    assert systemctl("reload", "cthelper") == 0, "\n".join(journal("-n", "20"))
    assert "udp dport 4203" in table()
    assert "answer" in shown("StatusText")
    # A worker that begins imports it, too.
    (server,) = status()["servers"]
    os.kill(server["pid"], signal.SIGKILL)
    await_that(lambda: status()["servers"][0].get("pid") not in (None, server["pid"]))
    await_that(lambda: shown("StatusText").startswith("1 of 1 workers serve "))
    plugin.write_text("import os\n\nos._exit(3)\n")
    assert systemctl("reload", "cthelper") != 0
    assert f"{plugin}:3: ends its process (exit code 3)" in "\n".join(journal())
    assert shown("MainPID") == before
    plugin.unlink()
    folder.rmdir()
    assert systemctl("reload", "cthelper") == 0
    assert "answer" not in shown("StatusText")


@pytest.mark.parametrize(
    ("settings", "reason", "signalled"),
    [
        ("daemon.worker = 1\n", "daemon.worker = 1: unknown key", False),
        ("daemon.workers = 2\n", "daemon.workers has changed", True),
    ],
    ids=["by the file", "by the daemon"],
)
def test_reload_that_is_refused_fails_and_says_why(
    settings: str, reason: str, signalled: bool
) -> None:
    pid = shown("MainPID")
    refused = sum("event=reload-refused" in each for each in journal())
    configure(settings)
    assert systemctl("reload", "cthelper") != 0
    assert any(reason in each for each in journal("-p", "err"))
    now = sum("event=reload-refused" in each for each in journal())
    assert now - refused == signalled
    assert (reason in shown("StatusText")) is signalled
    assert (shown("MainPID"), shown("ActiveState")) == (pid, "active")
    assert table()


def test_reload_of_nftables_reloads_it() -> None:
    configure("")
    assert systemctl("start", "nftables") == 0
    await_that(table)
    before = sum("event=reloaded" in each for each in journal())
    assert systemctl("reload", "nftables") == 0
    await_that(lambda: sum("event=reloaded" in each for each in journal()) > before)
    await_that(serves_mdns)


def test_lines_have_their_priority_in_the_journal() -> None:
    levels = {"3": "level=error", "4": "level=warning", "6": "level=info"}
    for priority, level in levels.items():
        lines = [
            each
            for each in journal("-p", f"{priority}..{priority}")
            if " event=" in each
        ]
        assert lines
        assert all(each.startswith("time=") and level in each for each in lines)


def test_service_that_is_killed_is_started_again() -> None:
    pid = shown("MainPID")
    os.kill(int(pid), signal.SIGKILL)
    await_that(lambda: serves_again(pid))
    assert shown("NRestarts") == "1"
    assert table()


def served() -> str:
    """The metrics; nothing where nobody serves them."""
    try:
        with urlopen("http://127.0.0.1:9747/metrics", timeout=SECONDS) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_metrics_are_served_by_a_unit_of_nobodys_user() -> None:
    configure('[control]\ngroup = "adm"\n')
    folder = ROOT / "core" / "daemon"
    unit = "cthelper-metrics.service"
    (UNITS / unit).write_text((folder / unit).read_text())
    drop_in = UNITS / "cthelper.service.d" / "group.conf"
    drop_in.parent.mkdir(exist_ok=True)
    # As docs/control.md has it.
    drop_in.write_text("[Service]\nSupplementaryGroups=adm\nSystemCallFilter=@chown\n")
    assert systemctl("daemon-reload") == 0
    assert systemctl("restart", "cthelper") == 0, "\n".join(journal("-n", "50"))
    assert systemctl("start", unit) == 0
    await_that(lambda: "cthelper_healthy 1.0\n" in served())
    pid = run("systemctl", "show", "-P", "MainPID", unit).stdout.strip()
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nUid:\t0" not in status
    assert "\nCapBnd:\t0000000000000000\n" in status
    assert systemctl("stop", "cthelper") == 0
    assert "cthelper_up 0.0\n" in served()
    assert systemctl("stop", unit) == 0
    assert run("systemctl", "show", "-P", "Result", unit).stdout == "success\n"
    drop_in.unlink()
    configure("")
    assert systemctl("daemon-reload") == 0
    assert systemctl("start", "cthelper") == 0


def test_stop_leaves_nothing() -> None:
    assert systemctl("stop", "cthelper") == 0
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
    assert not table()


def test_group_is_let_in_as_the_page_says() -> None:
    settings = page_has("# systemctl edit cthelper")
    drop_in = UNITS / "cthelper.service.d" / "group.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(settings)
    configure('control.group = "adm"\n')
    assert systemctl("daemon-reload") == 0
    assert systemctl("start", "cthelper") == 0
    group = grp.getgrnam("adm").gr_gid
    member = ("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups")
    await_that(lambda: run(*member, COMMAND, "status").returncode == 0)
    assert SOCKET.stat().st_gid == group
    assert stat.S_IMODE(SOCKET.stat().st_mode) == 0o660
    assert run(*member, COMMAND, "flows", "delete", "--all").returncode == 1
    assert systemctl("stop", "cthelper") == 0
    drop_in.unlink()


def test_events_are_written_to_a_file_and_rotated_as_the_page_says() -> None:
    settings = '[events]\nfile = "/var/log/cthelper/events.json"\n'
    assert f"```toml\n{settings}```\n" in (ROOT / "docs" / "control.md").read_text()
    configure(settings)
    file = Path("/var/log/cthelper/events.json")
    rotation = Path("/run/cthelper.logrotate")
    rotation.write_text(page_has("# /etc/logrotate.d/cthelper"))
    rotation.chmod(0o644)
    rotate = ("logrotate", "-f", "-s", "/run/logrotate.state", str(rotation))
    assert systemctl("restart", "cthelper") == 0
    await_that(lambda: file.exists() and '"writer-started"' in file.read_text())
    assert (file.stat().st_uid != 0, file.stat().st_mode & 0o077) == (True, 0)
    done = run(*rotate)
    assert (done.returncode, done.stderr) == (0, "")
    await_that(lambda: file.exists() and '"writer-started"' in file.read_text())
    old = file.with_name("events.json.1").read_text().splitlines()
    assert '"reloaded"' in old[-1]
    assert not set(old) & set(file.read_text().splitlines())
    assert systemctl("reload", "cthelper") == 0
    await_that(lambda: file.read_text().count('"writer-started"') == 2)
    # Also where what stands in the file by then is refused.
    configure("daemon.worker = 1\n")
    assert run(*rotate).returncode == 0
    await_that(lambda: file.exists() and '"writer-started"' in file.read_text())
    assert file.with_name("events.json.2.gz").exists()
    configure(settings)
    assert systemctl("restart", "cthelper") == 0
    await_that(lambda: '"started"' in file.read_text())
    assert file.read_text().count('"writer-started"') >= 1
    assert not any("step-failed" in each for each in journal("-n", "50"))
    assert systemctl("stop", "cthelper") == 0


def test_configuration_that_is_refused_is_not_tried_again() -> None:
    configure("daemon.worker = 1\n")
    assert systemctl("start", "cthelper") != 0
    # A restart would come after 0.1 s.
    time.sleep(1.0)
    assert (shown("ActiveState"), shown("NRestarts")) == ("failed", "0")
    assert shown("ExecMainStatus") == "2"
    assert any("unknown key" in each for each in journal("-p", "err", "-n", "3"))


def test_supervisor_that_hangs_is_ended_and_started_again() -> None:
    configure("")
    drop_in = UNITS / "cthelper.service.d" / "watchdog.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=6\nTimeoutAbortSec=3\n")
    assert systemctl("daemon-reload") == 0
    assert systemctl("start", "cthelper") == 0
    pid = shown("MainPID")
    # One that does not hang is left alone.
    time.sleep(8.0)
    assert (shown("MainPID"), shown("NRestarts")) == (pid, "0")
    os.kill(int(pid), signal.SIGSTOP)
    await_that(lambda: serves_again(pid))
    assert shown("NRestarts") == "1"
    assert any("Watchdog timeout" in each for each in journal("-n", "50"))
    assert table()

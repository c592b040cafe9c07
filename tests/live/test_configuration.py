# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel, and systemd, make of a configuration."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.daemon.capabilities import Capability, mask
from tests.live.daemon import Daemon, only
from tests.live.gateway import tables
from tests.live.test_privileges import NET_ADMIN, status
from tests.live.traffic import PORT, Echo, expected
from tests.live.world import World

pytestmark = pytest.mark.live

OTHERS: Final = only("sunrpc")
RANGE: Final = f'[helpers.sunrpc]\nports = ["sunrpc", "{PORT - 3}-{PORT + 3}", 9]\n'
READ: Final = mask([Capability.CAP_DAC_READ_SEARCH])
_SECONDS: Final = 90.0


def test_ports_of_a_range_are_tagged_and_queued(world: World, daemon: Daemon) -> None:
    daemon.start(OTHERS + RANGE)
    listing = world.gateway.run("nft", "list", "table", "inet", "cthelper").stdout
    assert f"udp dport {{ 9, 111, {PORT - 3}-{PORT + 3} }}" in listing
    with Echo(world.server, announce=7998):
        assert expected(world, daemon)["expects"].endswith(":7998")


def test_daemon_takes_a_pipe_once_and_refuses_to_reload_it(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    daemon.launch(OTHERS + RANGE, "--config", str(pipe))
    pipe.write_text(daemon.config.read_text())
    daemon.await_event("started")
    daemon.send_signal(signal.SIGHUP)
    assert daemon.await_event("reload-refused")["error"] == (
        f"{pipe}: came through a pipe and cannot be read again: restart cthelper"
    )
    with Echo(world.server, announce=7997):
        assert expected(world, daemon)["expects"].endswith(":7997")
    assert daemon.stop() == 0


# The unit


def processes(*arguments: str) -> list[int]:
    """Those with these arguments, as they were started."""
    wanted = "\0".join(("", *arguments, "")).encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if wanted in file.read_bytes():
                found.append(int(file.parent.name))
    return sorted(found)


@contextmanager
def systemd(
    world: World, units: Path
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A systemd that knows these units alone; what runs systemctl there."""
    (units / "nothing.target").write_text("[Unit]\nDefaultDependencies=no\n")
    boot = units / "boot"
    boot.write_text(
        "mount -t tmpfs none /run && mkdir /run/systemd\n"
        f"export container=lxc SYSTEMD_UNIT_PATH={units}\n"
        "exec /usr/lib/systemd/systemd --system --unit=nothing.target "
        "--log-target=console --show-status=0\n"
    )
    process = world.gateway.start(
        *("unshare", "-fpmC", "--mount-proc", "--kill-child", "sh", str(boot)),
        stdin=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        pid = children.read_text().strip()
        return subprocess.run(
            ["nsenter", "-t", pid, "-m", "-p", "-n", "systemctl", *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )

    try:
        await_that(lambda: systemctl("is-active", "nothing.target").returncode == 0)
        yield systemctl
    finally:
        process.kill()
        process.wait()


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_reload_of_the_unit_fails_where_the_configuration_is_refused(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    units, log = tmp_path / "units", tmp_path / "unit-log"
    units.mkdir()
    command = units / "cthelper"
    command.write_text(
        f"#!/bin/sh\ncd {Path.cwd()}\n"
        f'case $1 in ask | reload) ;; *) set -- "$@" --config {daemon.config} ;; esac\n'
        f'exec {sys.executable} -B -m cthelper "$@"\n'
    )
    command.chmod(0o755)
    # The unit is not root's, and finds the program before it has a capability.
    tmp_path.chmod(0o755)
    text = files("cthelper.core.daemon").joinpath("cthelper.service").read_text("utf-8")
    text = text.replace("/opt/cthelper/bin/cthelper", str(command))
    text = text.replace("[Unit]", "[Unit]\nDefaultDependencies=no")
    text = text.replace("[Service]", f"[Service]\nStandardError=append:{log}")
    # The test's files are in /tmp, which is the unit's own.
    places = f"{tmp_path} {Path.cwd()}"
    text = text.replace("[Service]", f"[Service]\nBindReadOnlyPaths={places}")
    (units / "cthelper.service").write_text(text)

    def events() -> list[str]:
        lines = log.read_text().splitlines()
        return [json.loads(each)["event"] for each in lines if each.startswith("{")]

    daemon.configure(OTHERS)
    daemon.config.chmod(0o600)
    with systemd(world, units) as systemctl:
        started = systemctl("start", "cthelper")
        assert started.returncode == 0, started.stderr
        await_that(lambda: "started" in events())
        # Nothing is root's: a supervisor, and its server.
        held = [
            (each["Uid"].startswith("0 "), int(each["CapEff"], 16), each["NoNewPrivs"])
            for each in map(status, processes("run", "--kernel"))
        ]
        assert held == [(False, NET_ADMIN | READ, "1"), (False, NET_ADMIN, "1")]
        daemon.configure(f"{OTHERS}[daemon]\nqueu = 1\n")
        refused = systemctl("reload", "cthelper")
        assert refused.returncode == 1
        assert "Job for cthelper.service failed" in refused.stderr
        assert f"{daemon.config}: daemon.queu = 1: unknown key" in log.read_text()
        assert systemctl("is-active", "cthelper").stdout == "active\n"
        daemon.configure(OTHERS)
        assert systemctl("reload", "cthelper").returncode == 0
        await_that(lambda: "reloaded" in events())
        assert "reload-refused" not in events()
        assert systemctl("stop", "cthelper").returncode == 0
    assert events()[-1] == "stopped"
    assert tables(world) == ""

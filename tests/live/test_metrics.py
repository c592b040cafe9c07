# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics of a real daemon: what was expected is counted, a dead worker is seen."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.live.daemon import CTHELPER, Daemon, equal_limits, only
from tests.live.traffic import PORT, Echo, getport
from tests.live.world import World, until

pytestmark = pytest.mark.live

CONFIG: Final = (
    f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n{equal_limits(300)}"
)


def scrape(path: Path) -> dict[str, float]:
    """The samples that are served at a Unix socket, by their name and labels."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            text = answer.read().decode()
    assert " 200 OK\r\n" in text
    lines = re.findall(r"^(cthelper_\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in lines}


def test_expectation_is_counted_and_a_dead_worker_and_daemon_are_seen(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "metrics"
    daemon.start(CONFIG)
    serving = world.gateway.start(
        *CTHELPER, "metrics", "--unix", str(path), stderr=subprocess.PIPE
    )
    try:

        def seen(meant: Callable[[dict[str, float]], bool]) -> bool:
            return until(lambda: meant(scrape(path)), 60)

        assert until(path.exists, 60)
        assert seen(lambda each: each.get("cthelper_healthy") == 1)
        with Echo(world.server, 7999):
            flow, _ = getport(world)
        flow.close()
        told = scrape(path)
        expectation = 'event="expectation",reason="",worker="0"'
        assert told[f"cthelper_events_total{{{expectation}}}"] == 1
        assert told['cthelper_table_entries{table="expectations"}'] == 1
        assert told['cthelper_worker_expectations{worker="0"}'] == 1
        assert told['cthelper_worker_flows{worker="0"}'] == 1
        assert told['cthelper_packets_total{worker="0"}'] >= 2
        assert told['cthelper_queue_bound{queue="2077"}'] == 1
        assert told["cthelper_ruleset_in_place"] == 1
        # The same, printed.
        printed = daemon.ask("metrics").stdout
        assert f"cthelper_events_total{{{expectation}}} 1.0\n" in printed
        os.kill(daemon.events("worker-started")[-1]["pid"], signal.SIGKILL)
        assert seen(lambda each: each.get('cthelper_worker_serving{worker="0"}') == 0)
        daemon.await_event("worker-started", 2)
        # Its successor begins at 0, and who counts its deaths goes on.
        died = 'event="worker-died",reason="",worker="supervisor"'
        assert seen(lambda each: each.get("cthelper_healthy") == 1)
        told = scrape(path)
        assert f"cthelper_events_total{{{expectation}}}" not in told
        assert told[f"cthelper_events_total{{{died}}}"] == 1
        assert daemon.stop() == 0
        assert scrape(path) == {"cthelper_up": 0}
    finally:
        serving.terminate()
        _, errors = serving.communicate(timeout=60)
    assert serving.returncode == 0, errors
    assert not path.exists()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Prometheus itself takes metrics and rules, and answers what the dashboard asks."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from cthelper.core.cli import main
from cthelper.core.cli.exposition import METRICS, exposition
from cthelper.core.queue.binding import BoundQueue
from tests.core.cli.process import started
from tests.core.cli.test_exposition import counted, expressions, found, supervisor
from tests.core.control.controlled import World, controller

pytestmark = pytest.mark.prometheus

FOLDER: Final = Path(__file__).parents[3] / "docs" / "metrics"
RULES: Final = FOLDER / "alerts.yml"
CASES: Final = Path(__file__).with_name("alerts.test.yml")
SECONDS: Final = 90.0


def promtool(*arguments: str | Path, given: bytes = b"") -> str:
    """What it prints; it must be content."""
    done = subprocess.run(
        ["promtool", *arguments],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    text = done.stdout.decode()
    assert done.returncode == 0, text
    return text


def test_names_and_help_are_by_convention() -> None:
    for told in (None, found()):
        text, _ = exposition(told, openmetrics=False)
        assert promtool("check", "metrics", given=text) == ""


def test_rules_are_taken_and_fire_when_they_shall(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(CASES, tmp_path)
    rules = re.findall(r"- alert: (\w+)", RULES.read_text("utf-8"))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", tmp_path / CASES.name)
    assert {each for each in rules if each not in CASES.read_text("utf-8")} == set()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_node_exporter_takes_the_file(tmp_path: Path) -> None:
    folder, port = tmp_path / "textfiles", free_port()
    folder.mkdir()
    world = World(tmp_path / "socket")
    with controller(world):
        file = str(folder / "cthelper.prom")
        assert main(["metrics", "--socket", str(world.path), "--textfile", file]) == 0
    # The other format is none that it reads.
    latest, _ = exposition(found(), openmetrics=True)
    (folder / "latest.prom").write_bytes(latest)
    (folder / "other").write_text("nobody_reads 1\n")
    process = subprocess.Popen(
        [
            *("prometheus-node-exporter", "--collector.disable-defaults"),
            *("--collector.textfile", f"--collector.textfile.directory={folder}"),
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + SECONDS
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    text = answer.read().decode()
                break
            except URLError:
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert "# TYPE cthelper_events_total counter\n" in text
    assert "\ncthelper_up 1\n" in text
    assert f'node_textfile_mtime_seconds{{file="{file}"}}' in text
    assert "\nnode_textfile_scrape_error 1\n" in text
    assert "latest.prom" not in text
    assert "nobody_reads" not in text


class Prometheus:
    """A server, by what it answers."""

    def __init__(self, port: int) -> None:
        self._where = f"http://127.0.0.1:{port}/api/v1"

    def get(self, what: str, **parameters: str) -> Any:
        """The data of an answer."""
        where = f"{self._where}/{what}?{urlencode(parameters)}"
        with urlopen(where, timeout=SECONDS) as answer:
            told = json.load(answer)
        assert told["status"] == "success"
        assert not told.get("warnings")
        return told["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples that an expression has now."""
        taken = self.get("query", query=expression)["result"]
        assert isinstance(taken, list)
        return taken

    def await_samples(self, expression: str) -> list[Any]:
        """The samples, once there are some."""
        until = time.monotonic() + SECONDS
        while True:
            try:
                if taken := self.query(expression):
                    return taken
            except URLError:  # it is not there yet
                pass
            assert time.monotonic() < until, expression
            time.sleep(0.2)


@contextmanager
def prometheus(folder: Path, scraped: int) -> Iterator[Prometheus]:
    """One that scrapes a port of this host."""
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        f"""
global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}}
rule_files: ["{RULES}"]
scrape_configs:
  - job_name: cthelper
    static_configs:
      - targets: ["127.0.0.1:{scraped}"]
"""
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield Prometheus(port)
        except BaseException as error:
            error.add_note((folder / "log").read_text())
            raise
        finally:
            process.kill()
            process.wait()


def test_server_scrapes_and_answers_all_panels_and_rules(tmp_path: Path) -> None:
    world = World(tmp_path / "socket")
    world.supervisor.state = supervisor(workers=[{"worker": 0, "serving": True}])
    world.queues = {
        2077: BoundQueue(2077, 1, 4, 9, 5),
        2078: BoundQueue(2078, 1, 6, 9, 7),
    }
    state = world.server.state
    assert state is not None
    state["counters"] = {"expectation": 2, "refused.low-port": 1, "packets": 9}
    world.collect(counted())
    words = ("metrics", "--socket", str(world.path), "--listen", "127.0.0.1:0")
    with controller(world), started(*words) as exporter:
        assert exporter.stderr is not None
        line = exporter.stderr.readline().decode()
        scraped = int(re.findall(r":(\d+)/metrics", line)[0])
        with prometheus(tmp_path, scraped) as server:
            # Two scrapes, as a rate needs.
            server.await_samples("count_over_time(cthelper_up[1m]) > 2")
            names = {each["metric"]["__name__"] for each in server.query("{job!=''}")}
            assert {name for name in names if name.startswith("cthelper_")} == set(
                METRICS
            )
            (target,) = server.get("targets")["activeTargets"]
            assert (target["health"], target["lastError"]) == ("up", "")
            dashboard = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
            for each in expressions(dashboard):
                asked = each.replace("$__rate_interval", "1m").replace(
                    "$instance", ".*"
                )
                assert "$" not in asked
                assert server.query(asked), asked
            # Each of an alert is one that the server has evaluated, and answers.
            server.await_samples('ALERTS{alertname="CthelperQueueNotBound"}')
            (group,) = server.get("rules")["groups"]
            for rule in group["rules"]:
                assert (rule["health"], rule.get("lastError")) == ("ok", None), rule
                server.query(rule["query"])
                # There is something to compare, but for where nothing may be.
                compared = re.split(r" (?:==|>) ", rule["query"])[0]
                has = bool(server.query(compared))
                assert has is not compared.startswith("absent"), compared
            # A daemon that is gone is told at the next scrape, not by a failed one.
            world.path.rename(tmp_path / "away")
            server.await_samples("cthelper_up == 0")
            assert [each["value"][1] for each in server.query("up")] == ["1"]

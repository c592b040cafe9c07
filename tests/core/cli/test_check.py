# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper check``, and what other commands make of a configuration in a pipe."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.config import Config
from cthelper.core.daemon import notify, supervisor
from cthelper.core.daemon.privileges import Confinement
from cthelper.core.errors import ConfigError
from cthelper.core.sources import Declared
from tests.core.cli.process import ROOT
from tests.core.cli.runner import Runner

CAPTURE: Final = ROOT / "pcaps" / "iperf" / "iperf-tradeoff.pcap"


def piped(text: str) -> str:
    """The name of a pipe that holds the text, as a shell's ``<(…)``."""
    ours, theirs = os.pipe()
    os.write(theirs, text.encode())
    os.close(theirs)
    return f"/dev/fd/{ours}"


def test_right_configuration_is_0(run: Runner, tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text(f"plugins.folder = '{folder}'\nhelpers.iperf.ports = [2121]\n")
    result = run("check", "--config", str(file))
    assert (result.code, result.output) == (0, f"{file}: nothing is wrong\n")
    assert result.errors == ""


def test_warnings_are_told(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text("helpers.mdns.queueing = 'chain'")
    result = run("check", "--config", str(file))
    assert result.code == 0
    assert result.errors.startswith(
        f"cthelper: warning: {file}: helpers.mdns.queueing has no effect"
    )


def test_folder_of_events_that_is_not_there_is_a_warning(
    run: Runner, tmp_path: Path
) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text(f"events.file = '{tmp_path}/new/events.json'")
    result = run("check", "--config", str(file))
    assert (result.code, result.errors) == (
        0,
        f"cthelper: warning: {file}: events.file: there is no folder {tmp_path}/new: "
        "nothing is written there\n",
    )
    (tmp_path / "new").mkdir()
    assert run("check", "--config", str(file)).errors == ""


def test_all_that_is_wrong_is_listed_a_line_each(
    run: Runner, tmp_path: Path, folder: Path
) -> None:
    (folder / "broken.py").write_text("1/0")
    (folder / "twice.py").write_bytes((folder / "iperf.py").read_bytes())
    file = tmp_path / "cthelper.toml"
    file.write_text(
        f"plugins.folder = '{folder}'\nhelpers.iperf.ports = [0]\ndaemon.queu = 1\n"
    )
    result = run("check", "--config", str(file))
    assert (result.code, result.output) == (2, "")
    lines = result.errors.splitlines()
    assert all(line.startswith("cthelper: ") for line in lines)
    starts = (
        f"{folder}/broken.py:1: ZeroDivisionError",
        f"{folder}/twice.py:",
        f"{file}: daemon.queu = 1: unknown key (did you mean queue?)",
        f"{file}: helpers.iperf.ports = 0: must be a port",
    )
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"cthelper: {start}")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[daemon", "line 1, '[daemon': not TOML: "),
        ("plugins.folder = 'here'", 'plugins.folder = "here": must be an absolute'),
        ("plugins.folder = '/no'", 'plugins.folder = "/no": must be a folder that is'),
    ],
    ids=["syntax", "folder", "absent folder"],
)
def test_what_two_readers_find_is_told_once(
    run: Runner, tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text(text)
    result = run("check", "--config", str(file))
    assert result.code == 2
    (line,) = result.errors.splitlines()
    assert line.startswith(f"cthelper: {file}: {complaint}")


@pytest.mark.parametrize("command", [("check",), ("ruleset", "show"), ("helpers",)])
def test_configuration_comes_through_a_pipe(
    run: Runner, folder: Path, command: tuple[str, ...]
) -> None:
    text = f"plugins.folder = '{folder}'\nhelpers.iperf.ports = [2121]\n"
    result = run(*command, "--config", piped(text))
    assert (result.code, result.errors) == (0, "")
    result = run(*command, "--config", piped("plugins.folder = 1"))
    assert (result.code, result.output) == (2, "")


def test_ruleset_is_that_of_the_piped_configuration(run: Runner) -> None:
    text = "helpers.sunrpc.ports = [999]"
    assert "tcp dport 999" in run("ruleset", "show", "--config", piped(text)).output


def test_configuration_comes_by_standard_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cthelper", "check", "--config", "/dev/stdin"],
        input="daemon.queu = 1",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "cthelper: /dev/stdin: daemon.queu = 1: unknown key" in done.stderr


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")], ids=["here", "elsewhere"])
def test_replay_takes_a_piped_configuration_wherever_it_runs(
    run: Runner, folder: Path, jobs: tuple[str, ...]
) -> None:
    text = f"plugins.folder = '{folder}'\n"
    result = run("replay", "--config", piped(text), *jobs, str(CAPTURE))
    assert (result.code, result.errors) == (0, "")
    assert "1 expectations" in result.output


# The daemon reads it again


class Recorded:
    """Stands in for the supervisor and notes how the configuration is read."""

    first: Config
    again: Callable[[], Config]

    def __init__(
        self,
        declared: Declared,
        read: Callable[[], bytes],
        declare: Callable[[bytes], Declared],
        _configure: Callable[[bytes], Config],
        _confinement: Confinement,
        *,
        keep_ruleset: bool,
        answers: Path | None,
    ) -> None:
        Recorded.first = declared.config
        Recorded.again = staticmethod(lambda: declare(read()).config)

    def run(self) -> None:
        """There is nothing to serve."""


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "Supervisor", Recorded)


def test_reload_reads_the_file_again(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text("daemon.queue = 5")
    assert run("run", "--config", str(file)).code == 0
    assert Recorded.first.daemon.queue == 5
    file.write_text("daemon.queue = 6")
    assert Recorded.again().daemon.queue == 6
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Recorded.again()


def test_reload_of_what_came_through_a_pipe_is_refused(run: Runner) -> None:
    name = piped("daemon.queue = 5")
    assert run("run", "--config", name).code == 0
    assert Recorded.first.daemon.queue == 5
    with pytest.raises(ConfigError) as caught:
        Recorded.again()
    assert str(caught.value) == (
        f"{name}: came through a pipe and cannot be read again: restart cthelper"
    )


# cthelper reload


def test_reload_outside_of_the_unit_is_wrong_usage(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAINPID", "1")
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    result = run("reload")
    assert result.code == 2
    assert "use `systemctl reload cthelper`" in result.errors


@pytest.mark.parametrize(("error", "code"), [("", 0), ("no queue 2077", 1)])
def test_reload_is_what_the_daemon_answers(
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: str,
    code: int,
) -> None:
    asked: list[object] = []

    def answered(process: int, folder: Path, seconds: float) -> str:
        asked.extend((process, folder))
        assert seconds < 90  # what systemd waits for it
        return error

    monkeypatch.setenv("MAINPID", "77")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(notify, "reload", answered)
    result = run("reload")
    assert (result.code, result.output) == (code, "")
    assert result.errors == (f"cthelper: {error}\n" if error else "")
    assert asked == [77, tmp_path]


def test_reload_of_a_daemon_that_is_gone_fails(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Above what a process's number can be (PID_MAX_LIMIT).
    monkeypatch.setenv("MAINPID", str(1 << 22 | 1))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    result = run("reload")
    assert result.code == 1
    assert "No such process" in result.errors

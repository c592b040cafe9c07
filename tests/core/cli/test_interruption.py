# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C in every command: exit code 130, no traceback, no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.core.cli import main
from tests.core.cli.process import COMMAND, ROOT, group, interrupt, left, started

SHOWMOUNT: Final = ROOT / "pcaps/sunrpc/rpc-showmount-e.pcap"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A capture that does not end: what is read from it is in the test's hand."""
    fifo = tmp_path / "capture.pcap"
    os.mkfifo(fifo)
    return fifo


def begun(pipe: Path) -> int:
    """Most of a capture goes in, once somebody reads it; what to close."""
    writer = os.open(pipe, os.O_WRONLY)
    os.write(writer, SHOWMOUNT.read_bytes()[:-100])
    return writer


def test_captures_behind_it_are_not_begun(pipe: Path, empty: str) -> None:
    page = pipe.with_name("page.html")
    with started(
        *("replay", "--config", empty, "--html", str(page)),
        *(
            str(SHOWMOUNT),
            str(pipe),
            str(SHOWMOUNT.with_name("rpc-rup-broadcast.pcap")),
        ),
    ) as process:
        writer = begun(pipe)
        time.sleep(0.5)
        interrupt(process)
        output, errors = process.communicate(timeout=60)
        os.close(writer)
        assert (process.returncode, errors) == (130, b"")
        assert left(process) == []
    lines = output.decode().splitlines()
    assert [line for line in lines if line.endswith(".pcap")] == [
        str(SHOWMOUNT),
        str(pipe),
    ]
    assert lines[-1].startswith("total of 2 captures: 38 packets, ")
    assert str(pipe) in page.read_text()


def test_differences_of_a_part_are_not_told(pipe: Path, empty: str) -> None:
    old = pipe.with_name("old.json")
    old.write_text('{"event":"summary","capture":"elsewhere.pcap"}\n')
    with started(
        *("replay", "--config", empty, "--diff", str(old), str(pipe))
    ) as process:
        writer = begun(pipe)
        time.sleep(0.5)
        interrupt(process)
        output, errors = process.communicate(timeout=60)
        os.close(writer)
    assert (process.returncode, output, errors) == (130, b"", b"")


@pytest.mark.parametrize("whom", ["group", "process"])
def test_workers_end_too(whom: str, pipe: Path, empty: str) -> None:
    # So many that a worker is not through before anybody is told to end.
    many = sorted(SHOWMOUNT.parents[1].rglob("*.pcap"))
    with started(
        *("replay", "--config", empty, "--jobs", "2", "--network", "10.77.0.0/16"),
        *(str(SHOWMOUNT), str(pipe)),
        *map(str, many),
    ) as process:
        writer = begun(pipe)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(5)]
        if whom == "group":
            interrupt(process)
        else:
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        os.close(writer)
        assert (process.returncode, errors, left(process)) == (130, b"", [])
    assert told[-1].startswith(b"20 packets, ")
    # The capture that was being read; those that nobody had come to are left out.
    assert output.splitlines()[1] == str(pipe).encode()
    assert output.count(b".pcap\n") < len(many)
    assert output.splitlines()[-1].startswith(b"total of ")


def test_ctrl_c_while_workers_begin_leaves_no_traceback(empty: str) -> None:
    with started("replay", "--config", empty, "--jobs", "3", "pcaps") as process:
        # The first of them is there, and imports what it needs.
        while len(group(process)) < 2 and process.poll() is None:
            time.sleep(0.005)
        interrupt(process)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, b"Traceback" in errors) == (130, False)
        assert left(process) == []


def test_ctrl_c_while_the_commands_load() -> None:
    script = """
import signal, sys
class Pressed:
    def find_spec(self, name, *rest):
        if name == "cthelper.core.cli.helpers":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Pressed())
from cthelper.core.cli import main
sys.exit(main(["helpers"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_what_ignores_ctrl_c_goes_on(pipe: Path, empty: str) -> None:
    # As a shell starts what stands in the background.
    process = subprocess.Popen(
        [
            *("sh", "-c", 'trap "" INT; exec "$@"', "sh", *COMMAND),
            *("replay", "--config", empty, str(pipe)),
        ],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    writer = begun(pipe)
    interrupt(process)
    os.write(writer, SHOWMOUNT.read_bytes()[-100:])
    os.close(writer)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert output.splitlines()[-1].startswith(b"20 packets, ")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("doctor",), "cthelper.core.daemon.doctor.examine"),
        (("ruleset", "show"), "cthelper.nft.render"),
        (("ruleset", "check"), "cthelper.core.daemon.ruleset.check"),
        (("ruleset", "install"), "cthelper.core.daemon.ruleset.install"),
        (("ruleset", "remove"), "cthelper.core.daemon.ruleset.remove"),
        (("helpers",), "cthelper.core.cli.helpers.found_helpers"),
        (("new", "demo"), "cthelper.core.offline.specimen.draw"),
        (("run",), "cthelper.core.daemon.supervisor.Supervisor.__init__"),
        (
            ("replay", "--explain", "6", str(SHOWMOUNT)),
            "cthelper.core.offline.explain.explain",
        ),
        (
            ("replay", str(SHOWMOUNT)),
            "cthelper.core.offline.corpus.find_captures",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_every_command_ends_with_130_in_silence(
    arguments: tuple[str, ...],
    where: str,
    empty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pressed(*_arguments: Any, **_options: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(where, pressed)
    config = () if arguments[0] == "new" else ("--config", empty)
    assert main([*arguments, *config]) == 130
    assert capsys.readouterr() == ("", "")

# SPDX-License-Identifier: GPL-2.0-or-later
"""On a terminal: the same bytes as in a pipe, and progress on standard error alone."""

import io
import os
import pty
import re
import struct
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from threading import Thread
from typing import Final

import pytest

from cthelper.core.cli.progress import Progress
from tests.core.cli.process import ROOT, started

NARROW: Final = 20
PROGRESS: Final = re.compile(rb"(\r *\d+% of \d+ \w+)+\r +\r")


class Terminal:
    """A narrow one; `seen` is what was written to it."""

    def __init__(self) -> None:
        self._ours, self.end = pty.openpty()
        tty.setraw(self.end)
        ioctl(self.end, TIOCSWINSZ, struct.pack("4H", 5, NARROW, 0, 0))
        self.seen = b""
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # A terminal whose other end is closed gives an error, not an end of file.
        with suppress(OSError):
            while data := os.read(self._ours, 4096):
                self.seen += data

    def close(self) -> None:
        os.close(self.end)
        self._reader.join()
        os.close(self._ours)


@contextmanager
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize(
    "command",
    [
        ("replay", "--json", "pcaps/sunrpc"),
        ("replay", "pcaps/sunrpc", "pcaps/mdns"),
        ("replay", "--jobs", "2", "pcaps/sunrpc"),
        ("replay", "--utc", "--only-events", "pcaps"),
        ("replay", "--explain", "6", "pcaps/sunrpc/rpc-showmount-e.pcap"),
        ("helpers", "sunrpc"),
        ("ruleset", "show"),
    ],
    ids=" ".join,
)
def test_terminal_gets_the_bytes_that_a_pipe_gets(
    command: tuple[str, ...], empty: str
) -> None:
    command = (*command, "--config", empty)
    with started(*command) as process:
        output, errors = process.communicate(timeout=60)
    assert output
    with (
        terminal() as out,
        terminal() as err,
        started(*command, stdout=out.end, stderr=err.end) as process,
    ):
        assert process.wait(60) == 0
    assert (out.seen, PROGRESS.sub(b"", err.seen)) == (output, errors)
    # One for both, as it is when somebody sits there. Lines of the two may be in
    # another order then.
    with (
        terminal() as both,
        started(*command, stdout=both.end, stderr=both.end) as process,
    ):
        assert process.wait(60) == 0
    seen = PROGRESS.sub(b"", both.seen)
    assert sorted(seen.splitlines()) == sorted((output + errors).splitlines())


# Progress


class Screen(io.StringIO):
    """A terminal that keeps what was written."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What stands there at the end, before the cursor or behind it."""
        line = ""
        for part in self.getvalue().split("\r"):
            line = part + line[len(part) :]
        return line.rstrip()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def test_progress_shows_after_a_second_and_ten_times_a_second(now: list[float]) -> None:
    screen = Screen()
    progress = Progress(200, "captures", stream=screen, clock=lambda: now[0])
    for at, done, shown in (
        (100.9, 10, ""),
        (101.0, 20, " 10% of 200 captures"),
        (101.05, 30, " 10% of 200 captures"),
        (101.2, 80, " 40% of 200 captures"),
        (102.0, 200, "100% of 200 captures"),
    ):
        now[0] = at
        progress.update(done)
        assert screen.text == shown
    progress.clear()
    assert screen.text == ""
    before = screen.getvalue()
    progress.clear()
    assert screen.getvalue() == before
    assert "\n" not in before


@pytest.mark.parametrize(
    ("total", "stream"), [(0, Screen()), (10, io.StringIO())], ids=["unknown", "pipe"]
)
def test_progress_is_silent(total: int, stream: io.StringIO) -> None:
    clock = iter([0.0, *(float(at) for at in range(100, 200))])
    progress = Progress(total, "bytes", stream=stream, clock=lambda: next(clock))
    progress.update(5)
    progress.clear()
    assert stream.getvalue() == ""
    assert not progress.wanted


def test_progress_goes_to_standard_error_and_leaves_nothing_there(
    empty: str, tmp_path: Path
) -> None:
    capture = ROOT / "pcaps/sunrpc/rpc-showmount-e.pcap"
    # It takes longer than progress waits, and then there is one more.
    slow = tmp_path / "slow.pcap"
    os.mkfifo(slow)
    command = ("replay", "--config", empty, str(slow), str(capture))
    with terminal() as err, started(*command, stderr=err.end) as process:
        with slow.open("wb") as writer:
            time.sleep(1.2)
            writer.write(capture.read_bytes())
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 0
    size = capture.stat().st_size
    assert err.seen.split(b"\r") == [
        b"",
        f"100% of {size} bytes".encode(),
        b" " * len(f"100% of {size} bytes"),
        b"",
    ]
    assert b"\r" not in output
    assert b"%" not in output

# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines go to whatever standard error is, and nobody waits for its reader."""

import fcntl
import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from cthelper.core.daemon.standard_error import StandardError

LINE = "x" * 99 + "\n"
Ends = tuple[int, int]


@contextmanager
def pipe() -> Iterator[Ends]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield from both(read, write)


@contextmanager
def pipe_of_another_user() -> Iterator[Ends]:
    def denied(*_: object) -> int:
        raise PermissionError

    with pipe() as ends, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", denied)
        yield ends


@contextmanager
def terminal() -> Iterator[Ends]:
    yield from both(*pty.openpty())


@contextmanager
def sockets() -> Iterator[Ends]:
    """As systemd's journal gives them."""
    ours, theirs = socket.socketpair()
    yield from both(ours.detach(), theirs.detach())


def both(read: int, write: int) -> Iterator[Ends]:
    try:
        yield read, write
    finally:
        for each in (read, write):
            os.close(each)


def fill(output: StandardError, limit: int = 100_000) -> int:
    """How many lines it takes until it refuses one."""
    for count in range(limit):
        try:
            output.write(LINE)
        except BlockingIOError:
            return count
    raise AssertionError("it takes everything")


def drained(read: int) -> bytes:
    """What has been written."""
    found = b""
    while select.select([read], [], [], 0.2)[0]:
        found += os.read(read, 1 << 16)
    return found


@pytest.mark.parametrize("kind", [pipe, pipe_of_another_user, terminal, sockets])
def test_line_that_would_have_to_wait_is_refused_and_later_ones_are_whole(
    kind: Callable[[], AbstractContextManager[Ends]],
) -> None:
    with kind() as (read, write), closing(StandardError(write)) as output:
        count = fill(output)
        assert count > 0
        # Of the others that hold it nobody is made non-blocking.
        assert os.get_blocking(write)
        before = drained(read)
        output.write("after\n")
        lines = (before + drained(read)).replace(b"\r\n", b"\n").decode().splitlines()
    assert lines[-1] == "after"
    assert set(lines[:-1]) == {LINE.strip()}
    # The one that was refused, or all of one that was begun.
    assert len(lines) - 1 in (count, count + 1)


def test_long_line_to_a_pipe_of_another_user_is_whole_where_there_is_room() -> None:
    with (
        pipe_of_another_user() as (read, write),
        closing(StandardError(write)) as output,
    ):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 16)
        line = "y" * 30_000 + "\n"
        output.write(line)
        assert drained(read).decode() == line


def test_reader_that_has_gone_is_an_error() -> None:
    for closes_first in (True, False):
        read, write = os.pipe()
        if closes_first:
            os.close(read)
        with closing(StandardError(write)) as output:
            if not closes_first:
                os.close(read)
            with pytest.raises(BrokenPipeError):
                output.write(LINE)
        os.close(write)


def test_full_disc_is_an_error() -> None:
    with (
        open("/dev/full", "wb") as full,
        closing(StandardError(full.fileno())) as output,
        pytest.raises(OSError, match="No space left"),
    ):
        output.write(LINE)


def test_line_of_which_a_part_was_written_is_completed_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a file system that fills up and has room again."""
    path = tmp_path / "log"
    room = 5
    put = os.write

    def limited(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        count = put(descriptor, data[:room])
        room -= count
        return count

    with path.open("wb") as file, closing(StandardError(file.fileno())) as output:
        monkeypatch.setattr(os, "write", limited)
        output.write("first\n")
        with pytest.raises(OSError, match="No space"):
            output.write("second\n")
        room = 100
        output.write("third\n")
        monkeypatch.undo()
    assert path.read_text() == "first\nthird\n"


def test_file_keeps_its_offset_with_whoever_else_writes_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, closing(StandardError(file.fileno())) as output:
        os.write(file.fileno(), b"one\n")
        output.write("two\n")
        os.write(file.fileno(), b"three\n")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_process_without_standard_error_writes_into_no_other_file(
    tmp_path: Path,
) -> None:
    script = (
        "import os, sys\n"
        f"file = os.open({str(tmp_path / 'other')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "from cthelper.core.daemon.log import Log\n"
        "log = Log(clock=lambda: 0.0)\n"
        "log.event('seen')\n"
        "print(file, dict(log.counters))\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "2 {'seen': 1, 'log-lost': 1}\n"
    assert (tmp_path / "other").read_bytes() == b""

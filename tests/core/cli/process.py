# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a process of its own, at the head of its process group."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

COMMAND: Final = (sys.executable, "-W", "error", "-m", "cthelper")
ROOT: Final = Path(__file__).parents[3]


@contextmanager
def started(
    *arguments: str,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process; what is left of its group afterwards is killed."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=ROOT,
        # What is written at once shall be so by the command's own doing.
        env={key: os.environ[key] for key in os.environ if key != "PYTHONUNBUFFERED"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, as a terminal gives it: to the whole group."""
    os.killpg(process.pid, signal.SIGINT)


def left(process: subprocess.Popen[bytes]) -> list[int]:
    """What is still there of its group in the end."""
    # Python's resource tracker goes once it finds that nobody else is there.
    deadline = time.monotonic() + 20
    while (found := group(process)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def group(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of its group that are there, but for zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # State, parent, group, behind the name, which may hold anything.
            state, _, number, *_ = stat.read_text().rpartition(")")[2].split()
            if int(number) == process.pid and state != "Z":
                found.append(int(stat.parent.name))
    return found

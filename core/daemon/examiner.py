# SPDX-License-Identifier: GPL-2.0-or-later
"""A process in which code of plugins is run by who has privileges, and has none itself.

It is forked, confined as a server is, without its capability and its sockets, and ends
with what it was forked for. Its standard streams are /dev/null, and of what this
process has open or shares with others it has the pipe of its answer alone, and a page
of memory that shows the line that it is at: so what ends without an answer, in whatever
way, is known by its line. Time and memory are limited.

The code may put anything in the pipe and on the page; see examination.py.
"""

import ctypes
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from cthelper.core.daemon.interruption import end_with_parent
from cthelper.core.daemon.privileges import Confinement
from cthelper.core.errors import CthelperError
from cthelper.core.examination import Ended, refused

SECONDS: Final = 10.0
"""How long one examination may take."""
MEMORY: Final = 512 << 20
"""Bytes that it may take beyond what this process has."""

# The longest answer: a helper may name every port.
_ANSWER: Final = 1 << 20
_CHUNK: Final = 1 << 16
_LINE: Final = struct.Struct("=I")
_LINES: Final = 1 << 24  # of a file, at most
# What the command line and the supervisor have handlers for.
_SIGNALS: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGALRM, signal.SIGUSR1),
)
# Whatever the code puts in their places.
_exit, _write = os._exit, os.write


class Examiner:
    """Forks such processes, one at a time, from a process without threads."""

    def __init__(self, confinement: Confinement) -> None:
        self._confinement = confinement

    def __call__(
        self, work: Callable[[], bytes], module: str, /, *readable: Path
    ) -> bytes:
        """What `work` returns in such a process; see `Ask`. Raises Ended."""
        confinement = replace(
            self._confinement, readable=(*self._confinement.readable, *readable)
        )
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            pid, reads = _started(work, module, confinement, page)
            late = False
            data = b""
            try:
                data = _all(reads, time.monotonic() + SECONDS)
            except TimeoutError:
                late = True
            finally:
                os.close(reads)
                # One that has ended already stays as it is.
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            (line,) = _LINE.unpack_from(page)
            known = line if 0 < line < _LINES else None
        if late:
            raise Ended(f"does not come to an end within {SECONDS:.0f} s", known)
        if len(data) > _ANSWER:
            raise Ended(f"declares more than {_ANSWER >> 20} MiB", known)
        if not data:
            raise Ended(_how(os.waitstatus_to_exitcode(status)), known)
        return data


def _how(code: int) -> str:
    """How a process has ended, by its exit code or minus the signal."""
    if code >= 0:
        return f"ends its process (exit code {code})"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"has its process end by {name}"


def _all(reads: int, deadline: float) -> bytes:
    """What is written into a pipe until it is closed, as far as it may be read.

    Raises TimeoutError.
    """
    data = b""
    while len(data) <= _ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reads], [], [], left)[0]:
            raise TimeoutError
        part = os.read(reads, _CHUNK)
        if not part:
            break
        data += part
    return data


def _started(
    work: Callable[[], bytes], module: str, confinement: Confinement, page: mmap.mmap
) -> tuple[int, int]:
    """The process, and where its answer can be read. Raises Ended."""
    ends: tuple[int, ...] = ()
    parent = os.getpid()
    # A handler of this process is none for a signal that comes to the other one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        reads, writes = ends = os.pipe()
        pid = os.fork()
    except OSError as error:
        for end in ends:
            os.close(end)
        raise Ended(f"cannot be examined: {error.strerror}") from None
    else:
        if pid == 0:
            _become(parent, work, module, confinement, page, writes)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(writes)
    return pid, reads


def _become(
    parent: int,
    work: Callable[[], bytes],
    module: str,
    confinement: Confinement,
    page: mmap.mmap,
    writes: int,
) -> NoReturn:
    """Do the work, in the process that was forked for it."""
    try:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        answer = _alone_with(writes)
        try:
            _share_only(page)
            _limit(resource.RLIMIT_DATA, _data() + MEMORY)
            _limit(resource.RLIMIT_CORE, 0)
            confinement.confine_bare()
            end_with_parent()
            if os.getppid() != parent:
                _exit(1)  # it died before
        except (CthelperError, OSError, ValueError) as error:
            told = refused(f"cannot be examined: {error}")
        else:
            sys.settrace(_following(module, page))
            told = work()
        while told:
            told = told[_write(answer, told) :]
    except BaseException:
        # It has no answer, and that is told.
        _exit(1)
    finally:
        _exit(0)


def _alone_with(end: int) -> int:
    """Close all but a descriptor, which gets another number; the standard ones
    are /dev/null.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    highest = os.sysconf("SC_OPEN_MAX")
    for number in range(3):
        if end == number:
            end = os.dup(end)
        os.dup2(nothing, number)
    os.closerange(3, end)
    os.closerange(end + 1, highest)
    return end


def _share_only(page: mmap.mmap) -> None:
    """Let go of all other memory that is shared and can be written to.

    Such is what servers show of their progress. Raises OSError, ValueError.
    """
    ours = ctypes.addressof(ctypes.c_char.from_buffer(page))
    unmap = ctypes.CDLL(None, use_errno=True).munmap
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    for line in maps.splitlines():
        place, rights, *_ = line.split()  # proc_pid_maps(5)
        start, end = (int(each, 16) for each in place.split("-"))
        if "w" not in rights or not rights.endswith("s") or start == ours:
            continue
        if unmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start)):
            raise OSError(ctypes.get_errno(), "munmap")


def _data() -> int:
    """The bytes of memory that RLIMIT_DATA counts (proc_pid_statm(5))."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[5]) * mmap.PAGESIZE


def _limit(what: int, most: int) -> None:
    """Lower a limit, for good. Raises OSError, ValueError."""
    _, highest = resource.getrlimit(what)
    if highest != resource.RLIM_INFINITY:
        most = min(most, highest)
    resource.setrlimit(what, (most, most))


def _following(module: str, page: mmap.mmap) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that notes each line of a module on the page."""

    def note(frame: FrameType, _event: str, _argument: Any) -> Any:
        _LINE.pack_into(page, 0, frame.f_lineno)
        return note

    def begin(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_globals.get("__name__") != module:
            return None
        return note(frame, event, argument)

    return begin

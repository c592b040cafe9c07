# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins that do what they can when they are imported: nothing comes of it.

Each runs in a process of the examiner's. As root that is another user's.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cthelper.core.daemon import capabilities, examiner, landlock, seccomp
from cthelper.core.daemon.capabilities import Capability
from cthelper.core.daemon.examiner import Examiner
from cthelper.core.daemon.privileges import Confinement, plan
from cthelper.core.daemon.progress import Progress
from cthelper.core.errors import CthelperError, RegistryError
from cthelper.core.examination import Ended, Examining
from cthelper.core.registry import Found, Point
from tests.core.test_registry import good

needs_confinement = pytest.mark.skipif(
    not (landlock.version() and seccomp.available()),
    reason=f"needs Landlock, and {seccomp.PACKAGE}",
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not capabilities.has(Capability.CAP_SETUID),
    reason="needs root, with its capabilities",
)
HELPER = good("x", 7000, "X")


@pytest.fixture(scope="module")
def confinement() -> Confinement:
    """How plugins are confined here."""
    return plan("nobody")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may write to, and a plugin in it that is root's alone."""
    with TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        (path / "x.py").touch(mode=0o600)
        yield path


@pytest.fixture
def examine(confinement: Confinement, folder: Path) -> Callable[[str], list[Found]]:
    """What examines a plugin of this text."""

    def examined(text: str) -> list[Found]:
        taking = Examining(Examiner(confinement), "")
        errors: list[RegistryError] = []
        found = taking.of_file(folder / "x.py", text.encode(), errors.append)
        if errors:
            raise errors[0]
        return found

    return examined


Examine = Callable[[str], list[Found]]


def error_of(examine: Examine, folder: Path, text: str) -> str:
    """The error for a plugin, without the file's folder."""
    with pytest.raises(RegistryError) as caught:
        examine(text)
    return str(caught.value).replace(f"{folder}/", "")


def test_helper_is_what_it_declares_and_its_code_was_not_run_here(
    examine: Examine,
) -> None:
    (found,) = examine(f"import builtins\nbuiltins.was_here = 1\n{HELPER}")
    assert (found.helper.name, found.helper.ports) == ("x", (7000,))
    assert not hasattr(__builtins__, "was_here")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x = 1\n1 / 0", "x.py:2: ZeroDivisionError: division by zero"),
        ("def f():\n  g()\n\nf()", "x.py:2: NameError: name 'g' is not defined"),
        ("import sys\nsys.exit('no')", "x.py:2: SystemExit: no"),
        (
            good("x", 0, "X"),
            "x.py:8: X.ports = (0,): must be one or more of 1 to 65535, each once, in "
            "a tuple",
        ),
        ("import os\n\nos._exit(3)", "x.py:3: ends its process (exit code 3)"),
        ("import os\nos._exit(0)", "x.py:2: ends its process (exit code 0)"),
        ("import os\nos.abort()", "x.py:2: has its process end by SIGABRT"),
        (
            "import ctypes\nctypes.string_at(0)",
            "x.py:2: has its process end by SIGSEGV",
        ),
        (
            "import os\nos.kill(os.getpid(), 9)",
            "x.py:2: has its process end by SIGKILL",
        ),
        ("x = bytearray(4 << 30)", "x.py:1: MemoryError"),
        ("x = []\nwhile True:\n    x.append('x' * 9999999)", "x.py:3: MemoryError"),
    ],
)
def test_end_is_said_with_file_and_line(
    examine: Examine, folder: Path, text: str, error: str
) -> None:
    assert error_of(examine, folder, text) == error


@pytest.mark.parametrize(
    "text",
    [
        "\nwhile True: pass",
        "import time\ntime.sleep(3600)",
        "import signal\nfor each in range(1, 65): signal.pthread_sigmask(0, [each]); "
        "signal.pause()",
        "import threading\nthreading.Lock().acquire(); threading.Event().wait()",
        "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')",
        "import os, time; os._exit = os.write = lambda *_: 1\ntime.sleep(3600)",
    ],
    ids=["loop", "sleep", "signals", "wait", "match", "patched"],
)
def test_one_that_never_ends_is_ended(
    examine: Examine, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(examiner, "SECONDS", 0.7)
    begun = time.monotonic()
    error = error_of(examine, folder, text)
    assert error == "x.py:2: does not come to an end within 1 s"
    assert time.monotonic() - begun < 5


def test_thread_that_stays_holds_nothing_up(examine: Examine) -> None:
    text = (
        "import threading as t, time\nt.Thread(target=time.sleep, args=(99,)).start()"
    )
    begun = time.monotonic()
    assert examine(f"{text}\n{HELPER}")
    assert time.monotonic() - begun < 5


@needs_confinement
@pytest.mark.parametrize(
    "step",
    [
        "open(FOLDER + '/written', 'w')",
        "os.unlink(FOLDER + '/x.py')",
        "os.mkdir(FOLDER + '/made')",
        "os.chmod(FOLDER, 0)",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "subprocess.run(['true'])",
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)",
        "socket.socketpair()",
        "os.kill(os.getppid(), 15)",
        "os.kill(-1, 9)",
        "os.setuid(0)",
        "resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
        "os.memfd_create('x')",
        "open('/proc/%d/mem' % os.getppid(), 'r+b')",
        "mmap.mmap(-1, 4096)",
        "mmap.mmap(-1, 4096, 3)",
    ],
)
def test_what_a_server_may_not_is_refused_with_the_line(
    examine: Examine, folder: Path, step: str
) -> None:
    modules = "mmap, os, resource, socket, subprocess"
    imports = f"import {modules}; FOLDER = {str(folder)!r}"
    error = error_of(examine, folder, f"{imports}\n{step}")
    assert error.startswith("x.py:2: ")
    assert any(
        words in error for words in ("Permission denied", "not permitted", "not allow")
    )
    assert [each.name for each in folder.iterdir()] == ["x.py"]


@needs_root
def test_it_is_another_users_without_capabilities(examine: Examine) -> None:
    text = (
        "import os\n"
        "assert os.getresuid() == os.getresgid() == (65534,) * 3\n"
        "assert os.getgroups() == []\n"
        "status = open('/proc/self/status').read()\n"
        "caps = [each for each in status.splitlines() if each.startswith('Cap')]\n"
        "assert len(caps) == 5, caps\n"
        "assert all(each.endswith('\\t' + '0' * 16) for each in caps), caps\n"
        "assert 'NoNewPrivs:\\t1' in status\n"
        f"{HELPER}"
    )
    assert examine(text)


def test_nothing_that_is_open_here_is_there(
    examine: Examine, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = socket.socketpair()
    reads, writes = os.pipe()
    with closing(ours), closing(theirs), open(reads, "rb"), open(writes, "wb"):
        forging = (
            "import os, sys\n"
            "print('printed', file=sys.__stdout__, flush=True)\n"
            "print('printed', file=sys.__stderr__, flush=True)\n"
            "for number in range(1024):\n"
            "    try:\n"
            "        os.write(number, b'forged')\n"
            "    except OSError:\n"
            "        pass\n"
        )
        with pytest.raises(RegistryError, match="what it declares"):
            examine(forging + HELPER)
        for end in (ours, theirs):
            end.setblocking(False)
            with pytest.raises(BlockingIOError):
                end.recv(10)
        os.set_blocking(reads, False)
        with pytest.raises(BlockingIOError):
            os.read(reads, 10)
    assert capfd.readouterr() == ("", "")


def test_memory_that_is_shared_with_servers_is_not_there(
    examine: Examine, folder: Path
) -> None:
    progress = Progress()
    progress.turn()
    text = (
        "import gc\n"
        "from cthelper.core.daemon.progress import Progress\n"
        "for each in gc.get_objects():\n"
        "    if type(each) is Progress:\n"
        "        each.turn()\n"
    )
    error = error_of(examine, folder, text)
    assert error == "x.py:5: has its process end by SIGSEGV"
    assert progress.mark.turns == 1
    progress.close()


def test_forged_answer_is_of_its_own_file(examine: Examine, folder: Path) -> None:
    text = "import os\nfor number in range(1024):\n  try: os.write(number, ANSWER)\n"
    text += "  except OSError: pass\nos._exit(0)"
    said = '[{"error": "/etc/passwd: is wrong"}]'
    error = error_of(examine, folder, f"ANSWER = {said.encode()!r}\n{text}")
    assert error == "x.py: /etc/passwd: is wrong"
    long = f"ANSWER = b' ' * {2 << 20}\n{text}"
    assert "declares more than 1 MiB" in error_of(examine, folder, long)


def test_file_that_this_user_may_not_read_is_named(
    examine: Examine, folder: Path
) -> None:
    error = error_of(examine, folder, "\nopen('/etc/shadow')")
    if os.geteuid() == 0:
        assert error == (
            "x.py:2: PermissionError: [Errno 13] Permission denied: '/etc/shadow'"
        )
    (folder / "data").write_text("x")
    text = (
        "from pathlib import Path\nassert Path(__file__).with_name('data').read_text()"
    )
    assert examine(f"{text}\n{HELPER}")


def test_entry_point_is_known_by_its_line(
    confinement: Confinement, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "some_where.py").write_text("import os\n\nos._exit(9)\n")
    monkeypatch.syspath_prepend(str(folder))
    readable = replace(confinement, readable=(*confinement.readable, folder))
    taking = Examining(Examiner(readable), "")
    with pytest.raises(RegistryError) as caught:
        taking.of_point(Point("x", "some_where:X", "cthelper-x 1.2"))
    assert str(caught.value) == (
        "cthelper-x 1.2: entry point x = 'some_where:X': ends its process "
        "(exit code 9) at line 3 of some_where"
    )


def test_where_it_cannot_be_confined_nothing_is_run(
    confinement: Confinement, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(capabilities, "no_new_privileges", fails)
    taking = Examining(Examiner(confinement), "")
    errors: list[RegistryError] = []
    text = f"open({str(folder / 'ran')!r}, 'w')"
    assert taking.of_file(folder / "x.py", text.encode(), errors.append) == []
    (error,) = map(str, errors)
    assert error == (
        f"{folder}/x.py: cannot be examined: privileges cannot be given up: "
        "[Errno 1] Operation not permitted"
    )
    assert not (folder / "ran").exists()


def test_where_there_is_no_process_to_be_had_that_is_said(
    examine: Examine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", fails)
    error = error_of(examine, folder, HELPER)
    assert error == "x.py: cannot be examined: Resource temporarily unavailable"
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_leave_nothing(
    confinement: Confinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Examiner(confinement)
    fork, forked = os.fork, set[int]()

    def noted() -> int:
        pid = fork()
        forked.add(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert ask(lambda: b"x" * 70_000, "m") == b"x" * 70_000
        with pytest.raises(Ended):
            ask(lambda: os._exit(1), "m")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(forked) == 20
    assert not any(Path(f"/proc/{each}").exists() for each in forked)


def test_signals_that_came_meanwhile_are_ours(confinement: Confinement) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: came.append(number))
    try:
        parent = os.getpid()

        def work() -> bytes:
            return str(os.getppid() == parent).encode()

        os.kill(parent, signal.SIGHUP)
        assert Examiner(confinement)(work, "m") == b"True"
        assert came == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_error_of_ours_is_no_answer(confinement: Confinement) -> None:
    def work() -> bytes:
        raise CthelperError("a bug")

    with pytest.raises(Ended, match=r"ends its process \(exit code 1\)"):
        Examiner(confinement)(work, "m")

# SPDX-License-Identifier: GPL-2.0-or-later
"""What servers and the supervisor can still do: tried in processes that are confined.

Each test forks, since nothing of it can be undone. All but a few need root.
"""

import ctypes
import errno
import fcntl
import importlib
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest

from cthelper.core.control.event_file import EventFile
from cthelper.core.daemon import capabilities, landlock, privileges, seccomp
from cthelper.core.daemon.capabilities import Capability, Sets
from cthelper.core.daemon.privileges import (
    Confinement,
    NoSuchUser,
    User,
    find_user,
    plan,
)
from cthelper.core.errors import CthelperError

ALL: Final = tuple(set(Capability) - {Capability.CAP_DAC_READ_SEARCH})
ROOT: Final = os.geteuid() == 0 and all(map(capabilities.has, ALL))
needs_root = pytest.mark.skipif(not ROOT, reason="needs root, with its capabilities")
needs_landlock = pytest.mark.skipif(
    not landlock.version(), reason="the kernel has no Landlock"
)
needs_seccomp = pytest.mark.skipif(
    not seccomp.available(), reason=f"not installed: {seccomp.PACKAGE}"
)
NET_ADMIN: Final = capabilities.mask([Capability.CAP_NET_ADMIN])
MORE: Final = Sets(NET_ADMIN | 1, NET_ADMIN | 1, 0)
NOBODY: Final = User("nobody", 65534, 65534)
LIBC: Final = ctypes.CDLL(None, use_errno=True)
SECONDS: Final = 20

OLD_UMOUNT, SYS_BPF, SYS_PTRACE_ATTACH = 2, 321, 16


def inside(*steps: Callable[[], object]) -> list[str]:
    """What steps in a process of their own come to: a value, or the error's name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        told = []
        try:
            signal.alarm(SECONDS)
            for step in steps:
                try:
                    told.append(str(step()))
                except OSError as error:
                    told.append(errno.errorcode[error.errno or 0])
                except BaseException as error:
                    told.append(repr(error))
            os.write(writer, "\n".join(told).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text.split("\n")


def call(name: str, *arguments: Any) -> int:
    """A function of the C library. Raises OSError."""
    result: int = getattr(LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def opened(path: str, flags: int = os.O_WRONLY) -> None:
    """Open a file, to be written to; raises OSError."""
    os.close(os.open(path, flags))


def status(field: str) -> str:
    """A line of this process's status."""
    text = Path("/proc/thread-self/status").read_text()
    (line,) = [each for each in text.splitlines() if each.startswith(f"{field}:")]
    return " ".join(line.split()[1:])


@pytest.fixture
def confined() -> Confinement:
    """How a server is confined here."""
    return replace(plan("nobody"), user=NOBODY if ROOT else None)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may pass, unlike those of pytest."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o711)
        yield path


# Servers


@needs_root
def test_server_is_a_user_without_groups_and_with_one_capability(
    confined: Confinement,
) -> None:
    fields = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    done, *told = inside(
        confined.confine_server,
        *(lambda field=field: status(field) for field in fields),
        lambda: status("NoNewPrivs"),
        lambda: status("Seccomp"),
    )
    assert done == "None"
    ids = " ".join(["65534"] * 4)
    one = f"{NET_ADMIN:016x}"
    none = f"{0:016x}"
    assert told == [
        *(ids, ids, "", none, one, one, one, none),
        *("1", "2" if confined.seccomp else "0"),
    ]


def attach() -> object:
    return call("ptrace", SYS_PTRACE_ATTACH, os.getppid(), None, None)


def namespace_of(pid: int) -> Callable[[], object]:
    file = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    return lambda: call("setns", file, 0)


REFUSED: Final[dict[str, Callable[[], object]]] = {
    "write a file": lambda: opened("/cthelper-server", os.O_CREAT),
    "write to /dev/null": lambda: opened("/dev/null"),
    "change core_pattern": lambda: opened("/proc/sys/kernel/core_pattern"),
    "make a file without a name": lambda: opened("/", os.O_TMPFILE | os.O_RDWR),
    "make a folder": lambda: os.mkdir("/cthelper-server"),
    "remove a file": lambda: os.unlink(__file__),
    "change a mode": lambda: os.chmod(__file__, 0o600),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "run a program by descriptor": lambda: os.execve(
        os.open("/etc/passwd", os.O_RDONLY), ["true"], {}
    ),
    "fork": os.fork,
    "open an IPv4 socket": lambda: socket.socket(socket.AF_INET),
    "open an IPv6 socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a local socket": lambda: socket.socket(socket.AF_UNIX),
    "make a pair of sockets": socket.socketpair,
    "open another netlink socket": lambda: socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_CRYPTO
    ),
    "trace": attach,
    "kill its supervisor": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "kill all that it may": lambda: os.kill(-1, signal.SIGKILL),
    "have its supervisor signalled": lambda: fcntl.fcntl(0, 8, os.getppid()),
    "choose the signal": lambda: fcntl.fcntl(0, 10, signal.SIGKILL),
    "become root": lambda: os.setuid(0),
    "become root by group": lambda: os.setresgid(0, 0, 0),
    "have groups": lambda: os.setgroups([0]),
    "have capabilities": lambda: capabilities.hold(
        Sets(NET_ADMIN | 1, NET_ADMIN | 1, 0)
    ),
    "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    "unmount": lambda: call("umount2", b"/proc", OLD_UMOUNT),
    "have a namespace": lambda: call("unshare", 0x10000000),
    "change its root": lambda: os.chroot("/tmp"),  # noqa: S108
    "load BPF": lambda: call("syscall", SYS_BPF, 0, None, 0),
    "load a module": lambda: call("init_module", None, 0, b""),
    "set the clock": lambda: call("clock_settime", 0, (ctypes.c_long * 2)(1, 0)),
    "set the host's name": lambda: socket.sethostname("x"),
    "change its limits": lambda: call(
        "setrlimit", resource.RLIMIT_NOFILE, (ctypes.c_ulong * 2)(9, 9)
    ),
    "map what it writes as code": lambda: mmap.mmap(-1, 4096, prot=7),
    "make memory code": lambda: call(
        "mprotect", ctypes.c_void_p(0), ctypes.c_size_t(4096), 5
    ),
    "make a file in memory": lambda: os.memfd_create("x"),
    "share memory": lambda: call("shmget", 0, 4096, 0o1600),
    "read the kernel's log": lambda: call("klogctl", 3, None, 0),
}


@needs_root
@needs_seccomp
def test_server_is_refused_all_that_an_attacker_would_want(
    confined: Confinement,
) -> None:
    other = namespace_of(os.getpid())
    tried = {**REFUSED, "enter a namespace": other}
    done, *told = inside(confined.confine_server, *tried.values())
    assert done == "None"
    assert dict(zip(tried, told, strict=True)) == dict.fromkeys(tried, "EPERM")


@needs_root
@needs_seccomp
def test_controller_may_do_what_a_server_may_and_accept_connections(
    confined: Confinement, tmp_path: Path
) -> None:
    place = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX) as one,
    ):
        listening.bind(place)
        listening.listen()
        one.connect(place)

        def accept() -> None:
            listening.accept()[0].close()

        tried = {
            **REFUSED,
            "listen": lambda: one.listen(),
            "connect": lambda: listening.connect(place),
        }
        done, accepted, *told = inside(
            confined.confine_controller, accept, *tried.values()
        )
        assert (done, accepted) == ("None", "None")
        assert dict(zip(tried, told, strict=True)) == dict.fromkeys(tried, "EPERM")
        done, refused = inside(confined.confine_server, accept)
        assert (done, refused) == ("None", "EPERM")


@needs_root
def test_server_can_do_what_it_needs(confined: Confinement, tmp_path: Path) -> None:
    file = tmp_path / "open before"
    with file.open("w") as opened:
        tried: dict[str, Callable[[], object]] = {
            "write what is open": lambda: os.write(opened.fileno(), b"x"),
            "ask netfilter": lambda: socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, 12
            ).bind((0, 0)),
            "ask for routes": lambda: socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, 0
            ).bind((0, 0)),
            # SO_RCVBUFFORCE needs CAP_NET_ADMIN.
            "have a large buffer": lambda: socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, 12
            ).setsockopt(socket.SOL_SOCKET, 33, 1 << 26),
            "look up a service": lambda: socket.getservbyname("sunrpc"),
            "import": lambda: imported("_curses"),
            "import of cthelper": lambda: imported("cthelper.core.daemon.backoff"),
            "have a thread": in_a_thread,
            "signal itself": lambda: os.kill(os.getpid(), 0),
            "have a timer": lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 5.0),
            "read its queues": lambda: Path("/proc/net/dev").read_text() and None,
            "have memory": lambda: len(bytearray(1 << 26)),
        }
        done, *told = inside(confined.confine_server, *tried.values())
    assert done == "None"
    assert dict(zip(tried, told, strict=True)) == {
        **dict.fromkeys(tried, "None"),
        "write what is open": "1",
        "look up a service": "111",
        "have a thread": "[1]",
        "have a timer": "(0.0, 0.0)",
        "have memory": str(1 << 26),
    }
    assert file.read_text() == "x"


def imported(name: str) -> None:
    sys.modules.pop(name, None)
    importlib.import_module(name)


def in_a_thread() -> list[int]:
    told: list[int] = []
    thread = threading.Thread(target=told.append, args=(1,))
    thread.start()
    thread.join()
    return told


@needs_root
@needs_landlock
def test_server_reads_code_and_no_other_file_and_writes_to_none_without_seccomp(
    confined: Confinement, tmp_path: Path
) -> None:
    # Whatever its user may do: this is root's own.
    tmp_path.chmod(0o755)
    readable = tmp_path / "readable"
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for each in (readable, plugins / "data"):
        each.write_text("x")
    alone = replace(
        confined,
        user=None,
        seccomp=False,
        readable=(*confined.readable, plugins, tmp_path / "absent"),
    )
    assert inside(
        alone.confine_server,
        readable.read_text,
        (plugins / "data").read_text,
        lambda: os.listdir(tmp_path),
        lambda: os.listdir(plugins),
        lambda: (plugins / "data").write_text("y"),
        lambda: (plugins / "new").touch(),
        lambda: os.unlink(plugins / "data"),
        lambda: opened("/proc/sys/kernel/core_pattern"),
        lambda: opened("/dev/null"),
        lambda: os.execv("/bin/true", ["true"]),
        lambda: os.truncate(plugins / "data", 0),
    ) == ["None", "EACCES", "x", "EACCES", "['data']", *["EACCES"] * 7]


@needs_seccomp
def test_system_calls_are_filtered_for_who_is_not_root(confined: Confinement) -> None:
    alone = replace(confined, user=None, landlock=0)
    assert inside(
        alone.confine_server, os.fork, lambda: opened("/dev/null"), in_a_thread
    ) == ["None", "EPERM", "EPERM", "[1]"]


@needs_seccomp
def test_a_call_that_is_not_known_is_as_one_that_the_kernel_lacks(
    confined: Confinement,
) -> None:
    alone = replace(confined, user=None, landlock=0)
    unknown, openat2 = 1000, 437
    assert inside(
        alone.confine_server,
        lambda: call("syscall", unknown),
        lambda: call("syscall", openat2, -100, b"/", None, 0),
    ) == ["None", "ENOSYS", "ENOSYS"]


def test_without_libseccomp_nothing_is_filtered_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seccomp, "_FILE", "libseccomp.so.none")
    seccomp._library.cache_clear()
    try:
        found = plan("nobody")
        with pytest.raises(CthelperError, match="apt-get install libseccomp2"):
            seccomp.restrict()
    finally:
        seccomp._library.cache_clear()
    assert not found.seccomp
    assert found.gaps[-1] == (
        "libseccomp is not there, so servers' system calls are not filtered: "
        "apt-get install libseccomp2"
    )


def test_kernel_without_landlock_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    found = plan("nobody")
    assert found.landlock == 0
    assert any("no Landlock" in each for each in found.gaps)


@pytest.mark.parametrize(
    ("version", "rights"),
    [(1, 0x1FF2), (2, 0x3FF2), (3, 0x7FF2), (4, 0x7FF2), (5, 0xFFF2)],
)
def test_each_version_of_landlock_is_asked_for_the_rights_that_it_knows(
    version: int, rights: int
) -> None:
    assert landlock.changes(version) == rights


@needs_landlock
@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_landlock_is_taken_as_older_kernels_have_it(version: int) -> None:
    if version > landlock.version():
        pytest.skip("the kernel's is older")
    assert inside(
        capabilities.no_new_privileges,
        lambda: landlock.restrict(version, landlock.changes(version), {}, alone=True),
        lambda: opened("/dev/null"),
    ) == ["None", "None", "EACCES"]


def test_what_cannot_be_given_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(capabilities, "no_new_privileges", refuse)
    confinement = Confinement(None, 0, False, ())
    text = "privileges cannot be given up: .*not permitted"
    for step in (confinement.confine_server, confinement.confine_supervisor):
        told = inside(step)
        assert told[0].startswith("CthelperError(")
        with monkeypatch.context() as patch:
            patch.setattr(capabilities, "keep_only", lambda _: None)
            with pytest.raises(CthelperError, match=text):
                step()


# The supervisor


@needs_root
def test_supervisor_keeps_what_servers_and_nft_need() -> None:
    kept = f"{capabilities.mask(ALL):016x}"
    done, *told = inside(
        plan("nobody").confine_supervisor,
        lambda: status("CapEff"),
        lambda: status("CapPrm"),
        lambda: status("CapBnd"),
        lambda: status("NoNewPrivs"),
        lambda: status("Uid").split()[1],
    )
    assert done == "None"
    assert told == [kept, kept, kept, "1", "0"]


@needs_root
@needs_landlock
def test_supervisor_and_what_it_runs_write_to_no_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    shell = ("sh", "-c", f"cat {file}; : >/dev/null; echo y >{file}")

    def run() -> str:
        done = subprocess.run(shell, capture_output=True, text=True)
        return f"{done.stdout} {done.returncode}"

    assert inside(
        plan("nobody").confine_supervisor,
        lambda: opened("/proc/sys/kernel/core_pattern"),
        lambda: file.write_text("y"),
        lambda: opened("/dev/null"),
        run,
    ) == ["None", "EACCES", "EACCES", "None", "x 2"]
    assert file.read_text() == "x"


@needs_root
@needs_landlock
def test_supervisor_writes_to_files_in_the_folder_of_events_alone(
    tmp_path: Path,
) -> None:
    folder, closed = tmp_path / "log", tmp_path / "closed"
    for each in (folder, closed):
        each.mkdir()
    file = folder / "events.json"

    def append() -> None:
        EventFile(file).write([{"event": "one"}])

    assert inside(
        lambda: plan("nobody").confine_supervisor([folder, tmp_path / "absent"]),
        *(append, append),
        lambda: opened(str(closed / "events.json"), os.O_WRONLY | os.O_CREAT),
        lambda: (folder / "new").mkdir(),
        lambda: (folder / "new").symlink_to(file),
        *(file.unlink, lambda: file.rename(folder / "new")),
    ) == [
        *("None", "None", "None"),
        *("EACCES", "EACCES", "EACCES", "EACCES", "EACCES"),
    ]
    assert file.read_text() == '{"event": "one"}\n' * 2


@needs_root
@needs_seccomp
def test_writer_may_write_to_what_is_open_and_do_nothing_else(
    confined: Confinement, tmp_path: Path
) -> None:
    file = EventFile(tmp_path / "events.json")
    tried = {
        **REFUSED,
        "netlink": lambda: socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, 12
        ).close(),
    }
    done, written, capabilities_held, *told = inside(
        confined.confine_bare,
        lambda: file.write([{"event": "one"}]),
        lambda: status("CapPrm"),
        *tried.values(),
    )
    assert (done, written, int(capabilities_held, 16)) == ("None", "None", 0)
    assert dict(zip(tried, told, strict=True)) == dict.fromkeys(tried, "EPERM")
    assert (tmp_path / "events.json").read_text() == '{"event": "one"}\n'


@needs_root
def test_servers_of_another_user_are_started_and_ended_by_the_supervisor(
    confined: Confinement,
) -> None:
    def start() -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                confined.confine_server()
                os.write(writer, status("Uid").split()[0].encode())
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        uid = os.read(reader, 10)
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if uid else 0

    assert inside(confined.confine_supervisor, start) == ["None", str(-signal.SIGKILL)]


# Users


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-user", "there is no user no-such-user: adduser --system --group"),
        ("root", "user root is root, or of its group"),
    ],
)
def test_user_that_does_not_do_is_refused(name: str, message: str) -> None:
    with pytest.raises(NoSuchUser, match=message):
        find_user(name)


@needs_root
def test_default_user_that_is_not_there_is_nobody_and_another_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privileges, "DEFAULT_USER", "no-such-user")
    found = plan("no-such-user")
    assert found.user == find_user("nobody")
    assert found.gaps[0].startswith("there is no user no-such-user: adduser")
    with pytest.raises(NoSuchUser):
        plan("no-other-user")


@needs_root
@pytest.mark.parametrize(
    ("kept", "uid", "gaps"),
    [
        (
            [Capability.CAP_NET_ADMIN, Capability.CAP_SETGID],
            0,
            ["workers stay root's: needs CAP_SETUID, CAP_KILL"],
        ),
        ([Capability.CAP_NET_ADMIN], 65534, []),
    ],
    ids=["root in a container", "another user"],
)
def test_who_may_not_take_another_users_place_keeps_his_own(
    kept: list[Capability], uid: int, gaps: list[str]
) -> None:
    def planned() -> object:
        capabilities.keep_when_user_changes()
        os.setresuid(uid, uid, uid)
        sets = capabilities.mask(kept)
        capabilities.hold(Sets(sets, sets, 0))
        found = replace(plan("nobody"), landlock=0, seccomp=False)
        found.confine_server()
        texts = [each for each in found.gaps if "Landlock" not in each]
        return found.user, texts[: len(gaps)], status("CapEff"), os.getuid()

    assert inside(planned) == [str((None, gaps, f"{NET_ADMIN:016x}", uid))]


@pytest.mark.parametrize(
    ("owner", "mode", "closed"),
    [
        (0, 0o755, False),
        (0, 0o751, False),
        (0, 0o750, True),
        (0, 0o700, True),
        (65534, 0o711, False),
        (65534, 0o077, True),
    ],
)
@needs_root
def test_code_in_a_folder_that_is_closed_to_servers_is_said(
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: int,
    mode: int,
    closed: bool,
) -> None:
    home = open_folder / "home"
    code = home / "cthelper" / "core" / "daemon"
    code.mkdir(parents=True)
    os.chown(home, owner, owner)
    home.chmod(mode)
    monkeypatch.setattr(privileges, "__file__", str(code / "privileges.py"))
    found = [each for each in plan("nobody").gaps if "cannot be imported" in each]
    assert [f"servers cannot read {home}: " in each for each in found] == [
        True
    ] * closed


def test_what_is_read_is_where_the_code_is() -> None:
    paths = {str(each) for each in plan("nobody", Path("/etc/plugins")).readable}
    assert {"/proc", "/etc", "/usr/lib", "/etc/plugins"} <= paths
    for module in (privileges, sys.modules["cthelper.core"]):
        assert str(Path(module.__file__ or "").resolve().parent) in paths

# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon under load, for faults to be injected into: where its processes are, whether
it works, and what its log and the kernel say of it.
"""

import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.live.daemon import CTHELPER, Daemon, equal_limits, only
from tests.live.gateway import ctnetlink, tables
from tests.live.load import SOURCES, Load
from tests.live.traffic import PORT
from tests.live.world import SERVER, World, until

QUEUE: Final = 2077
OTHERS: Final = only("sunrpc", "tns")
# With it the load's calls are read, though so many are more than one source may make,
# and though an emulated machine takes long over each. Limits are equal, so that every
# kernel can change them.
SUNRPC: Final = f"""[guard]
in_all = 0
live_source = 0
live_server = 0
live_all = 0
[budget]
deadline = 1000
source_cpu = 100
[helpers.sunrpc]
ports = [111, {PORT}]
[helpers.sunrpc.guard]
per_source = 0
per_helper = 0
"""

# What a probe has expected lives for so long.
_SECONDS: Final = 60
_STEP_SECONDS: Final = 90.0
# A server that dies again and again is started again after longer and longer pauses.
# So many deaths in a row take a second or two.
_DEATHS: Final = 2
_FIRST_PROBE: Final = 20001
_NETLINK_NETFILTER: Final = 12


def configuration(workers: int = 1, daemon: str = "", more: str = "") -> str:
    """The daemon's configuration, with lines for [daemon] and more tables."""
    return (
        f"[daemon]\nworkers = {workers}\n{daemon}{OTHERS}{SUNRPC}"
        f"{equal_limits(_SECONDS)}{more}"
    )


def otherwise(config: str) -> str:
    """It with other timeouts."""
    return config.replace(equal_limits(_SECONDS), equal_limits(_SECONDS + 1))


class Scene:
    """The daemon of a module's tests, which is started anew where that is needed.

    Moments are chosen with a `seed`.
    """

    def __init__(self, world: World, load: Load, folder: Path, seed: int) -> None:
        self.world = world
        self.load = load
        self.folder = folder
        self.random = random.Random(seed)
        self.config = ""
        self.daemon = Daemon(world.gateway, folder)
        self._whole = False
        self._deaths = self._lines = 0
        self._probe = _FIRST_PROBE

    def close(self) -> None:
        """End the daemon, well where nothing has gone wrong."""
        if self._whole:
            self.stop()
        else:
            self.clear()

    # The daemon

    def prepare(self, config: str) -> None:
        """Have a daemon run with this configuration that nothing has happened to."""
        if not (self._whole and config == self.config and self._deaths <= _DEATHS):
            if self._whole:
                self.stop()
            else:
                self.clear()
            self.config = config
            self.start()
        # Until the fault is overcome.
        self._whole = False
        self._lines = len(self.daemon.text.splitlines())

    def overcome(self) -> None:
        """All is as it was before the fault."""
        self._whole = True
        self._deaths += len(self.told("worker-died"))

    def start(self) -> None:
        """Start the daemon with the configuration, as after a fault; a new log."""
        self.daemon.start(self.config)
        self._deaths = self._lines = 0

    def stop(self) -> None:
        """End it as a user does."""
        assert self.daemon.stop() == 0

    def clear(self) -> None:
        """End whatever is left of it, and what it left to the kernel."""
        for pid in self.processes():
            for number in (signal.SIGCONT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        assert until(lambda: not self.processes(), _STEP_SECONDS)
        self.world.reset()

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of cthelper's with the daemon's configuration, to its end."""
        return self.daemon.cthelper(*arguments)

    def reload(self, text: str, event: str) -> dict[str, Any]:
        """Have it read another configuration; what it says then."""
        before = len(self.daemon.events(event))
        self.daemon.configure(text)
        self.daemon.send_signal(signal.SIGHUP)
        return self.daemon.await_event(event, before + 1)

    def told(self, event: str) -> list[dict[str, Any]]:
        """The lines of an event that its log has since `prepare`, or a start."""
        return self.daemon.events(event, self._lines)

    def told_of(self) -> frozenset[str]:
        """The events that its log has since then."""
        lines = self.daemon.text.rpartition("\n")[0].splitlines()[self._lines :]
        return frozenset(
            json.loads(line)["event"] for line in lines if line.startswith("{")
        )

    def await_empty(self) -> None:
        """Wait until no packet waits in a queue."""
        queues = self.world.queues
        assert until(
            lambda: not any(each.waiting for each in queues().values()), _STEP_SECONDS
        )

    def await_loaded(self) -> None:
        """Wait until the ruleset is there."""
        assert until(lambda: "cthelper" in tables(self.world), _STEP_SECONDS)

    def await_unbound(self) -> None:
        """Wait until nobody reads the queues."""
        assert until(lambda: not self.world.queues(), _STEP_SECONDS)

    # Its processes

    def processes(self) -> list[int]:
        """All those of daemons with this configuration file."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (entry / "cmdline").read_text().split("\0")
                    if "run" in words and str(self.daemon.config) in words:
                        found.append(int(entry.name))
        return found

    def server(self) -> int:
        """The process of one of the servers that have packets.

        By chance all sources may be another one's: who has no packet may stand still.
        """
        started = self.daemon.events("worker-started")
        latest = {each["worker"]: each["pid"] for each in started}
        queues = self.world.queues()
        pid: int = self.random.choice(
            sorted(pid for worker, pid in latest.items() if queues[QUEUE + worker].last)
        )
        return pid

    def moment(self, seconds: float = 0.5) -> None:
        """Wait for a random time, which calls are made in, of so long at most."""
        time.sleep(self.random.uniform(0.05, seconds))

    # Whether it works

    def expects(self, source: str) -> bool:
        """Whether a call of this source has its answer's port expected in the kernel.

        The port is another one each time.
        """
        self._probe += 1
        if not self.load.calls.probe(source, self._probe):
            return False
        with ctnetlink(self.world) as kernel:
            return any(
                str(each.destination.address) == SERVER
                and each.destination.port == self._probe
                for each in kernel.expectations()
            )

    def recover(self, seconds: float) -> float:
        """Wait until announcements are read again, of all sources; how long that took.

        Raises AssertionError where it takes longer.
        """
        began = time.monotonic()
        for source in SOURCES:
            while not self.expects(source):
                passed = time.monotonic() - began
                assert passed < seconds, f"{source}: nothing is expected again"
                time.sleep(0.1)
        return time.monotonic() - began


# Netlink sockets that fail


def _sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            name = os.readlink(entry)
            if name.startswith("socket:["):
                found.add(name[len("socket:[") : -1])
    return found


def _netfilter(pid: int) -> dict[str, bool]:
    """Inodes of a process's netfilter sockets, and whether each is in a group."""
    own = _sockets(pid)
    rows = Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]
    return {
        inode: int(groups, 16) != 0
        for _, protocol, _, groups, *_, inode in map(str.split, rows)
        if int(protocol) == _NETLINK_NETFILTER and inode in own
    }


def request_sockets(scene: Scene, server: int) -> list[str]:
    """Those that a server sends requests about entries and expectations with."""
    shared = _sockets(scene.daemon.pid)
    found = _netfilter(server).items()
    return [each for each, member in found if not member and each not in shared]


def queue_sockets(scene: Scene, server: int) -> list[str]:
    """Those of the queues that a server reads."""
    shared = _sockets(scene.daemon.pid)
    found = _netfilter(server).items()
    return [each for each, member in found if not member and each in shared]


def event_sockets(scene: Scene, server: int) -> list[str]:
    """Those that bring a server events."""
    return [each for each, member in _netfilter(server).items() if member]


@contextmanager
def injected(pid: int, sockets: Iterable[str], what: str) -> Iterator[None]:
    """Have system calls on a process's sockets fail, as strace's `inject` says it."""
    names = [word for each in sockets for word in ("-P", f"socket:[{each}]")]
    assert names, "the process has no such socket"
    tracer = subprocess.Popen(
        [
            "strace",
            "-qq",
            "-o",
            os.devnull,
            *names,
            "-e",
            f"inject={what}",
            "-p",
            str(pid),
        ]
    )
    try:
        status = Path(f"/proc/{pid}/status")
        assert until(lambda: "TracerPid:\t0\n" not in status.read_text(), 30.0)
        yield
    finally:
        tracer.terminate()
        tracer.wait()


# What a process may use


@contextmanager
def _group(controller: str, pid: int) -> Iterator[Path]:
    """A cgroup with a controller, which a process is moved into.

    Before it goes the process must end, or is moved back.
    """
    with TemporaryDirectory(prefix="cgroup-") as folder:
        root, group = Path(folder), Path(folder, "faults")
        subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True)
        try:
            (root / "cgroup.subtree_control").write_text(f"+{controller}")
            group.mkdir()
            (group / "cgroup.procs").write_text(str(pid))
            yield group
        finally:
            if group.exists():
                for left in (group / "cgroup.procs").read_text().split():
                    (root / "cgroup.procs").write_text(left)
                group.rmdir()
            subprocess.run(["umount", folder], check=True)


@contextmanager
def no_more_memory(pid: int) -> Iterator[None]:
    """The kernel ends a process that asks for more memory, as in a full cgroup."""
    with _group("memory", pid) as group:
        (group / "memory.max").write_text("0")
        yield
        assert until(lambda: not (group / "cgroup.procs").read_text(), 10.0)


@contextmanager
def no_more_processes(pid: int) -> Iterator[None]:
    """The kernel lets a process start no other one."""
    with _group("pids", pid) as group:
        (group / "pids.max").write_text("1")
        yield


def limit_address_space(pid: int) -> None:
    """Give a process no more memory than it has; it is told so when it asks."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    size = pages * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size, size))


@contextmanager
def sysctl(name: str, value: int) -> Iterator[None]:
    """Have a setting of netfilter's for all namespaces be this."""
    file = Path("/proc/sys/net/netfilter", name)
    before = file.read_text()
    file.write_text(str(value))
    try:
        yield
    finally:
        file.write_text(before)


def entry_count(world: World) -> int:
    """How many conntrack entries the gateway has."""
    path = "/proc/sys/net/netfilter/nf_conntrack_count"
    return int(world.gateway.run("cat", path, check=True).stdout)


@contextmanager
def module(name: str) -> Iterator[None]:
    """A module of the kernel's is loaded meanwhile."""
    subprocess.run(["modprobe", name], check=True)
    try:
        yield
    finally:
        subprocess.run(["modprobe", "-r", name], check=True)


@contextmanager
def daemon_writing_to(
    scene: Scene, redirection: str
) -> Iterator["subprocess.Popen[str]"]:
    """The daemon, in place of the one before, with another standard error.

    `redirection` is as a shell has it.
    """
    scene.stop()
    scene.daemon.configure(scene.config)
    process = scene.world.gateway.start(
        *("sh", "-c", f'exec "$@" {redirection}', "sh"),
        *(*CTHELPER, "run", "--config", str(scene.daemon.config)),
    )
    try:
        scene.await_loaded()
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(_STEP_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    scene.start()

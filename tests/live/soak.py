# SPDX-License-Identifier: GPL-2.0-or-later
"""Real clients for an hour, while daemons are restarted and killed (script/soak).

usage: python -m tests.live.soak SECONDS [SEED]

The gateway's firewall lets through what is expected, so that a client succeeds only
where its announcement was read. In the first half the configuration is reloaded and the
ruleset flushed, so that processes live long; in the second half servers and supervisors
are killed, too. Prints a table, then JSON in one line. Exits with 1 where a client that
could succeed has failed, where a packet was lost or came twice, or where memory,
descriptors or the kernel's tables grow.
"""

import json
import os
import platform
import random
import resource
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Final

from tests.live.gateway import ctnetlink
from tests.live.load import Load, Tally
from tests.live.peers_dhcpv6 import CLIENT_PORT, Server, ask, asker, message
from tests.live.scene import SUNRPC, Scene, entry_count
from tests.live.slp_agent import GROUP, Agent, Function, answers, request
from tests.live.slp_agent import PORT as SLP_PORT
from tests.live.tns_client import PYTHON, RealClient
from tests.live.tns_listener import CONTROL_PORT
from tests.live.traffic import PORT
from tests.live.world import (
    LAN,
    NFS_TEXT,
    SERVER,
    WAN,
    World,
    nfs_url,
)

WORKERS: Final = 2
# Short timeouts, so that the kernel's tables are full of what is alive alone.
_TIMEOUTS: Final = (20, 21)

# What the numbered calls go to.
_ALLOWED: Final = f"""
table inet firewall {{
    chain forward {{
        iifname {LAN} oifname {WAN} udp dport {PORT} accept
    }}
}}
"""

_SAMPLE_SECONDS: Final = 10.0
_DISTURBANCE_SECONDS: Final = (8.0, 25.0)
_CLIENT_SECONDS: Final = (1.0, 4.0)
_RECOVERY_SECONDS: Final = 120.0
# A flow that began while nobody tagged it has no helper for as long as its entry lives;
# clients that always come from the same port have such a flow again.
_OLD_FLOW_SECONDS: Final = 40.0
# What memory may grow from the second third of a time to the last one: what Python's
# allocator takes and keeps.
_GROWTH: Final = 0.05
_GROWTH_BYTES: Final = 2 << 20
_TABLE_GROWTH: Final = 1.25
_TABLE_ENTRIES: Final = 50
# The kernel drops what waits in the queues when a ruleset is flushed, and nothing else
# may be lost. A packet waits so long, emulated on a busy machine, or as long as the
# slowest answer took.
_WAITING_SECONDS: Final = 5.0
# What the log may tell of that has costs.
_FAILURES: Final = (
    *("worker-stuck", "worker-died", "step-failed", "helper-fault", "malformed"),
    *("overload", "events-lost", "evicted", "overspent", "uninspected", "refused"),
    *("ruleset-lost", "reload-refused", "withdrawn"),
)


@dataclass(frozen=True, slots=True)
class Client:
    """What a client does, and whether it succeeded."""

    act: Callable[[], bool]
    after: float = 0.0
    """Seconds after a disturbance in which it may fail still."""


@dataclass(slots=True)
class Result:
    """How often a client succeeded, failed, and failed where it could not succeed."""

    done: int = 0
    failed: int = 0
    impossible: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What there is at a time: of each process bytes and descriptors, and tables."""

    time: float
    supervisor: int
    memory: Mapping[int, int]
    descriptors: Mapping[int, int]
    expectations: int
    entries: int
    waiting: int
    dropped: int


@dataclass
class Soak:
    """All that has happened."""

    scene: Scene
    seed: int
    results: dict[str, Result] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    disturbed: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    attempts: list[tuple[str, float, float, float]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)

    def tell(self, text: str, at: float | None = None) -> None:
        """Print what has happened, with the seconds since the beginning."""
        seconds = (at or time.monotonic()) - self.began
        print(f"{seconds:6.1f} {text}", flush=True)

    def serve(self, name: str, client: Client) -> None:
        """Run a client again and again, with pauses."""
        chance = random.Random(f"{self.seed} {name}")
        result = self.results[name] = Result()
        while not self.ended.wait(chance.uniform(*_CLIENT_SECONDS)):
            began = time.monotonic()
            try:
                done = client.act()
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                self.tell(f"{name}: {error!r}")
                done = False
            if done:
                result.done += 1
            else:
                end = time.monotonic()
                self.attempts.append((name, began, end, client.after))

    def watch(self) -> None:
        """Take samples until the end, and tell what the log says of failures."""
        told = Counter[str]()
        while not self.ended.wait(_SAMPLE_SECONDS):
            self.samples.append(sample(self.scene))
            now = Counter(
                {each: len(self.scene.daemon.events(each)) for each in _FAILURES}
            )
            # A daemon that is started anew has a new log.
            if news := now - told if told <= now else +now:
                self.tell(f"the log tells of {dict(news)}")
            told = now

    def disturb(self, seconds: float, kinds: Mapping[str, "Disturbance"]) -> None:
        """Have things happen for so long."""
        chance = self.scene.random
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(chance.uniform(*_DISTURBANCE_SECONDS), seconds))
            name = chance.choice(sorted(kinds))
            began = time.monotonic()
            kinds[name](self.scene)
            self.scene.recover(_RECOVERY_SECONDS)
            now = time.monotonic()
            if name != "reload":  # which costs nothing
                self.spans.append((name, began, now))
            self.disturbed[name] += 1
            self.tell(f"{name}: over after {now - began:.1f} s")
            self.slowest[name] = max(self.slowest.get(name, 0.0), now - began)

    def take(self, load: Load, tally: Tally) -> None:
        """Count the sessions of the load as those of a client."""
        name = "TNS session"
        self.results[name] = Result(done=tally.sessions)
        for each in load.sessions.failed + load.bulk.failed:
            self.attempts.append((name, each.began, each.ended, 0.0))

    def unexplained(self, lost: Sequence[float], slowest: float) -> int:
        """How many packets that were sent at these times the kernel has not dropped.

        Tells when that was. `slowest` is the seconds that the slowest answer took.
        """
        flushes = [(a, b) for name, a, b in self.spans if name == "ruleset flushed"]
        waited = max(_WAITING_SECONDS, slowest)
        found = [
            each for each in lost if not any(a - waited < each < b for a, b in flushes)
        ]
        for each in found:
            self.tell("a packet was lost", each)
        return len(found)

    def judge(self) -> None:
        """Tell clients that failed from those that could not succeed."""
        for name, began, end, after in self.attempts:
            possible = all(
                end < first or began > last + after for _, first, last in self.spans
            )
            if possible:
                self.results[name].failed += 1
                self.tell(f"{name} failed after {end - began:.1f} s", end)
            else:
                self.results[name].impossible += 1


# What happens

Disturbance = Callable[[Scene], None]


def reload(scene: Scene) -> None:
    """The other one of two configurations."""
    first, second = (configuration(each) for each in _TIMEOUTS)
    scene.config = second if scene.config == first else first
    scene.reload(scene.config, "reloaded")


def flush(scene: Scene) -> None:
    """What Debian's nftables.service does at a reload."""
    count = len(scene.daemon.events("ruleset-restored"))
    scene.world.firewall(_ALLOWED, flush=True)
    scene.daemon.await_event("ruleset-restored", count + 1)


def kill_server(scene: Scene) -> None:
    os.kill(scene.server(), signal.SIGKILL)


def kill_supervisor(scene: Scene) -> None:
    scene.daemon.stop(signal.SIGKILL)
    scene.await_unbound()
    scene.start()


def restart(scene: Scene) -> None:
    scene.stop()
    scene.start()


CALM: Final[dict[str, Disturbance]] = {"reload": reload, "ruleset flushed": flush}
ALL: Final[dict[str, Disturbance]] = {
    **CALM,
    "worker killed": kill_server,
    "supervisor killed": kill_supervisor,
    "restart": restart,
}


def configuration(seconds: int) -> str:
    """All helpers, with this timeout for each policy of sunrpc."""
    policies = "".join(
        f"[helpers.sunrpc.policies.{name}]\nmax_expected = 8\ntimeout = {seconds}\n"
        for name in ("service", "broadcast", "dump")
    )
    # Nothing hangs here, but an emulated machine on a busy one may seem to.
    patient = SUNRPC.replace("deadline = 1000", "deadline = 10000")
    return f"[daemon]\nworkers = {WORKERS}\n{patient}{policies}"


# Clients


@contextmanager
def clients(world: World) -> Iterator[dict[str, Client]]:
    """The clients, with the servers that they need."""
    world.start_rpc()
    world.start_mdns()
    with ExitStack() as stack:
        stack.enter_context(Agent(world.server))
        stack.enter_context(dhcpv6_server(world))
        real = Oracle(world)
        stack.callback(real.close)
        yield {
            "rpcinfo -T udp": Client(lambda: world.rpcinfo("udp").returncode == 0),
            "rpcinfo -T tcp6": Client(lambda: world.rpcinfo("tcp6").returncode == 0),
            "showmount -e": Client(lambda: world.showmount(4).returncode == 0),
            "nfs-cat": Client(lambda: nfs(world)),
            "python-oracledb": Client(real.connects),
            "mDNS, IPv4": Client(lambda: world.mdns_query(4).source is not None),
            "mDNS, IPv6": Client(lambda: world.mdns_query(6).source is not None),
            "SLP": Client(lambda: slp(world)),
            "DHCPv6": Client(lambda: dhcpv6(world), _OLD_FLOW_SECONDS),
        }


def nfs(world: World) -> bool:
    url = nfs_url(SERVER, "/file")
    done = world.client.run("nfs-cat", url, timeout=20.0)
    if NFS_TEXT not in done.stdout:
        raise RuntimeError(done.stderr.strip())
    return True


class Oracle:
    """python-oracledb, which follows a redirect to a database that refuses it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._client = RealClient(world.client, PYTHON)

    def connects(self) -> bool:
        try:
            said = self._client.connect({"load": f"{SERVER}:{CONTROL_PORT}/refused"})
        except (AssertionError, OSError):
            # It was ended since it took too long.
            self._client.close()
            self._client = RealClient(self._world.client, PYTHON)
            return False
        return "is not registered" in said["load"]

    def close(self) -> None:
        self._client.close()


def slp(world: World) -> bool:
    asked = request(Function.SRV_RQST, secrets.randbelow(1 << 16))
    with world.gateway.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with flow:
        flow.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, WAN.encode())
        flow.sendto(asked, (GROUP, SLP_PORT))
        ready, _, _ = select.select([flow], [], [], 5.0)
        return bool(ready) and answers(flow.recv(2048), asked)


def dhcpv6(world: World) -> bool:
    with asker(world, CLIENT_PORT) as flow:
        ask(flow, message(1))
        return bool(select.select([flow], [], [], 5.0)[0])


@contextmanager
def dhcpv6_server(world: World) -> Iterator[None]:
    """Answers each message to the group."""
    ended = threading.Event()

    def serve() -> None:
        with Server(world) as server:
            while not ended.is_set():
                with suppress(TimeoutError):
                    server.receive()
                    server.answer(b"an answer")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# Looking


def sample(scene: Scene) -> Sample:
    """What there is now."""
    memory, descriptors = {}, {}
    for pid in scene.processes():
        with suppress(OSError):  # It has ended.
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            memory[pid] = pages * resource.getpagesize()
            descriptors[pid] = len(os.listdir(f"/proc/{pid}/fd"))
    queues = scene.world.queues().values()
    with ctnetlink(scene.world) as kernel:
        expectations = len(kernel.expectations())
    return Sample(
        time.monotonic(),
        scene.daemon.pid,
        memory,
        descriptors,
        expectations,
        entry_count(scene.world),
        sum(each.waiting for each in queues),
        sum(each.dropped for each in queues),
    )


@dataclass(frozen=True, slots=True)
class Series:
    """Values over a time: the means of the second third of it and of the last one."""

    name: str
    middle: float
    last: float
    allowed: float | None
    """What the last one may be at most; None: it is only told."""

    @classmethod
    def of(
        cls,
        name: str,
        values: Sequence[float],
        *,
        factor: float,
        more: float,
        held: bool = True,
    ) -> "Series":
        """In the first third all is filled that stays filled."""
        third = max(1, len(values) // 3)
        middle = mean(values[third : 2 * third] or values)
        allowed = middle * factor + more if held else None
        return cls(name, middle, mean(values[-third:]), allowed)


def series(samples: Sequence[Sample], half: float) -> Iterator[Series]:
    """Memory and descriptors of both halves, and the kernel's tables.

    Processes of the restless half are young, and what memory they have depends on how
    young: only that of the calm half must not grow.
    """
    for title, part in (
        ("calm", [each for each in samples if each.time < half]),
        ("restless", [each for each in samples if each.time >= half]),
    ):
        for role in ("supervisor", "workers"):
            for what, factor, more in (
                ("memory", _GROWTH, _GROWTH_BYTES),
                ("descriptors", 0.0, 2.0 * WORKERS),
            ):
                values = [
                    mean(found) for each in part if (found := _of(each, role, what))
                ]
                if values:
                    name = f"{what} of {role}, {title} half"
                    held = (title, what) != ("restless", "memory")
                    yield Series.of(
                        name, values, factor=1.0 + factor, more=more, held=held
                    )
    for what in ("expectations", "entries"):
        counts = [float(getattr(each, what)) for each in samples]
        yield Series.of(what, counts, factor=_TABLE_GROWTH, more=_TABLE_ENTRIES)


def _of(sample: Sample, role: str, what: str) -> list[float]:
    values: Mapping[int, int] = getattr(sample, what)
    return [
        float(value)
        for pid, value in values.items()
        if (pid == sample.supervisor) is (role == "supervisor")
    ]


# The run


def run(seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    """All of it: figures, and what is wrong."""
    set_up = time.monotonic()
    with ExitStack() as stack:
        world = stack.enter_context(World())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        world.firewall(_ALLOWED)
        served = stack.enter_context(clients(world))
        load = Load(world)
        scene = Scene(world, load, folder, seed)
        scene.config = configuration(_TIMEOUTS[0])
        scene.start()
        stack.callback(scene.clear)
        stack.enter_context(load)
        scene.recover(_RECOVERY_SECONDS)
        load.mark()
        soak = Soak(scene, seed)
        print(f"ready after {time.monotonic() - set_up:.0f} s", flush=True)
        threads = [
            threading.Thread(target=soak.watch),
            *(
                threading.Thread(target=soak.serve, args=each)
                for each in served.items()
            ),
        ]
        for thread in threads:
            thread.start()
        try:
            soak.disturb(seconds / 2, CALM)
            half = time.monotonic()
            soak.disturb(seconds / 2, ALL)
        finally:
            soak.ended.set()
            for thread in threads:
                thread.join()
        tally = load.tally()
        unexplained = soak.unexplained(load.calls.lost_at(), tally.slowest)
        soak.take(load, tally)
        scene.await_empty()
        scene.stop()
        soak.judge()
        return report(soak, tally, unexplained, time.monotonic() - soak.began, half)


def report(
    soak: Soak, tally: Tally, unexplained: int, seconds: float, half: float
) -> tuple[dict[str, Any], list[str]]:
    """Print what was seen; it as JSON has it, and what is wrong."""
    found = list(series(soak.samples, half))
    problems = [
        f"{each.name}: {each.middle:.0f} before, {each.last:.0f} at the end"
        for each in found
        if each.allowed is not None and each.last > each.allowed
    ]
    problems += [
        f"{name}: {each.failed} failed"
        for name, each in soak.results.items()
        if each.failed or not each.done
    ]
    if tally.doubled or unexplained:
        problems.append(
            f"{unexplained} packets lost but by a flush, {tally.doubled} came twice"
        )
    if any(each.dropped for each in soak.samples):
        problems.append("the kernel has counted dropped packets at a queue")
    print(f"\n{seconds:.0f} s, {WORKERS} workers, Linux {platform.release()}\n")
    print("| client | succeeded | failed | failed while disturbed |\n|---|--:|--:|--:|")
    for name, each in soak.results.items():
        print(f"| {name} | {each.done} | {each.failed} | {each.impossible} |")
    print("\n| disturbance | times | longest |\n|---|--:|--:|")
    for name, times in soak.disturbed.items():
        print(f"| {name} | {times} | {soak.slowest[name]:.1f} s |")
    print("\n| what | second third | last third |\n|---|--:|--:|")
    for one in found:
        print(f"| {one.name} | {one.middle:,.0f} | {one.last:,.0f} |")
    print(
        f"\n{tally.calls} numbered calls: {tally.lost} packets lost, {unexplained} of "
        f"them not by a flush of the ruleset, "
        f"{tally.doubled} twice; {tally.bulk / 1e6:.0f} MB of a session that is no "
        "longer inspected"
    )
    return {
        "seconds": round(seconds),
        "seed": soak.seed,
        "workers": WORKERS,
        "kernel": platform.release(),
        "clients": {name: asdict(each) for name, each in soak.results.items()},
        "disturbances": dict(soak.disturbed),
        "longest": soak.slowest,
        "calls": asdict(tally),
        "series": [asdict(each) for each in found],
        "problems": problems,
    }, problems


def main() -> int:
    """Run for so many seconds; 1 where something is wrong."""
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else secrets.randbits(32)
    print(f"seed {seed}", flush=True)
    figures, problems = run(seconds, seed)
    print("\n" + ("\n".join(problems) or "nothing is wrong"))
    print(json.dumps(figures))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

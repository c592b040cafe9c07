# SPDX-License-Identifier: GPL-2.0-or-later
"""Several workers on a real kernel: who gets which flow, and what a death does.

The client and the server have several addresses each, so that there are pairs of
addresses for both workers. Which one a pair has does not change: the hash has a seed.
"""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from cthelper.core.api import Policy
from cthelper.core.queue.library import bind_queue
from tests.live.daemon import Daemon, equal_limits, only
from tests.live.gateway import entries, registered, tables
from tests.live.traffic import (
    PORT,
    Echo,
    Pinger,
    asker,
    call,
    expected,
    getport,
    getport_call,
    wait_for,
)
from tests.live.world import ETH, GATEWAY_LAN, LAN, SERVER, WAN, Namespace, World

pytestmark = pytest.mark.live

QUEUE = 2077
OTHERS = only("sunrpc")
CONFIG = f"[daemon]\nworkers = 2\n{OTHERS}[helpers.sunrpc]\nports = [111, {PORT}]\n"

# Client's addresses and server's, of both families. So many that each worker has some:
# the seed of the hashes is another each time.
CLIENTS = {
    4: [f"10.77.1.{host}" for host in range(11, 31)],
    6: [f"fd77:1::{host}" for host in range(11, 16)],
}
SERVERS = {
    4: [f"10.77.2.{host}" for host in range(11, 16)],
    6: [f"fd77:2::{host}" for host in range(11, 16)],
}


@pytest.fixture(scope="module", autouse=True)
def addresses(world: World) -> Iterator[None]:
    """The addresses; the kernel would choose one of them for clients of other tests."""
    ends = ((world.client, CLIENTS), (world.server, SERVERS))
    each = [
        (namespace, f"{host}/{width}", rest)
        for namespace, found in ends
        for family, width, rest in ((4, 24, ""), (6, 64, "nodad"))
        for host in found[family]
    ]
    for namespace, address, rest in each:
        namespace.tell(f"ip address replace {address} dev {ETH} {rest}")
    yield
    for namespace, address, _ in each:
        namespace.tell(f"ip address del {address} dev {ETH}")


def last(world: World) -> tuple[int, int]:
    """How many packets have come to each worker's queue."""
    queues = world.queues()
    return queues[QUEUE].last, queues[QUEUE + 1].last


def growth(world: World, before: tuple[int, int]) -> list[int]:
    """How many have come to each since."""
    return [new - old for new, old in zip(last(world), before, strict=True)]


def has_grown(world: World, before: tuple[int, int], packets: int) -> bool:
    """Whether so many have come to both since."""
    return sum(growth(world, before)) == packets


def sources(world: World) -> tuple[str, str]:
    """A client's address for each worker, for calls to the echo server."""
    found: dict[int, str] = {}
    for source in CLIENTS[4]:
        before = last(world)
        getport(world, source)[0].close()
        grown = growth(world, before)
        assert sorted(grown) == [0, 2]
        found[grown.index(2)] = source
        if len(found) == 2:
            break
    return found[0], found[1]


@contextmanager
def pingers(world: World) -> Iterator[tuple[Pinger, Pinger]]:
    """One of the first worker's flows and one of the second's, which are busy."""
    with Echo(world.server):
        first, second = sources(world)
        with (
            Pinger(world.client, source=first) as one,
            Pinger(world.client, source=second) as other,
        ):
            yield one, other


def pid_of(daemon: Daemon, worker: int) -> int:
    """The process of a worker, as it was started last."""
    started = daemon.events("worker-started")
    pid: int = [each["pid"] for each in started if each["worker"] == worker][-1]
    return pid


def until(condition: str, holds: object, seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


# Spreading


def send(namespace: Namespace, source: str, destination: str, port: int = PORT) -> None:
    """One datagram to a helper's port."""
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    with namespace.entered():
        sender = socket.socket(kind, socket.SOCK_DGRAM)
    with sender:
        sender.bind((source, 0))
        sender.sendto(getport_call(1), (destination, port))


def test_all_flows_between_two_addresses_have_one_worker(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    chosen: list[int] = []
    for family in (4, 6):
        for client in CLIENTS[family][:5]:
            for server in SERVERS[family]:
                before = last(world)
                # From either end, and once again from another port.
                send(world.client, client, server)
                send(world.server, server, client)
                send(world.client, client, server)
                until("all are queued", partial(has_grown, world, before, 3))
                grown = growth(world, before)
                assert sorted(grown) == [0, 3], (client, server)
                chosen.append(grown.index(3))
    assert set(chosen) == {0, 1}
    assert daemon.stop() == 0
    assert daemon.events("stopped")[0]["packets"] == 3 * 50


def seeds(world: World) -> set[str]:
    """Those of the hashes that choose a worker."""
    listed = world.gateway.run("nft", "list", "table", "inet", "cthelper", check=True)
    return set(re.findall(r" seed (\w+)", listed.stdout))


def test_who_gets_a_flow_changes_with_each_start_and_with_nothing_else(
    world: World, daemon: Daemon
) -> None:
    known = set()
    for _ in range(2):
        daemon.start(CONFIG)
        (seed,) = seeds(world)
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
        assert daemon.cthelper("ruleset", "install").returncode == 0
        assert seeds(world) == {seed}
        assert daemon.stop() == 0
        known.add(seed)
    assert len(known) == 2


PLUGIN = f"""
from cthelper.core.api import *

class Chain(Helper):
    name = "chain"
    transports = frozenset({{UDP}})
    ports = ({PORT},)
    policies = (Policy("data", 8, 60),)

    @classmethod
    def tags_expected(cls, options):
        return True

    def on_message(self, message):
        if message.direction is REPLY:
            port = int(message.payload)
            endpoint = Endpoint(message.source.address, port)
            grant = yield from expect(endpoint, policy="data", helper="chain")
            yield Rewrite((0, len(message.payload)), str(grant.endpoint.port).encode())
"""
NEXT = {PORT: 7211, 7211: 7212, 7212: 7213}
NAT = {
    "none": "",
    "masquerade": f"""table inet nat {{
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname "{WAN}" masquerade
	}}
}}
""",
    "dnat": f"""table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname "{LAN}" ip daddr {GATEWAY_LAN} udp dport {PORT} dnat ip to {SERVER}
	}}
}}
""",
}


@pytest.fixture
def announcers(world: World) -> Iterator[None]:
    """Servers that answer each datagram with the port to go on with."""
    with ExitStack() as stack:
        for port, following in NEXT.items():
            stack.enter_context(Announcer(world.server, port, following))
        yield


class Announcer(Echo):
    """A UDP server that announces a port of its own host."""

    def __init__(self, namespace: Namespace, port: int, following: int) -> None:
        super().__init__(namespace, port=port)
        self._following = str(following).encode()

    def answer(self, data: bytes) -> bytes:
        """The port, whatever is asked."""
        return self._following


@pytest.mark.usefixtures("announcers")
def test_flows_that_a_worker_expects_stay_with_it_behind_nat_too(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    """And a user's firewall accepts them by the helper's name, whoever serves it."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "chain.py").write_text(PLUGIN)
    sunrpc = "[helpers.sunrpc]\nenabled = false\n"
    daemon.start(
        f'[daemon]\nworkers = 2\n{OTHERS}{sunrpc}[plugins]\nfolder = "{folder}"\n'
    )
    firewall = f"""table inet firewall {{
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established accept
		udp dport {PORT} accept
		ct state related ct helper "chain" accept
	}}
}}
"""
    world.gateway.run("nft", "-f", "-", input=firewall, check=True)
    count = 0
    for name, rules in NAT.items():
        if rules:
            world.gateway.run("nft", "-f", "-", input=rules, check=True)
        target = GATEWAY_LAN if name == "dnat" else SERVER
        workers: set[int] = set()
        for source in CLIENTS[4]:
            if workers == {0, 1}:
                break
            before = last(world)
            for port in NEXT:
                with world.client.entered():
                    flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                with flow:
                    flow.bind((source, 0))
                    flow.settimeout(10.0)
                    flow.connect((target, port))
                    flow.send(b"next")
                    assert int(flow.recv(100)) == NEXT[port], (name, source)
            count += len(NEXT)
            daemon.await_event("expectation", count)
            made = daemon.events("expectation")[-len(NEXT) :]
            assert {each["helper"] for each in made} == {"chain"}
            (worker,) = {each["worker"] for each in made}
            assert growth(world, before)[1 - worker] == 0, (name, source)
            workers.add(worker)
        assert workers == {0, 1}, name
        world.conntrack("-F")
        if rules:
            world.gateway.run("nft", "delete", "table", "inet", "nat", check=True)
    assert daemon.events("refused") == []


# Death


CRASH_PORT = 7112
CRASHING = f"""
import os
from cthelper.core.api import *

class Crash(Helper):
    name = "crash"
    transports = frozenset({{UDP}})
    ports = ({CRASH_PORT},)
    policies = (Policy("data"),)

    def on_message(self, message):
        os._exit(1)  # an exception would end the flow's inspection alone
"""


def test_death_of_a_worker_leaves_the_others_alone_until_it_is_there_again(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "crash.py").write_text(CRASHING)
    daemon.start(f'{CONFIG}[plugins]\nfolder = "{folder}"\n')
    with Echo(world.server):
        first, second = sources(world)
        with (
            Pinger(world.client, source=first) as alive,
            asker(world, second) as orphan,
        ):
            wait_for(alive, 10)
            call(orphan)
            os.kill(pid_of(daemon, 1), signal.SIGKILL)
            died = daemon.await_event("worker-died")
            # So that nothing is started again while we look.
            daemon.send_signal(signal.SIGSTOP)
            assert (died["worker"], died["status"]) == (1, "SIGKILL")
            before = last(world)
            wait_for(alive, 10)
            assert last(world)[0] >= before[0] + 10
            orphan.send(getport_call(2))
            assert orphan.recv(100)
            # A new flow of the dead one's is confirmed, and passes.
            flow, _ = getport(world, second)
            with flow:
                ours = flow.getsockname()[1]
            (entry,) = (
                each for each in entries(world) if each.original.source.port == ours
            )
            assert entry.confirmed
            assert entry.helper == "sunrpc"
            assert last(world)[1] == before[1]
            daemon.send_signal(signal.SIGCONT)
            daemon.await_event("worker-started", 3)
            orphan.send(getport_call(3))
            assert orphan.recv(100)
            assert last(world)[1] >= before[1] + 2
            # One that fails is followed by another, too.
            send(world.client, second, SERVER, CRASH_PORT)
            assert daemon.await_event("worker-died", 2)["status"] == "exit code 1"
            daemon.await_event("worker-started", 4)
            assert expected(world, daemon, second)["worker"] == 1
            wait_for(alive, 10)
            assert alive.lost == 0
    assert daemon.stop() == 0
    assert registered(world) == []


def test_workers_of_a_killed_supervisor_answer_what_waits_and_end(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with pingers(world) as (one, other):
        wait_for(one, 10)
        wait_for(other, 10)
        daemon.stop(signal.SIGKILL)
        until("both leave", lambda: len(daemon.events("withdrawn")) == 2)
        until("both have ended", lambda: world.queues() == {})
        wait_for(one, 10)
        wait_for(other, 10)
        assert one.lost == other.lost == 0
        # One with a single server takes over what they have left.
        daemon.start(CONFIG.replace("workers = 2", "workers = 1"))
        wait_for(one, 10)
        assert one.lost == 0
        getport(world)[0].close()
        assert "worker" not in daemon.await_event("expectation")
    assert daemon.stop() == 0
    assert registered(world) == []


# Stopping and reloading


def test_stop_loses_no_packet_of_any_worker_and_leaves_no_trace(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with pingers(world) as (one, other):
        wait_for(one, 20)
        wait_for(other, 20)
        # Terminals and systemd send it to all processes, and only one obeys.
        for worker in (0, 1):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid_of(daemon, worker), number)
        wait_for(one, 5)
        wait_for(other, 5)
        assert daemon.stop() == 0
        wait_for(one, 10)
        wait_for(other, 10)
        assert one.lost == other.lost == 0
    (stopped,) = daemon.events("stopped")
    assert stopped["packets"] >= 100
    assert stopped["verdicts_refused"] == stopped["bypassed"] == 0
    for event in ("step-failed", "worker-died", "withdrawn"):
        assert daemon.events(event) == []
    assert registered(world) == []
    assert tables(world) == ""
    assert world.queues() == {}


def test_reload_is_taken_by_all_workers_or_by_none(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    before = registered(world)
    other_queue = CONFIG.replace("ports = ", "queue = 2090\nports = ")
    with pingers(world) as (one, other):
        # The new queue of the second worker cannot be bound.
        daemon.configure(other_queue)
        with world.gateway.entered():
            taken = bind_queue(2091, 1 << 20, fail_open=True)
        with closing(taken):
            daemon.send_signal(signal.SIGHUP)
            error = daemon.await_event("reload-refused")["error"]
        assert error == (
            "queue 2091 is bound by another process: "
            "stop it, or set another queue number"
        )
        assert registered(world) == before
        assert set(world.queues()) == {QUEUE, QUEUE + 1}
        # Limits and queues, of both.
        limits = equal_limits(77)
        daemon.configure(other_queue + limits)
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
        wait_for(one, 10)
        wait_for(other, 10)
        assert one.lost == other.lost == 0
        assert set(world.queues()) == {2090, 2091}
        after = {(each.name, each.policies[0]) for each in registered(world)}
        assert after == {("sunrpc", Policy("service", 8, 77))}
    # What the log may write without leaving lines out.
    time.sleep(2.0)
    with Echo(world.server):
        for worker, flow in enumerate((one, other)):
            made = expected(world, daemon, flow.source)
            assert (made["worker"], made["timeout"]) == (worker, 77)
    # One that is dead meanwhile begins with the new configuration.
    os.kill(pid_of(daemon, 1), signal.SIGKILL)
    daemon.await_event("worker-died")
    daemon.configure(other_queue + limits.replace("77", "78"))
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event("reloaded", 2)
    daemon.await_event("worker-started", 3)
    with Echo(world.server):
        for worker, flow in enumerate((one, other)):
            made = expected(world, daemon, flow.source)
            assert (made["worker"], made["timeout"]) == (worker, 78)
    daemon.configure(CONFIG.replace("workers = 2", "workers = 3"))
    daemon.send_signal(signal.SIGHUP)
    error = daemon.await_event("reload-refused", 2)["error"]
    assert error == "daemon.workers has changed: restart cthelper"
    assert daemon.stop() == 0
    assert daemon.events("step-failed") == []

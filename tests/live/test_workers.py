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
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from cthelper.core.api import Policy
from cthelper.core.cli import main
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable, Registration
from cthelper.core.queue.library import LibraryQueue
from cthelper.core.tuples import Conntrack
from tests.live.daemon import Daemon, disabled
from tests.live.traffic import PORT, Echo, Pinger, asker, call, getport, wait_for
from tests.live.world import ETH, GATEWAY_LAN, LAN, SERVER, WAN, Namespace, World

pytestmark = pytest.mark.live

QUEUE = 2077
OTHERS = disabled("dhcpv6", "mdns", "slp", "tns")
CONFIG = f"[daemon]\nworkers = 2\n{OTHERS}[helpers.sunrpc]\nports = [111, {PORT}]\n"

# Client's addresses and server's, of both families.
CLIENTS = {
    4: [f"10.77.1.{host}" for host in range(11, 16)],
    6: [f"fd77:1::{host}" for host in range(11, 16)],
}
SERVERS = {
    4: [f"10.77.2.{host}" for host in range(11, 16)],
    6: [f"fd77:2::{host}" for host in range(11, 16)],
}


@pytest.fixture(scope="module", autouse=True)
def addresses(world: World) -> None:
    """The addresses, which the tests of other modules do not mind."""
    for namespace, each in ((world.client, CLIENTS), (world.server, SERVERS)):
        for family, hosts in each.items():
            for host in hosts:
                width = "24" if family == 4 else "64 nodad"
                address, _, rest = f"{host}/{width}".partition(" ")
                namespace.tell(f"ip address replace {address} dev {ETH} {rest}")


def registered(world: World) -> dict[str, set[bool]]:
    """Whether the helpers are enabled, by the name that they are registered under."""
    found = defaultdict(set)
    for each in registrations_of(world):
        found[each.name].add(each.enabled)
    return dict(found)


def registrations_of(world: World) -> list[Registration]:
    with world.gateway.entered(), closing(HelperTable()) as helpers:
        return helpers.list()


def entries(world: World) -> list[Conntrack]:
    with world.gateway.entered(), closing(Ctnetlink()) as kernel:
        return kernel.entries()


def sources(world: World) -> tuple[str, str]:
    """A client's address for each worker, for calls to the echo server."""
    for source in CLIENTS[4]:
        with asker(world, source) as flow:
            call(flow)
    found = {
        entry.helper: str(entry.original.source.address)
        for entry in entries(world)
        if entry.original.destination.port == PORT
    }
    return found["sunrpc.0"], found["sunrpc.1"]


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
        sender.sendto(bytes(4), (destination, port))


def test_all_flows_between_two_addresses_have_one_worker(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    pairs = [
        (client, server)
        for family in (4, 6)
        for client in CLIENTS[family]
        for server in SERVERS[family]
    ]
    # From either end, and once again from another port.
    for client, server in pairs:
        send(world.client, client, server)
        send(world.server, server, client)
        send(world.client, client, server)
    chosen: dict[frozenset[str], list[str | None]] = defaultdict(list)
    until(
        "all flows are tracked",
        lambda: (
            sum(each.original.destination.port == PORT for each in entries(world))
            == 3 * len(pairs)
        ),
    )
    for entry in entries(world):
        if entry.original.destination.port == PORT:
            ends = entry.original.source, entry.original.destination
            chosen[frozenset(str(each.address) for each in ends)].append(entry.helper)
    assert len(chosen) == len(pairs)
    assert all(len(set(names)) == 1 for names in chosen.values())
    assert {len(names) for names in chosen.values()} == {3}
    for family in (4, 6):
        shares = [
            names[0]
            for ends, names in chosen.items()
            if all(ip_address(each).version == family for each in ends)
        ]
        # A quarter of 25 pairs at least.
        assert min(shares.count(f"sunrpc.{worker}") for worker in (0, 1)) >= 6
    assert daemon.stop() == 0
    assert daemon.events("stopped")[0]["packets"] == 3 * len(pairs)


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
    world: World, daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a user's firewall accepts them by the rule that `ruleset show` prints."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "chain.py").write_text(PLUGIN)
    sunrpc = "[helpers.sunrpc]\nenabled = false\n"
    daemon.start(
        f'[daemon]\nworkers = 2\n{OTHERS}{sunrpc}[plugins]\nfolder = "{folder}"\n'
    )
    assert main(["ruleset", "show", "--config", str(daemon.config)]) == 0
    shown = capsys.readouterr().out
    (rule,) = re.findall(r"^# +(ct state related ct helper .* accept)$", shown, re.M)
    assert rule == 'ct state related ct helper { "chain.0", "chain.1" } accept'
    firewall = f"""table inet firewall {{
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established accept
		udp dport {PORT} accept
		{rule}
	}}
}}
"""
    world.gateway.run("nft", "-f", "-", input=firewall, check=True)
    count = 0
    for name, rules in NAT.items():
        if rules:
            world.gateway.run("nft", "-f", "-", input=rules, check=True)
        target = GATEWAY_LAN if name == "dnat" else SERVER
        workers = set()
        for source in CLIENTS[4]:
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
            tagged = {
                each.helper
                for each in entries(world)
                if str(each.original.source.address) == source
            }
            assert tagged == {f"chain.{worker}"}, (name, source)
            workers.add(worker)
        assert workers == {0, 1}, name
        world.conntrack("-F")
        if rules:
            world.gateway.run("nft", "delete", "table", "inet", "nat", check=True)
    assert daemon.events("refused") == []


# Death


CRASH_PORT = 7112
CRASHING = f"""
from cthelper.core.api import *

class Crash(Helper):
    name = "crash"
    transports = frozenset({{UDP}})
    ports = ({CRASH_PORT},)
    policies = (Policy("data"),)

    def on_message(self, message):
        raise SystemExit
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
            enabled = registered(world)
            assert enabled["sunrpc.0"] == enabled["crash.0"] == {True}
            assert enabled["sunrpc.1"] == enabled["crash.1"] == {False}
            before = world.queues()
            assert set(before) == {QUEUE}
            wait_for(alive, 10)
            assert world.queues()[QUEUE].last >= before[QUEUE].last + 10
            call(orphan)
            # A new flow of the dead one's is confirmed, and passes.
            with asker(world, second) as flow:
                call(flow)
                ours = flow.getsockname()[1]
            (entry,) = (
                each for each in entries(world) if each.original.source.port == ours
            )
            assert entry.confirmed
            assert entry.helper == "sunrpc.1"
            daemon.send_signal(signal.SIGCONT)
            daemon.await_event("worker-started", 3)
            assert registered(world)["sunrpc.1"] == {True}
            served = world.queues()[QUEUE + 1].last
            call(orphan)
            assert world.queues()[QUEUE + 1].last >= served + 2
            # One that fails has the kernel queue no more before it ends.
            send(world.client, second, SERVER, CRASH_PORT)
            withdrawn = daemon.await_event("withdrawn")
            assert (withdrawn["worker"], withdrawn["reason"]) == (1, "failed")
            assert daemon.await_event("worker-died", 2)["status"] == "exit code 1"
            call(orphan)
            daemon.await_event("worker-started", 4)
            getport(world, second)[0].close()
            assert daemon.await_event("expectation")["worker"] == 1
            wait_for(alive, 10)
            assert alive.lost == 0
    assert daemon.stop() == 0
    assert registered(world) == {}


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
        assert registered(world) == {"sunrpc.0": {False}, "sunrpc.1": {False}}
        wait_for(one, 10)
        wait_for(other, 10)
        assert one.lost == other.lost == 0
        # One without workers takes over what they have left.
        daemon.start(CONFIG.replace("workers = 2", "workers = 1"))
        wait_for(one, 10)
        assert one.lost == 0
        getport(world)[0].close()
        assert "worker" not in daemon.await_event("expectation")
    assert daemon.stop() == 0
    assert registered(world) == {}


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
    assert registered(world) == {}
    assert world.gateway.run("nft", "list", "tables", check=True).stdout == ""
    assert world.queues() == {}


def test_reload_is_taken_by_all_workers_or_by_none(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    before = registrations_of(world)
    other_queue = CONFIG.replace("ports = ", "queue = 2090\nports = ")
    with pingers(world) as (one, other):
        # The second worker cannot bind its new queue.
        daemon.configure(other_queue)
        with world.gateway.entered():
            taken = LibraryQueue(2091, 1 << 20)
        with closing(taken):
            daemon.send_signal(signal.SIGHUP)
            error = daemon.await_event("reload-refused")["error"]
        assert error == (
            "worker 1: queue 2091 is bound by another process: "
            "stop it, or set another queue number"
        )
        assert registrations_of(world) == before
        assert set(world.queues()) == {QUEUE, QUEUE + 1}
        # Limits and queues, of both.
        limits = "[helpers.sunrpc.policies.service]\ntimeout = 77\n"
        daemon.configure(other_queue + limits)
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
        wait_for(one, 10)
        wait_for(other, 10)
        assert one.lost == other.lost == 0
        assert set(world.queues()) == {2090, 2091}
        after = {
            (each.name, each.queue, each.policies[0])
            for each in registrations_of(world)
        }
        assert after == {
            (f"sunrpc.{worker}", 2090 + worker, Policy("service", 8, 77))
            for worker in (0, 1)
        }
        for count, source in enumerate((one.source, other.source), 1):
            getport(world, source)[0].close()
            made = daemon.await_event("expectation", count)
            assert (made["worker"], made["timeout"]) == (count - 1, 77)
        # One that is dead meanwhile begins with the new configuration.
        os.kill(pid_of(daemon, 1), signal.SIGKILL)
        daemon.await_event("worker-died")
        daemon.configure(other_queue + limits.replace("77", "78"))
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded", 2)
        daemon.await_event("worker-started", 3)
        for count, source in enumerate((one.source, other.source), 3):
            getport(world, source)[0].close()
            made = daemon.await_event("expectation", count)
            assert (made["worker"], made["timeout"]) == (count - 3, 78)
    daemon.configure(CONFIG.replace("workers = 2", "workers = 3"))
    daemon.send_signal(signal.SIGHUP)
    error = daemon.await_event("reload-refused", 2)["error"]
    assert error == "daemon.workers has changed: restart cthelper"
    assert daemon.stop() == 0
    assert daemon.events("step-failed") == []

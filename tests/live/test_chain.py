# SPDX-License-Identifier: GPL-2.0-or-later
"""Chain mode on a real kernel: what is queued, what a mark ends, what fails closed.

NAT in chain mode is in test_matrix.py, redirects of redirects are in test_tns.py.
"""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable
from cthelper.core.netlink.socket import SO_RCVBUFFORCE
from cthelper.core.tuples import Conntrack
from tests.live.daemon import Daemon, disabled
from tests.live.traffic import (
    PORT,
    Echo,
    Pinger,
    asker,
    call,
    getport,
    getport_call,
    knock,
    wait_for,
)
from tests.live.world import SERVER, Family, World, until

pytestmark = pytest.mark.live

QUEUE = 2077
OTHERS = disabled("dhcpv6", "mdns", "slp", "tns")
CONFIG = f'{OTHERS}[helpers.sunrpc]\nqueueing = "chain"\nports = [111, {PORT}]\n'
CLOSED = f"{CONFIG}fail_closed = true\n"
# A user's own marks, beside which cthelper's is set.
MARKS = """table inet user {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		ct mark set ct mark and 0x400 or 0x80000029
	}
}
"""
SECONDS = 30.0


def entry(world: World, flow: socket.socket) -> Conntrack:
    """The conntrack entry of a flow of the client's."""
    with world.gateway.entered(), closing(Ctnetlink()) as kernel:
        return next(
            each
            for each in kernel.entries()
            if each.original.source.port == flow.getsockname()[1]
        )


def expected(world: World) -> int:
    """How many expectations there are."""
    return len(world.conntrack("-L", "expect").splitlines())


def answered(flow: socket.socket, message: bytes, seconds: float = 1.0) -> bool:
    """Whether a datagram is answered."""
    flow.settimeout(seconds)
    flow.send(message)
    try:
        return bool(flow.recv(100))
    except TimeoutError:
        return False


def test_kernel_queues_what_the_helper_reads_and_nothing_else(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with world.gateway.entered(), closing(HelperTable()) as helpers:
        assert {each.enabled for each in helpers.list()} == {False}
    with Echo(world.server), asker(world) as flow:
        for _ in range(5):
            call(flow)
        assert world.queues()[QUEUE].last == 0
        assert answered(flow, getport_call(7))
        assert world.queues()[QUEUE].last == 2
        assert expected(world) == 1
        # What was expected is related to its master.
        knock(world, "udp", 7999)
        assert "[UNREPLIED]" in world.conntrack("-L", "-p", "udp", "--dport", "7999")
        with world.gateway.entered(), closing(Ctnetlink()) as kernel:
            masters = [each.master for each in kernel.entries() if each.master]
        assert [each.source.port for each in masters] == [flow.getsockname()[1]]
    assert daemon.stop() == 0
    (stopped,) = daemon.events("stopped")
    assert stopped["packets"] == 2
    assert stopped["verdicts_refused"] == 0


@pytest.mark.parametrize("family", [4, 6])
def test_multicast_query_is_answered(
    world: World, daemon: Daemon, family: Family
) -> None:
    world.firewall()
    world.start_mdns()
    assert world.mdns_query(family, timeout=1.5).source is None
    daemon.start('[helpers.mdns]\nqueueing = "chain"\n')
    assert world.mdns_query(family).source is not None
    assert daemon.await_event("expectation")["helper"] == "mdns"
    assert daemon.stop() == 0


PLUGIN = f"""
from cthelper.core.api import *

class Several(Helper):
    name = "several"
    transports = frozenset({{UDP}})
    ports = ({PORT},)
    policies = (Policy("data", 8, 60),)

    def on_message(self, message):
        if message.direction is ORIGINAL:
            for port in (7501, 7502, 7503):
                endpoint = Endpoint(message.source.address, port)
                yield from expect(endpoint, policy="data")
            yield DONE
"""


@pytest.mark.parametrize("queueing", ["helper", "chain"])
def test_first_packet_that_announces_several_ports_comes_back_and_goes_on(
    world: World, daemon: Daemon, tmp_path: Path, queueing: str
) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "several.py").write_text(PLUGIN)
    daemon.start(
        f'{OTHERS}[plugins]\nfolder = "{folder}"\n'
        "[helpers.sunrpc]\nenabled = false\n"
        f'[helpers.several]\nqueueing = "{queueing}"\n'
    )
    with Echo(world.server), asker(world) as flow:
        call(flow)
        assert expected(world) == 3
        assert len(daemon.events("expectation")) == 3
    assert daemon.events("refused") == []
    assert daemon.stop() == 0


def test_finished_flow_has_its_bit_set_beside_the_users_and_leaves_the_queue(
    world: World, daemon: Daemon
) -> None:
    world.gateway.run("nft", "-f", "-", input=MARKS, check=True)
    daemon.start(f"[daemon]\nmark = 0x400\nuser_mask = 0x800000ff\n{CONFIG}")
    with world.server.entered():
        listener = socket.create_server((SERVER, PORT))
    with listener:
        with world.client.entered():
            stream = socket.create_connection((SERVER, PORT))
        server, _ = listener.accept()
        with stream, server:
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            server.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            marked = daemon.await_event("marked")
            assert marked["reason"] == "malformed"
            assert entry(world, stream).mark == 0x80000429
            before = world.queues()[QUEUE].last
            for one, other in ((stream, server), (server, stream)):
                one.sendall(bytes(100_000))
                assert len(other.recv(100_000, socket.MSG_WAITALL)) == 100_000
            assert world.queues()[QUEUE].last == before
    assert daemon.events("detached") == []


def test_master_whose_calls_are_hidden_outlives_them(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with Echo(world.server), asker(world) as flow:
        assert answered(flow, getport_call(1))
        call(flow)
        # The hidden call has put it back.
        assert entry(world, flow).timeout <= 180
        assert until(lambda: entry(world, flow).timeout > 250, SECONDS)
        assert expected(world) == 1


# Stopping, reloading, being killed


@contextmanager
def busy(world: World) -> Iterator[Pinger]:
    """A flow all of whose packets are queued."""
    with (
        Echo(world.server),
        Pinger(world.client, message=getport_call) as pinger,
    ):
        wait_for(pinger, 5)
        yield pinger


def test_reload_and_stop_lose_no_packet(world: World, daemon: Daemon) -> None:
    daemon.start(CONFIG)
    with busy(world) as pinger:
        daemon.configure(f"[daemon]\nqueue = 2090\n{CONFIG}")
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
        wait_for(pinger, 5)
        assert daemon.stop() == 0
        wait_for(pinger, 5)
    assert pinger.lost == 0
    assert "cthelper" not in world.gateway.run("nft", "list", "tables").stdout
    (stopped,) = daemon.events("stopped")
    assert stopped["packets"] > 20
    assert stopped["bypassed"] == stopped["verdicts_refused"] == 0


def test_other_way_of_queueing_needs_a_restart(world: World, daemon: Daemon) -> None:
    daemon.start(CONFIG)
    daemon.configure(CONFIG.replace('queueing = "chain"\n', ""))
    daemon.send_signal(signal.SIGHUP)
    refused = daemon.await_event("reload-refused")
    assert "helpers.sunrpc.queueing has changed: restart" in refused["error"]
    with Echo(world.server):
        getport(world)[0].close()
    assert expected(world) == 1


def test_killed_daemon_lets_packets_pass_and_the_next_one_takes_over(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with busy(world) as pinger:
        daemon.stop(signal.SIGKILL)
        lost = pinger.lost
        wait_for(pinger, 5)
        # In helper mode the kernel would confirm no new flow.
        with asker(world) as flow:
            call(flow)
            assert entry(world, flow).confirmed
        daemon.start(CONFIG)
        wait_for(pinger, 5)
        assert pinger.lost <= lost + 1  # the one that was queued
        count = len(daemon.events("expectation"))
        assert until(lambda: len(daemon.events("expectation")) > count, SECONDS)
    assert daemon.stop() == 0


def test_helper_that_fails_closed_drops_what_nobody_can_inspect(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CLOSED)
    with Echo(world.server), asker(world) as flow:
        assert answered(flow, getport_call(1), SECONDS)
        daemon.stop(signal.SIGKILL)
        assert not answered(flow, getport_call(2))
        call(flow)  # announces nothing
        daemon.start(CLOSED, "--keep-ruleset")
        assert answered(flow, getport_call(3), SECONDS)
        assert daemon.stop() == 0
        # The ruleset stays, and so do its drops.
        assert not answered(flow, getport_call(4))
        call(flow)
        assert daemon.cthelper("ruleset", "remove").returncode == 0
        assert answered(flow, getport_call(5), SECONDS)


def test_flood_beyond_a_queue_that_fails_closed_is_dropped_and_counted(
    world: World, daemon: Daemon
) -> None:
    sent = 1500
    daemon.start(f"[daemon]\nreceive_buffer = 65536\n{CLOSED}")
    with world.server.entered():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink, asker(world) as flow:
        sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        sink.bind((SERVER, PORT))
        sink.settimeout(5)
        daemon.send_signal(signal.SIGSTOP)
        for xid in range(sent):
            flow.send(getport_call(xid))
        daemon.send_signal(signal.SIGCONT)
        came = 0
        with suppress(TimeoutError):
            while sink.recv(200):
                came += 1
        assert 0 < came < sent
        flow.send(getport_call(sent))
        assert sink.recv(200)
        overload = daemon.await_event("overload")
        assert overload["dropped"] == sent - came
        assert daemon.stop() == 0
    (stopped,) = daemon.events("stopped")
    assert (stopped["dropped"], stopped["bypassed"]) == (sent - came, 0)


def test_ruleset_is_checked_installed_and_removed(world: World, daemon: Daemon) -> None:
    daemon.configure(CLOSED)
    for action in ("check", "install", "install", "remove"):
        done = daemon.cthelper("ruleset", action)
        assert (done.returncode, done.stderr) == (0, ""), action
    assert not re.search("cthelper", world.gateway.run("nft", "list", "tables").stdout)


def test_rules_of_chain_mode_go_with_it(world: World, daemon: Daemon) -> None:
    daemon.start(CONFIG)
    # Its helper is disabled, and so no way of queueing changes.
    daemon.configure(f"{OTHERS}[helpers.sunrpc]\nenabled = false\n")
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event("reloaded")
    listing = world.gateway.run("nft", "list", "table", "inet", "cthelper").stdout
    assert "queue" not in listing
    with Echo(world.server):
        getport(world)[0].close()
    assert expected(world) == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ruleset queues on a real kernel, what a mark ends, and what fails closed."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cthelper.core.netlink.socket import SO_RCVBUFFORCE
from tests.live.daemon import Daemon, only
from tests.live.gateway import entries, entry_of, registered
from tests.live.traffic import (
    PORT,
    Echo,
    asker,
    call,
    getport_call,
    knock,
)
from tests.live.world import CLIENT, ETH, SERVER, Family, World, until

pytestmark = pytest.mark.live

QUEUE = 2077
OTHERS = only("sunrpc")
CONFIG = f"{OTHERS}[helpers.sunrpc]\nports = [111, {PORT}]\n"
CLOSED = f"{CONFIG}fail_closed = true\n"
# A user's own marks, beside which cthelper's is set.
MARKS = """table inet user {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		ct mark set ct mark and 0x400 or 0x80000029
	}
}
"""
WHOLE_MARK = """table inet user {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		ct mark set 0x29
	}
}
"""
SECONDS = 30.0


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


@contextmanager
def connected(world: World) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection of the client's to the helper's port, and its other end."""
    with world.server.entered():
        listener = socket.create_server((SERVER, PORT))
    with listener:
        with world.client.entered():
            stream = socket.create_connection((SERVER, PORT), 10)
        server, _ = listener.accept()
        with stream, server:
            yield stream, server


def finish(
    daemon: Daemon, stream: socket.socket, server: socket.socket, event: str
) -> str:
    """Have a flow be no longer inspected; the reason."""
    for one, other in ((stream, server), (server, stream)):
        one.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        assert other.recv(100)
    reason: str = daemon.await_event(event)["reason"]
    return reason


def bulk(stream: socket.socket, server: socket.socket) -> None:
    """Send much both ways."""
    for one, other in ((stream, server), (server, stream)):
        one.sendall(bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(other.recv(100_000))


def test_kernel_queues_what_the_helper_reads_and_nothing_else(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    assert {each.enabled for each in registered(world)} == {False}
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
        masters = [each.master for each in entries(world) if each.master]
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
    daemon.start()
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


def test_first_packet_that_announces_several_ports_comes_back_and_goes_on(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "several.py").write_text(PLUGIN)
    daemon.start(
        f'{OTHERS}[plugins]\nfolder = "{folder}"\n[helpers.sunrpc]\nenabled = false\n'
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
    with connected(world) as (stream, server):
        assert finish(daemon, stream, server, "marked") == "malformed"
        assert entry_of(world, stream).mark == 0x80000429
        before = world.queues()[QUEUE].last
        bulk(stream, server)
        assert world.queues()[QUEUE].last == before


def test_master_whose_calls_are_hidden_outlives_them(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with Echo(world.server), asker(world) as flow:
        assert answered(flow, getport_call(1))
        call(flow)
        # The hidden call has put it back.
        assert entry_of(world, flow).timeout <= 180
        assert until(lambda: entry_of(world, flow).timeout > 250, SECONDS)
        assert expected(world) == 1


# What fails closed


def test_helper_that_fails_closed_drops_what_nobody_can_inspect(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CLOSED)
    with Echo(world.server), asker(world) as flow:
        assert answered(flow, getport_call(1), SECONDS)
        daemon.stop(signal.SIGKILL)
        # Its server goes on until it has seen that.
        assert until(lambda: world.queues() == {}, SECONDS)
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
        daemon.signal_all(signal.SIGSTOP)
        for xid in range(sent):
            flow.send(getport_call(xid))
        daemon.signal_all(signal.SIGCONT)
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


SHARED = f"""
from cthelper.core.api import *

class Shared(Helper):
    name = "shared"
    transports = frozenset({{UDP}})
    ports = ({PORT},)
    policies = (Policy("data", 8, 60),)

    @classmethod
    def prefilter(cls, options):
        return Prefilter(((Match(0, 8, 0x3f),),), ())

    def on_message(self, message):
        yield from expect(Endpoint(message.source.address, 7601), policy="data")
"""


def test_helpers_that_share_a_port_each_read_their_own_flows(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    """One rule queues for both; a flow has the helper that tagged it."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "shared.py").write_text(SHARED)
    other = "10.77.1.9"
    world.client.tell(f"ip address replace {other}/24 dev {ETH}")
    daemon.start(
        f'[plugins]\nfolder = "{folder}"\n{CONFIG}sources = ["{CLIENT}/32"]\n'
        f'[helpers.shared]\nsources = ["{other}/32"]\n'
    )
    with Echo(world.server), asker(world) as one, asker(world, other) as two:
        call(one)
        call(two)
        assert world.queues()[QUEUE].last == 0
        assert answered(two, b"?")
        assert answered(one, getport_call(1))
        # What the other one would read is queued, and passes unread.
        assert answered(one, b"?")
        assert world.queues()[QUEUE].last == 4
    made = {each["helper"]: each["expects"] for each in daemon.events("expectation")}
    assert made.keys() == {"sunrpc", "shared"}
    assert made["shared"].endswith(f"{other}:7601")
    assert daemon.events("malformed") == []


# The mark and what others do with it


ROUTED = """table inet user {{
	chain prerouting {{
		type filter hook prerouting priority mangle; policy accept;
		ct state new tcp dport {port} ct mark set ct mark or 0x1
		meta mark set {restored}
	}}
}}
"""


@contextmanager
def routed(world: World, restored: str) -> Iterator[None]:
    """A user's policy routing: packets with mark 1 are routed, all others are not."""
    rules = ROUTED.format(port=PORT, restored=restored)
    world.gateway.run("nft", "-f", "-", input=rules, check=True)
    lines = (
        f"ip rule add fwmark 0x1 to {SERVER} lookup main pref 100",
        f"ip rule add to {SERVER} prohibit pref 101",
    )
    world.gateway.tell("\n".join(lines))
    try:
        yield
    finally:
        world.gateway.tell("ip rule del pref 100\nip rule del pref 101")


@pytest.mark.parametrize(
    ("restored", "mark", "arrives"),
    [
        ("ct mark", "0x10000000", False),
        ("ct mark and 0xff", "0x10000000", True),
        ("ct mark", "0", True),
    ],
    ids=["whole mark", "masked", "no mark"],
)
def test_finished_flow_is_routed_by_the_users_marks(
    world: World, daemon: Daemon, restored: str, mark: str, arrives: bool
) -> None:
    """Where rules restore the whole mark the daemon's bit would lead it elsewhere."""
    with routed(world, restored):
        daemon.start(f"[daemon]\nmark = {mark}\n{CONFIG}")
        doctor = daemon.cthelper("doctor").stdout
        assert ("inet user prerouting" in doctor) is not arrives
        with connected(world) as (stream, server):
            finish(daemon, stream, server, "marked" if int(mark, 0) else "kept")
            stream.settimeout(2.0)
            server.settimeout(2.0)
            stream.sendall(b"after it has finished")
            if arrives:
                assert server.recv(100) == b"after it has finished"
            else:
                with pytest.raises(TimeoutError):
                    server.recv(100)


def test_without_a_mark_finished_flows_stay_queued_and_pass_unread(
    world: World, daemon: Daemon
) -> None:
    daemon.start(f"[daemon]\nmark = 0\n{CONFIG}")
    with connected(world) as (stream, server):
        finish(daemon, stream, server, "kept")
        before = world.queues()[QUEUE].last
        bulk(stream, server)
        assert world.queues()[QUEUE].last > before
    assert daemon.events("overload") == []


def test_rules_that_set_the_whole_mark_cost_speed_and_nothing_else(
    world: World, daemon: Daemon
) -> None:
    world.gateway.run("nft", "-f", "-", input=WHOLE_MARK, check=True)
    daemon.start(CONFIG)
    with connected(world) as (stream, server):
        finish(daemon, stream, server, "marked")
        before = world.queues()[QUEUE].last
        bulk(stream, server)
        assert world.queues()[QUEUE].last > before
        assert entry_of(world, stream).mark == 0x29
    with Echo(world.server), asker(world) as flow:
        assert answered(flow, getport_call(1))
        assert expected(world) == 1
    assert daemon.events("overload") == []

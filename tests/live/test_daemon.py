# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's life on a real kernel: start, reload, stop, being killed, overload."""

import fcntl
import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from cthelper.core.api import Policy
from cthelper.core.netlink.nfnetlink_cthelper import Registration
from cthelper.core.netlink.socket import SO_RCVBUFFORCE
from cthelper.core.tuples import UDP
from tests.live.daemon import CTHELPER, Daemon, equal_limits, only
from tests.live.gateway import (
    all_registered,
    entry_of,
    helper_table,
    registered,
    tables,
)
from tests.live.netlink_lab import readable, until
from tests.live.traffic import (
    PORT,
    Echo,
    Pinger,
    asker,
    call,
    expected,
    getport,
    getport_call,
    knock,
    wait_for,
)
from tests.live.world import MOUNTD, SERVER, World

pytestmark = pytest.mark.live

QUEUE = 2077
# Two helpers are enough here, and the fewer the sooner they are registered.
OTHERS = only("mdns", "sunrpc")
CONFIG = f"{OTHERS}[helpers.sunrpc]\nports = [111, {PORT}]\n"
TABLES = "table inet cthelper\n"
# Until the log has room again for lines of an event that it has left out.
LOG_SECONDS = 1.0
STATEFUL = """table inet user {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established accept
	}
}
"""


# Stopping


def test_stop_loses_no_packet_and_leaves_no_trace(world: World, daemon: Daemon) -> None:
    daemon.start(CONFIG)
    with Echo(world.server), Pinger(world.client) as pinger:
        wait_for(pinger, 20)
        assert daemon.stop() == 0
        wait_for(pinger, 20)
    assert pinger.lost == 0
    assert daemon.events("stopped")[0]["packets"] >= 40
    assert daemon.events("step-failed") == []
    assert all_registered(world) == []
    assert tables(world) == ""
    assert QUEUE not in world.queues()


def test_keep_ruleset_keeps_table_and_helpers_and_the_next_run_takes_them(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG, "--keep-ruleset")
    assert daemon.stop(signal.SIGINT) == 0
    assert tables(world) == TABLES
    before = registered(world)
    assert {each.name for each in before} == {"mdns", "sunrpc"}
    with Echo(world.server), Pinger(world.client) as pinger:
        wait_for(pinger, 5)
        daemon.start(CONFIG)
        assert registered(world) == before
        wait_for(pinger, 5)
    assert pinger.lost == 0
    daemon.stop()
    assert registered(world) == []


@pytest.mark.parametrize("whole", [False, True], ids=["supervisor", "all"])
def test_killed_daemon_lets_traffic_pass_and_can_be_started_again(
    world: World, daemon: Daemon, whole: bool
) -> None:
    daemon.start(CONFIG)
    with Echo(world.server), Pinger(world.client, 20.0) as pinger:
        wait_for(pinger, 20)
        if whole:
            daemon.signal_all(signal.SIGKILL)
            daemon.wait()
        else:
            daemon.stop(signal.SIGKILL)
        wait_for(pinger, 20)
        # One call is under way at a time: no more than its packet was in the queue. A
        # server that has lost its supervisor answers what waits.
        assert pinger.lost <= whole
        lost = pinger.lost
        assert tables(world) == TABLES
        with asker(world) as flow:
            call(flow)
            assert entry_of(world, flow).confirmed
        daemon.start(CONFIG)
        wait_for(pinger, 20)
        assert pinger.lost == lost
    time.sleep(LOG_SECONDS)
    with Echo(world.server, announce=7998):
        assert expected(world, daemon)["expects"].endswith(f"{SERVER}:7998")
    assert daemon.stop() == 0


def test_leavings_with_other_policies_are_replaced_at_start(
    world: World, daemon: Daemon
) -> None:
    with helper_table(world) as helpers:
        helpers.put(lab_mdns())
    daemon.start(CONFIG)
    assert daemon.stop() == 0
    assert registered(world) == []


def test_second_daemon_on_the_queue_says_so_and_harms_nothing(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    second = daemon.cthelper("run")
    assert second.returncode == 1
    assert second.stderr == (
        f"cthelper: queue {QUEUE} is bound by another process: "
        "stop it, or set another queue number\n"
    )
    assert tables(world) == TABLES
    with Echo(world.server):
        getport(world)[0].close()
    daemon.await_event("expectation")


# Its log


@pytest.mark.parametrize("workers", [1, 2])
def test_log_that_nobody_reads_holds_no_packet_up_and_ends_nothing(
    world: World, daemon: Daemon, workers: int
) -> None:
    daemon.configure(f"[daemon]\nworkers = {workers}\n{CONFIG}")
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    run = (*CTHELPER, "run", "--config", str(daemon.config))
    process = world.gateway.start(*run, stdout=write, stderr=write)
    os.close(write)
    try:
        until(lambda: tables(world) == TABLES, 120.0)
        with Echo(world.server), Pinger(world.client) as pinger:
            # Each gives a line, of which the pipe holds some twenty.
            wait_for(pinger, 60)
            told = b""
            while b'"event": "log-lost"' not in told:
                assert readable(read, 60.0)
                told += os.read(read, 1 << 16)
            os.close(read)
            wait_for(pinger, 30)
            process.send_signal(signal.SIGHUP)
            wait_for(pinger, 30)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60.0) == 0
            wait_for(pinger, 5)
        assert pinger.lost == 0
        assert registered(world) == []
    finally:
        process.kill()
        process.wait()


# Reloading


def test_reload_takes_new_limits_without_losing_a_packet(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with Echo(world.server), Pinger(world.client) as pinger:
        wait_for(pinger, 10)
        daemon.configure(
            CONFIG + equal_limits(77) + "[helpers.mdns]\nenabled = false\n"
        )
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
        wait_for(pinger, 10)
        assert pinger.lost == 0
        # A helper that is unregistered would take the queued packets along.
        policies = {each.name: each.policies[0] for each in registered(world)}
        assert policies.keys() == {"mdns", "sunrpc"}
        assert policies["sunrpc"] == Policy("service", 8, 77)
        listing = world.gateway.run("nft", "list", "table", "inet", "cthelper").stdout
        assert "udp dport 5353" not in listing
    time.sleep(LOG_SECONDS)
    with Echo(world.server):
        assert expected(world, daemon)["timeout"] == 77
    assert daemon.stop() == 0
    assert registered(world) == []


def test_reload_moves_a_helper_to_another_queue_without_losing_a_packet(
    world: World, daemon: Daemon
) -> None:
    limits = equal_limits(300)
    daemon.start(CONFIG + limits)
    with Echo(world.server), Pinger(world.client) as pinger:
        wait_for(pinger, 10)
        daemon.configure(
            f"{CONFIG}queue = 2078\n[helpers.mdns]\nqueue = 2078\n{limits}"
        )
        daemon.send_signal(signal.SIGHUP)
        daemon.await_event("reloaded")
        wait_for(pinger, 10)
        assert pinger.lost == 0
        assert QUEUE not in world.queues()
    time.sleep(LOG_SECONDS)
    with Echo(world.server):
        expected(world, daemon)


def test_wrong_new_configuration_is_refused_and_the_old_one_stays(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    daemon.configure("[helpers.sunrpc]\nports = [0]\n")
    daemon.send_signal(signal.SIGHUP)
    error = daemon.await_event("reload-refused")["error"]
    assert error == (
        f"{daemon.config}: helpers.sunrpc.ports = 0: must be a port from 1 to 65535, "
        'or the name of a service, or a range such as "6660-6669"'
    )
    with Echo(world.server):
        getport(world)[0].close()
    daemon.await_event("expectation")


def test_limits_of_several_policies_are_changed_by_a_reload_or_a_restart(
    world: World, daemon: Daemon
) -> None:
    """Linux 6.12.95 would give each policy the first one's."""
    wanted = f"{CONFIG}[helpers.sunrpc.policies.service]\ntimeout = 77\n"
    daemon.start(CONFIG)
    (kernel,) = daemon.events("kernel")
    before = registered(world)
    daemon.configure(wanted)
    daemon.send_signal(signal.SIGHUP)
    if kernel["keeps_limits"]:
        daemon.await_event("reloaded")
    else:
        error = daemon.await_event("reload-refused")["error"]
        assert "mixes up the limits of a helper that is changed" in error
        assert registered(world) == before
        # As after a crash: what is registered already is replaced, not changed.
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        daemon.start(wanted)
    policies = {each.policies for each in registered(world) if each.name == "sunrpc"}
    (timeouts,) = {tuple(each.timeout for each in found) for found in policies}
    assert timeouts == (77, 10, 300)


def test_reload_that_the_kernel_cannot_take_says_restart(
    world: World, daemon: Daemon
) -> None:
    disabled = "[helpers.mdns]\nenabled = false\n"
    daemon.start(CONFIG + disabled)
    with helper_table(world) as helpers:
        helpers.put(lab_mdns())
        try:
            before = registered(world)
            daemon.configure(f"{CONFIG}{equal_limits(77)}")
            daemon.send_signal(signal.SIGHUP)
            error = daemon.await_event("reload-refused")["error"]
            assert error == (
                "helper mdns ip udp is registered with other policies: "
                "restart cthelper to replace it"
            )
            assert registered(world) == before
        finally:
            helpers.delete(lab_mdns())


def lab_mdns() -> Registration:
    """A registration of mdns that another program might have made."""
    return Registration(
        name="mdns",
        family=socket.AF_INET,
        transport=UDP,
        queue=QUEUE,
        policies=(Policy("other", 1, 10),),
    )


# Masters and finished flows


TIMEOUTS = {
    "udp_timeout": 30,
    "udp_timeout_stream": 120,
    "tcp_timeout_time_wait": 120,
    "tcp_timeout_fin_wait": 120,
}


def set_timeouts(world: World, **seconds: int) -> None:
    words = (f"net.netfilter.nf_conntrack_{name}={n}" for name, n in seconds.items())
    world.gateway.tell(f"sysctl -qw {' '.join(words)}")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_master_lives_as_long_as_its_expectation(
    world: World, daemon: Daemon, transport: Literal["udp", "tcp"]
) -> None:
    """The master is idle (UDP) or closed (TCP): by itself it would live 2 s."""
    set_timeouts(world, **dict.fromkeys(TIMEOUTS, 2))
    try:
        world.firewall()
        world.start_rpc()
        port = world.rpc_port(MOUNTD, transport)
        daemon.start("[helpers.sunrpc.policies.service]\ntimeout = 8\n")
        assert world.rpcinfo(transport).returncode == 0
        daemon.await_event("expectation")
        time.sleep(5)
        knock(world, transport, port)
        assert world.dropped(transport, port) == 0
        time.sleep(5)
        knock(world, transport, port)
        assert world.dropped(transport, port) > 0
    finally:
        set_timeouts(world, **TIMEOUTS)


def test_first_master_outlives_an_expectation_that_a_second_one_refreshed(
    world: World, daemon: Daemon
) -> None:
    """The kernel keeps one expectation for both, and it hangs on the first master."""
    set_timeouts(world, **dict.fromkeys(TIMEOUTS, 2))
    try:
        world.firewall()
        world.start_rpc()
        port = world.rpc_port(MOUNTD, "udp")
        daemon.start("[helpers.sunrpc.policies.service]\ntimeout = 6\n")
        assert world.rpcinfo("udp").returncode == 0
        time.sleep(4)
        assert world.rpcinfo("udp").returncode == 0
        daemon.await_event("expectation", 2)
        time.sleep(4.5)
        knock(world, "udp", port)
        assert world.dropped("udp", port) == 0
        time.sleep(4)
        knock(world, "udp", port)
        assert world.dropped("udp", port) > 0
    finally:
        set_timeouts(world, **TIMEOUTS)


def test_flow_first_seen_in_mid_stream_is_marked_and_leaves_the_queue(
    world: World, daemon: Daemon
) -> None:
    daemon.configure(CONFIG)
    assert daemon.cthelper("ruleset", "install").returncode == 0
    with world.server.entered():
        listener = socket.create_server((SERVER, PORT))
    with world.client.entered():
        client = socket.create_connection((SERVER, PORT), 5)
    server, _ = listener.accept()
    with listener, client, server:
        server.settimeout(5)
        assert entry_of(world, client).helper == "sunrpc"
        daemon.start(CONFIG)
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        assert daemon.await_event("marked")["reason"] == "mid-stream"
        assert entry_of(world, client).mark == 0x10000000
        last = world.queues()[QUEUE].last
        for _ in range(10):
            client.sendall(b"x")
            assert server.recv(1) == b"x"
        assert world.queues()[QUEUE].last == last


def test_malformed_records_of_both_sides_end_the_inspection(
    world: World, daemon: Daemon
) -> None:
    daemon.start(CONFIG)
    with world.server.entered():
        listener = socket.create_server((SERVER, PORT))
    with world.client.entered():
        client = socket.create_connection((SERVER, PORT), 5)
    server, _ = listener.accept()
    with listener, client, server:
        server.settimeout(5)
        for sender, receiver in ((client, server), (server, client)):
            sender.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert receiver.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
        assert daemon.await_event("marked")["reason"] == "malformed"
        assert len(daemon.events("malformed")) == 2


# Overload


def test_flood_beyond_the_queue_passes_and_is_counted(
    world: World, daemon: Daemon
) -> None:
    sent = 1500
    daemon.start(CONFIG + "[daemon]\nreceive_buffer = 65536\n")
    with world.client.entered():
        flooder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with world.server.entered():
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with flooder, sink:
        sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        sink.bind((SERVER, PORT))
        sink.settimeout(5)
        flooder.connect((SERVER, PORT))
        daemon.signal_all(signal.SIGSTOP)
        for xid in range(sent):
            flooder.send(getport_call(xid))
        waiting = world.queues()[QUEUE].waiting
        assert 0 < waiting < sent
        passed = sum(1 for _ in range(sent - waiting) if sink.recv(100))
        assert passed == sent - waiting
        daemon.signal_all(signal.SIGCONT)
        assert sum(1 for _ in range(waiting) if sink.recv(100)) == waiting
        # The gap in the packet ids shows with the next packet.
        flooder.send(getport_call(sent))
        assert sink.recv(100)
        overload = daemon.await_event("overload")
        assert overload["bypassed"] == sent - waiting
        assert overload["overruns"] > 0
        assert daemon.stop() == 0
    assert daemon.events("stopped")[0]["bypassed"] == sent - waiting


# Expectations of a flow's first packet


def test_first_packet_whose_expectation_finds_no_room_goes_on_and_is_counted(
    world: World, daemon: Daemon
) -> None:
    world.start_mdns()
    daemon.start(CONFIG)
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_expect_max")
    before = limit.read_text()
    limit.write_text("1")
    try:
        for _ in range(2):
            assert world.mdns_query(4).source is not None  # there is no firewall
        refused = daemon.await_event("refused")
        assert refused["reason"] == "live-all"
    finally:
        limit.write_text(before)


# Commands


def test_ruleset_install_and_remove_twice_leave_a_foreign_table_alone(
    world: World, daemon: Daemon
) -> None:
    daemon.configure(CONFIG)
    world.gateway.run("nft", "add", "table", "inet", "foreign", check=True)
    for action, there in (
        ("check", False),
        ("install", True),
        ("install", True),
        ("remove", False),
        ("remove", False),
    ):
        done = daemon.cthelper("ruleset", action)
        assert (done.returncode, done.stderr) == (0, ""), action
        assert (TABLES in tables(world)) is there, action
        assert bool(registered(world)) is there, action
    assert tables(world) == "table inet foreign\n"


def test_narrowed_ruleset_loads(daemon: Daemon) -> None:
    daemon.configure(
        "[helpers.sunrpc]\nports = [111, 1111]\n"
        'interfaces = ["lan", "wg*"]\n'
        'sources = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]\n'
        'destinations = ["192.0.2.0/24", "2001:db8::/32"]\n'
    )
    done = daemon.cthelper("ruleset", "check")
    assert (done.returncode, done.stderr) == (0, "")


def test_retag_deletes_the_udp_entry_that_began_before(
    world: World, daemon: Daemon
) -> None:
    daemon.configure(CONFIG)
    # Conntrack must know the flow before the helpers' table comes.
    world.gateway.run("nft", "-f", "-", input=STATEFUL, check=True)
    # One call at a time: an answer under way would begin an entry of its own.
    with Echo(world.server), asker(world) as flow:
        call(flow)
        done = daemon.cthelper("ruleset", "install")
        assert done.returncode == 0
        call(flow)
        assert "helper=sunrpc" not in world.conntrack("-L")
        done = daemon.cthelper("ruleset", "install", "--retag")
        assert re.search(r"^1 conntrack entries deleted", done.stdout, re.MULTILINE)
        call(flow)
        assert "helper=sunrpc" in world.conntrack("-L")
    assert daemon.cthelper("ruleset", "remove").returncode == 0


def test_doctor_finds_nothing_wrong_until_the_daemon_runs(daemon: Daemon) -> None:
    daemon.configure(CONFIG)
    healthy = daemon.cthelper("doctor")
    assert "FAIL" not in healthy.stdout
    assert healthy.returncode == 0
    daemon.start(CONFIG)
    running = daemon.cthelper("doctor")
    assert re.search(rf"^FAIL +queue {QUEUE} is in use", running.stdout, re.MULTILINE)
    assert running.returncode == 1


def test_doctor_tells_of_a_helper_that_another_program_left_queueing(
    world: World, daemon: Daemon
) -> None:
    daemon.configure(CONFIG)
    with helper_table(world) as helpers:
        left = replace(lab_mdns(), name="left", enabled=True)
        helpers.put(left)
        try:
            doctor = daemon.cthelper("doctor").stdout
            assert re.search("^warning +helpers queue to nobody.*left", doctor, re.M)
        finally:
            helpers.delete(left)
    assert "queue to nobody, " not in daemon.cthelper("doctor").stdout


def test_configuration_of_before_is_taken_with_a_warning(
    world: World, daemon: Daemon
) -> None:
    daemon.start(f'{CONFIG}queueing = "helper"\n')
    warning = daemon.await_event("config-warning")["detail"]
    assert "helpers.sunrpc.queueing has no effect any more" in warning
    with Echo(world.server):
        getport(world)[0].close()
    daemon.await_event("expectation")


# Plugins


PLUGIN = """
from cthelper.core.api import *

class Counter(Helper):
    name = "counter"
    transports = frozenset({{UDP}})
    ports = ({port},)
    policies = (Policy("data", 8, 60),)
    flows = 0

    def __init__(self):
        Counter.flows += 1
        self.flow, self.calls = Counter.flows, 0

    def on_message(self, message):
        if message.direction is ORIGINAL:
            self.calls += 1
            port = {first} + 10 * self.flow + self.calls
            yield from expect(Endpoint(message.source.address, port), policy="data")
"""


def test_plugin_is_reloaded_and_flows_keep_the_code_that_they_began_with(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    plugin = folder / "counter.py"
    reloads: list[str] = []

    def reload(event: str, text: str | None) -> dict[str, str]:
        plugin.unlink() if text is None else plugin.write_text(text)
        daemon.send_signal(signal.SIGHUP)
        reloads.append(event)
        return daemon.await_event(event, reloads.count(event))

    def announced(count: int) -> str:
        expects: str = daemon.await_event("expectation", count)["expects"]
        return expects.rpartition(":")[2]

    plugin.write_text(PLUGIN.format(port=PORT, first=7200))
    daemon.start(f'{OTHERS}[plugins]\nfolder = "{folder}"\n')
    with Echo(world.server), asker(world) as old:
        call(old)
        assert announced(1) == "7211"
        reload("reloaded", PLUGIN.format(port=PORT, first=7300))
        call(old)
        assert announced(2) == "7212"
        with asker(world) as new:
            call(new)
            assert announced(3) == "7311"
        error = reload("reload-refused", PLUGIN.format(port=0, first=7400))["error"]
        assert error == (
            f"{plugin}:7: Counter.ports = (0,): "
            "must be one or more of 1 to 65535, each once, in a tuple"
        )
        with asker(world) as new:
            call(new)
            assert announced(4) == "7321"
        assert reload("reloaded", None)["helpers"] == "mdns,sunrpc"
        call(old)
    assert daemon.stop() == 0
    assert len(daemon.events("expectation")) == 4
    assert daemon.events("helper-fault") == []
    assert registered(world) == []

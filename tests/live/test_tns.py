# SPDX-License-Identifier: GPL-2.0-or-later
"""Redirects of Oracle's listener: real clients, every form of a redirect, and sessions
that leave the queue.

Real clients connect all at a time, once without the daemon and once with it, since
starting things costs most. One daemon serves the whole module; it is reloaded for
chained redirects, so the tests of those stand last.
"""

import re
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.live.daemon import Daemon
from tests.live.tns_client import (
    NODE,
    PYTHON,
    Command,
    RealClient,
    Session,
    dial,
    exchange,
    follow,
)
from tests.live.tns_listener import (
    CONTROL_PORT,
    REDIRECTED,
    Accept,
    Answer,
    Form,
    Kind,
    Listener,
    Redirect,
    Refuse,
)
from tests.live.traffic import knock
from tests.live.world import CLIENT, CLIENT6, ETH, SERVER, SERVER6, Family, World, until

pytestmark = pytest.mark.live

# The server has these, too. The guard lets the first two be announced.
NODE1, NODE1_6 = "10.77.2.3", "fd77:2::3"
STRANGER, STRANGER6 = "10.77.2.4", "fd77:2::4"
DATABASE = "database.example"
TIMEOUT = 5
CONFIG = f"""
[helpers.tns]
hosts = ["{NODE1} {DATABASE}", "{NODE1_6} {DATABASE}"]
[[helpers.tns.guard.allow]]
from = ["{SERVER}", "10.77.2.16/28", "10.77.2.32/30"]
hosts = ["{NODE1}"]
ports = ["1024-65535"]
[[helpers.tns.guard.allow]]
from = "{SERVER6}"
hosts = "{NODE1_6}"
[helpers.tns.policies.redirect]
timeout = {TIMEOUT}
"""
CHAINED = CONFIG.replace(
    "[helpers.tns]\n", '[helpers.tns]\nchained = true\nhostname = "same"\n'
)
QUEUE = 2077


@dataclass(frozen=True)
class Case:
    """A client that is redirected; its name is the service that it asks for."""

    redirect: Redirect
    family: Family = 4

    @property
    def addresses(self) -> tuple[str, str]:
        """Those of the client and of the listener."""
        return (CLIENT, SERVER) if self.family == 4 else (CLIENT6, SERVER6)

    @property
    def target(self) -> str:
        """The address that it shall go to."""
        if self.redirect.host is None:
            return self.addresses[1]
        return NODE1 if self.family == 4 else NODE1_6


REAL: Final = {
    PYTHON: {
        "python-data": Case(Redirect(41521)),
        "python-data-6": Case(Redirect(41522), 6),
        "python-resend": Case(Redirect(41523, resend=True)),
        "python-pieces": Case(Redirect(41524, cut=7)),
        "python-other-host": Case(Redirect(41525, host=NODE1)),
    },
    NODE: {
        "node-data": Case(Redirect(41526)),
        "node-data-6": Case(Redirect(41527), 6),
        "node-inline": Case(Redirect(41528, form=Form.INLINE)),
        "node-inline-6": Case(Redirect(41529, form=Form.INLINE), 6),
        "node-host-name": Case(Redirect(41530, host=DATABASE)),
        "node-other-host-6": Case(Redirect(41531, host=NODE1_6), 6),
    },
}
CASES: Final = {name: case for cases in REAL.values() for name, case in cases.items()}

# For the client of the tests' own, which over IPv6 sends its connect data in DATA.
FORMS: Final = {
    "data": Case(Redirect(41541)),
    "data-bytes-6": Case(Redirect(41542, cut=1), 6),
    "data-resend-6": Case(Redirect(41543, resend=True), 6),
    "inline-6": Case(Redirect(41544, form=Form.INLINE), 6),
    "inline-bytes": Case(Redirect(41545, form=Form.INLINE, cut=1)),
    "inline-resend": Case(Redirect(41546, form=Form.INLINE, resend=True)),
    "zero-length": Case(Redirect(41547, form=Form.ZERO_LENGTH)),
    "zero-length-bytes-6": Case(Redirect(41548, form=Form.ZERO_LENGTH, cut=1), 6),
}
UNUSED: Final = Redirect(41551)
STRANGERS: Final = {
    SERVER: Redirect(41552, host=STRANGER),
    SERVER6: Redirect(41553, host=STRANGER6),
}
NAMELESS: Final = Redirect(41554, host="nowhere.example")
SESSION: Final = Redirect(41555)
POOL: Final = Redirect(41556)
CLUSTER: Final = Redirect(41557, host=NODE1)
NODES: Final = [f"10.77.2.{number}" for number in range(20, 36)]
CHAIN: Final = (Redirect(41561), Redirect(41562), Redirect(41563))
NODE_CHAIN: Final = (Redirect(41564), Redirect(41565))


def answers() -> dict[int, dict[str, Answer]]:
    """What the listener and the servers answer: port > service > answer."""
    table: dict[int, dict[str, Answer]] = {
        CONTROL_PORT: {"accept": Accept(), "refuse": Refuse()}
    }

    def add(service: str, *redirects: Redirect, end: Answer) -> None:
        ports = (CONTROL_PORT, *(each.port for each in redirects))
        for port, answer in zip(ports, (*redirects, end), strict=True):
            table.setdefault(port, {})[service] = answer

    for name, case in CASES.items():
        add(name, case.redirect, end=Refuse())
    for name, case in FORMS.items():
        add(name, case.redirect, end=Accept())
    for address, redirect in STRANGERS.items():
        add(f"stranger-{address}", redirect, end=Accept())
    add("unused", UNUSED, end=Accept())
    add("nameless", NAMELESS, end=Accept())
    add("session", SESSION, end=Accept())
    add("pool", POOL, end=Accept())
    add("cluster", CLUSTER, end=Accept())
    add("chain", *CHAIN, end=Accept())
    add("node-chain", *NODE_CHAIN, end=Refuse())
    return table


@dataclass
class Setting:
    """What all tests use, and what the clients did, chapter by chapter."""

    world: World
    daemon: Daemon
    listener: Listener
    clients: dict[Command, RealClient]
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, Counter[int]] = field(default_factory=dict)
    reached: dict[str, Kind] = field(default_factory=dict)
    related: int = 0
    entries: str = ""
    expected: str = ""

    @contextmanager
    def chapter(self, name: str) -> Iterator[None]:
        """Count what is dropped, by port."""
        before = self.world.drops()
        yield
        self.dropped[name] = Counter(
            {
                port: count - before.get((transport, port), 0)
                for (transport, port), count in self.world.drops().items()
                if transport == "tcp"
            }
        )

    def connect(self) -> dict[str, str]:
        """Run all real clients: what they say."""
        said: dict[str, str] = {}
        for command, cases in REAL.items():
            strings = {
                name: connect_string(name, case.family) for name, case in cases.items()
            }
            said |= self.clients[command].connect(strings)
        return said

    def follow(self) -> Iterator[tuple[str, Kind]]:
        """Have the client of the tests' own follow each form of a redirect."""
        for name, case in FORMS.items():
            with suppress(OSError):
                separate = case.family == 6
                client, address = self.world.client, case.addresses[1]
                with follow(client, address, name, separate=separate) as session:
                    yield name, session.kind

    def refused(self, redirect: Redirect) -> list[str]:
        """The reasons for which the redirect's endpoint was refused."""
        return [
            each["reason"]
            for each in self.daemon.events("refused")
            if re.search(rf":{redirect.port}\b", f"{each['endpoint']} {each['detail']}")
        ]

    def lost(self, redirect: Redirect) -> int:
        """How many packets to the redirect's port were dropped so far."""
        return self.world.dropped("tcp", redirect.port)

    def queued(self) -> int:
        """How many packets the kernel has put into the daemon's queue."""
        return self.world.queues()[QUEUE].last

    def queued_at_rest(self) -> int:
        """The same, once no acknowledgement is under way any more."""
        before = -1
        while before != (now := self.queued()):
            before = now
            time.sleep(0.5)
        return now

    def await_left(self, stream: socket.socket) -> None:
        """Wait for a flow of the client's to be no longer inspected."""
        host, port = stream.getsockname()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for each in self.daemon.events("marked"):
                if each["flow"].startswith(f"tcp {host}:{port} >"):
                    return
            time.sleep(0.05)
        raise AssertionError("the flow is not marked")


def connect_string(service: str, family: Family) -> str:
    host = SERVER if family == 4 else f"[{SERVER6}]"
    return f"{host}:{CONTROL_PORT}/{service}"


@pytest.fixture(scope="module")
def setting(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setting]:
    """Real clients without the daemon, with it, and after the timeout."""
    world.reset()
    world.firewall()
    addresses = (f"{NODE1}/24", f"{STRANGER}/24", f"{NODE1_6}/64", f"{STRANGER6}/64")
    with ExitStack() as stack:
        for each in addresses:
            world.server.tell(f"ip address add {each} dev {ETH}")
            stack.callback(world.server.tell, f"ip address del {each} dev {ETH}")
        world.client.tell(f"echo '{NODE1} {DATABASE}' >>/run/hosts")
        listener = stack.enter_context(Listener(world.server, answers()))
        clients = {command: RealClient(world.client, command) for command in REAL}
        for client in clients.values():
            stack.callback(client.close)
        folder = tmp_path_factory.mktemp("daemon")
        daemon = stack.enter_context(Daemon(world.gateway, folder))
        setting = Setting(world, daemon, listener, clients)
        with setting.chapter("without"):
            setting.said["without"] = setting.connect()
        daemon.start(CONFIG)
        with setting.chapter("working"):
            setting.said["working"] = setting.connect()
            setting.reached = dict(setting.follow())
        setting.related = world.counter("related-forward")
        setting.entries = "".join(
            world.conntrack("-L", "-f", family) for family in ("ipv4", "ipv6")
        )
        with setting.chapter("again"):
            for case in FORMS.values():
                knock(world, "tcp", case.redirect.port, case.target)
        with Session(world.client, SERVER, CONTROL_PORT, "unused"):
            setting.expected = world.conntrack("-L", "expect")
            time.sleep(TIMEOUT + 1)
            with setting.chapter("late"):
                for case in CASES.values():
                    knock(world, "tcp", case.redirect.port, case.target)
                knock(world, "tcp", UNUSED.port)
        yield setting


# Real clients


@pytest.mark.parametrize("name", CASES)
def test_client_fails_without_the_daemon_at_the_redirect(
    setting: Setting, name: str
) -> None:
    assert "is not registered" not in setting.said["without"][name]
    assert setting.dropped["without"][CASES[name].redirect.port] > 0


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command, cases in REAL.items() for name in cases],
)
def test_client_follows_the_redirect_with_the_daemon(
    setting: Setting, command: Command, name: str
) -> None:
    case = CASES[name]
    port = case.redirect.port
    said = setting.said["working"][name]
    assert re.search(
        rf"not registered with the listener at host .* port {port}\b", said
    )
    assert setting.dropped["working"][port] == 0
    first, *_, last = setting.listener.connects(name)
    assert (last.host, last.port) == (case.target, port)
    assert not first.flags & REDIRECTED
    assert last.flags & REDIRECTED
    # Both ways of sending connect data are used.
    assert last.separate is (command == PYTHON)


@pytest.mark.parametrize("name", CASES)
def test_redirected_flow_was_expected(setting: Setting, name: str) -> None:
    case = CASES[name]
    source, _ = case.addresses
    port = case.redirect.port
    flow = rf"tcp .*src={source} dst={case.target} .*dport={port} src="
    assert re.search(flow, setting.entries)
    (announced,) = [
        each
        for each in setting.daemon.events("expectation")
        if each["expects"].endswith(f":{port}")
    ]
    assert announced["expects"].startswith(f"tcp {source} ")
    assert announced["timeout"] == TIMEOUT


def test_redirected_flows_are_related(setting: Setting) -> None:
    assert setting.related >= len(CASES) + len(FORMS)


@pytest.mark.parametrize("name", CASES)
def test_port_is_shut_after_the_timeout(setting: Setting, name: str) -> None:
    assert setting.dropped["late"][CASES[name].redirect.port] > 0


def test_redirect_that_nobody_followed_is_shut_after_the_timeout(
    setting: Setting,
) -> None:
    assert f"dport={UNUSED.port} " in setting.expected
    assert setting.dropped["late"][UNUSED.port] > 0


# Forms, which no real client follows all


@pytest.mark.parametrize("name", FORMS)
def test_redirect_of_every_form_admits_one_flow(setting: Setting, name: str) -> None:
    port = FORMS[name].redirect.port
    assert setting.reached[name] is Kind.ACCEPT
    assert setting.dropped["working"][port] == 0
    assert setting.dropped["again"][port] > 0


# Where to


@pytest.mark.parametrize("address", STRANGERS)
def test_redirect_to_another_host_is_refused(setting: Setting, address: str) -> None:
    with pytest.raises(TimeoutError):
        follow(setting.world.client, address, f"stranger-{address}")
    assert setting.refused(STRANGERS[address]) == ["third-party-address"]
    assert setting.lost(STRANGERS[address]) > 0


def test_redirect_to_an_unknown_name_is_refused(setting: Setting) -> None:
    names = {NAMELESS.host or "": SERVER}
    with pytest.raises(TimeoutError):
        follow(setting.world.client, SERVER, "nameless", names=names)
    assert setting.refused(NAMELESS) == ["unknown-host"]
    assert setting.lost(NAMELESS) > 0


def test_redirect_to_a_redirect_is_not_followed_by_default(setting: Setting) -> None:
    with pytest.raises(TimeoutError):
        follow(setting.world.client, SERVER, "chain")
    assert setting.lost(CHAIN[0]) == 0
    assert setting.lost(CHAIN[1]) > 0


# The queue

# Packets of a session, 2 MiB each way.
BULK = 256


@pytest.mark.parametrize(
    ("service", "kind"), [("accept", Kind.ACCEPT), ("refuse", Kind.REFUSE)]
)
def test_flow_leaves_the_queue_once_the_listener_has_decided(
    setting: Setting, service: str, kind: Kind
) -> None:
    began = setting.queued()
    with Session(setting.world.client, SERVER, CONTROL_PORT, service) as session:
        assert session.kind is kind
        setting.await_left(session.stream)
        decided = setting.queued()
        assert decided > began
        session.exchange(BULK)
    assert setting.queued_at_rest() == decided


def test_redirected_session_is_never_queued(setting: Setting) -> None:
    target = (SERVER, SESSION.port)
    with Session(setting.world.client, SERVER, CONTROL_PORT, "session") as listener:
        assert listener.target == target
        began = setting.queued_at_rest()
        with Session(setting.world.client, *target, "session") as session:
            session.exchange(BULK)
        assert setting.queued_at_rest() == began


def test_pool_has_all_its_sessions_and_nobody_one_more(setting: Setting) -> None:
    """Each is redirected to one endpoint before any of them connects there."""
    client, size = setting.world.client, 3
    redirected = (SERVER, CONTROL_PORT, "pool")
    with ExitStack() as stack:
        for _ in range(size):
            asked = stack.enter_context(Session(client, *redirected))
            assert asked.target == (SERVER, POOL.port)
        for _ in range(size):
            session = Session(client, SERVER, POOL.port, "pool")
            assert stack.enter_context(session).kind is Kind.ACCEPT
        # The daemon withdraws it once it has read of the last of them.
        port = f"dport={POOL.port} "
        assert until(lambda: port not in setting.world.conntrack("-L", "expect"), 30.0)
        with pytest.raises(TimeoutError):
            Session(client, SERVER, POOL.port, "pool")
    told = [
        (each["how"], each["flows"])
        for each in setting.daemon.events("expectation")
        if str(each["expects"]).endswith(f":{POOL.port}")
    ]
    assert told == [("created", 1), ("shared", 2), ("shared", 3)]


def test_flow_with_tls_leaves_the_queue(setting: Setting) -> None:
    with dial(setting.world.client, SERVER, CONTROL_PORT) as stream:
        exchange(stream, client_hello())
        setting.await_left(stream)
        began = setting.queued()
        exchange(stream, bytes(BULK << 13))
    assert setting.queued_at_rest() == began


def client_hello() -> bytes:
    """What a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=DATABASE).do_handshake()
    return outgoing.read()


def test_nothing_failed(setting: Setting) -> None:
    for event in ("malformed", "helper-fault", "step-failed", "overload"):
        assert setting.daemon.events(event) == []


# Chained redirects, and names of the announcing server: with another configuration


@pytest.fixture(scope="module")
def chained(setting: Setting) -> Setting:
    """The daemon is reloaded."""
    setting.daemon.configure(CHAINED)
    setting.daemon.send_signal(signal.SIGHUP)
    setting.daemon.await_event("reloaded")
    return setting


def test_unknown_name_means_the_server_where_it_is_configured(
    chained: Setting,
) -> None:
    names = {NAMELESS.host or "": SERVER}
    with follow(chained.world.client, SERVER, "nameless", names=names) as session:
        assert session.kind is Kind.ACCEPT


@pytest.mark.parametrize("address", [SERVER, SERVER6])
def test_redirect_to_redirects_is_followed(chained: Setting, address: str) -> None:
    with follow(chained.world.client, address, "chain") as session:
        assert session.kind is Kind.ACCEPT
        assert session.stream.getpeername()[1] == CHAIN[-1].port
        session.exchange(1)


def test_client_follows_two_redirects(chained: Setting) -> None:
    client = chained.clients[NODE]
    said = client.connect({"node-chain": connect_string("node-chain", 4)})
    assert f"port {NODE_CHAIN[-1].port}." in said["node-chain"]


def test_session_that_may_redirect_leaves_the_queue_when_it_does_not(
    chained: Setting,
) -> None:
    with follow(chained.world.client, SERVER, "session") as session:
        chained.await_left(session.stream)
        began = chained.queued_at_rest()
        session.exchange(1)
        assert chained.queued_at_rest() == began


def test_daemon_ends_well(chained: Setting) -> None:
    assert chained.daemon.stop() == 0
    test_nothing_failed(chained)


def test_pool_has_all_its_sessions_whichever_workers_read_them(
    setting: Setting,
) -> None:
    """Nodes of a cluster redirect to one; their flows have different workers."""
    client = setting.world.client
    long = CONFIG.replace(f"timeout = {TIMEOUT}", "timeout = 60")
    setting.daemon.stop()
    setting.daemon.start(f"[daemon]\nworkers = 2\n{long}")
    with ExitStack() as stack:
        for node in NODES:
            address = f"{node}/24 dev {ETH}"
            setting.world.server.tell(f"ip address add {address}")
            stack.callback(setting.world.server.tell, f"ip address del {address}")
        for node in NODES:
            asked = stack.enter_context(Session(client, node, CONTROL_PORT, "cluster"))
            assert asked.target == (NODE1, CLUSTER.port)
        told = [
            each
            for each in setting.daemon.events("expectation")
            if str(each["expects"]).endswith(f":{CLUSTER.port}")
        ]
        assert len(told) == len(NODES)
        assert {each["worker"] for each in told} == {0, 1}
        for _ in NODES:
            session = Session(client, NODE1, CLUSTER.port, "cluster")
            assert stack.enter_context(session).kind is Kind.ACCEPT
    test_nothing_failed(setting)
    assert setting.daemon.stop() == 0

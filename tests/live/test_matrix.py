# SPDX-License-Identifier: GPL-2.0-or-later
"""Behind NAT: each real client fails without the daemon, and works with it.

Source NAT (masquerade of the client), destination NAT (the server behind the gateway's
address) and both, over IPv4 and IPv6. One kind is part of every run; ``script/live
--matrix`` runs all (NAT_MATRIX=all) and prints the table.
"""

import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.live.compared import WHOLE, print_table
from tests.live.conntrackd import RPC_TNS, conntrackd
from tests.live.daemon import Daemon
from tests.live.tns_client import NODE, PYTHON, RealClient, dial, exchange
from tests.live.tns_listener import (
    CONTROL_PORT,
    Accept,
    Answer,
    Form,
    Kind,
    Listener,
    Redirect,
    Refuse,
    encode,
    encode_connect,
    encode_data,
    receive_packet,
)
from tests.live.world import (
    CLIENT,
    ETH,
    GATEWAY_LAN,
    GATEWAY_LAN6,
    GATEWAY_WAN,
    LAN,
    MOUNTD,
    SERVER,
    SERVER6,
    WAN,
    Family,
    World,
    nfs_url,
)

pytestmark = pytest.mark.live

FAMILIES: Final[tuple[Family, ...]] = (4, 6)
NATS: Final = ("masquerade", "dnat", "both")
CHOSEN: Final = NATS if WHOLE else ("both",)

MASQUERADE: Final = f"""table inet nat {{
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname "{WAN}" masquerade
	}}
}}
"""
FORWARD: Final = f"""table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname != "{LAN}" return
		meta l4proto {{ tcp, udp }} th dport != {{ 111, 1521 }} return
		fib daddr type local ip version 4 dnat ip to {SERVER}
		fib daddr type local ip6 version 6 dnat ip6 to {SERVER6}
	}}
}}
"""
RULES: Final = {
    "masquerade": MASQUERADE,
    "dnat": FORWARD,
    "both": MASQUERADE + FORWARD,
}

FAILING_SECONDS: Final = 6.0
WORKING_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Cell:
    """A client that goes to a server over one family."""

    client: str
    family: Family

    def __str__(self) -> str:
        return f"{self.client}, IPv{self.family}"

    @property
    def server(self) -> str:
        """The server's own address."""
        return SERVER if self.family == 4 else SERVER6

    def target(self, nat: str) -> str:
        """The address that the client knows."""
        if nat == "masquerade":
            return self.server
        return GATEWAY_LAN if self.family == 4 else GATEWAY_LAN6

    @property
    def port(self) -> int:
        """The port that a TNS listener redirects this cell's client to."""
        return 41600 + CELLS.index(self)

    def argv(self, nat: str) -> tuple[str, ...]:
        """The command of an RPC client."""
        address = self.target(nat)
        six = "6" if self.family == 6 else ""
        rpcinfo = ("rpcinfo", "-T")
        return {
            "rpcinfo tcp": (*rpcinfo, f"tcp{six}", address, str(MOUNTD), "3"),
            "rpcinfo udp": (*rpcinfo, f"udp{six}", address, str(MOUNTD), "3"),
            "showmount": ("showmount", "-e", address),
            "nfs-ls": ("nfs-ls", nfs_url(address)),
        }[self.client]

    def connect_string(self, nat: str) -> str:
        """Where a client of Oracle connects to."""
        address = self.target(nat)
        host = f"[{address}]" if self.family == 6 else address
        return f"{host}:{CONTROL_PORT}/{self.port}"


RPC: Final = ("rpcinfo tcp", "rpcinfo udp", "showmount", "nfs-ls")
ORACLE: Final = {"python-oracledb, DATA": PYTHON, "node-oracledb, inline": NODE}
CELLS: Final = [
    Cell(client, family) for client in (*RPC, *ORACLE) for family in FAMILIES
]


@dataclass
class Result:
    """What came of all cells of one kind of NAT, without the daemon and with it."""

    without: dict[Cell, bool] = field(default_factory=dict)
    working: dict[Cell, bool] = field(default_factory=dict)
    theirs: dict[Cell, bool] = field(default_factory=dict)
    """With conntrackd, in the whole matrix only."""
    leaks: list[bytes] = field(default_factory=list)
    log: str = ""


def answers() -> dict[int, dict[str, Answer]]:
    """The listener sends each client to a port of its own, and refuses it there."""
    table: dict[int, dict[str, Answer]] = {CONTROL_PORT: {}}
    for cell in CELLS:
        if cell.client in ORACLE:
            form = Form.INLINE if "inline" in cell.client else Form.DATA
            service = str(cell.port)
            table[CONTROL_PORT][service] = Redirect(cell.port, form=form)
            table[cell.port] = {service: Refuse()}
    return table


def run(
    world: World, clients: dict[str, RealClient], nat: str, seconds: float
) -> dict[Cell, bool]:
    """Run the clients of all cells, side by side; whether each was served."""
    served: dict[Cell, bool] = {}
    with ThreadPoolExecutor() as threads:
        futures = {
            cell: threads.submit(world.client.run, *cell.argv(nat), timeout=seconds)
            for cell in CELLS
            if cell.client in RPC
        }
        for name, client in clients.items():
            cells = {str(each.port): each for each in CELLS if each.client == name}
            said = client.connect(
                {service: cell.connect_string(nat) for service, cell in cells.items()}
            )
            for service, text in said.items():
                wanted = rf"not registered with the listener .* port {service}\b"
                served[cells[service]] = re.search(wanted, text) is not None
        for cell, future in futures.items():
            served[cell] = future.result().returncode == 0
    return served


@contextmanager
def overheard(world: World) -> Iterator[list[bytes]]:
    """All frames that the client's interface sees meanwhile; whole at the end."""
    frames: list[bytes] = []
    with world.client.entered():
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    ear.bind((ETH, 0))
    ear.settimeout(0.2)
    ended = threading.Event()

    def listen() -> None:
        while not ended.is_set():
            try:
                frames.append(ear.recv(65535))
            except TimeoutError:
                continue

    thread = threading.Thread(target=listen)
    with ear:
        thread.start()
        try:
            yield frames
        finally:
            ended.set()
            thread.join()


def inside(frames: list[bytes]) -> list[bytes]:
    """The frames that show one of the server's own addresses, in any form."""
    packed = [socket.inet_pton(socket.AF_INET, SERVER)]
    packed.append(socket.inet_pton(socket.AF_INET6, SERVER6))
    told = [re.compile(rb"(?<![0-9.])" + re.escape(SERVER.encode()) + rb"(?![0-9])")]
    told.append(re.compile(re.escape(SERVER6.encode()) + rb"(?![0-9a-f:])"))
    return [
        frame
        for frame in frames
        if any(each in frame for each in packed)
        or any(each.search(frame) for each in told)
    ]


@pytest.fixture(scope="module", params=CHOSEN)
def result(
    request: pytest.FixtureRequest,
    world: World,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Result]]:
    """All cells of one kind of NAT."""
    nat: str = request.param
    world.reset()
    world.firewall()
    world.start_rpc()
    world.gateway.run("nft", "-f", "-", input=RULES[nat], check=True)
    result = Result()
    with ExitStack() as stack:
        stack.enter_context(Listener(world.server, answers()))
        clients = {
            name: RealClient(world.client, command) for name, command in ORACLE.items()
        }
        for client in clients.values():
            stack.callback(client.close)
        result.without = run(world, clients, nat, FAILING_SECONDS)
        daemon = Daemon(world.gateway, tmp_path_factory.mktemp("daemon"))
        with daemon, overheard(world) as frames:
            world.conntrack("-F")
            daemon.start()
            result.working = run(world, clients, nat, WORKING_SECONDS)
            daemon.stop()
            result.log = daemon.text
        if WHOLE:
            world.conntrack("-F")
            folder = tmp_path_factory.mktemp("conntrackd")
            with conntrackd(world, folder, *RPC_TNS):
                result.theirs = run(world, clients, nat, FAILING_SECONDS)
    result.leaks = inside(frames)
    yield nat, result
    columns = {"without": result.without, "cthelper": result.working}
    print_table(nat, CELLS, columns | {"conntrackd": result.theirs})


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_client_fails_without_the_daemon(
    result: tuple[str, Result], cell: Cell
) -> None:
    assert not result[1].without[cell]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_client_works_with_the_daemon(result: tuple[str, Result], cell: Cell) -> None:
    assert result[1].working[cell], result[1].log


def test_nothing_was_refused_and_nothing_failed(result: tuple[str, Result]) -> None:
    events = re.findall(r'"event": ?"([a-z-]+)"', result[1].log)
    assert "expectation" in events
    assert not {"refused", "malformed", "helper-fault", "step-failed"} & {*events}


def test_no_inside_address_is_seen_outside(result: tuple[str, Result]) -> None:
    nat, outcome = result
    if nat == "masquerade":
        # The client knows the server by its own address there.
        assert outcome.leaks
    else:
        assert outcome.leaks == []


# A text of another length


PUBLIC_LONG: Final = "10.77.1.101"
PUBLIC_SHORT: Final = "10.7.7.1"
DATA_PORT: Final = 41700
_CHUNK: Final = 8000


class Redirecting(threading.Thread):
    """A server that redirects, and goes on with the connection as with any other.

    It sends back what comes after its redirect, until the client closes.
    """

    def __init__(self, world: World, *, separate: bool) -> None:
        super().__init__(daemon=True)
        self._separate = separate
        with world.server.entered():
            self.socket = socket.create_server((SERVER, CONTROL_PORT))
            self.data = socket.create_server((SERVER, DATA_PORT))

    def run(self) -> None:
        """Serve one client on each port."""
        stream, _ = self.socket.accept()
        with stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            receive_packet(stream)
            text = f"(ADDRESS=(PROTOCOL=tcp)(HOST={SERVER})(PORT={DATA_PORT}))\0x"
            packets = [
                encode(Kind.REDIRECT, struct.pack("!H", len(text))),
                encode_data(text.encode()),
            ]
            if self._separate:
                for packet in packets:
                    stream.sendall(packet)
                    threading.Event().wait(0.05)
            else:
                stream.sendall(b"".join(packets))
            while data := stream.recv(1 << 18):
                stream.sendall(data)

    def close(self) -> None:
        """Free the ports."""
        self.socket.close()
        self.data.close()


@contextmanager
def redirected(
    world: World, daemon: Daemon, public: str, *, separate: bool
) -> Iterator[tuple[socket.socket, int, bytes]]:
    """A connection to `public`, and the redirect that came: its length and text."""
    world.firewall()
    world.gateway.run("nft", "-f", "-", input=RULES["both"], check=True)
    world.gateway.tell(f"ip address add {public}/32 dev {LAN}")
    server = Redirecting(world, separate=separate)
    try:
        server.start()
        daemon.start()
        with dial(world.client, public, CONTROL_PORT) as stream:
            stream.sendall(encode_connect(b"(DESCRIPTION=(CONNECT_DATA=))"))
            (length,) = struct.unpack("!H", receive_packet(stream).body)
            yield stream, length, receive_packet(stream).body[2:]
    finally:
        server.close()
        world.gateway.tell(f"ip address del {public}/32 dev {LAN}")


@pytest.mark.parametrize(
    ("public", "separate"),
    [(PUBLIC_LONG, False), (PUBLIC_SHORT, False), (PUBLIC_SHORT, True)],
    ids=["longer", "shorter", "shorter, in segments of their own"],
)
def test_connection_goes_on_after_a_redirect_of_another_length(
    world: World, daemon: Daemon, public: str, separate: bool
) -> None:
    with redirected(world, daemon, public, separate=separate) as came:
        stream, length, text = came
        assert len(text) == length
        assert f"(HOST={public})".encode() in text
        with dial(world.client, public, DATA_PORT):
            pass
        # More than 1 MB both ways, in DATA packets.
        head = struct.pack("!HHBBH", _CHUNK + 8, 0, Kind.DATA, 0, 0)
        exchange(stream, (head + os.urandom(_CHUNK)) * 160)
        assert daemon.events("refused") == []


def test_longer_text_whose_length_has_gone_on_is_refused(
    world: World, daemon: Daemon
) -> None:
    with redirected(world, daemon, PUBLIC_LONG, separate=True) as (_, _, text):
        # It is accepted as it is, and nothing is open.
        assert f"(HOST={SERVER})".encode() in text
        assert [each["reason"] for each in daemon.events("refused")] == [
            "rewrite-passed"
        ]
        assert world.conntrack("-L", "expect") == ""


# Two clients behind one address

SECOND: Final = "10.77.1.3"
FTP_PORT: Final = 21
ANNOUNCED: Final = 45000


@contextmanager
def second_address(world: World) -> Iterator[None]:
    """Give the client another address."""
    world.client.tell(f"ip address add {SECOND}/24 dev {ETH}")
    try:
        yield
    finally:
        world.client.tell(f"ip address del {SECOND}/24 dev {ETH}")


def test_two_clients_behind_one_address_are_redirected_to_one_port(
    world: World, daemon: Daemon
) -> None:
    world.firewall()
    world.gateway.run("nft", "-f", "-", input=RULES["both"], check=True)
    table: dict[int, dict[str, Answer]] = {
        CONTROL_PORT: {"same": Redirect(DATA_PORT)},
        DATA_PORT: {"same": Accept()},
    }
    text = b"(DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME=same)))"
    with ExitStack() as stack:
        stack.enter_context(second_address(world))
        stack.enter_context(Listener(world.server, table))
        daemon.start()
        for source in (CLIENT, SECOND):
            ends = []
            for port in (CONTROL_PORT, DATA_PORT):
                stream = dial(world.client, GATEWAY_LAN, port, source=source)
                stack.enter_context(stream)
                stream.sendall(encode_connect(text))
                ends.append(Kind(receive_packet(stream).kind))
                if port == CONTROL_PORT:
                    assert f"(HOST={GATEWAY_LAN})".encode() in stream.recv(4096)
            assert ends == [Kind.REDIRECT, Kind.ACCEPT]
    assert daemon.events("refused") == []


@pytest.mark.parametrize("taken", [False, True])
def test_port_that_another_client_has_announced_is_written_as_another(
    world: World, daemon: Daemon, taken: bool
) -> None:
    """The server opens the data flow: FTP's PORT."""
    world.firewall()
    world.gateway.run("nft", "-f", "-", input=RULES["masquerade"], check=True)
    rule = f"inet firewall forward iifname {LAN} tcp dport {FTP_PORT} accept"
    world.gateway.run("nft", "insert", "rule", *rule.split(), check=True)
    numbers = ",".join(map(str, divmod(ANNOUNCED, 256)))
    with ExitStack() as stack:
        stack.enter_context(second_address(world))
        with world.server.entered():
            control = stack.enter_context(socket.create_server((SERVER, FTP_PORT)))
        daemon.start()
        ports = []
        for source in (CLIENT, SECOND) if taken else (SECOND,):
            client = dial(world.client, SERVER, FTP_PORT, source=source)
            stack.enter_context(client)
            server = stack.enter_context(control.accept()[0])
            server.settimeout(20)
            server.sendall(b"220 ready\r\n")
            client.recv(100)
            client.sendall(f"PORT {source.replace('.', ',')},{numbers}\r\n".encode())
            *_, high, low = server.recv(100).decode().strip().split(",")
            ports.append(int(high) * 256 + int(low))
        with world.client.entered():
            data = stack.enter_context(socket.create_server((SECOND, ANNOUNCED)))
        assert ports == ([ANNOUNCED, ANNOUNCED + 1] if taken else [ANNOUNCED])
        with dial(world.server, GATEWAY_WAN, ports[-1]) as opened:
            data.settimeout(20)
            accepted = stack.enter_context(data.accept()[0])
            opened.sendall(b"the second")
            assert accepted.recv(100) == b"the second"

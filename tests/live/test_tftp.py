# SPDX-License-Identifier: GPL-2.0-or-later
"""TFTP: real clients and servers, which fail without the daemon and work with it.

All clients run side by side, over IPv4 and IPv6, and the address that each knows its
server by says whether client, server or both are translated. One daemon serves the
whole module. ``script/live --matrix`` runs them with the helpers of others as well and
prints a table.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.live.chapters import FAULTS
from tests.live.compared import WHOLE, print_table, with_others
from tests.live.conntrackd import Tagged
from tests.live.daemon import Daemon, only
from tests.live.world import (
    CLIENT,
    ETH,
    GATEWAY_LAN,
    GATEWAY_LAN6,
    GATEWAY_WAN,
    GATEWAY_WAN6,
    LAN,
    SERVER,
    SERVER6,
    WAN,
    Family,
    Namespace,
    World,
    until,
)

pytestmark = pytest.mark.live

PORT: Final = 69
QUEUE: Final = 2077
FOLDER: Final = "/run/tftp"
# Several blocks of 512 bytes, and one that is not full.
TEXT: Final = "".join(f"line {number} of the file\n" for number in range(60))
# A transfer of which each packet would be seen, were it queued.
LARGE: Final = 200 * 512

# What a client knows its server by, over IPv4 and IPv6. The server's second address is
# that of clients which are translated; all are its own but the gateway's.
SECOND: Final = ("10.77.2.5", "fd77:2::5")
OUTSIDE: Final = ("10.77.1.101", "fd77:1::101")
SINGLE: Final = ("10.77.2.6", "fd77:2::6")
DNSMASQ: Final = ("10.77.2.7", "fd77:2::7")
# Nobody serves at these.
SILENT, OTHER = "10.77.2.8", "10.77.2.9"
KNOWN: Final = {
    "plain": (SERVER, SERVER6),
    "masquerade": SECOND,
    "dnat": (GATEWAY_LAN, GATEWAY_LAN6),
    "both": OUTSIDE,
    "dnsmasq": DNSMASQ,
    "one port": SINGLE,
}
FAMILIES: Final[tuple[Family, ...]] = (4, 6)
NATS: Final = ("plain", "masquerade", "dnat", "both")

RULES: Final = f"""
insert rule inet firewall forward iifname {LAN} oifname {WAN} udp dport {PORT} accept
table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname != {LAN} return
		udp dport != {PORT} return
		ip daddr {GATEWAY_LAN} dnat ip to {SERVER}
		ip daddr {OUTSIDE[0]} dnat ip to {SECOND[0]}
		ip6 daddr {GATEWAY_LAN6} dnat ip6 to {SERVER6}
		ip6 daddr {OUTSIDE[1]} dnat ip6 to {SECOND[1]}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname {WAN} ip daddr {SECOND[0]} masquerade
		oifname {WAN} ip6 daddr {SECOND[1]} masquerade
	}}
}}
"""
THEIRS: Final = Tagged("tftp", "udp", str(PORT))

# Each asks within these seconds.
FAILING_SECONDS: Final = 5.0
WORKING_SECONDS: Final = 60.0
# After so many seconds tftp-hpa's client and server send again what is not answered.
# The client has one port for all its files and listens to any port of the server's:
# where one of them sent twice, it would take a block of one file for one of the next.
PATIENCE: Final = 20

_TFTPY: Final = """
import sys, tftpy
host, file = sys.argv[1:]
tftpy.TftpClient(host).download("a", file, timeout=2)
"""


@dataclass(frozen=True)
class Cell:
    """A client that goes to a server over one family, in one way."""

    client: str
    family: Family
    way: str

    def __str__(self) -> str:
        return f"{self.client}, IPv{self.family}, {self.way}"

    @property
    def file(self) -> str:
        """Where the client puts what it gets, and what it puts on the server."""
        return str(self).replace(", ", "-").replace(" ", "-")

    @property
    def script(self) -> str:
        """What a shell of the client runs, which prints what was transferred."""
        host, here = KNOWN[self.way][self.family == 6], f"/run/{self.file}"
        url = f"tftp://[{host}]" if self.family == 6 else f"tftp://{host}"
        return {
            "curl": f"curl -sS {url}/a",
            "curl -T": f"curl -sS -T /run/a {url}/{self.file} && cat /run/a",
            "tftp-hpa": (
                f"tftp -{self.family} -m binary {host} <<EOF >{here}.log\n"
                f"rexmt {PATIENCE}\n"
                f"get a {here}.a\nget b {here}.b\nput {here}.a {self.file}\n"
                f"EOF\ncat {here}.log >&2; cat {here}.a {here}.b"
            ),
            # It asks whether a file that is there may be written to.
            "atftp": f"rm -f {here}; atftp --get -r a -l {here} {host} && cat {here}",
            "tftpy": f'{sys.executable} -c "$TFTPY" {host} {here} && cat {here}',
        }[self.client]

    @property
    def prints(self) -> str:
        """What it prints where all transfers succeed."""
        return TEXT + TEXT[::-1] if self.client == "tftp-hpa" else TEXT

    @property
    def puts(self) -> bool:
        """Whether it puts a file on the server, too."""
        return self.client in ("curl -T", "tftp-hpa")


CELLS: Final = [
    *(Cell("curl", family, way) for way in NATS for family in FAMILIES),
    *(
        Cell("tftp-hpa", family, way)
        for way in (NATS if WHOLE else ("plain", "both"))
        for family in FAMILIES
    ),
    Cell("curl -T", 6, "both"),
    Cell("atftp", 4, "masquerade"),
    Cell("atftp", 6, "plain"),
    Cell("tftpy", 4, "both"),
    Cell("curl", 6, "dnsmasq"),
]
# A server with one port needs no help.
ONE_PORT: Final = [Cell("curl", family, "one port") for family in FAMILIES]


@dataclass
class Story:
    """What all tests use, and what came of the clients."""

    world: World
    daemon: Daemon
    without: dict[Cell, str] = field(default_factory=dict)
    working: dict[Cell, str] = field(default_factory=dict)

    def run(self, cells: list[Cell], seconds: float) -> dict[Cell, str]:
        """Run these clients, side by side; what was amiss with each, if anything."""
        self.world.forget()
        self.world.server.tell(f"rm -f {FOLDER}/*-*")
        with ThreadPoolExecutor(len(cells)) as pool:
            amiss = pool.map(lambda each: self._amiss(each, seconds), cells)
            return dict(zip(cells, amiss, strict=True))

    def _amiss(self, cell: Cell, seconds: float) -> str:
        # It ends the shell's children, too, which would go on asking.
        ended = ("timeout", str(seconds), "env", f"TFTPY={_TFTPY}")
        done = self.world.client.run(
            *ended, "sh", "-c", cell.script, timeout=seconds + 20
        )
        put = Path(f"/proc/{self.world.server.pid}/root{FOLDER}/{cell.file}")
        if done.stdout != cell.prints:
            return f"ended with {done.returncode}: {done.stderr!r} {done.stdout!r}"
        if cell.puts and not until(lambda: put.read_text() == TEXT, 10.0):
            return "what it put is not there"
        return ""


@contextmanager
def addresses(namespace: Namespace, device: str, *hosts: str) -> Iterator[None]:
    """The namespace has these, too."""
    lengths = {each: 64 if ":" in each else 24 for each in hosts}
    for host, length in lengths.items():
        nodad = "nodad" if ":" in host else ""
        namespace.tell(f"ip address add {host}/{length} dev {device} {nodad}")
    try:
        yield
    finally:
        for host, length in lengths.items():
            namespace.tell(f"ip address del {host}/{length} dev {device}")


def start_servers(server: Namespace) -> list["subprocess.Popen[str]"]:
    """tftpd-hpa for clients that are translated and that are not, dnsmasq both ways."""
    server.tell(
        f"mkdir -p {FOLDER}\ncat >{FOLDER}/a <<'EOF'\n{TEXT}EOF\n"
        f"printf %s '{TEXT[::-1]}' >{FOLDER}/b\n"
        f"head -c {LARGE} /dev/zero >{FOLDER}/large\n"
    )
    started = [
        server.start(
            *("in.tftpd", "-L", "-c", "-u", "root", "-T", f"{PATIENCE}000000", "-s"),
            *("-6" if ":" in host else "-4", "-a"),
            *(f"[{host}]:{PORT}" if ":" in host else f"{host}:{PORT}", FOLDER),
        )
        for host in (SERVER, SERVER6, *SECOND)
    ]
    for hosts, more in ((DNSMASQ, ()), (SINGLE, ("--tftp-single-port",))):
        started.append(
            server.start(
                *("dnsmasq", "-k", "-C", "/dev/null", "-p", "0", "-u", "root"),
                *("--pid-file=", "--enable-tftp", f"--tftp-root={FOLDER}"),
                *("--bind-dynamic", *(f"--listen-address={each}" for each in hosts)),
                *more,
            )
        )
    every = (SERVER, SERVER6, *SECOND, *DNSMASQ, *SINGLE)
    assert until(lambda: set(every) <= listening(server), 30.0), server.log()
    return started


def listening(namespace: Namespace) -> set[str]:
    """The addresses at which somebody listens on TFTP's port."""
    lines = namespace.run("ss", "-Huln", f"sport = :{PORT}", check=True).stdout
    return {
        line.split()[3].rpartition(":")[0].strip("[]") for line in lines.splitlines()
    }


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All clients run without the daemon, which is then started, and once more."""
    world.reset()
    world.firewall(RULES)
    own = (*SECOND, *SINGLE, *DNSMASQ, SILENT, OTHER)
    with (
        addresses(world.server, ETH, *own),
        addresses(world.gateway, LAN, *OUTSIDE),
        Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon,
    ):
        servers = start_servers(world.server)
        world.client.tell(f"cat >/run/a <<'EOF'\n{TEXT}EOF")
        story = Story(world, daemon)
        try:
            story.without = story.run(CELLS, FAILING_SECONDS)
            story.without |= story.run(ONE_PORT, WORKING_SECONDS)
            others = tmp_path_factory.mktemp("conntrackd")
            theirs = with_others(
                world, others, THEIRS, lambda: story.run(CELLS, WORKING_SECONDS)
            )
            daemon.start(only("tftp"))
            story.working = story.run(CELLS + ONE_PORT, WORKING_SECONDS)
            yield story
        finally:
            for each in servers:
                each.terminate()
    said = {"without": story.without, "cthelper": story.working} | theirs
    works = {
        whose: {cell: not amiss for cell, amiss in each.items()}
        for whose, each in said.items()
    }
    print_table("TFTP", CELLS, works)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_client_fails_without_the_daemon(story: Story, cell: Cell) -> None:
    assert story.without[cell]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_clients_all_at_once_work_with_the_daemon(story: Story, cell: Cell) -> None:
    assert not story.working[cell]


@pytest.mark.parametrize("cell", ONE_PORT, ids=str)
def test_server_with_one_port_needs_no_help_and_keeps_it(
    story: Story, cell: Cell
) -> None:
    assert not story.without[cell]
    assert not story.working[cell]


def test_one_socket_had_several_transfers(story: Story) -> None:
    """tftp-hpa gets two files and puts one: three requests, one flow."""
    flows = [each["flow"] for each in story.daemon.events("expectation")]
    assert max(map(flows.count, flows)) >= 3


def test_translated_clients_were_translated(story: Story) -> None:
    expects = [each["expects"] for each in story.daemon.events("expectation")]
    for address in (f"> {GATEWAY_WAN}:", f"> [{GATEWAY_WAN6}]:", f"> {CLIENT}:"):
        assert any(address in each for each in expects), address


def test_transfer_from_one_port_is_not_queued(story: Story) -> None:
    before = story.world.queues()[QUEUE].last
    url = f"tftp://{SINGLE[0]}/large"
    done = story.world.client.run("curl", "-sS", url, timeout=60.0)
    assert len(done.stdout) == LARGE
    # 400 packets of DATA and ACK; the request may be sent round its hook, or again.
    assert story.world.queues()[QUEUE].last - before < 8


def test_answer_of_the_wrong_host_and_the_second_one_are_dropped(story: Story) -> None:
    """One flow from the server that was asked, and none after it."""
    with story.world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(client):
        client.bind((CLIENT, 0))
        client.sendto(b"\0\1f\0octet\0", (SILENT, PORT))
        assert answers(story, client, OTHER, 40001) is None
        assert answers(story, client, SILENT, 40002) == b"\0\3\0\1x"
        assert answers(story, client, SILENT, 40003) is None
        assert answers(story, client, SILENT, 40002) == b"\0\3\0\1x"


def test_request_from_a_reserved_port_is_refused(story: Story) -> None:
    with story.world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(client):
        client.bind((CLIENT, 1023))
        client.sendto(b"\0\1f\0octet\0", (SILENT, PORT))
        assert story.daemon.await_event("refused")["reason"] == "low-port"
        assert answers(story, client, SILENT, 40004) is None


def answers(story: Story, client: socket.socket, host: str, port: int) -> bytes | None:
    """What comes to the client of a first packet of data; None: it is dropped."""
    to = client.getsockname()
    before = story.world.counter("dropped-forward")
    with story.world.server.entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(server):
        server.bind((host, port))
        server.sendto(b"\0\3\0\1x", to)
    client.settimeout(0.2)
    found: list[bytes] = []

    def ended() -> bool:
        try:
            found.append(client.recv(100))
        except TimeoutError:
            return story.world.counter("dropped-forward") > before
        return True

    assert until(ended, 20.0)
    return found[0] if found else None


def test_nothing_failed(story: Story) -> None:
    assert [each["reason"] for each in story.daemon.events("refused")] == ["low-port"]
    for event in FAULTS:
        assert story.daemon.events(event) == []

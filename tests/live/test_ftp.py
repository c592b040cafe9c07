# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP: real clients fail without the daemon and work with it, behind NAT, too; and what
is void is closed in the kernel.

One daemon serves the whole module. ``script/live --matrix`` runs every client behind
every kind of NAT, with the helpers of others as well, and prints the tables.
"""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.live.compared import WHOLE, print_table, with_others
from tests.live.conntrackd import Tagged
from tests.live.daemon import Daemon, only
from tests.live.peers_ftp import (
    CELLS,
    PORTS,
    SCRIPTED_PORT,
    Cell,
    Scripted,
    start_servers,
)
from tests.live.test_matrix import MASQUERADE
from tests.live.world import (
    CLIENT,
    GATEWAY_LAN,
    GATEWAY_LAN6,
    LAN,
    SERVER,
    SERVER6,
    WAN,
    World,
    until,
)

pytestmark = pytest.mark.live

_ALL: Final = ", ".join(map(str, (*PORTS.values(), SCRIPTED_PORT)))
CONFIG: Final = only("ftp") + f"[helpers.ftp]\nports = [{_ALL}]\nccc = true\n"
CONTROL: Final = (
    f"nft insert rule inet firewall forward iifname {LAN} oifname {WAN} "
    f"tcp dport {{ {_ALL} }} accept"
)
FORWARD: Final = f"""table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname != "{LAN}" return
		tcp dport != {{ {_ALL} }} return
		fib daddr type local ip version 4 dnat ip to {SERVER}
		fib daddr type local ip6 version 6 dnat ip6 to {SERVER6}
	}}
}}
"""
_KINDS: Final = {
    "none": "",
    "masquerade": MASQUERADE,
    "dnat": FORWARD,
    "both": MASQUERADE + FORWARD,
}
NATS: Final = _KINDS if WHOLE else {each: _KINDS[each] for each in ("none", "both")}
THEIRS: Final = Tagged("ftp", "tcp", _ALL)
FAILING_SECONDS: Final = 5.0
WORKING_SECONDS: Final = 120.0

# Of each kind of announcement one, behind each kind of NAT.
TRANSLATED: Final = (
    Cell("curl EPSV", "pure-ftpd", 6),
    Cell("curl PASV", "proftpd"),
    Cell("curl EPRT", "vsftpd", 6),
    Cell("wget PORT", "pure-ftpd"),
    Cell("lftp PORT, async", "vsftpd"),
    Cell("ftplib PASV, CCC", "pure-ftpd"),
)


def cells(nat: str) -> tuple[Cell, ...]:
    """The clients that are run behind a kind of NAT."""
    return CELLS if WHOLE or nat == "none" else TRANSLATED


WAYS: Final = [
    pytest.param(nat, cell, id=f"{nat}: {cell}") for nat in NATS for cell in cells(nat)
]

Results = dict[tuple[str, Cell], bool]


@dataclass
class Story:
    """What all tests use, and what came of the clients."""

    world: World
    daemon: Daemon
    pool: ThreadPoolExecutor
    without: Results = field(default_factory=dict)
    working: Results = field(default_factory=dict)

    def run(self, seconds: float) -> Results:
        """Run the clients, all at once, behind one kind of NAT after the other."""
        found: Results = {}
        for nat, rules in NATS.items():
            self.world.gateway.run("nft", "-f", "-", input=rules, check=True)
            targets = (
                {4: GATEWAY_LAN, 6: GATEWAY_LAN6}
                if nat in ("dnat", "both")
                else {4: SERVER, 6: SERVER6}
            )
            works = {
                cell: self.pool.submit(
                    cell.works, self.world.client, targets[cell.family], seconds
                )
                for cell in cells(nat)
            }
            found |= {(nat, cell): each.result() for cell, each in works.items()}
            if rules:
                unwanted = ["nft", "delete", "table", "inet", "nat"]
                self.world.gateway.run(*unwanted, check=True)
        return found

    def expected(self) -> list[str]:
        """The kernel's expectations towards the port that is announced."""
        found = self.world.conntrack("-L", "expect").splitlines()
        return [each for each in found if f"dport={ANNOUNCED}" in each]


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All clients run without the daemon, which is then started, and once more."""
    world.reset()
    world.firewall()
    world.gateway.run(*CONTROL.split(), check=True)
    servers = start_servers(world)
    folder = tmp_path_factory.mktemp("daemon")
    with (
        Daemon(world.gateway, folder) as daemon,
        ThreadPoolExecutor(len(CELLS)) as pool,
    ):
        story = Story(world, daemon, pool)
        story.without = story.run(FAILING_SECONDS)
        others = tmp_path_factory.mktemp("conntrackd")
        theirs = with_others(world, others, THEIRS, lambda: story.run(WORKING_SECONDS))
        daemon.start(CONFIG)
        story.working = story.run(WORKING_SECONDS)
        # That all fail without and work with ours is what the tests say.
        for whose, works in theirs.items():
            by_nat = {nat: {cell: works[nat, cell] for cell in CELLS} for nat in NATS}
            print_table(f"FTP, {whose}", CELLS, by_nat)
        yield story
        assert daemon.stop() == 0
    # Others have these ports after it.
    for each in servers:
        each.terminate()


@pytest.mark.parametrize(("nat", "cell"), WAYS)
def test_client_fails_without_the_daemon(story: Story, nat: str, cell: Cell) -> None:
    assert not story.without[nat, cell]


@pytest.mark.parametrize(("nat", "cell"), WAYS)
def test_client_works_with_the_daemon(story: Story, nat: str, cell: Cell) -> None:
    assert story.working[nat, cell]


def test_nothing_was_refused_and_nothing_failed(story: Story) -> None:
    for event in ("refused", "malformed", "helper-fault", "step-failed"):
        assert story.daemon.events(event) == []


# What is taken back

ANNOUNCED: Final = 45000
_NUMBERS: Final = (*CLIENT.split("."), *map(str, divmod(ANNOUNCED, 256)))
PORT: Final = f"PORT {','.join(_NUMBERS)}"


@contextmanager
def sessions(story: Story, count: int) -> Iterator[list[Scripted]]:
    """So many sessions with a server that says what it is told."""
    with ExitStack() as stack:
        with story.world.server.entered():
            listener = socket.create_server((SERVER, SCRIPTED_PORT))
        stack.enter_context(listener)
        listener.settimeout(20)
        yield [
            stack.enter_context(closing(Scripted(story.world, listener)))
            for _ in range(count)
        ]


def withdrawn(story: Story) -> list[int | None]:
    """What is left of each expectation that was taken back."""
    found = story.daemon.events("expectation-withdrawn")
    return [each["flows"] for each in found if f":{ANNOUNCED}" in each["expects"]]


def test_port_is_closed_before_it_is_heard_that_it_was_refused(story: Story) -> None:
    before = len(withdrawn(story))
    with sessions(story, 1) as (session,):
        session.says(PORT)
        assert len(story.expected()) == 1
        assert session.answers("500 no") == "500 no"
        assert story.expected() == []
        # And may be announced again at once.
        session.says(PORT)
        assert len(story.expected()) == 1
        session.says("RETR f")
        session.answers("200 ok")
        session.answers("425 no")
        assert story.expected() == []
    assert withdrawn(story)[before:] == [0, 0]


def test_what_another_session_announced_stays(story: Story) -> None:
    before = len(withdrawn(story))
    with sessions(story, 2) as (first, second):
        for each in (first, second):
            each.says(PORT)
        first.answers("500 no")
        assert len(story.expected()) == 1
        # Nor can one take back what the other has.
        first.says("ABOR")
        first.answers("226 ok")
        assert len(story.expected()) == 1
        with story.world.client.entered():
            data = socket.create_server((CLIENT, ANNOUNCED))
        with data, story.world.server.entered():
            socket.create_connection((CLIENT, ANNOUNCED), timeout=20).close()
        assert until(lambda: story.expected() == [], 10.0)
        second.answers("500 no")
    assert withdrawn(story)[before:] == [1]
    assert story.daemon.events("step-failed") == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""SANE: scanimage gets pages from saned with the daemon, and none without it.

All scan at the same time, once without the daemon and once with it: over IPv4 and IPv6,
several pages, from two servers, with a password for the scanner or for each page, and
behind destination NAT, with the client's address translated or not.
``script/live --matrix`` has them scan with the helpers of others as well, and prints a
table.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.live.compared import print_table, with_others
from tests.live.conntrackd import Tagged
from tests.live.daemon import Daemon, only
from tests.live.sane_scanner import DEVICE, PASSWORD, PORT, USER, Scanner
from tests.live.traffic import knock
from tests.live.world import (
    CLIENT,
    CLIENT6,
    ETH,
    LAN,
    SERVER,
    SERVER6,
    WAN,
    World,
    until,
)

pytestmark = pytest.mark.live

# The server has these, too. The scanner of the first one wants a password, and those of
# the others for each page; to the last one no client has the right one.
GUARDED: Final = "10.77.2.3"
PAGED, PAGED6, SHUT = "10.77.2.4", "fd77:2::4", "10.77.2.5"
# The gateway has these, and they lead to the server; behind the second one clients have
# the gateway's address.
OUTSIDE, OUTSIDE_BOTH = "10.77.1.11", "10.77.1.12"
# Ports that saned announces, by the address that it listens at.
RANGES: Final = {SERVER: 40000, SERVER6: 41000, GUARDED: 42000}
# And those of the scanners that want a password for each page.
PAGED_RANGES: Final = {PAGED: 43000, PAGED6: 44000, SHUT: 45000}
CONFIG: Final = only() + "[helpers.sane]\nenabled = true\n"
THEIRS: Final = Tagged("sane", "tcp", str(PORT))
ADMIT: Final = f"""
insert rule inet firewall forward iifname "{LAN}" tcp dport {PORT} accept
table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		ip daddr {{ {OUTSIDE}, {OUTSIDE_BOTH} }} tcp dport {PORT} dnat ip to {SERVER}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname "{WAN}" ct original ip daddr {OUTSIDE_BOTH} masquerade
	}}
}}
"""


@dataclass(frozen=True)
class Scan:
    """Pages that a client asks for, all from one scanner in one session."""

    server: str
    pages: int = 1

    @property
    def command(self) -> tuple[str, ...]:
        host = f"[{self.server}]" if ":" in self.server else self.server
        device, options = f"net:{host}:{DEVICE}", ""
        if self.server not in PAGED_RANGES:
            device = f"net:{host}:test:0"
            options = "--mode Gray --resolution 50 -x 20 -y 20"
        return (
            *("env", "HOME=/run/home", "SANE_CONFIG_DIR=/run/scanning", "scanimage"),
            *("-d", device, *options.split(), f"--batch-count={self.pages}"),
            f"--batch=/run/scanning/{self.server}-{self.pages}-%d.pnm",
        )


SCANS: Final = {
    "IPv4": Scan(SERVER),
    "several pages": Scan(SERVER, pages=3),
    "IPv6": Scan(SERVER6, pages=2),
    "with a password": Scan(GUARDED, pages=2),
    "for each page": Scan(PAGED, pages=2),
    "for each page, IPv6": Scan(PAGED6, pages=2),
    "translated server": Scan(OUTSIDE, pages=2),
    "translated both": Scan(OUTSIDE_BOTH, pages=2),
}
SANED: Final = """
mkdir -p /run/{name}
echo test >/run/{name}/dll.conf
cp /etc/sane.d/test.conf /run/{name}
printf 'data_portrange = {low} - {high}\\n+\\n' >/run/{name}/saned.conf
"""


@dataclass
class Story:
    """What all tests use, and what came of the scans: pages, by chapter and scan."""

    world: World
    daemon: Daemon
    pages: dict[str, dict[str, int]] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)

    def scan(self) -> dict[str, int]:
        """Have all clients scan at once; how many pages each got."""
        with ThreadPoolExecutor(len(SCANS)) as pool:
            done = pool.map(
                lambda scan: self.world.client.run(*scan.command, timeout=60.0),
                SCANS.values(),
            )
            return {
                name: pages(each.stderr) for name, each in zip(SCANS, done, strict=True)
            }

    def scan_in_vain(self) -> None:
        """The same until the data flows of all were dropped, which they wait for."""
        clients = {
            name: self.world.client.start(*scan.command, stderr=subprocess.PIPE)
            for name, scan in SCANS.items()
        }
        # Each tries twice (tcp_syn_retries).
        assert until(lambda: self.dropped().total() >= 2 * len(SCANS), 60)
        self.pages["without"] = {}
        for name, client in clients.items():
            client.kill()
            self.pages["without"][name] = pages(client.communicate()[1])

    def dropped(self) -> Counter[int]:
        """Packets to ports that a saned may announce, by the first of its ports."""
        found: Counter[int] = Counter()
        for (_, port), count in self.world.drops().items():
            if port - port % 1000 in (RANGES | PAGED_RANGES).values():
                found[port - port % 1000] += count
        return found


def pages(said: str) -> int:
    """How many pages a client got, by what it has said."""
    return len(re.findall("Scanned page", said))


def start_servers(world: World) -> None:
    """A saned for each address, with ports of its own to announce."""
    for number, (address, low) in enumerate(RANGES.items()):
        name = f"saned-{number}"
        world.server.tell(SANED.format(name=name, low=low, high=low + 999))
        if address == GUARDED:
            world.server.tell(f"echo {USER}:{PASSWORD}:test >/run/{name}/saned.users")
        # It makes a process for each client.
        world.server.start(
            *("env", f"SANE_CONFIG_DIR=/run/{name}"),
            *("saned", "-l", "-e", "-u", "root", "-b", address),
        )
    listening = ("ss", "-Hltn", f"sport = :{PORT}")

    def ready() -> bool:
        lines = world.server.run(*listening).stdout.splitlines()
        return len(lines) == len(RANGES)

    assert until(ready, 30), world.server.log()


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All scan without the daemon, which is then started, and once more."""
    world.reset()
    world.firewall(ADMIT)
    with ExitStack() as stack:
        for namespace, device, address in (
            (world.server, ETH, f"{GUARDED}/24"),
            (world.server, ETH, f"{PAGED}/24"),
            (world.server, ETH, f"{SHUT}/24"),
            (world.server, ETH, f"{PAGED6}/64"),
            (world.gateway, LAN, f"{OUTSIDE}/24"),
            (world.gateway, LAN, f"{OUTSIDE_BOTH}/24"),
        ):
            namespace.tell(f"ip address add {address} dev {device}")
            stack.callback(namespace.tell, f"ip address del {address} dev {device}")
        world.client.tell(
            "mkdir -p /run/scanning /run/home/.sane\n"
            "echo net >/run/scanning/dll.conf\n"
            "echo connect_timeout = 10 >/run/scanning/net.conf\n"
            "cat >/run/home/.sane/pass <<EOF\n"
            f"{USER}:{PASSWORD}:net:{GUARDED}:test\n"
            f"{USER}:{PASSWORD}:net:{PAGED}:{DEVICE}\n"
            f"{USER}:{PASSWORD}:net:{PAGED6}:{DEVICE}\n"
            f"{USER}:guessed:net:{SHUT}:{DEVICE}\n"
            "EOF\n"
            "chmod 600 /run/home/.sane/pass"
        )
        start_servers(world)
        for address, first in PAGED_RANGES.items():
            stack.enter_context(Scanner(world.server, address, first))
        daemon = stack.enter_context(
            Daemon(world.gateway, tmp_path_factory.mktemp("daemon"))
        )
        story = Story(world, daemon)
        story.scan_in_vain()
        story.lost = story.dropped()
        others = tmp_path_factory.mktemp("conntrackd")
        theirs = with_others(world, others, THEIRS, story.scan)
        daemon.start(CONFIG)
        story.pages["cthelper"] = story.scan()
        works = {
            whose: {name: count == SCANS[name].pages for name, count in each.items()}
            for whose, each in (story.pages | theirs).items()
        }
        print_table("SANE", SCANS, works)
        yield story


@pytest.mark.parametrize("name", SCANS)
def test_client_gets_no_page_without_the_daemon(story: Story, name: str) -> None:
    assert story.pages["without"][name] == 0


def test_data_flows_of_every_server_were_dropped(story: Story) -> None:
    assert story.lost.keys() == {
        *RANGES.values(),
        PAGED_RANGES[PAGED],
        PAGED_RANGES[PAGED6],
    }


@pytest.mark.parametrize("name", SCANS)
def test_client_gets_all_its_pages_with_the_daemon(story: Story, name: str) -> None:
    assert story.pages["cthelper"][name] == SCANS[name].pages


def test_each_page_was_expected_for_its_client_once(story: Story) -> None:
    made = story.daemon.events("expectation")
    assert len(made) == sum(scan.pages for scan in SCANS.values())
    assert {each["expects"].split()[1] for each in made} <= {CLIENT, CLIENT6}
    assert story.daemon.events("refused") == []
    for family in ("ipv4", "ipv6"):
        assert story.world.conntrack("-L", "expect", "-f", family) == ""
    assert story.daemon.text.count("level=error") == 0


def test_page_with_a_wrong_password_is_not_expected(story: Story) -> None:
    made = len(story.daemon.events("expectation"))
    said = story.world.client.run(*Scan(SHUT).command, timeout=60.0).stderr
    assert "sane_start: Access to resource has been denied" in said
    assert len(story.daemon.events("expectation")) == made
    assert story.daemon.text.count("level=error") == 0


def test_port_of_a_page_is_shut_after_it(story: Story) -> None:
    (first, *_) = [
        each["expects"]
        for each in story.daemon.events("expectation")
        if f"> {SERVER}:" in each["expects"]
    ]
    port = int(first.rpartition(":")[2])
    before = story.world.dropped("tcp", port)
    knock(story.world, "tcp", port)
    assert story.world.dropped("tcp", port) > before
    assert story.daemon.stop() == 0

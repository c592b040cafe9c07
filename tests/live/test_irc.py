# SPDX-License-Identifier: GPL-2.0-or-later
"""IRC's DCC: irssi offers a chat and a file, which others take with the daemon alone.

Three of irssi run side by side: over IPv4, over IPv6, and where client and server are
translated. A client of the library irc takes what the first offers, and one of the
tests' own, from another address than the server's, what the others do. ``script/live
--matrix`` has them offered with the kernel's own helper as well, and prints a table.
"""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from select import select
from typing import Final, Self

import pytest

from tests.live.chapters import FAULTS
from tests.live.compared import print_table, with_others
from tests.live.conntrackd import Tagged
from tests.live.daemon import Daemon, only
from tests.live.world import (
    CLIENT,
    ETH,
    GATEWAY_LAN,
    GATEWAY_WAN,
    LAN,
    SERVER,
    SERVER6,
    WAN,
    Namespace,
    World,
    until,
)

pytestmark = pytest.mark.live

PORT: Final = 6667
OTHER, OTHER6 = "10.77.2.9", "fd77:2::9"
TEXT: Final = "a line of the file\n"
CONFIG: Final = only() + "[helpers.irc]\nenabled = true\n"
THEIRS: Final = Tagged("irc", "tcp", str(PORT))
RULES: Final = f"""
insert rule inet firewall forward iifname {LAN} oifname {WAN} tcp dport {PORT} accept
table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname {LAN} ip daddr {GATEWAY_LAN} tcp dport {PORT} dnat ip to {SERVER}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname {WAN} ct original ip daddr {GATEWAY_LAN} masquerade
	}}
}}
"""
SETTINGS: Final = f"""
[Global]
Name = irc.example
Info = a server
Listen = {SERVER},{SERVER6}
ServerUID = 0
ServerGID = 0
MotdPhrase = hello
[Limits]
MaxConnectionsIP = 0
[Options]
DNS = no
Ident = no
PAM = no
"""
# Nickname, where it connects to, and who is offered what it has.
OFFERING: Final = {
    "plain": (SERVER, "lib"),
    "six": (SERVER6, "bob"),
    "both": (GATEWAY_LAN, "bob"),
}
KINDS: Final = ("CHAT", "SEND")
PATIENCE: Final = 3.0
SECONDS: Final = 60.0

_LIBRARY: Final = """
import shlex, socket, sys
import irc.client

socket.setdefaulttimeout(float(sys.argv[2]))

class Lib(irc.client.SimpleIRCClient):
    def on_ctcp(self, connection, event):
        if event.arguments[0] == "DCC":
            kind, _, address, port = shlex.split(event.arguments[1])[:4]
            address = irc.client.ip_numstr_to_quad(address)
            dcc = self.dcc("chat" if kind == "CHAT" else "raw")
            try:
                dcc.connect(address, int(port))
            except irc.client.DCCConnectionError:
                print(kind, "fails", flush=True)
            else:
                print(kind, "connects", flush=True)

    def on_dccmsg(self, connection, event):
        print("got", event.arguments[0].decode().strip(), flush=True)

lib = Lib()
lib.connect(sys.argv[1], 6667, "lib")
lib.start()
"""


class Bob:
    """A client in a thread, which takes what it is offered."""

    def __init__(self, namespace: Namespace, nickname: str) -> None:
        self._namespace = namespace
        with namespace.entered():
            self._socket = socket.create_connection((SERVER, PORT), 10.0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._taking: list[threading.Thread] = []
        self.lines: list[str] = []
        self.taken: dict[tuple[str, str], str] = {}
        self.say(f"NICK {nickname}", f"USER {nickname} 0 * :{nickname}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for each in (self._thread, *self._taking):
            each.join()
        self._socket.close()

    def say(self, *lines: str) -> None:
        """Send lines."""
        self._socket.sendall("".join(f"{each}\r\n" for each in lines).encode())

    def sees(self, *nicknames: str) -> bool:
        """Whether all of these are there; asks anew."""
        self.say(f"ISON {' '.join(nicknames)}")
        found = [each for each in self.lines if " 303 " in each][-1:]
        return bool(found) and {*nicknames} <= {*found[0].partition(" :")[2].split()}

    def _run(self) -> None:
        self._socket.settimeout(None)
        with suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                self.lines.append(line.decode().strip())
                if line.startswith(b"PING"):
                    self.say(f"PONG {line.decode().split()[1]}")
                if b"\x01DCC" in line:
                    taking = threading.Thread(target=self._take, args=(line,))
                    taking.start()
                    self._taking.append(taking)

    def _take(self, line: bytes) -> None:
        offered = re.match(
            r":(\w+)!\S+ PRIVMSG bob :\x01DCC (\w+) \S+ (\S+) (\d+)", line.decode()
        )
        if offered is None:
            return
        nickname, kind, host, port = offered.groups()
        address = str(ip_address(int(host) if host.isdigit() else host))
        source = OTHER6 if ":" in address else OTHER
        with self._namespace.entered():
            try:
                taken = socket.create_connection(
                    (address, int(port)), PATIENCE, (source, 0)
                )
            except OSError:
                self.taken[nickname, kind] = "fails"
                return
        with taken:
            taken.settimeout(SECONDS)
            sent = kind == "SEND"
            self.taken[nickname, kind] = (
                taken.recv(1000).decode() if sent else "connects"
            )


@dataclass
class Story:
    """What all tests use, and what came of the offers: by nickname and kind."""

    world: World
    daemon: Daemon
    without: dict[tuple[str, str], str] = field(default_factory=dict)
    working: dict[tuple[str, str], str] = field(default_factory=dict)

    def offer(self) -> dict[tuple[str, str], str]:
        """Have every irssi offer a chat and a file, and others take them."""
        world = self.world
        world.forget()
        with ExitStack() as stack:
            bob = stack.enter_context(Bob(world.server, "bob"))
            library = stack.enter_context(
                world.server.start(
                    *(sys.executable, "-c", _LIBRARY, SERVER, str(PATIENCE)),
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(library.kill)
            irssis = {}
            for nickname, (host, _) in OFFERING.items():
                irssis[nickname] = started = world.client.start(
                    *("script", "-qfc"),
                    f"irssi --home=/run/{nickname} -c {host} -n {nickname}",
                    "/dev/null",
                    stdin=subprocess.PIPE,
                    env={**os.environ, "TERM": "xterm", "HOME": "/run"},
                )
                stack.callback(started.wait, 10.0)
                stack.callback(started.kill)
            everybody = (*OFFERING, "lib")
            assert until(lambda: bob.sees(*everybody), SECONDS, 0.5), bob.lines
            for nickname, (_, to) in OFFERING.items():
                stdin = irssis[nickname].stdin
                assert stdin
                stdin.write(f"/dcc chat {to}\n/dcc send {to} /run/hello.txt\n")
                stdin.flush()
            wanted = {
                (each, kind) for each in OFFERING if each != "plain" for kind in KINDS
            }
            assert until(lambda: wanted <= bob.taken.keys(), SECONDS), bob.lines
            found = dict(bob.taken)
            assert library.stdout
            for line in library.stdout:
                kind, _, how = line.strip().partition(" ")
                if kind == "got":
                    found["plain", "SEND"] = f"{how}\n"
                    break
                found["plain", kind] = how
                if kind == "SEND" and how == "fails":
                    break
            return found


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All offers are made without the daemon, which is then started, and once more."""
    world.reset()
    world.firewall(RULES)
    world.server.tell(
        f"ip address add {OTHER}/24 dev {ETH}\n"
        f"ip address add {OTHER6}/64 dev {ETH} nodad\n"
        f"cat >/run/ngircd.conf <<'EOF'\n{SETTINGS}EOF"
    )
    world.client.tell(f"cat >/run/hello.txt <<'EOF'\n{TEXT}EOF")
    server = world.server.start("ngircd", "-n", "-f", "/run/ngircd.conf")
    try:
        with Daemon(world.gateway, tmp_path_factory.mktemp("daemon")) as daemon:
            story = Story(world, daemon)
            assert until(lambda: listens(world.server), SECONDS), world.server.log()
            story.without = story.offer()
            others = tmp_path_factory.mktemp("conntrackd")
            theirs = with_others(world, others, THEIRS, story.offer)
            daemon.start(CONFIG)
            story.working = story.offer()
            said = {"without": story.without, "cthelper": story.working} | theirs
            works = {
                whose: {
                    " ".join(offer): text != "fails" for offer, text in each.items()
                }
                for whose, each in said.items()
            }
            print_table("IRC", _IDS, works)
            yield story
    finally:
        server.terminate()
        world.server.tell(
            f"ip address del {OTHER}/24 dev {ETH}\nip address del {OTHER6}/64 dev {ETH}"
        )


def listens(namespace: Namespace) -> bool:
    """Whether the server takes connections over both families."""
    lines = namespace.run("ss", "-Hltn", f"sport = :{PORT}", check=True).stdout
    return len(lines.splitlines()) == 2


OFFERS: Final = [(each, kind) for each in OFFERING for kind in KINDS]
_IDS: Final = [" ".join(each) for each in OFFERS]


@pytest.mark.parametrize("offer", OFFERS, ids=_IDS)
def test_offer_cannot_be_taken_without_the_daemon(
    story: Story, offer: tuple[str, str]
) -> None:
    assert story.without[offer] == "fails"


@pytest.mark.parametrize("offer", OFFERS, ids=_IDS)
def test_offer_is_taken_with_the_daemon(story: Story, offer: tuple[str, str]) -> None:
    wanted = "connects" if offer[1] == "CHAT" else TEXT
    assert story.working[offer] == wanted


def test_translated_client_announces_the_outside_address(story: Story) -> None:
    expects = [each["expects"] for each in story.daemon.events("expectation")]
    assert sum(f"> {GATEWAY_WAN}:" in each for each in expects) == 2
    assert sum(f"> {CLIENT}:" in each for each in expects) == 2
    assert all(each.startswith("tcp any > ") for each in expects)


def test_forged_pong_opens_nothing_and_an_offer_beside_it_does(story: Story) -> None:
    """CVE-2022-2663: whoever has a client answer PING says what the PONG is."""
    world = story.world
    with world.client.entered():
        eve = socket.create_connection((SERVER, PORT), 10.0)
    with closing(eve):
        eve.sendall(b"NICK eve\r\nUSER eve 0 * :eve\r\n")
        with eve.makefile("rb") as lines:
            assert any(b" 001 " in line for line in lines)
        number = int.from_bytes(socket.inet_aton(CLIENT))
        count = len(story.daemon.events("expectation"))
        eve.sendall(
            f"PONG :\x01DCC CHAT chat {number} 42001\x01\r\n"
            f"PRIVMSG eve :\x01DCC CHAT chat {number} 42002\x01\r\n".encode()
        )
        made = story.daemon.await_event("expectation", count + 1)
        assert made["expects"] == f"tcp any > {CLIENT}:42002"
        for port, let_in in ((42001, False), (42002, True), (42002, False)):
            assert comes_in(world, port) is let_in
    assert len(story.daemon.events("expectation")) == count + 1


def comes_in(world: World, port: int) -> bool:
    """Whether a connection from the server's other address reaches the client."""
    before = world.dropped("tcp", port)
    with world.client.entered():
        listener = socket.create_server((CLIENT, port))
    with world.server.entered():
        knocker = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with closing(listener), closing(knocker):
        knocker.bind((OTHER, 0))
        knocker.setblocking(False)
        knocker.connect_ex((CLIENT, port))
        came: list[socket.socket] = []

        def ended() -> bool:
            came[:] = select([listener], [], [], 0.1)[0]
            return bool(came) or world.dropped("tcp", port) > before

        assert until(ended, SECONDS)
    return bool(came)


def test_nothing_failed(story: Story) -> None:
    for event in (*FAULTS, "refused"):
        assert story.daemon.events(event) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""Amanda: amservice gets a backup's streams from amandad with the daemon alone.

All ask at the same time, once without the daemon and once with it: with auth bsd and
bsdudp, several clients of Amanda's, over IPv6, and behind destination NAT, with the
backup server's address translated or not. Debian's Amanda knows IPv4 alone, so over
IPv6 it is translated on both hosts.
``script/live --matrix`` has them ask with the helpers of others as well, and prints a
table.
"""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.live.compared import print_table, with_others
from tests.live.conntrackd import Tagged
from tests.live.daemon import Daemon, only
from tests.live.siit import CLIENT46, SERVER46, SERVER64, translators
from tests.live.traffic import knock
from tests.live.world import (
    CLIENT,
    ETH,
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

PORT: Final = 10080
# Each of these is a host that is to be backed up. Two are known as others, on the
# gateway, and see the gateway's address in the second case.
HOSTS: Final = ("10.77.2.3", "10.77.2.4", "10.77.2.5", "10.77.2.6", "10.77.2.7")
OUTSIDE, OUTSIDE_BOTH = "10.77.1.11", "10.77.1.12"
CONFIG: Final = only() + "[helpers.amanda]\nenabled = true\n"
THEIRS: Final = Tagged("amanda", "udp", str(PORT))
ADMIT: Final = f"""
insert rule inet firewall forward iifname "{LAN}" udp dport {PORT} accept
table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		ip daddr {OUTSIDE} udp dport {PORT} dnat ip to {HOSTS[2]}
		ip daddr {OUTSIDE_BOTH} udp dport {PORT} dnat ip to {HOSTS[3]}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname "{WAN}" ct original ip daddr {OUTSIDE_BOTH} masquerade
	}}
}}
"""
# Both ends log, and keep what they must not in folders of the machine.
FILES: Final = f"""
cp /etc/services /run/services
printf 'amanda {PORT}/udp\\namanda {PORT}/tcp\\n' >>/run/services
mount --bind /run/services /etc/services
printf '%s\\n' '{GATEWAY_WAN} gateway' '{CLIENT46} translated' >>/run/hosts
for each in client gateway translated; do
	printf '%s backup noop\\n%s backup sendbackup\\n' $each $each
done >/run/amandahosts
chown backup /run/amandahosts
chmod 600 /run/amandahosts
mount --bind /run/amandahosts /etc/amandahosts
mkdir -p /run/amanda
# Without this folder sendbackup fails, and at times before amandad has answered.
lists=/var/lib/amanda/gnutar-lists
for each in /var/log/amanda /var/lib/amanda $lists /tmp/amanda; do
	mkdir -p $each
	mount -t tmpfs tmpfs $each
	chown backup:backup $each
	chmod 700 $each
done
for auth in bsd bsdudp; do
	cat >/run/amanda/$auth.xml <<EOX
<dle>
  <program>GNUTAR</program>
  <disk>/run/amanda</disk>
  <level>0</level>
  <auth>$auth</auth>
  <index>YES</index>
  <record>NO</record>
  <datapath>AMANDA</datapath>
</dle>
EOX
done
"""
# Each host has so many ports for its streams, from the first one on.
FIRST, EACH = 50000, 10
AMANDAD: Final = "/usr/lib/amanda/amandad"
# One that cannot listen at the port for its third stream, INDEX.
DEAF: Final = (
    *("strace", "-qq", "-o", "/dev/null", "-e", "trace=listen"),
    *("-e", "inject=listen:error=EADDRINUSE:when=3"),
)
AS_BACKUP: Final = ("setpriv", "--reuid=backup", "--regid=backup", "--init-groups")


@dataclass(frozen=True)
class Backup:
    """A host that is asked for a backup, at the address that it is known by.

    The gateway may see another one, `on_the_wire`. Its amandad runs under a program
    where that is given.
    """

    host: str
    known_as: str
    streams: int = 4
    auth: str = "bsd"
    on_the_wire: str = ""
    under: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """What opens the first stream, and prints that it has."""
        return (
            *("env", "HOME=/var/backups", *AS_BACKUP, "amservice", "-s"),
            *("-f", f"/run/amanda/{self.auth}.xml"),
            *(self.known_as, self.auth, "sendbackup"),
        )

    @property
    def seen(self) -> str:
        """The address that the gateway sees."""
        return self.on_the_wire or self.known_as

    @property
    def ports(self) -> range:
        """Those that its amandad may announce."""
        first = FIRST + EACH * list(BACKUPS.values()).index(self)
        return range(first, first + EACH)


BACKUPS: Final = {
    "bsd": Backup(SERVER, SERVER),
    "another host": Backup(HOSTS[0], HOSTS[0]),
    "bsdudp": Backup(HOSTS[1], HOSTS[1], streams=1, auth="bsdudp"),
    "IPv6": Backup(SERVER46, SERVER46, on_the_wire=SERVER64),
    "a stream fails": Backup(HOSTS[4], HOSTS[4], streams=3, under=DEAF),
    "translated host": Backup(HOSTS[2], OUTSIDE),
    "translated both": Backup(HOSTS[3], OUTSIDE_BOTH),
}
STREAMS: Final = range(FIRST, FIRST + EACH * len(BACKUPS))
# All of them run on one machine. Of two amandads that bind to a port before either
# listens there, one announces -1 in its place: so each has ports of its own.
OWN_PORTS: Final = """
mount -t tmpfs tmpfs /etc/amanda
echo unreserved-tcp-port {first},{last} >/etc/amanda/amanda-client.conf
exec "$@"
"""


def start_amandad(server: Namespace, backup: Backup) -> subprocess.Popen[str]:
    """As inetd does it for one request: with a socket in the place of its input."""
    with server.entered():
        asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asked.bind((backup.host, PORT))
        ports = OWN_PORTS.format(first=backup.ports[0], last=backup.ports[-1])
        return server.start(
            *("unshare", "--mount", "sh", "-e", "-c", ports, "sh"),
            *(*AS_BACKUP, *backup.under, AMANDAD, f"-auth={backup.auth}"),
            *("noop", "sendbackup"),
            stdin=asked.fileno(),
            stdout=asked.fileno(),
        )


@dataclass
class Story:
    """What all tests use, and what came of the backups, by chapter."""

    world: World
    daemon: Daemon
    said: dict[str, dict[str, str]]
    tables: dict[tuple[str, str], str] = field(default_factory=dict)

    def ask(self) -> dict[str, str]:
        """Have all hosts asked at once; what came of each."""
        self.world.server.tell("rm -rf /var/log/amanda/amandad")
        with self.servers(), ThreadPoolExecutor(len(BACKUPS)) as pool:
            done = pool.map(
                lambda backup: self.world.client.run(*backup.command, timeout=40.0),
                BACKUPS.values(),
            )
            said = {
                name: each.stdout + each.stderr
                for name, each in zip(BACKUPS, done, strict=True)
            }
            # Later the flows are gone that the backups have ended.
            self.tables = {
                (table, family): self.world.conntrack("-L", table, "-f", family)
                for table in ("conntrack", "expect")
                for family in ("ipv4", "ipv6")
            }
            return said

    def ask_in_vain(self) -> None:
        """The same until the streams of all were dropped, which they wait for."""
        self.said["without"] = {}
        with self.servers():
            clients = {
                name: self.world.client.start(
                    *backup.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                for name, backup in BACKUPS.items()
            }
            # Each tries twice (tcp_syn_retries).
            wanted = 2 * len(BACKUPS)
            assert until(lambda: self.dropped() >= wanted, 120), self.world.drops()
            for name, client in clients.items():
                client.kill()
                self.said["without"][name] = client.communicate()[0]

    def dropped(self) -> int:
        """Packets to ports that an amandad may announce."""
        drops = self.world.drops().items()
        return sum(count for (_, port), count in drops if port in STREAMS)

    @contextmanager
    def servers(self) -> Iterator[None]:
        """Each host waits for one request."""
        servers = [start_amandad(self.world.server, each) for each in BACKUPS.values()]
        try:
            yield
        finally:
            for each in servers:
                with suppress(ProcessLookupError):  # itself, and what it has started
                    os.killpg(each.pid, signal.SIGKILL)
                each.wait()

    def announced(self, backup: Backup) -> set[int]:
        """The ports that the host's amandad has noted down as announced."""
        lines = re.findall("^CONNECT .*", amandad_log(self.world), re.MULTILINE)
        numbers = {int(each) for line in lines for each in re.findall(r"-?\d+", line)}
        return numbers & set(backup.ports)

    def logged(self, backup: Backup) -> set[int]:
        """The ports of a host that the log tells of."""
        texts = [each["expects"] for each in self.daemon.events("expectation")]
        end = re.escape(f"[{backup.seen}]" if ":" in backup.seen else backup.seen)
        found = [re.fullmatch(rf"tcp .* > {end}:(\d+)", each) for each in texts]
        return {int(each[1]) for each in found if each}

    def waiting(self, backup: Backup) -> set[int]:
        """Those that the kernel expected then."""
        return self._listed(backup, "expect")

    def met(self, backup: Backup) -> set[int]:
        """Those that a flow went to."""
        return self._listed(backup, "conntrack")

    def _listed(self, backup: Backup, table: str) -> set[int]:
        end = rf"\bdst={re.escape(backup.seen)} sport=\d+ dport=(\d+)"
        family = "ipv6" if ":" in backup.seen else "ipv4"
        found = re.findall(end, self.tables[table, family])
        return set(map(int, found)) & set(STREAMS)


def opened(said: str) -> bool:
    """Whether an amservice has opened its stream, which it tells of as it ends.

    Before stands what has come by the stream meanwhile: the first blocks of a backup,
    where sendbackup was quick.
    """
    return said.endswith("Connected\n")


def amandad_log(world: World) -> str:
    """What all amandads have noted down."""
    folder = Path(f"/proc/{world.server.pid}/root/var/log/amanda/amandad")
    return "".join(each.read_text() for each in folder.iterdir())


@pytest.fixture(scope="module")
def story(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All are asked without the daemon, which is then started, and once more."""
    world.reset()
    world.firewall(ADMIT)
    with ExitStack() as stack:
        for namespace, device, address in (
            *((world.server, ETH, each) for each in HOSTS),
            *((world.gateway, LAN, each) for each in (OUTSIDE, OUTSIDE_BOTH)),
        ):
            namespace.tell(f"ip address add {address}/24 dev {device}")
            stack.callback(namespace.tell, f"ip address del {address}/24 dev {device}")
        stack.enter_context(translators(world))
        for namespace in (world.client, world.server):
            namespace.tell(FILES)
        daemon = stack.enter_context(
            Daemon(world.gateway, tmp_path_factory.mktemp("daemon"))
        )
        story = Story(world, daemon, {})
        story.ask_in_vain()
        others = tmp_path_factory.mktemp("conntrackd")
        theirs = with_others(world, others, THEIRS, story.ask)
        # They ask from one of 21 ports, and a flow of before has no helper.
        world.forget()
        daemon.start(CONFIG)
        story.said["cthelper"] = story.ask()
        works = {
            whose: {name: opened(text) for name, text in each.items()}
            for whose, each in (story.said | theirs).items()
        }
        print_table("Amanda", BACKUPS, works)
        yield story


@pytest.mark.parametrize("name", BACKUPS)
def test_stream_is_not_opened_without_the_daemon(story: Story, name: str) -> None:
    assert "Connected" not in story.said["without"][name]


@pytest.mark.parametrize("name", BACKUPS)
def test_stream_is_opened_with_the_daemon(story: Story, name: str) -> None:
    said = story.said["cthelper"][name]
    assert opened(said), said


@pytest.mark.parametrize("name", BACKUPS)
def test_every_port_was_expected_and_no_stream_for_one(story: Story, name: str) -> None:
    backup = BACKUPS[name]
    met, waiting = story.met(backup), story.waiting(backup)
    assert len(met) == 1
    assert story.logged(backup) == met | waiting == story.announced(backup)
    assert len(met | waiting) == backup.streams


def test_debians_amandad_itself_knows_ipv4_alone(story: Story) -> None:
    """Where this fails it can be asked over IPv6 without translators."""
    server = story.world.server
    with server.entered():
        asked, asks = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in "12")
    with asked, asks:
        asked.bind((SERVER6, PORT))
        argv = (*AS_BACKUP, AMANDAD, "-auth=bsd", "noop")
        amandad = server.start(*argv, stdin=asked.fileno(), stdout=asked.fileno())
        asks.sendto(b"Amanda 3.5 REQ HANDLE 000-00000000 SEQ 1\n", (SERVER6, PORT))
        unknown = "getnameinfo failed: ai_family not supported"
        assert until(lambda: unknown in amandad_log(story.world), 30)
        amandad.kill()
        amandad.wait()


def test_nobody_was_refused(story: Story) -> None:
    assert story.daemon.events("refused") == []


def test_streams_are_for_who_asked_and_each_for_one_flow(story: Story) -> None:
    (first,) = story.met(BACKUPS["bsd"])
    others = story.waiting(BACKUPS["bsd"])
    before = story.world.dropped("tcp", first)
    knock(story.world, "tcp", first)
    assert story.world.dropped("tcp", first) > before
    live = story.world.conntrack("-L", "expect")
    for port in others:
        (line,) = [
            each
            for each in live.splitlines()
            if f"dst={SERVER} " in each and f"dport={port} " in each
        ]
        assert f"src={CLIENT} " in line
    assert story.daemon.stop() == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on a daemon of a gateway, by real sockets: what is played, and on what stage.

The attacker has a host inside and a server outside. Beside them are an honest client
and an honest server of other addresses. `bench.attacks` plays the same against
conntrackd.
"""

import os
import signal
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.tuples import Expectation
from tests.attacks import floods, wire
from tests.live.world import ETH, GATEWAY_WAN, WAN, Namespace, World

# The attacker is the client, and has the evil server; the others are honest.
ATTACKER, EVIL = "10.77.1.2", "10.77.2.66"
HONEST, HONEST_SERVER = "10.77.1.100", "10.77.2.9"
THIRD: Final = "10.77.1.7"
_SECRET: Final = 5985
_FIRST_PORT: Final = 20_000
EXPECT_MAX: Final = 1024
"""The kernel's limit, as small machines have it."""
_LIMIT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_expect_max")
_PAUSE: Final = 0.05
_RULES: Final = f"""
table inet firewall {{
	chain forward {{
		iifname lan oifname {WAN} tcp dport 21 accept
	}}
}}
"""

# Linux 6.1 refuses a name that the namespace has which the link is made in.
_LINK, _MAC = "servers", "02:00:00:00:77:09"
_SERVERS_LINKS: Final = f"""
ip -batch - <<'EOF'
link set lo up
address add {EVIL}/24 brd + dev {_LINK}
address add {HONEST_SERVER}/24 brd + dev {_LINK}
link set {_LINK} up
route add default via {GATEWAY_WAN}
EOF
ethtool -K {_LINK} tx off >/dev/null
"""


class HonestServer(threading.Thread):
    """A portmapper, whose service is at ever another port, where it hears datagrams."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(daemon=True)
        with namespace.entered():
            self._calls = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._calls.settimeout(0.2)
        self._calls.bind((HONEST_SERVER, 111))
        self._ended = threading.Event()
        # Below those that the kernel chooses, which other servers have.
        self.port = 31_000

    def run(self) -> None:
        """Answer until `end`."""
        while not self._ended.is_set():
            try:
                call, asker = self._calls.recvfrom(2048)
            except TimeoutError:
                continue
            xid = int.from_bytes(call[:4])
            self._calls.sendto(wire.reply(xid, wire.xdr(self.port)), asker)

    def end(self) -> None:
        """Answer no more."""
        self._ended.set()
        self.join()
        self._calls.close()


class Lab:
    """The world with its four parties, and the daemon that is attacked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pids: list[int] = []
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(prefix="attacks-"))
            self.server = Namespace("servers", Path(folder), mounts=False)
            """Where both servers are."""
            stack.callback(self.server.close)
            # On the link of the world's server, whose rpcbind may have port 111 of all
            # its addresses. The gateway remembers the MAC address of one before.
            world.server.tell(
                f"ip link add link {ETH} name {_LINK} address {_MAC}"
                f" netns {self.server.pid} type macvlan mode private"
            )
            self.server.tell(_SERVERS_LINKS)
            stack.callback(world.reset)
            self._addresses("add")
            stack.callback(self._addresses, "del")
            self._server = HonestServer(self.server)
            self._server.start()
            stack.callback(self._server.end)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Leave the world as it was."""
        self._stack.close()

    def _addresses(self, do: str) -> None:
        for address in (HONEST, THIRD):
            self.world.client.tell(f"ip address {do} {address}/24 dev {ETH}")

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Give the kernel a small machine's limit, which is one for all namespaces."""
        before = _LIMIT.read_text()
        _LIMIT.write_text(f"{EXPECT_MAX}")
        try:
            yield
        finally:
            _LIMIT.write_text(before)

    def clear(self) -> None:
        """Give the gateway its firewall, and nothing else."""
        self.world.reset()
        self.world.firewall()
        self.world.gateway.run("nft", "-f", "-", input=_RULES, check=True)

    def forget(self) -> None:
        """Let the gateway's kernel forget all flows and expectations."""
        self.world.forget()
        time.sleep(0.5)

    def opened(self, attack: "Attack") -> list[str]:
        """Play an attack; what is expected then and would do harm."""
        self.forget()
        with suppress(OSError):
            attack.play(self)
        time.sleep(0.3)
        return sorted(
            {str(each) for each in self.expectations() if not attack.harmless(each)}
        )

    @property
    def client(self) -> Namespace:
        """Where the attacker, the honest client and the third host are."""
        return self.world.client

    # Traffic

    def udp(self, source: tuple[str, int], to: tuple[str, int]) -> socket.socket:
        """A socket of the client's side, bound and connected."""
        with self.client.entered():
            found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        found.bind(source)
        found.connect(to)
        found.settimeout(5.0)
        return found

    @contextmanager
    def pair(self, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A TCP connection of the attacker's to his server; both ends."""
        with ExitStack() as stack:
            with self.server.entered():
                listener = stack.enter_context(socket.create_server((EVIL, port)))
            with self.client.entered():
                client = stack.enter_context(socket.socket())
            listener.settimeout(10.0)
            client.settimeout(10.0)
            client.bind((ATTACKER, 0))
            client.connect((EVIL, port))
            server, _ = listener.accept()
            stack.enter_context(server)
            for each in (client, server):
                each.settimeout(10.0)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client, server

    @contextmanager
    def evil_portmapper(self) -> Iterator[socket.socket]:
        """The attacker's server's socket."""
        with self.server.entered():
            found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            found.bind((EVIL, 111))
            found.settimeout(5.0)
            yield found

    def honest(self) -> bool:
        """Whether an honest client is told a port, and gets through to it."""
        self._server.port += 1
        port = self._server.port
        with self.server.entered():
            service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with service, self.udp((HONEST, 0), (HONEST_SERVER, 111)) as asker:
            service.bind((HONEST_SERVER, port))
            service.settimeout(5.0)
            try:
                asker.send(wire.getport(1, 17))
                told = asker.recv(2048)[-4:]
                with self.udp(
                    (HONEST, 0), (HONEST_SERVER, int.from_bytes(told))
                ) as flow:
                    flow.send(b"hello")
                    return service.recv(100) == b"hello"
            except OSError:
                return False

    def trips(self, seconds: float) -> list[float]:
        """Round trips of the honest client's calls, in seconds, by size."""
        found = []
        end = time.perf_counter() + seconds
        with self.udp((HONEST, 0), (HONEST_SERVER, 111)) as asker:
            xid = 0
            while (sent := time.perf_counter()) < end:
                xid += 1
                asker.send(wire.getport(xid, 17))
                with suppress(OSError):
                    asker.recv(2048)
                found.append(time.perf_counter() - sent)
                time.sleep(0.002)
        return sorted(found)

    # What has become of it

    def expectations(self) -> list[Expectation]:
        """Those of the gateway's kernel."""
        with self.world.gateway.entered(), closing(Ctnetlink()) as kernel:
            return kernel.expectations()

    @property
    def alive(self) -> bool:
        """Whether the daemon's processes are there."""
        return all(Path(f"/proc/{pid}/schedstat").exists() for pid in self.pids)

    @property
    def cpu(self) -> float:
        """The daemon's seconds on the CPU."""
        total = 0.0
        for pid in self.pids:
            with suppress(OSError):
                text = Path(f"/proc/{pid}/schedstat").read_text("ascii")
                total += int(text.split()[0]) / 1e9
        return total


# Attacks


def _pause() -> None:
    """So that the kernel does not join segments."""
    time.sleep(_PAUSE)


def _say(end: socket.socket, *payloads: bytes) -> None:
    for each in payloads:
        end.sendall(each)
        _pause()


def _post() -> bytes:
    return b"POST / HTTP/1.1\r\nHost: evil.example\r\n\r\n".ljust(1400, b"A")


def _ftp(lab: Lab, *lines: bytes) -> None:
    with lab.pair(21) as (client, server):
        _say(server, b"220 ready\r\n")
        _say(client, *lines)
        _say(server, b"200 fine\r\n")


def _tns(lab: Lab, text: bytes, first: bytes = wire.CONNECT) -> None:
    with lab.pair(1521) as (client, server):
        _say(client, first)
        _say(server, wire.redirect(text))


def _rpc(lab: Lab, question: bytes, *answers: bytes) -> None:
    with (
        lab.evil_portmapper() as server,
        lab.udp((ATTACKER, 0), (EVIL, 111)) as client,
    ):
        client.send(question)
        _, asker = server.recvfrom(2048)
        for each in answers:
            server.sendto(each, asker)
            _pause()


def _asks(lab: Lab, source: int, to: tuple[str, int], payload: bytes) -> None:
    """A program on the gateway sends a datagram, from a port of its choice."""
    with lab.world.gateway.entered():
        program = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        program.bind((GATEWAY_WAN, source))
        program.sendto(payload, to)
        _pause()


def _many(lab: Lab) -> None:
    """One source asks for 1,100 ports, which it is told."""
    with lab.evil_portmapper() as server:
        for number in range(1100):
            with lab.udp((ATTACKER, 0), (EVIL, 111)) as client:
                client.send(wire.getport(number + 1, 17))
                try:
                    _, asker = server.recvfrom(2048)
                    told = wire.reply(number + 1, wire.xdr(_FIRST_PORT + number))
                    server.sendto(told, asker)
                    client.recv(2048)
                except TimeoutError:
                    return


def _odd_messages(lab: Lab) -> None:
    """Messages that are cut short, or lie about their lengths."""
    for payload in (
        *(wire.tns(5, b"", 65535), wire.tns(5, b"", 0), wire.tns(5, b"\xff\xff(")),
        *(wire.redirect(b"(A=" * 400), wire.redirect(b"(PORT=" + b"9" * 900)),
    ):
        with lab.pair(1521) as (client, server):
            _say(client, wire.CONNECT)
            _say(server, payload, payload)
    for payload in (
        *(wire.getport(1)[:30], wire.getport(1)[:54], wire.xdr(1, 0)),
        *(wire.xdr(1, 0, 2, 100000, 2, 3, 1, 0xFFFFFFFC), wire.reply(1)[:17]),
        wire.xdr(1, 0, 2, 100000, 2, 3, 0, 0xFFFFFFF0, 0, 0, 1, 1, 6, 0),
    ):
        _rpc(lab, payload, payload, wire.reply(1), wire.reply(1)[:20])
    _ftp(
        lab, b"PORT " + b"9," * 400 + b"\r\n", b"PORT\r\n", b"PORT 1,2,3,4,5\r\n", b"\n"
    )


@dataclass(frozen=True, slots=True)
class Attack:
    """What is played, and what it may open without harm: its own, to the attacker."""

    play: Callable[[Lab], None]
    harmless: Callable[[Expectation], bool] = lambda _: False


def _own(expectation: Expectation) -> bool:
    """The attacker's own server to himself, at a port that nothing else serves."""
    return (
        str(expectation.destination.address) == EVIL
        and expectation.destination.port >= 1024
    )


def _answers(expectation: Expectation) -> bool:
    """Answers of the link's hosts alone."""
    return expectation.source is not None and expectation.source.prefixlen >= 24


_TO_ATTACKER: Final = b"PORT " + wire.six(ATTACKER, _SECRET) + b"\r\n"

ATTACKS: Final = {
    "NAT slipstreaming (v1): FTP in a browser's form": Attack(
        lambda lab: _ftp(lab, _post(), _TO_ATTACKER)
    ),
    "NAT slipstreaming (v1): TNS after a browser's form": Attack(
        lambda lab: _tns(lab, wire.address_of(EVIL, _SECRET), _post())
    ),
    "NAT slipstreaming (v2): FTP PORT of a third host": Attack(
        lambda lab: _ftp(
            lab, b"USER u\r\n", b"PORT " + wire.six(THIRD, _SECRET) + b"\r\n"
        )
    ),
    "FTP PORT of port 22": Attack(
        lambda lab: _ftp(
            lab, b"USER u\r\n", b"PORT " + wire.six(ATTACKER, 22) + b"\r\n"
        )
    ),
    "TNS poison: another server": Attack(
        lambda lab: _tns(lab, wire.address_of(HONEST_SERVER, _SECRET))
    ),
    "TNS poison: a third host inside": Attack(
        lambda lab: _tns(lab, wire.address_of(THIRD, _SECRET))
    ),
    "TNS poison: port 22": Attack(lambda lab: _tns(lab, wire.address_of(EVIL, 22))),
    "GETPORT answered with port 22": Attack(
        lambda lab: _rpc(lab, wire.getport(1), wire.reply(1, wire.xdr(22)))
    ),
    "GETADDR answered with another host": Attack(
        lambda lab: _rpc(
            lab,
            wire.getaddr(1, b""),
            wire.reply(1, wire.xdr(wire.uaddr(HONEST_SERVER, _SECRET))),
        ),
        _own,
    ),
    "RPC reply to no call, with number 0": Attack(
        lambda lab: _rpc(lab, wire.call(5, 2, 0), wire.reply(0, wire.xdr(_SECRET)))
    ),
    "mDNS query to one host, from a chosen port": Attack(
        lambda lab: _asks(lab, _SECRET, (EVIL, 5353), wire.mdns_query())
    ),
    "mDNS query from port 22": Attack(
        lambda lab: _asks(lab, 22, (wire.MDNS_GROUP, 5353), wire.mdns_query()), _answers
    ),
    "mDNS answer from another link": Attack(
        lambda lab: _asks(lab, _SECRET, (wire.MDNS_GROUP, 5353), wire.mdns_query()),
        _answers,
    ),
    "SLP request to one host, from a chosen port": Attack(
        lambda lab: _asks(lab, _SECRET, (EVIL, 427), wire.slp_request())
    ),
    "SLP answer from another link": Attack(
        lambda lab: _asks(lab, _SECRET, (wire.SLP_GROUP, 427), wire.slp_request()),
        _answers,
    ),
    "1,100 ports for one source": Attack(_many, _own),
    "messages that are cut short or lie": Attack(_odd_messages, _own),
}


# Floods


def _until_told(flood: Callable[[], None]) -> int:
    """A process that floods until it is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            flood()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


@contextmanager
def _flooding(flood: Callable[[], None]) -> Iterator[None]:
    pid = _until_told(flood)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def _tns_flood(lab: Lab) -> Iterator[None]:
    """One server sends packets of 8 bytes to one client, as fast as TCP has it."""
    block = wire.tns(12, b"") * (floods.SEGMENT // 8)

    def flood() -> None:
        while True:
            # A flow that is read no more would be no attack: a new one.
            with suppress(OSError), lab.pair(1521) as (client, server):
                client.sendall(wire.CONNECT)
                client.settimeout(0.0)
                for _ in range(50):
                    server.sendall(block)
                    with suppress(BlockingIOError):
                        client.recv(1 << 20)
                    time.sleep(0.0005)

    with _flooding(flood):
        yield


@contextmanager
def _rpc_flood(lab: Lab, answer: Callable[[int], bytes], call: bytes) -> Iterator[None]:
    """One client asks one server, in ever another flow."""
    with lab.evil_portmapper() as server:

        def flood() -> None:
            number = 0
            while True:
                with lab.udp((ATTACKER, 0), (EVIL, 111)) as client, suppress(OSError):
                    number += 1
                    client.send(struct.pack("!I", number) + call[4:])
                    _, asker = server.recvfrom(2048)
                    server.sendto(answer(number), asker)
                    time.sleep(0.0005)

        with _flooding(flood):
            yield


def _long_list(lab: Lab) -> AbstractContextManager[None]:
    result = wire.listed(wire.uaddr(EVIL, _FIRST_PORT + each) for each in range(1000))
    return _rpc_flood(lab, lambda xid: wire.reply(xid, result), wire.getaddrlist(0))


FLOODS: Final[dict[str, Callable[[Lab], AbstractContextManager[None]]]] = {
    "packets of 8 bytes (TNS)": _tns_flood,
    "lists of 58 KB (GETADDRLIST)": _long_list,
    "GETPORT, each for another port": lambda lab: _rpc_flood(
        lab,
        lambda xid: wire.reply(xid, wire.xdr(_FIRST_PORT + xid % 40_000)),
        wire.getport(0),
    ),
    "GETPORT, each for port 22": lambda lab: _rpc_flood(
        lab, lambda xid: wire.reply(xid, wire.xdr(22)), wire.getport(0)
    ),
}

# SPDX-License-Identifier: GPL-2.0-or-later
"""DHCPv6 peers: a real server, real clients, a real relay, and a server of our own.

The real server is dnsmasq, which joins both groups and leases addresses on the link of
either of the gateway's interfaces. Ours answers from the addresses and ports
that a test wants, which no real server does all.
"""

import re
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from tests.live.chapters import alone, end_alone, link_local
from tests.live.world import ETH, LAN, WAN, Namespace, World, until

CLIENT_PORT = 546
SERVER_PORT = 547
ALL_AGENTS = "ff02::1:2"
ALL_SERVERS = "ff05::1:3"

_DNSMASQ: Final = f"""
port=0
interface={ETH}
bind-interfaces
dhcp-range=fd77:2::100,fd77:2::1ff,64,1h
dhcp-range=fd77:1::100,fd77:1::1ff,64,1h
enable-ra
dhcp-leasefile=/run/dnsmasq.leases
"""
_LEASED: Final = re.compile(r"inet6 (fd77:[12]::1[0-9a-f]{2}/\d+)")

# Each client adds the leased address to the interface, which stands in for {0}; of
# dhclient a script does so, and of the others the client itself.
CLIENTS: Final = {
    "dhclient": """
cat >script <<'EOF'
#!/bin/sh
[ "$reason" != BOUND6 ] || ip -6 address add "$new_ip6_address/128" dev "$interface"
EOF
chmod +x script
touch conf leases
exec dhclient -6 -1 -d -sf /run/script -cf /run/conf -lf /run/leases -pf /run/pid {0}
""",
    "dhcp6c": """
echo 'interface {0} {{ send ia-na 0; }}; id-assoc na 0 {{ }};' >conf
mkdir /var/lib/dhcpv6
exec dhcp6c -f -c conf -p pid {0}
""",
    "dhcpcd": """
mkdir /var/lib/dhcpcd
exec dhcpcd -6 -B -1 -f /dev/null -c /bin/true --nogateway {0}
""",
}


@contextmanager
def dnsmasq(world: World) -> Iterator[None]:
    """A DHCPv6 server on the server; it also sends router advertisements."""
    world.server.tell(f"cat >/run/dnsmasq.conf <<'EOF'\n{_DNSMASQ}EOF")
    argv = ("dnsmasq", "--no-daemon", "-C", "/run/dnsmasq.conf", "-u", "root")
    with _program(world.server, *argv):
        ready = "RTR-ADVERT"
        assert until(lambda: ready in world.server.log(), 30.0), world.server.log()
        yield


@contextmanager
def relay(world: World) -> Iterator[None]:
    """A relay on the gateway: from the client's link to the group of all servers."""
    argv = ("dhcrelay", "-6", "-d", "--no-pid")
    upstream = f"{ALL_SERVERS}%{WAN}"
    with _program(world.gateway, *argv, "-l", LAN, "-u", upstream):
        ready = f"Sending on   Socket/{LAN}"
        assert until(lambda: ready in world.gateway.log(), 30.0), world.gateway.log()
        yield


@contextmanager
def _program(namespace: Namespace, *argv: str) -> Iterator[subprocess.Popen[str]]:
    process = namespace.start(*argv)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Client:
    """A real client that runs on an interface, until it is closed."""

    def __init__(self, namespace: Namespace, interface: str, name: str) -> None:
        self._namespace = namespace
        self._interface = interface
        self._routes = self._listed_routes()
        script = CLIENTS[name].format(interface)
        self._process = namespace.start(*alone(script))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it and what it has started, and take off what it has set."""
        end_alone(self._process)
        for address in self.leased():
            self._ip("address", "del", address, "dev", self._interface)
        for protocol in ("ra", "dhcp"):
            self._ip("route", "flush", "dev", self._interface, "proto", protocol)
        # dhcpcd replaces a route of the kernel's by one of its own.
        for route in self._routes - self._listed_routes():
            self._ip("route", "add", *route.split(), "dev", self._interface)

    def leased(self) -> list[str]:
        """The addresses that it has set on the interface, with the prefix lengths."""
        return _LEASED.findall(self._ip("address", "show", "dev", self._interface))

    def _listed_routes(self) -> set[str]:
        shown = self._ip("route", "show", "dev", self._interface)
        return set(shown.splitlines())

    def _ip(self, *arguments: str) -> str:
        return self._namespace.run("ip", "-6", *arguments, check=True).stdout


class Server:
    """Receives what is sent to the groups; answers come from wherever a test wants."""

    def __init__(self, world: World) -> None:
        self._namespace = world.server
        self._link_local = link_local(world.server, ETH)
        self._asker = link_local(world.gateway, WAN)
        with world.server.entered():
            self._scope = socket.if_nametoindex(ETH)
        self._socket = _udp6(world.server, "::", SERVER_PORT)
        for group in (ALL_AGENTS, ALL_SERVERS):
            self._socket.setsockopt(
                socket.IPPROTO_IPV6,
                socket.IPV6_JOIN_GROUP,
                socket.inet_pton(socket.AF_INET6, group)
                + struct.pack("@I", self._scope),
            )
        self._socket.settimeout(10.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def receive(self) -> bytes:
        """The next message. Raises TimeoutError where none comes."""
        return self._socket.recv(2048)

    def answer(
        self,
        text: bytes,
        *,
        to: int = CLIENT_PORT,
        address: str | None = None,
        port: int = SERVER_PORT,
    ) -> None:
        """Send something to the gateway; by default from the link-local address."""
        with _udp6(
            self._namespace, address or self._link_local, port, self._scope
        ) as answerer:
            answerer.sendto(text, (self._asker, to, 0, self._scope))


def asker(world: World, port: int = CLIENT_PORT) -> socket.socket:
    """A UDP socket of the gateway's link-local address towards the server."""
    with world.gateway.entered():
        scope = socket.if_nametoindex(WAN)
    return _udp6(world.gateway, link_local(world.gateway, WAN), port, scope)


def ask(asker: socket.socket, message: bytes, group: str = ALL_AGENTS) -> None:
    """Send a message to a group, over the interface that the socket is bound to."""
    asker.sendto(message, (group, SERVER_PORT, 0, asker.getsockname()[3]))


def message(kind: int, options: Mapping[int, bytes] | None = None) -> bytes:
    """A message of a client, or a relay's one; RFC 8415, sections 8 and 9."""
    header = struct.pack("!B32x", 0) if kind in (12, 13) else b"\x12\x34\x56"
    body = b"".join(
        struct.pack("!HH", code, len(data)) + data
        for code, data in (options or {}).items()
    )
    return bytes((kind,)) + header + body


def _udp6(
    namespace: Namespace, address: str, port: int, scope: int = 0
) -> socket.socket:
    with namespace.entered():
        opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((address, port, 0, scope))
    except BaseException:
        opened.close()
        raise
    return opened

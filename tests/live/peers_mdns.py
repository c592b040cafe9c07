# SPDX-License-Identifier: GPL-2.0-or-later
"""mDNS peers on the gateway that are no one-shot queriers: they ask from port 5353.

And a responder of the tests' own, which answers by unicast whatever it is asked: avahi
answers by multicast even where a question wants unicast.
"""

import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.live.chapters import alone, link_local
from tests.live.world import (
    ETH,
    GATEWAY_WAN,
    MDNS_GROUP,
    MDNS_GROUP6,
    MDNS_PORT,
    MDNS_SERVICE,
    SERVER,
    SERVER6,
    WAN,
    Family,
    Namespace,
    World,
)

INSTANCE: Final = "Test HTTP"
NAME: Final = b"\7unicast\5local\0"
"""What only the own responder answers for, as it stands in a message."""

# avahi-browse asks a daemon on its own host, over D-Bus.
_AVAHI: Final = f"""
mkdir avahi-daemon dbus
mount -t tmpfs tmpfs /etc/avahi/services
cat >avahi.conf <<'EOF'
[server]
host-name=gateway
allow-interfaces={WAN}
use-ipv4=yes
use-ipv6=yes
[wide-area]
enable-wide-area=no
[publish]
publish-hinfo=no
publish-workstation=no
EOF
dbus-daemon --system --fork --nopidfile
avahi-daemon -f /run/avahi.conf --no-drop-root --no-chroot --no-rlimits -D
exec avahi-browse -rt {MDNS_SERVICE.removesuffix(".local")}
"""
_ZEROCONF: Final = str(Path(__file__).parent / "zeroconf_browse.py")

BROWSERS: Final = {
    "avahi-browse": alone(_AVAHI),
    "mdns-scan": ("mdns-scan",),
    "zeroconf, QM": (sys.executable, "-B", _ZEROCONF, GATEWAY_WAN, "QM"),
}
ZEROCONF_QU: Final = (sys.executable, "-B", _ZEROCONF, GATEWAY_WAN, "QU")
"""The same, and its first question wants a unicast answer."""


def question(*, unicast: bool) -> bytes:
    """A query for NAME, of type A; RFC 6762, section 5.4."""
    header = struct.pack("!6H", 0, 0, 1, 0, 0, 0)
    return header + NAME + struct.pack("!HH", 1, 0x8001 if unicast else 1)


def asker(world: World, family: Family, port: int = MDNS_PORT) -> socket.socket:
    """A socket of the gateway that is not in the group, so that it gets unicast only.

    Over IPv6 it is the link-local address's.
    """
    if family == 4:
        return _bound(world.gateway, GATEWAY_WAN, port)
    with world.gateway.entered():
        scope = socket.if_nametoindex(WAN)
    return _bound(world.gateway, link_local(world.gateway, WAN), port, scope)


def ask(asker: socket.socket, message: bytes) -> None:
    """Send a query to the group."""
    if asker.family == socket.AF_INET:
        asker.sendto(message, (MDNS_GROUP, MDNS_PORT))
    else:
        scope = asker.getsockname()[3]
        asker.sendto(message, (MDNS_GROUP6, MDNS_PORT, 0, scope))


class Responder:
    """Answers each question for NAME by unicast, from the server's global address."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(family,)) for family in (4, 6)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def answer(self, asker: tuple[str | int, ...], asked: bytes = bytes(12)) -> None:
        """Send an answer with the id of the question."""
        source = SERVER if len(asker) == 2 else SERVER6
        record = NAME + struct.pack("!HHIH4s", 1, 1, 10, 4, socket.inet_aton(SERVER))
        header = asked[:2] + struct.pack("!5H", 0x8400, 0, 1, 0, 0)
        with _bound(self._namespace, source, MDNS_PORT) as sender:
            sender.sendto(header + record, asker)

    def _run(self, family: Family) -> None:
        with self._listening(family) as listener:
            while not self._ended.is_set():
                try:
                    asked, asker = listener.recvfrom(9000)
                except TimeoutError:
                    continue
                if NAME in asked and not asked[2] & 0x80:
                    self.answer(asker, asked)

    @contextmanager
    def _listening(self, family: Family) -> Iterator[socket.socket]:
        with ExitStack() as stack:
            if family == 4:
                opened = _bound(self._namespace, MDNS_GROUP, MDNS_PORT)
                stack.enter_context(opened)
                opened.setsockopt(
                    socket.IPPROTO_IP,
                    socket.IP_ADD_MEMBERSHIP,
                    socket.inet_aton(MDNS_GROUP) + socket.inet_aton(SERVER),
                )
            else:
                with self._namespace.entered():
                    scope = socket.if_nametoindex(ETH)
                opened = _bound(self._namespace, MDNS_GROUP6, MDNS_PORT, scope)
                stack.enter_context(opened)
                opened.setsockopt(
                    socket.IPPROTO_IPV6,
                    socket.IPV6_JOIN_GROUP,
                    socket.inet_pton(socket.AF_INET6, MDNS_GROUP6)
                    + struct.pack("@I", scope),
                )
            opened.settimeout(0.2)
            yield opened


def _bound(
    namespace: Namespace, address: str, port: int, scope: int = 0
) -> socket.socket:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.entered():
        opened = socket.socket(kind, socket.SOCK_DGRAM)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            opened.setsockopt(socket.SOL_SOCKET, option, 1)
        where = (address, port, 0, scope) if ":" in address else (address, port)
        opened.bind(where)
    except BaseException:
        opened.close()
        raise
    return opened

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that know IPv4 alone speak over IPv6, as 464XLAT has it (RFC 6877).

Client and server each have an address of IPv4 that leads to the other one's through a
stateless translator (RFC 7915) on both of them. All that the gateway sees is IPv6.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from tests.live.world import CLIENT6, LAN, SERVER6, WAN, Namespace, World, until

# By the host that has it: its address, and what this is on the wire.
CLIENT46, CLIENT64 = "198.18.0.1", "fd77:46:1::1"
SERVER46, SERVER64 = "198.18.0.2", "fd77:46:2::1"

# An IPv6 header is 20 bytes longer than an IPv4 one.
_TRANSLATOR: Final = f"""
modprobe -q tun || true
cat >/run/tayga.conf <<'EOF'
tun-device siit
ipv4-addr 198.18.0.254
ipv6-addr fd77:46::fe
map {CLIENT46} {CLIENT64}
map {SERVER46} {SERVER64}
EOF
tayga --config /run/tayga.conf --mktun
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip -batch - <<'EOF'
link set siit mtu 1480 up
address add {{own}}/32 dev siit
route add {{other}} dev siit src {{own}}
route add {{own6}} dev siit
EOF
"""
_GONE: Final = """
ip link delete siit
echo 0 >/proc/sys/net/ipv6/conf/all/forwarding
"""


@contextmanager
def translators(world: World) -> Iterator[None]:
    """Have one on the client and one on the server meanwhile."""
    with ExitStack() as stack:
        for host, via, device, own, own6, other in (
            (world.client, CLIENT6, LAN, CLIENT46, CLIENT64, SERVER46),
            (world.server, SERVER6, WAN, SERVER46, SERVER64, CLIENT46),
        ):
            world.gateway.tell(f"ip route add {own6} via {via} dev {device}")
            stack.callback(world.gateway.tell, f"ip route delete {own6} dev {device}")
            host.tell(_TRANSLATOR.format(own=own, own6=own6, other=other))
            stack.callback(host.tell, _GONE)
            stack.enter_context(_translator(host))
        yield


@contextmanager
def _translator(host: Namespace) -> Iterator[None]:
    process = host.start("tayga", "--config", "/run/tayga.conf", "--nodetach")
    link = ("ip", "link", "show", "siit")
    try:
        # Until it reads from the device, what is sent there is lost.
        assert until(lambda: ",LOWER_UP" in host.run(*link).stdout, 30), host.log()
        yield
    finally:
        process.terminate()
        process.wait()

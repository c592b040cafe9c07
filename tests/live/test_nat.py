# SPDX-License-Identifier: GPL-2.0-or-later
"""Behind NAT: a masqueraded client works, a translated server is refused."""

import pytest

from tests.live.daemon import Daemon
from tests.live.world import GATEWAY_LAN, LAN, MOUNTD, SERVER, WAN, World

pytestmark = pytest.mark.live

MASQUERADE = f"""table inet nat {{
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname "{WAN}" masquerade
	}}
}}
"""
FORWARD = f"""table inet nat {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname "{LAN}" ip daddr {GATEWAY_LAN} tcp dport 111 dnat ip to {SERVER}
		iifname "{LAN}" ip daddr {GATEWAY_LAN} udp dport 111 dnat ip to {SERVER}
	}}
}}
"""


def test_masqueraded_client_works(world: World, daemon: Daemon) -> None:
    world.firewall()
    world.start_rpc()
    world.gateway.run("nft", "-f", "-", input=MASQUERADE, check=True)
    daemon.start()
    for netid in ("tcp", "udp", "tcp6", "udp6"):
        assert world.rpcinfo(netid).returncode == 0, netid
    assert daemon.events("refused") == []


@pytest.mark.parametrize("masquerade", [False, True], ids=["dnat", "both"])
def test_client_of_a_translated_server_works(
    world: World, daemon: Daemon, masquerade: bool
) -> None:
    world.firewall()
    world.start_rpc()
    rules = FORWARD + (MASQUERADE if masquerade else "")
    world.gateway.run("nft", "-f", "-", input=rules, check=True)
    for netid in ("tcp", "udp"):
        call = ("rpcinfo", "-T", netid, GATEWAY_LAN, str(MOUNTD), "3")
        assert world.client.run(*call, timeout=4).returncode != 0, netid
    daemon.start()
    for netid in ("tcp", "udp"):
        call = ("rpcinfo", "-T", netid, GATEWAY_LAN, str(MOUNTD), "3")
        done = world.client.run(*call, timeout=10)
        assert done.returncode == 0, (netid, done, daemon.text)
    assert daemon.events("refused") == []

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
		iifname "{LAN}" meta nfproto ipv4 tcp dport 111 dnat ip to {SERVER}
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


def test_announcement_of_a_translated_server_is_refused(
    world: World, daemon: Daemon
) -> None:
    world.firewall()
    world.start_rpc()
    world.gateway.run("nft", "-f", "-", input=FORWARD, check=True)
    daemon.start()
    call = ("rpcinfo", "-T", "tcp", GATEWAY_LAN, str(MOUNTD), "3")
    assert world.client.run(*call, timeout=4).returncode != 0
    refused = daemon.await_event("refused")
    assert refused["reason"] == "nat"
    assert refused["detail"] == f"{SERVER} is translated to {GATEWAY_LAN}"
    assert daemon.events("expectation") == []

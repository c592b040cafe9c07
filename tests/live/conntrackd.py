# SPDX-License-Identifier: GPL-2.0-or-later
"""conntrackd with its helpers, for comparison: RPC and TNS, or all that we have."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cthelper.core.daemon.ruleset import unregister
from tests.live.gateway import helper_table
from tests.live.world import World

_TYPES: Final = [
    f"{helper} {family} {transport}"
    for family in ("inet", "inet6")
    for helper, transport in (("rpc", "tcp"), ("rpc", "udp"), ("tns", "tcp"))
]
_MORE: Final = [
    *("ftp inet tcp", "mdns inet udp", "slp inet udp", "dhcpv6 inet6 udp"),
]
_FIRST_QUEUE: Final = 21
_START_SECONDS: Final = 60.0


def _configuration(folder: Path, names: list[str]) -> str:
    types = []
    for number, name in enumerate(names):
        helper = name.split()[0]
        types.append(
            f"Type {name} {{\nQueueNum {_FIRST_QUEUE + number}\nQueueLen 10240\n"
            f"Policy {helper} {{\nExpectMax 8\nExpectTimeout 300\n}}\n}}\n"
        )
    return (
        f"Helper {{\nSetup yes\n{''.join(types)}}}\n"
        f"General {{\nLogFile {folder}/log\nLockFile {folder}/lock\n"
        f"UNIX {{\nPath {folder}/control\n}}\n}}\n"
    )


_RULES: Final = """
table inet theirs {
	ct helper rpc-tcp { type "rpc" protocol tcp; }
	ct helper rpc-udp { type "rpc" protocol udp; }
	ct helper tns-tcp { type "tns" protocol tcp; }
	chain prerouting {
		type filter hook prerouting priority -150; policy accept;
		tcp dport 111 ct helper set "rpc-tcp"
		udp dport 111 ct helper set "rpc-udp"
		tcp dport 1521 ct helper set "tns-tcp"
	}
}
"""


# What this host itself asks groups is tagged on its way out.
_MORE_RULES: Final = """
table inet theirs {
	ct helper ftp-tcp { type "ftp" protocol tcp; }
	ct helper mdns-udp { type "mdns" protocol udp; l3proto ip; }
	ct helper slp-udp { type "slp" protocol udp; l3proto ip; }
	ct helper dhcpv6-udp { type "dhcpv6" protocol udp; l3proto ip6; }
	chain more {
		type filter hook prerouting priority -149; policy accept;
		tcp dport 21 ct helper set "ftp-tcp"
	}
	chain output {
		type filter hook output priority -150; policy accept;
		meta nfproto ipv4 udp dport 5353 ct helper set "mdns-udp"
		meta nfproto ipv4 udp dport 427 ct helper set "slp-udp"
		meta nfproto ipv6 udp dport 547 ct helper set "dhcpv6-udp"
	}
}
"""


@contextmanager
def conntrackd(world: World, folder: Path, *, more: bool = False) -> Iterator[None]:
    """Run it on the gateway, which tags the same flows for it as for us.

    With `more` it has its helpers for FTP, mDNS, SLP and DHCPv6, too.
    """
    config = folder / "conntrackd.conf"
    config.write_text(_configuration(folder, [*_TYPES, *(_MORE if more else ())]))
    process = world.gateway.start("conntrackd", "-C", str(config))
    rules = _RULES + (_MORE_RULES if more else "")
    try:
        deadline = time.monotonic() + _START_SECONDS
        # The kernel resolves the names of the helpers, which it registers first.
        while world.gateway.run("nft", "-f", "-", input=rules).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"conntrackd: {world.gateway.log()}")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(20)
        world.gateway.run("nft", "delete", "table", "inet", "theirs")
        # It leaves them behind, and ours have the same names.
        known = {each.split()[0] for each in (*_TYPES, *_MORE)}
        with helper_table(world) as table:
            unregister(table, [each for each in table.list() if each.name in known])

# SPDX-License-Identifier: GPL-2.0-or-later
"""conntrackd with its helpers for RPC and TNS, for comparison."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.live.gateway import helper_table
from tests.live.world import World

_TYPES: Final = [
    f"{helper} {family} {transport}"
    for family in ("inet", "inet6")
    for helper, transport in (("rpc", "tcp"), ("rpc", "udp"), ("tns", "tcp"))
]
_FIRST_QUEUE: Final = 21
_START_SECONDS: Final = 60.0


def _configuration(folder: Path) -> str:
    types = []
    for number, name in enumerate(_TYPES):
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


@contextmanager
def conntrackd(world: World, folder: Path) -> Iterator[None]:
    """Run it on the gateway, which tags the same flows for it as for us."""
    config = folder / "conntrackd.conf"
    config.write_text(_configuration(folder))
    process = world.gateway.start("conntrackd", "-C", str(config))
    try:
        deadline = time.monotonic() + _START_SECONDS
        # The kernel resolves the names of the helpers, which it registers first.
        while world.gateway.run("nft", "-f", "-", input=_RULES).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"conntrackd: {world.gateway.log()}")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(20)
        world.gateway.run("nft", "delete", "table", "inet", "theirs")
        # It leaves them behind, and ours has the same name.
        with helper_table(world) as helpers:
            for each in helpers.list():
                if each.name in ("rpc", "tns"):
                    helpers.delete(each)

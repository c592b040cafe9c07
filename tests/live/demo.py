# SPDX-License-Identifier: GPL-2.0-or-later
"""What script/demo shows: real clients without the daemon and with it.

Exits with 1 where a client does not do what it should.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from cthelper.core.tuples import Status
from tests.live.daemon import Daemon
from tests.live.gateway import ctnetlink
from tests.live.world import SERVER, SERVER6, World

CLIENTS: dict[str, Callable[[World, float], bool]] = {
    f"rpcinfo -T tcp {SERVER} 100005 3": lambda world, seconds: (
        world.rpcinfo("tcp", timeout=seconds).returncode == 0
    ),
    f"rpcinfo -T udp6 {SERVER6} 100005 3": lambda world, seconds: (
        world.rpcinfo("udp6", timeout=seconds).returncode == 0
    ),
    f"showmount -e {SERVER}": lambda world, seconds: (
        world.showmount(4, seconds).returncode == 0
    ),
    "mDNS one-shot query, IPv4": lambda world, seconds: (
        world.mdns_query(4, min(seconds, 3.0)).source is not None
    ),
    "mDNS one-shot query, IPv6": lambda world, seconds: (
        world.mdns_query(6, min(seconds, 3.0)).source is not None
    ),
}


def attempts(world: World, seconds: float) -> list[bool]:
    """Run every client and print how it went."""
    results = []
    for name, call in CLIENTS.items():
        served = call(world, seconds)
        print(f"  {'works' if served else 'fails':<8}{name}", flush=True)
        results.append(served)
    return results


def show(world: World) -> None:
    """Print the expectations and the flows that met one, as the kernel has them."""
    with ctnetlink(world) as kernel:
        print("\nexpectations, for flows from > to:")
        for each in kernel.expectations():
            print(f"  {each}  ({each.timeout} s left)")
        print("\nrelated flows, and the control flow that announced each:")
        for entry in kernel.entries():
            if Status.EXPECTED in entry.status:
                print(f"  {entry.original}\n    by {entry.master}", flush=True)


def main() -> int:
    """Build the world, show both halves, take all of it down again."""
    print("client - gateway - server; the gateway forwards port 111 and what is")
    print("established or related, and drops everything else", flush=True)
    with World() as world, tempfile.TemporaryDirectory() as folder:
        world.firewall()
        world.start_rpc()
        world.start_mdns()
        print("\nwithout cthelper:", flush=True)
        without = attempts(world, 3.0)
        print("\n# cthelper run", flush=True)
        with Daemon(world.gateway, Path(folder)) as daemon:
            daemon.start()
            working = attempts(world, 10.0)
            show(world)
            status = daemon.stop()
    return int(any(without) or not all(working) or status != 0)


if __name__ == "__main__":
    sys.exit(main())

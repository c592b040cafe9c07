# SPDX-License-Identifier: GPL-2.0-or-later
"""What the dearest packets and flows cost that an attacker may send, without a kernel.

usage: python -B -m bench.weaknesses [NAME...]

Each figure is one that `docs/security.md` has. Time is that of the CPU, the least of
several rounds; memory is what Python has allocated (tracemalloc). The last line of the
output is JSON.
"""

import argparse
import gc
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from tests.attacks import floods, wire
from tests.attacks.honest import SESSIONS
from tests.attacks.scene import Scene, Step, honest
from tests.attacks.wire import Connection

_ROUNDS: Final = 7
_FLOWS: Final = 50
_HANG_SECONDS: Final = 5.0


def _dearest(prelude: Iterable[Step], packet: bytes, settings: str = "") -> float:
    """Milliseconds on the CPU for one packet, behind others of its flow."""
    prelude = list(prelude)
    found = []
    for _ in range(_ROUNDS):
        scene = Scene(settings, count=False)
        scene.play(prelude)
        before = scene.cost.total
        scene.comes(packet)
        found.append(scene.cost.total - before)
    return min(found) * 1e3


def tns_packets() -> str:
    """One segment of 1,448 bytes that holds packets of 8 bytes, before ACCEPT."""
    *prelude, packet = floods.tns_small_packets()
    cost = _dearest(prelude, packet)
    return f"{cost:.2f} ms a segment, {1448 * 8 / cost / 1e3:.0f} Mbit/s fill a core"


def rpc_replies() -> str:
    """One segment of 1,448 bytes that holds replies to no call."""
    *prelude, packet = floods.rpc_unknown_replies()
    return f"{_dearest(prelude, packet):.2f} ms a segment"


def getaddrlist() -> str:
    """One datagram of 58 KB with a list of addresses."""
    *prelude, packet = floods.rpc_long_list()
    return f"{_dearest(prelude, packet):.1f} ms a datagram"


def ftp_lines() -> str:
    """One segment of 1,448 bytes that holds lines of two bytes."""
    *prelude, packet = floods.ftp_short_lines()
    return f"{_dearest(prelude, packet):.2f} ms a segment"


def _kept(flows: Callable[[int], Iterator[bytes]], settings: str = "") -> float:
    """KiB that a flow takes, of some."""
    scene = Scene(settings, count=False)
    scene.play(flows(0))
    # What the model of conntrack keeps is the kernel's, and is counted apart.
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(1, _FLOWS + 1):
            scene.play(flows(number))
        gc.collect()
        taken = tracemalloc.take_snapshot().filter_traces(
            [
                tracemalloc.Filter(False, "*/offline/*"),
                tracemalloc.Filter(False, "*/tests/attacks/*"),
                tracemalloc.Filter(False, "*/netlink/*"),
            ]
        )
    finally:
        tracemalloc.stop()
    return sum(each.size for each in taken.statistics("filename")) / _FLOWS / 1024


def tns_memory() -> str:
    """A flow of TNS whose bytes wait in all places where they can."""
    kept = _kept(partial(floods.tns_filled_flow, pieces=250))
    return f"{kept:.0f} KiB a flow, {kept * 65536 / (1 << 20):.1f} GiB for 65,536"


def rpc_memory() -> str:
    """A flow of SunRPC over UDP with 128 calls that nobody has answered."""
    kept = _kept(floods.rpc_pending_flow)
    return f"{kept:.0f} KiB a flow, {kept * 65536 / (1 << 20):.1f} GiB for 65,536"


def _filled(steps: Iterable[Step], helper: str, settings: str = "") -> str:
    """What a flood of announcements leaves, and whether others get theirs."""
    scene = Scene(settings, count=False)
    scene.play(steps)
    live = len(scene.live)
    try:
        honest(scene, SESSIONS[helper], 9)
        others = "others get theirs"
    except AssertionError:
        others = "others get nothing"
    reasons = ", ".join(
        f"{name} {count}"
        for name, count in sorted(scene.counters.items())
        if name.startswith("refused")
    )
    return f"{live} are expected, {others} ({reasons or 'nothing refused'})"


def two_sources() -> str:
    """Two sources, each within its quota a minute, for five minutes."""
    return _filled(floods.announcements(2, 2700, minutes=5), "sunrpc")


def one_network() -> str:
    """One IPv6 host with 4,096 addresses of its /64, in one second."""
    return _filled(floods.from_one_network(4096), "sunrpc")


def one_server() -> str:
    """A server that answers for ever other clients, 3,000 in five minutes."""
    return _filled(floods.for_many_clients(3000), "sunrpc")


def in_their_name() -> str:
    """Calls that a neighbour forges in an honest client's name, 600 of them."""
    settings = floods.FORGED_SETTINGS
    return _filled(floods.in_the_name_of(wire.HONEST, 600), "sunrpc", settings)


def stranger() -> str:
    """A stranger's listener names 10.0.0.5:5985, which another one may announce."""
    found = []
    for key, settings in (
        ("allow", '[{ from = "198.51.100.2", hosts = ["10.0.0.0/24"] }]'),
        ("allow_hosts", '["10.0.0.0/24"]'),
    ):
        scene = Scene(f"helpers.tns.guard.{key} = {settings}", count=False)
        line = Connection((wire.VICTIM, 40000), (wire.EVIL, 1521))
        text = wire.address_of("10.0.0.5", 5985)
        scene.play(
            [
                *line.opened(),
                *line.sent(wire.CONNECT),
                *line.answered(wire.redirect(text)),
            ]
        )
        found.append(f"{key}: opens {', '.join(scene.live) or 'nothing'}")
    return "; ".join(found)


def one_peer() -> str:
    """One peer makes a plugin fail five times."""
    scene = floods.faulty_scene()
    for number in range(5):
        scene.play(floods.faults(wire.ATTACKER, number))
    before = scene.counters["expectation"]
    scene.play(floods.works(wire.HONEST, 77))
    works = scene.counters["expectation"] > before
    return f"others' flows are {'still' if works else 'no longer'} inspected"


_HANGING: Final = """
from tests.attacks import plugins
from tests.attacks.scene import Scene
from tests.attacks.wire import SERVER, VICTIM, datagram, udp_flow
scene = Scene(plugins=[plugins.load("loop")], count=False)
print("begun", flush=True)
scene.comes(datagram(udp_flow((VICTIM, 40000), (SERVER, 7000)), b"HARM"))
print("answered", flush=True)
"""


def endless_loop() -> str:
    """A plugin with `while True: pass`."""
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", _HANGING], stdout=subprocess.PIPE, text=True
    )
    try:
        output, _ = process.communicate(timeout=_HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    if "answered" in output:
        return "the packet is answered"
    return f"no answer in {_HANG_SECONDS:.0f} s, without the supervisor"


FIGURES: Final[dict[str, Callable[[], str]]] = {
    each.__name__: each
    for each in (
        *(tns_packets, rpc_replies, getaddrlist, ftp_lines, tns_memory, rpc_memory),
        *(two_sources, one_network, one_server, in_their_name, stranger, one_peer),
        endless_loop,
    )
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    options = parser.parse_args()
    figures = {}
    for name in options.names or FIGURES:
        figures[name] = FIGURES[name]()
        print(f"{name}: {figures[name]}", flush=True)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())

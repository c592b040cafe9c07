# SPDX-License-Identifier: GPL-2.0-or-later
"""What tracked flows take: the engine and its flow table, with generated packets.

usage: python -m bench.memory [--flows N] [--churn N]

Memory is managed as in the daemon. Each flow is a GETPORT over UDP with its answer, so
that its helper has an instance and has asked for an expectation. Memory is that of this
process above what it had before the first flow, resident and as tracemalloc counts it,
which are two runs: tracing takes memory itself. Then as many flows as `--churn` says
come and go, the oldest ending when a new one begins. The last line of the output is
JSON.
"""

import argparse
import gc
import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench import UNLIMITED, resident
from cthelper.core.config import parse
from cthelper.core.daemon.memory_settings import settle
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    UDP,
    Conntrack,
    Endpoint,
    Status,
    Tuple,
    key_of,
)
from tests.live.traffic import getport_call, getport_reply

_SERVER: Final = Endpoint(IPv4Address("10.77.2.2"), 111)
_CLIENTS: Final = int(IPv4Address("10.128.0.0"))
# Flows of one client, from these ports on.
_PORTS, _FIRST_PORT = 1000, 10_000
_SAMPLES: Final = 10


@cache
def _address(host: int) -> IPv4Address:
    """A client's, which its flows share as they do where they come from the kernel."""
    return IPv4Address(_CLIENTS + host)


def _flow(number: int) -> Conntrack:
    host, port = divmod(number, _PORTS)
    client = Endpoint(_address(host), _FIRST_PORT + port)
    return Conntrack(
        original=Tuple(UDP, client, _SERVER),
        reply=Tuple(UDP, _SERVER, client),
        id=number + 1,
        status=Status.CONFIRMED | Status.HELPER,
        helper="sunrpc",
        timeout=30,
    )


def _datagram(way: Tuple, payload: bytes) -> bytes:
    """An IPv4 packet, whose checksums nobody looks at."""
    size = 8 + len(payload)
    return (
        struct.pack("!BxHIBBxx", 0x45, 20 + size, 0, 64, way.transport)
        + way.source.address.packed
        + way.destination.address.packed
        + struct.pack("!HHHxx", way.source.port, way.destination.port, size)
        + payload
    )


class _World:
    """An engine that many flows pass."""

    def __init__(self, flows: int) -> None:
        config = parse(UNLIMITED, Path("bench"), builtin_helpers())
        self._now = 0.0
        self._engine = Engine(
            config.helpers,
            guard=Guard(config.limits),
            on_link=lambda _: (),
            clock=lambda: self._now,
            flow_limit=flows,
            # What a budget leaves room for is not what flows take.
            budget=replace(config.budget, memory=1 << 40),
        )
        self._oldest = 0

    def pass_flow(self, number: int) -> None:
        """A flow asks for a port, and is told one."""
        entry = _flow(number)
        call = _datagram(entry.original, getport_call(number))
        reply = _datagram(entry.reply, getport_reply(number, 20_048))
        self._engine.handle(call, entry, ORIGINAL, forwarded=True)
        decision = self._engine.handle(reply, entry, REPLY, forwarded=True)
        assert len(decision.expectations) == 1  # noqa: S101 - else it measures nothing
        self._now += 0.001

    def __len__(self) -> int:
        """How many flows are tracked."""
        return len(self._engine.flows)

    def end_oldest(self) -> None:
        """The kernel says that the oldest flow's entry is gone."""
        self._engine.flows.remove(key_of(_flow(self._oldest)))
        self._oldest += 1


def _traced() -> float:
    """What tracemalloc has counted, in MiB."""
    return tracemalloc.get_traced_memory()[0] / (1 << 20)


def _measure(flows: int, churn: int, *, trace: bool) -> Iterator[float]:
    """MiB above the start: with all flows there, and again and again in the churn."""
    world = _World(flows)
    world.pass_flow(0)
    world.end_oldest()
    settle()
    if trace:
        tracemalloc.start()
    taken = _traced if trace else resident
    before = taken()
    for number in range(1, flows + 1):
        world.pass_flow(number)
    gc.collect()
    assert len(world) == flows  # noqa: S101 - else some have made room for others
    yield taken() - before
    step = max(1, churn // _SAMPLES)
    for number in range(flows + 1, flows + churn + 1):
        world.end_oldest()
        world.pass_flow(number)
        if (number - flows) % step == 0:
            gc.collect()
            yield taken() - before


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--churn", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("resident", "traced"))
    options = parser.parse_args()
    if options.kind is not None:
        trace = options.kind == "traced"
        series = list(_measure(options.flows, options.churn, trace=trace))
        print(json.dumps(series))
        return 0
    result: dict[str, object] = {"flows": options.flows, "churn": options.churn}
    amount = (f"--flows={options.flows}", f"--churn={options.churn}")
    # Side by side: memory does not mind.
    running = {
        kind: subprocess.Popen(
            [sys.executable, "-m", "bench.memory", f"--kind={kind}", *amount],
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in ("resident", "traced")
    }
    for kind, process in running.items():
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"bench: memory, {kind}, ended with {process.returncode}")
        series = result[kind] = json.loads(output)
        print(
            f"{kind}: {series[0]:.1f} MiB for {options.flows} flows, "
            f"{max(series):.1f} MiB at most in a churn of {options.churn}"
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

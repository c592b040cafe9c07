# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on the daemon and on conntrackd, in the same boot of one kernel.

usage: VM_CPUS=2 script/in-kernel .venv/bin/python -B -m bench.attacks [--only NAME...]

Needs root, and a kernel that the live tests can use. Each attack is played against
either daemon, with an honest client and server of other addresses: they ask for a port,
and a datagram must get through to it. A flood is played while the honest client asks
again and again: the 99th percentile of its round trips stands beside that of the same
client undisturbed, just before. The same flood without a daemon says what of that is
the machine's own. CPU is the daemon's time on the CPU.

Prints two tables, of which `docs/security.md` has a part; the last line of the output
is JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import PEER
from tests.live.attacks import ATTACKS, FLOODS, Lab
from tests.live.conntrackd import RPC_TNS, Tagged, conntrackd
from tests.live.daemon import Daemon
from tests.live.world import World

OURS: Final = "cthelper"
NOBODY: Final = "no daemon"

# What this host itself asks groups is tagged on its way out.
MORE: Final = (
    Tagged("ftp", "tcp", "21", families=(4,)),
    Tagged("mdns", "udp", "5353", families=(4,), hook="output"),
    Tagged("slp", "udp", "427", families=(4,), hook="output"),
    Tagged("dhcpv6", "udp", "547", families=(6,), hook="output"),
)


@dataclass(slots=True)
class Row:
    """What came of an attack; `cpu` is the daemon's, in seconds."""

    attack: str
    opened: list[str]
    honest: bool
    alive: bool
    cpu: float


_FLOOD_SECONDS: Final = 8.0


@dataclass(slots=True)
class Latency:
    """Round trips in milliseconds, undisturbed and beside a flood; lost ones count 5 s.

    `share` is how much of a CPU the daemon had meanwhile.
    """

    flood: str
    before: float
    beside: float
    answered: int
    share: float
    alive: bool


def _percentile(trips: list[float]) -> float:
    return trips[len(trips) * 99 // 100] * 1e3


# Running


def _play(lab: Lab, name: str) -> Row:
    cpu = lab.cpu
    opened = lab.opened(ATTACKS[name])
    honest = lab.honest()
    return Row(name, opened, honest, lab.alive, lab.cpu - cpu)


def _flood(lab: Lab, name: str) -> Latency:
    lab.forget()
    before = lab.trips(_FLOOD_SECONDS)
    cpu, began = lab.cpu, time.perf_counter()
    with FLOODS[name](lab):
        beside = lab.trips(_FLOOD_SECONDS)
        spent = lab.cpu - cpu
        took = time.perf_counter() - began
    return Latency(
        *(name, _percentile(before), _percentile(beside)),
        *(sum(each < 5.0 for each in beside), spent / took, lab.alive),
    )


@contextmanager
def _theirs(lab: Lab, folder: Path) -> Iterator[None]:
    with conntrackd(lab.world, folder, *RPC_TNS, *MORE):
        lab.pids = [_pid(PEER)]
        yield


@contextmanager
def _ours(lab: Lab, folder: Path) -> Iterator[None]:
    with Daemon(lab.world.gateway, folder) as daemon:
        daemon.start()
        daemon.await_rest()
        lab.pids = daemon.processes
        yield
        counters = daemon.text.count("\n")
        print(f"{OURS}: {counters} lines in its log")


def _pid(name: str) -> int:
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if path.read_text().strip() == name:
                return int(path.parent.name)
    raise SystemExit(f"bench: no process {name}")


@contextmanager
def _nobodys(lab: Lab, _folder: Path) -> Iterator[None]:
    lab.pids = []
    yield


_DAEMONS: Final = {NOBODY: _nobodys, PEER: _theirs, OURS: _ours}


def _attacked(
    lab: Lab, daemon: str, attacks: list[str], kinds: list[str], folder: Path
) -> tuple[list[Row], list[Latency]]:
    """All rows of a daemon, which is started again where it has died."""
    rows: list[Row] = []
    latencies: list[Latency] = []
    queue: list[tuple[bool, str]] = [
        *((False, name) for name in attacks),
        *((True, name) for name in kinds),
    ]
    while queue:
        with ExitStack() as stack:
            with suppress(ChildProcessError):
                stack.enter_context(_DAEMONS[daemon](lab, folder))
            while queue and lab.alive:
                floods_, name = queue.pop(0)
                if floods_:
                    latencies.append(_flood(lab, name))
                    print(daemon, latencies[-1], flush=True)
                else:
                    rows.append(_play(lab, name))
                    print(daemon, rows[-1], flush=True)
    return rows, latencies


def _cell(row: Row) -> str:
    said = "nothing" if not row.opened else "; ".join(row.opened[:2])
    more = f" and {len(row.opened) - 2} more" if len(row.opened) > 2 else ""
    return (
        f"{said}{more} | {'yes' if row.honest else 'NO'} | "
        f"{'yes' if row.alive else 'DIED'} | {row.cpu * 1e3:.0f}"
    )


def tables(found: dict[str, tuple[list[Row], list[Latency]]]) -> str:
    """The two tables in Markdown, from what came of each daemon."""
    columns = "opened | honest session | daemon alive | CPU ms"
    daemons = [each for each, (rows, _) in found.items() if rows]
    lines = [
        "| attack | " + " | ".join(f"{each}: {columns}" for each in daemons) + " |",
        "|---" * (1 + 4 * len(daemons)) + "|",
    ]
    for rows in zip(*(found[each][0] for each in daemons), strict=True):
        lines.append(f"| {rows[0].attack} | " + " | ".join(map(_cell, rows)) + " |")
    columns = "p99 ms undisturbed | p99 ms beside it | answered | its CPU"
    lines += [
        "",
        "| flood | " + " | ".join(f"{each}: {columns}" for each in found) + " |",
        "|---" * (1 + 4 * len(found)) + "|",
    ]
    for row in zip(*(latencies for _, latencies in found.values()), strict=True):
        cells = " | ".join(
            f"{each.before:.1f} | {each.beside:.1f} | {each.answered} | "
            f"{f'{each.share:.0%}' if each.alive else 'DIED'}"
            for each in row
        )
        lines.append(f"| {row[0].flood} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Play and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="attacks and floods")
    parser.add_argument("--daemon", nargs="+", choices=[*_DAEMONS], default=[*_DAEMONS])
    options = parser.parse_args()
    chosen = options.only or [*ATTACKS, *FLOODS]
    attacks = [each for each in ATTACKS if each in chosen]
    kinds = [each for each in FLOODS if each in chosen]
    found = {}
    with World() as world, tempfile.TemporaryDirectory() as folder:
        lab = Lab(world)
        with closing(lab), lab.limited():
            for daemon in options.daemon:
                lab.clear()
                played = [] if daemon == NOBODY else attacks
                found[daemon] = _attacked(lab, daemon, played, kinds, Path(folder))
    print(tables(found))
    print(
        json.dumps(
            {
                name: [[vars_of(each) for each in rows] for rows in both]
                for name, both in found.items()
            }
        )
    )
    return 0


def vars_of(row: Row | Latency) -> dict[str, object]:
    """A row by its columns."""
    return {name: getattr(row, name) for name in row.__slots__}


if __name__ == "__main__":
    sys.exit(main())

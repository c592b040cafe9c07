# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults under load: none costs a packet that the kernel does not take itself, and all
are overcome without hands.

Traffic goes on through all of them (tests/live/load.py), and each call and each answer
must arrive once. Some of them come here, once each, or FAULTS_TAKEN of these; with
FAULTS (script/faults) all do, and those that come at a moment of chance at as many
moments as it says. FAULTS_SEED chooses both. The table of what was seen is printed at
the end.
"""

import os
import platform
import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.live import faults
from tests.live.faults import Strike
from tests.live.load import SOURCES, Load, Tally
from tests.live.scene import Scene, configuration
from tests.live.world import World

pytestmark = pytest.mark.live

MOMENTS: Final = int(os.environ.get("FAULTS") or 1)
SEED: Final = int(os.environ.get("FAULTS_SEED") or secrets.randbits(32))
# What waits in the queues at a time: a call and an answer of each source.
WAITING: Final = 2 * len(SOURCES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done, and what must come of it."""

    strike: Strike
    config: str = configuration()
    tells: tuple[str, ...] = ()
    """Events that the log must tell of."""

    may_tell: tuple[str, ...] = ()
    """Others of `FAILURES` that it may tell of, as chance has it."""

    lost: int = 0
    """Packets that may be lost at most, since the kernel itself drops them."""

    seconds: float = 15.0
    """Until announcements are read again."""

    random: bool = False
    """Whether it comes at a moment of chance."""

    fresh: bool = True
    """Whether new flows come up meanwhile, and sessions must come about."""


FAILURES: Final = frozenset(
    {
        *("worker-died", "step-failed", "helper-fault", "malformed"),
        *("reload-refused", "ruleset-lost", "overload", "events-lost"),
    }
)

STUCK: Final = ("worker-stuck", "worker-died")
TWO: Final = configuration(workers=2)
SMALL: Final = configuration(daemon="receive_buffer = 65536\n")

FAULTS: Final = {
    # Processes
    "worker killed": Fault(
        strike=faults.kill_server, tells=("worker-died",), random=True
    ),
    "one of two workers killed": Fault(
        strike=faults.kill_server, config=TWO, tells=("worker-died",), random=True
    ),
    "worker stopped": Fault(strike=faults.stop_server, tells=STUCK, random=True),
    "one of two workers stopped": Fault(
        strike=faults.stop_server, config=TWO, tells=STUCK, random=True
    ),
    "worker stopped briefly": Fault(strike=faults.stop_server_briefly, random=True),
    "supervisor killed": Fault(strike=faults.kill_supervisor, random=True),
    "supervisor of two killed": Fault(
        strike=faults.kill_supervisor, config=TWO, random=True
    ),
    "supervisor killed, ExecStopPost": Fault(
        strike=faults.kill_supervisor_of_the_unit, random=True
    ),
    "supervisor stopped": Fault(strike=faults.stop_supervisor, random=True),
    "supervisor of two stopped": Fault(
        strike=faults.stop_supervisor, config=TWO, random=True
    ),
    "all killed": Fault(strike=faults.kill_all, lost=WAITING, random=True),
    "worker killed in a reload": Fault(
        strike=faults.kill_server_in_reload,
        tells=("worker-died",),
        random=True,
    ),
    "worker stopped in a reload": Fault(
        strike=faults.stop_server_in_reload,
        tells=STUCK,
        random=True,
    ),
    "supervisor killed in a reload": Fault(
        strike=faults.kill_supervisor_in_reload, random=True
    ),
    "no process": Fault(
        strike=faults.forbid_processes, tells=("step-failed", "worker-died")
    ),
    "no descriptor": Fault(
        strike=faults.forbid_descriptors,
        tells=("reload-refused", "step-failed", "worker-died"),
    ),
    "no memory: ended": Fault(strike=faults.forbid_memory, tells=("worker-died",)),
    "no memory: refused": Fault(
        strike=faults.refuse_memory, may_tell=("step-failed", "worker-died")
    ),
    # The queue and the tables
    "queue full": Fault(strike=faults.fill_queue, config=SMALL, tells=("overload",)),
    "conntrack table full": Fault(strike=faults.fill_entries, fresh=False),
    "expectation table full": Fault(strike=faults.fill_expectations),
    # Netlink
    "requests fail": Fault(strike=faults.fail_requests),
    "answers do not come": Fault(strike=faults.lose_answers, tells=STUCK, seconds=30.0),
    "verdict not taken": Fault(
        strike=faults.fail_verdict, tells=("step-failed", "worker-died")
    ),
    "queue's buffer full": Fault(strike=faults.fail_reading),
    "events lost": Fault(strike=faults.lose_events, tells=("events-lost",)),
    "entries deleted": Fault(strike=faults.delete_entries, random=True),
    # Other programs
    "ruleset flushed": Fault(
        strike=faults.flush_ruleset,
        tells=("ruleset-lost",),
        lost=WAITING,
        random=True,
    ),
    "table deleted": Fault(
        strike=faults.delete_table,
        tells=("ruleset-lost",),
        lost=WAITING,
        random=True,
    ),
    "helpers unregistered": Fault(
        strike=faults.unregister_helpers, tells=("ruleset-lost",), lost=2 * WAITING
    ),
    "queue taken before the start": Fault(strike=faults.take_queue_before_start),
    "queue taken after a death": Fault(strike=faults.take_queue_of_the_dead),
    "module before the start": Fault(strike=faults.load_module_before_start),
    "module before a reload": Fault(
        strike=faults.load_module_before_reload, lost=WAITING
    ),
    "module beside a helper": Fault(strike=faults.load_module_late),
    # Operators
    "wrong configuration, reload": Fault(
        strike=faults.reload_broken_configurations, tells=("reload-refused",)
    ),
    "wrong configuration, start": Fault(strike=faults.start_with_broken_configurations),
    "wrong plugin, reload": Fault(
        strike=faults.reload_broken_plugins, tells=("reload-refused",)
    ),
    "wrong plugin, start": Fault(strike=faults.start_with_broken_plugins),
    # The host
    "disk full": Fault(strike=faults.fill_disk),
    "log cannot be written": Fault(strike=faults.log_to_full_device),
    "log closed": Fault(strike=faults.log_to_nothing),
    "log read by nobody": Fault(strike=faults.log_to_nobody),
    "clock set": Fault(strike=faults.set_clock),
}


# What comes where FAULTS does not ask for all.
SHARE: Final[Sequence[str]] = (
    "worker killed",
    "one of two workers stopped",
    "supervisor killed",
    "worker stopped in a reload",
    "no descriptor",
    "queue full",
    "answers do not come",
    "ruleset flushed",
    "wrong plugin, reload",
    "log closed",
    "clock set",
)
TAKEN: Final[Sequence[str]] = (
    [*FAULTS]
    if os.environ.get("FAULTS")
    else random.Random(SEED).sample(
        SHARE, int(os.environ.get("FAULTS_TAKEN") or len(SHARE))
    )
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a fault at one moment."""

    tally: Tally
    seconds: float
    told: frozenset[str]


SEEN: Final[dict[str, list[Seen]]] = {}


@pytest.fixture(scope="module")
def load(world: World) -> Iterator[Load]:
    world.reset()
    with Load(world) as load:
        yield load


@pytest.fixture(scope="module")
def scene(
    world: World, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    print(f"FAULTS={MOMENTS} FAULTS_SEED={SEED}")
    scene = Scene(world, load, tmp_path_factory.mktemp("faults"), SEED)
    yield scene
    scene.close()
    print("\n" + "\n".join(page()))


@pytest.mark.parametrize("name", [each for each in FAULTS if each in TAKEN])
def test_fault_costs_no_packet_and_is_overcome(scene: Scene, name: str) -> None:
    fault = FAULTS[name]
    if fault.strike is faults.set_clock and not emulated():
        pytest.skip("the clock is this host's")
    for _ in range(MOMENTS if fault.random else 1):
        seen = strike(scene, fault)
        SEEN.setdefault(name, []).append(seen)
        tally = seen.tally
        assert tally.doubled == 0
        assert tally.lost <= fault.lost
        assert tally.bulk > 0
        if fault.fresh:
            assert tally.failed == ()
        assert set(fault.tells) <= seen.told
        assert not seen.told & FAILURES - {*fault.tells, *fault.may_tell}
        for queue in scene.world.queues().values():
            assert queue.dropped == 0
        scene.overcome()


def strike(scene: Scene, fault: Fault) -> Seen:
    """Have a fault happen to a daemon that works, until it does so again."""
    scene.prepare(fault.config)
    scene.recover(fault.seconds)
    scene.load.mark()
    scene.load.calls.fresh = fault.fresh
    try:
        fault.strike(scene)
    finally:
        scene.load.calls.fresh = True
    seconds = scene.recover(fault.seconds)
    tally = scene.load.tally()
    scene.await_empty()
    return Seen(tally, seconds, scene.told_of())


def emulated() -> bool:
    """Whether this is a machine that script/vm has booted."""
    return "virtme" in Path("/proc/cmdline").read_text()


def page() -> Iterator[str]:
    """What was seen, for docs/faults.md."""
    yield f"Linux {platform.release()}, `FAULTS={MOMENTS} FAULTS_SEED={SEED}`:"
    yield ""
    yield (
        "| fault | what happens | the log tells | times | packets | lost | twice "
        "| slowest answer | sessions | failed | bulk stood still | read again after |"
    )
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for name, seen in SEEN.items():
        tallies = [each.tally for each in seen]
        told = frozenset[str]().union(*(each.told for each in seen)) & FAILURES
        what, *_ = (FAULTS[name].strike.__doc__ or "").splitlines()
        cells = (
            name,
            what,
            ", ".join(f"`{each}`" for each in sorted(told)),
            len(seen),
            sum(2 * each.calls for each in tallies),
            sum(each.lost for each in tallies),
            sum(each.doubled for each in tallies),
            f"{max(each.slowest for each in tallies):.2f} s",
            sum(each.sessions for each in tallies),
            sum(len(each.failed) for each in tallies),
            f"{max(each.stalled for each in tallies):.2f} s",
            f"{max(each.seconds for each in seen):.1f} s",
        )
        yield f"| {' | '.join(map(str, cells))} |"

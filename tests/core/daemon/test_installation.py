# SPDX-License-Identifier: GPL-2.0-or-later
"""What is registered and loaded, and what is undone where something fails.

Fakes of the kernel's table of helpers and of nft write down what is asked of them.
"""

import errno
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cthelper import nft
from cthelper.core.config import Config, parse
from cthelper.core.daemon import installation
from cthelper.core.daemon.installation import Installation
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import NAME, UNKNOWN, Kernel
from cthelper.core.daemon.ruleset import registrations
from cthelper.core.errors import NetlinkError, RestartNeeded, RulesetError
from cthelper.core.netlink.nfnetlink_cthelper import Registration
from cthelper.core.queue.binding import BoundQueue
from cthelper.core.registry import builtin_helpers


def configured(*names: str, settings: str = "") -> Config:
    helpers = {name: builtin_helpers()[name] for name in names}
    return parse(settings, Path("test.toml"), helpers)


OLD, NEW = configured("sunrpc"), configured("sunrpc", "tns")
SUNRPC = registrations(OLD.helpers.values())
TNS = registrations(configured("tns").helpers.values())
FOREIGN = replace(TNS[0], name="rpc")


class World:
    """The kernel's end. `errors` are raised by the steps of these names, once each."""

    TABLE = "inet cthelper"
    new_seed = staticmethod(nft.new_seed)
    flushed = False

    def __init__(self) -> None:
        self.record: list[str] = []
        self.registered: dict[object, Registration] = {}
        self.bound: dict[int, BoundQueue] = {}
        self.errors: dict[str, Exception] = {}
        self.seeds: set[int] = set()
        self.hands_down: bool | None = None

    def step(self, name: str) -> None:
        self.record.append(name)
        if name in self.errors:
            raise self.errors.pop(name)

    def list(self) -> Sequence[Registration]:
        return [*self.registered.values()]

    def put(self, registration: Registration) -> None:
        self.step(f"put {registration.name}")
        self.registered[registration.key] = registration

    def delete(self, registration: Registration) -> None:
        self.step(f"delete {registration.name}")
        self.registered.pop(registration.key, None)

    def close(self) -> None:
        self.step("close")

    def pause(self, _config: Config) -> None:
        self.step("pause")

    def install(self, config: Config, seed: int, *, hands_down: bool) -> None:
        self.step(f"load {','.join(config.helpers)}")
        self.seeds.add(seed)
        self.hands_down = hands_down

    def missing(self, _config: Config) -> bool:
        self.step("list")
        return True

    def touched(self) -> bool:
        return self.flushed

    def remove(self) -> None:
        self.step("unload")

    def leave(self, *registrations: Registration) -> None:
        """A daemon that was killed has left these."""
        self.registered.update({each.key: each for each in registrations})

    def steps(self) -> Sequence[str]:
        """What was asked for, a name once where it comes for several transports."""
        found = dict.fromkeys(self.record)
        self.record.clear()
        return [*found]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(installation, "HelperTable", lambda: made)
    monkeypatch.setattr(installation, "TableEvents", lambda _table: made)
    monkeypatch.setattr(installation, "nft", made)
    monkeypatch.setattr(installation, "bound_queues", lambda: made.bound)
    return made


@pytest.fixture
def log() -> Log:
    return Log(clock=lambda: 0.0, output=io.StringIO())


@pytest.fixture
def kernel(world: World, log: Log) -> Installation:
    return Installation(log)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("left", "bound", "steps"),
    [
        ([], [], []),
        ([FOREIGN], [], []),
        (SUNRPC, [], ["pause"]),
        (SUNRPC, [9], ["pause"]),
        # Whoever has it lives, and will be met when binding.
        (SUNRPC, [2077], []),
    ],
    ids=["nothing", "another program's", "ours", "ours beside others", "a daemon's"],
)
def test_rules_of_a_killed_daemon_queue_no_more_before_the_queue_is_bound(
    world: World,
    kernel: Installation,
    left: list[Registration],
    bound: list[int],
    steps: list[str],
) -> None:
    world.leave(*left)
    world.bound = {each: BoundQueue(each, 1, 0, 0) for each in bound}
    kernel.take_over(NEW)
    assert world.steps() == steps


def test_helpers_are_there_before_the_rules_that_name_them(
    world: World, kernel: Installation
) -> None:
    kernel.take_over(NEW)
    kernel.install(NEW, UNKNOWN)
    assert world.steps() == ["put sunrpc", "put tns", "load sunrpc,tns"]
    kernel.remove()
    assert world.steps() == ["unload", "delete sunrpc", "delete tns"]


def test_helpers_with_other_policies_are_replaced_at_the_start(
    world: World, kernel: Installation
) -> None:
    other = [replace(each, policies=each.policies[:1]) for each in SUNRPC]
    world.leave(*other, FOREIGN)
    kernel.take_over(OLD)
    kernel.install(OLD, Kernel(keeps_limits=True))
    steps = ["pause", "unload", "delete sunrpc", "put sunrpc", "load sunrpc"]
    assert world.steps() == steps
    assert world.list() == [FOREIGN, *SUNRPC]


LIMIT = "helpers.sunrpc.policies.service.timeout = 7"
LIMITED = registrations(configured("sunrpc", settings=LIMIT).helpers.values())


@pytest.mark.parametrize("keeps_limits", [True, False])
def test_limits_that_are_left_behind_are_changed_or_the_helper_replaced(
    world: World, kernel: Installation, keeps_limits: bool
) -> None:
    world.leave(*LIMITED)
    kernel.take_over(OLD)
    kernel.install(OLD, Kernel(keeps_limits=keeps_limits))
    replaced = [] if keeps_limits else ["unload", "delete sunrpc"]
    assert world.steps() == ["pause", *replaced, "put sunrpc", "load sunrpc"]
    assert world.list() == SUNRPC


@pytest.mark.parametrize("keeps_limits", [True, False])
def test_limits_that_stay_the_same_are_not_asked_for_again(
    world: World, kernel: Installation, keeps_limits: bool
) -> None:
    world.leave(*SUNRPC)
    kernel.take_over(OLD)
    kernel.install(OLD, Kernel(keeps_limits=keeps_limits))
    kernel.change(OLD)
    kernel.restore(OLD)
    assert "put sunrpc" not in world.record


def test_change_to_other_policies_is_refused_before_anything_is_changed(
    world: World, kernel: Installation
) -> None:
    kernel.take_over(NEW)
    kernel.install(NEW, Kernel(keeps_limits=True))
    other = [replace(each, policies=each.policies * 2) for each in TNS]
    world.leave(*other)
    with pytest.raises(RestartNeeded, match="tns ip tcp is registered with other pol"):
        kernel.change(configured("sunrpc", "tns", settings=LIMIT))
    assert world.list() == [*SUNRPC, *other]


def test_change_of_limits_is_refused_where_the_kernel_would_mix_them_up(
    world: World, kernel: Installation
) -> None:
    kernel.take_over(NEW)
    kernel.install(NEW, Kernel(keeps_limits=False))
    changed = configured("sunrpc", "tns", settings=LIMIT)
    with pytest.raises(RestartNeeded, match="sunrpc ip tcp is registered otherwise"):
        kernel.change(changed)
    assert world.list() == [*SUNRPC, *TNS]
    # With one policy there is nothing to be mixed up.
    kernel.change(
        configured("sunrpc", "tns", settings="helpers.tns.policies.redirect.timeout=7")
    )


def test_abandoning_leaves_what_was_there_before(
    world: World, kernel: Installation
) -> None:
    world.leave(*SUNRPC)
    world.errors["load sunrpc,tns"] = RulesetError("nft: no")
    kernel.take_over(NEW)
    with pytest.raises(RulesetError):
        kernel.install(NEW, UNKNOWN)
    kernel.abandon()
    assert world.list() == SUNRPC


@pytest.mark.parametrize("fault", ["put tns", "load sunrpc,tns"])
def test_change_that_fails_leaves_it_all_as_it_was(
    world: World, kernel: Installation, fault: str
) -> None:
    changed = configured("sunrpc", "tns", settings=LIMIT)
    kernel.take_over(NEW)
    kernel.install(OLD, Kernel(keeps_limits=True))
    world.steps()
    world.errors[fault] = RestartNeeded("no")
    with pytest.raises(RestartNeeded):
        kernel.change(changed)
    assert [each for each in world.list() if each.name == "sunrpc"] == SUNRPC
    assert world.record[-1] == "put sunrpc"


def test_helper_that_is_not_wanted_any_more_stays_until_the_end(
    world: World, kernel: Installation
) -> None:
    kernel.install(NEW, UNKNOWN)
    kernel.change(OLD)
    assert world.list() == [*SUNRPC, *TNS]
    kernel.remove()
    assert world.list() == []


def test_what_cannot_be_undone_is_told_and_the_rest_is(
    world: World, kernel: Installation, log: Log
) -> None:
    kernel.install(NEW, UNKNOWN)
    world.errors["delete sunrpc"] = NetlinkError.of(errno.EPERM, "delete helper")
    kernel.remove()
    assert {each.name for each in world.list()} == {"sunrpc"}
    assert log.counters == {"step-failed": 1}


def test_flows_stay_with_their_workers_as_long_as_the_daemon_lives(
    world: World, kernel: Installation, log: Log
) -> None:
    kernel.install(OLD, UNKNOWN)
    kernel.change(NEW)
    kernel.restore(NEW)
    assert len(world.seeds) == 1
    # Nobody is to know to which worker he sends.
    for _ in range(3):
        Installation(log).install(NEW, UNKNOWN)
    assert len(world.seeds) == 4


@pytest.mark.parametrize("hands_down", [False, True])
def test_rules_are_those_that_this_kernel_needs(
    world: World, kernel: Installation, hands_down: bool
) -> None:
    kernel.install(OLD, Kernel(hands_down=hands_down))
    assert world.hands_down is hands_down
    world.hands_down = None
    kernel.change(NEW)
    assert world.hands_down is hands_down


def test_what_another_has_asked_the_kernel_with_goes_at_the_end(
    world: World, kernel: Installation
) -> None:
    kernel.install(OLD, UNKNOWN)
    world.leave(replace(FOREIGN, name=NAME), FOREIGN)
    kernel.remove()
    assert world.list() == [FOREIGN]


def test_helpers_stay_as_long_as_the_ruleset_that_refers_to_them(
    world: World, kernel: Installation, log: Log
) -> None:
    kernel.install(NEW, UNKNOWN)
    world.errors["unload"] = RulesetError("nft: no")
    kernel.remove()
    assert world.list() == [*SUNRPC, *TNS]
    assert log.counters == {"step-failed": 1}


def test_lost_ruleset_is_loaded_again_and_what_was_unregistered_with_it(
    world: World, kernel: Installation
) -> None:
    kernel.install(NEW, UNKNOWN)
    assert not kernel.touched()
    world.flushed = True
    assert kernel.touched()
    assert kernel.missing(NEW)
    world.record.clear()
    kernel.restore(NEW)
    assert world.steps() == ["load sunrpc,tns"]
    for each in TNS:
        del world.registered[each.key]
    kernel.restore(NEW)
    assert world.steps() == ["put tns", "load sunrpc,tns"]
    kernel.remove()
    assert world.registered == {}


def test_closing_leaves_everything_as_it_is(world: World, kernel: Installation) -> None:
    kernel.install(OLD, UNKNOWN)
    world.record.clear()
    kernel.close()
    assert world.record == ["close", "close"]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel is asked, and what it answers."""

import os
import signal
import subprocess
from contextlib import closing
from typing import Final

import pytest

from cthelper.core.daemon import ruleset
from cthelper.core.daemon.probe import NAME, Kernel
from cthelper.core.queue.native import NativeQueue, bind_queue
from cthelper.core.queue.protocol import Verdict
from tests.live.gateway import ASK, all_registered, answer, ask_in, asking
from tests.live.netlink_lab import QUEUE, Flow, Lab, readable, until
from tests.live.world import World

pytestmark = pytest.mark.live

# What was seen, by what the release begins with; of all others the last one.
KNOWN: Final = {
    "6.12.95": Kernel(keeps_limits=False, hands_down=True),
    "": Kernel(keeps_limits=True),
}


def probes(world: World) -> list[str]:
    return [each.name for each in all_registered(world) if each.name == NAME]


def test_kernel_answers_as_it_was_seen_to_do(world: World) -> None:
    world.reset()
    release = os.uname().release
    expected = next(KNOWN[each] for each in KNOWN if release.startswith(each))
    assert ask_in(world) == expected
    assert probes(world) == []


def test_two_that_ask_at_once_are_both_answered(world: World) -> None:
    world.reset()
    first, second = asking(world), asking(world)
    assert answer(first) == answer(second)
    assert probes(world) == []


def test_one_that_is_killed_hinders_no_other_and_its_helper_can_be_removed(
    world: World,
) -> None:
    world.reset()
    killed = asking(world)
    until(lambda: probes(world), 60.0)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert ask_in(world).carries_entries
    # It may as well be a daemon's.
    assert set(probes(world)) == {NAME}
    with world.gateway.entered():
        ruleset.remove()
    assert probes(world) == []


def test_daemon_s_unit_leaves_enough_to_ask_with(world: World) -> None:
    """A process with CAP_NET_ADMIN alone needs a user namespace for it."""
    world.reset()
    only = ("--bounding-set", "-all,+net_admin", "--no-new-privs")
    process = world.gateway.start("setpriv", *only, *ASK, stdout=subprocess.PIPE)
    assert answer(process) == ask_in(world)
    assert probes(world) == []


@pytest.mark.parametrize("asks", ["gateway", "client"])
def test_packet_that_waits_in_a_queue_is_not_lost(world: World, asks: str) -> None:
    """The kernel drops all that wait, wherever, when a helper is unregistered."""
    namespace = getattr(world, asks)
    with Lab(world, queueing=True), world.gateway.entered():
        binding = bind_queue(QUEUE, 1 << 20, fail_open=True)
        binding.resume()
        with closing(binding), Flow(world) as flow:
            flow.client.send(b"hello")
            queue = NativeQueue(binding, 16)
            assert readable(queue.fileno())
            (packet,) = queue.read(16)
            process = namespace.start(*ASK, stdout=subprocess.PIPE)
            assert answer(process).carries_entries
            assert set(probes(world)) == {NAME}
            queue.answer([Verdict(packet.id)])
            assert flow.server.recv(100) == b"hello"
    with world.gateway.entered():
        ruleset.remove()
    assert probes(world) == []

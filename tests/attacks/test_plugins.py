# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins that go wrong: their packet passes, their flow is read no more, and that is
all.

What never ends and what kills a server is for the supervisor: tests/live.
"""

import ast

import pytest

from cthelper.core.api import Helper
from tests.attacks import plugins
from tests.attacks.honest import SESSIONS
from tests.attacks.scene import Scene, honest
from tests.attacks.wire import ATTACKER, HONEST, SERVER, datagram, udp_flow
from tests.cases import cases


def _says(
    scene: Scene, source: str, number: int, payload: bytes = plugins.HARM
) -> None:
    """A datagram in a flow of its own, which goes on as it came."""
    way = udp_flow((source, 30_000 + number), (SERVER, plugins.PORT))
    packet = datagram(way, payload)
    assert scene.comes(packet) == packet


def _announces(scene: Scene, source: str, number: int) -> bool:
    """Whether what a source announces is expected."""
    _says(scene, source, number, b"OPEN %d" % (40_000 + number))
    return f"udp {SERVER} > {source}:{40_000 + number}" in scene.live


@pytest.fixture(scope="module")
def loaded() -> dict[str, type[Helper]]:
    """The plugins that end, by what they do."""
    return {name: plugins.load(name) for name in (*plugins.RAISING, *plugins.LASTING)}


@pytest.mark.parametrize("harm", plugins.RAISING)
def test_bug_of_a_plugin_ends_its_flow_and_nothing_else(
    loaded: dict[str, type[Helper]], harm: str
) -> None:
    scene = Scene(plugins=[loaded[harm]])
    assert _announces(scene, HONEST, 1)
    _says(scene, ATTACKER, 1)
    way = udp_flow((ATTACKER, 30_001), (SERVER, plugins.PORT))
    # The mark needs a flow that is confirmed, which its first packet was not.
    scene.comes(datagram(way, b"OPEN 40000"))
    before = scene.cost.packets
    scene.comes(datagram(way, b"OPEN 40000"))
    assert scene.cost.packets == before, "the flow is still queued"
    assert scene.opened == {f"udp {SERVER} > {HONEST}:40001"}
    assert scene.said & {
        "helper-fault",
        "step-failed.inspection",
        "finished.memory",
        "finished.fault",
    }
    assert _announces(scene, HONEST, 2)
    honest(scene, SESSIONS["tns"], 3)


def test_want_of_memory_is_no_fault_of_a_helper(
    loaded: dict[str, type[Helper]],
) -> None:
    scene = Scene(plugins=[loaded["MemoryError"]])
    for number in range(20):
        _says(scene, f"192.0.2.{number + 10}", number)
    assert "helper-fault" not in scene.counters
    assert scene.counters["finished.memory"] == 20
    assert _announces(scene, ATTACKER, 77)


@pytest.mark.parametrize("harm", plugins.RAISING)
def test_one_peer_cannot_switch_a_plugin_off_for_others(
    loaded: dict[str, type[Helper]], harm: str
) -> None:
    scene = Scene(plugins=[loaded[harm]])
    for number in range(12):
        _says(scene, ATTACKER, number)
    assert _announces(scene, HONEST, 77)


@pytest.mark.parametrize(
    "harm", [each for each in plugins.RAISING if each != "MemoryError"]
)
def test_peer_whose_packets_make_a_plugin_fail_is_left_out_for_a_while(
    loaded: dict[str, type[Helper]], harm: str
) -> None:
    scene = Scene(plugins=[loaded[harm]])
    for number in range(12):
        _says(scene, ATTACKER, number)
    assert not _announces(scene, ATTACKER, 77)
    scene.wait(700.0)
    assert _announces(scene, ATTACKER, 78)


def test_plugin_that_fails_for_many_peers_comes_back_by_itself(
    loaded: dict[str, type[Helper]],
) -> None:
    scene = Scene(plugins=[loaded["half"]])
    for number in range(40):
        _says(scene, f"192.0.2.{number + 120}", number)
    for _ in range(60):
        scene.wait(60.0)
    assert _announces(scene, HONEST, 77)


@pytest.mark.parametrize("harm", plugins.LASTING)
def test_what_a_plugin_leaves_behind_harms_nobody(
    loaded: dict[str, type[Helper]], harm: str
) -> None:
    scene = Scene(plugins=[loaded[harm]])
    for number in range(50):
        _says(scene, ATTACKER, number)
    assert _announces(scene, HONEST, 77)
    honest(scene, SESSIONS["sunrpc"], 3)
    assert scene.said == {"expectation"}


@cases("harm", {name: name for name in (*plugins.ENDLESS, *plugins.DEADLY)})
def test_plugin_for_the_supervisor_is_one(harm: str) -> None:
    """It is loaded, and does its harm at HARM alone."""
    ast.parse(plugins.source(harm))
    scene = Scene(plugins=[plugins.load(harm)])
    assert _announces(scene, HONEST, 1)

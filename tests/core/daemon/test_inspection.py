# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets in, verdicts out: engine, gate and masters together, between fakes.

What the kernel and the queue see is one record, so that its order can be asserted.
"""

import io
from dataclasses import replace
from typing import Final

import pytest

from cthelper.core.config import Config, DaemonConfig
from cthelper.core.daemon import inspection
from cthelper.core.daemon.inspection import Inspection
from cthelper.core.daemon.log import Log
from cthelper.core.netlink import encoding
from cthelper.core.queue.protocol import Action, Hook, QueuedPacket, Touched, Verdict
from cthelper.core.tuples import (
    ORIGINAL,
    UDP,
    Address,
    Conntrack,
    Expectation,
    FlowKey,
    Status,
    Tuple,
)
from tests.core.builders import conntrack, flow_tuple, udp
from tests.core.host import Clock, Datagrams, Lines, configured

CONFIG: Final = Config(
    helpers={"datagram": configured(Datagrams)}, daemon=DaemonConfig(mark=0x40)
)
NEXT: Final = Config(helpers={"line": configured(Lines)})
ENTRY: Final = replace(conntrack(flow_tuple(UDP), helper="datagram"), timeout=30)
BEGUN: Final = replace(ENTRY, status=Status(0))
KEPT: Final = encoding.entry_timeout(61)


class FakeLinks:
    """Every host is another one."""

    def is_local(self, _address: Address) -> bool:
        return False

    def on_link(self, _address: Address) -> tuple[()]:
        return ()


class World:
    """A queue, and the kernel's conntrack."""

    number = 7

    def __init__(self) -> None:
        self.record: list[object] = []
        self.clock = Clock()
        self.log = Log(clock=self.clock, output=io.StringIO())
        self._waiting: list[QueuedPacket] = []
        self._touched: list[Touched] = []

    # Conntrack.

    def expect(self, expectation: Expectation) -> Expectation:
        self.record.append(f"expect {expectation.destination.port}")
        return expectation

    def get(self, _original: Tuple, _zone: int = 0) -> Conntrack:
        return ENTRY

    def update(self, _original: Tuple, _zone: int = 0, **changes: object) -> None:
        self.record.append(changes)

    # The queue.

    def comes(self, payload: bytes, entry: Conntrack | None, *ids: int) -> None:
        """Packets wait, and then something is due."""
        self._waiting = [
            QueuedPacket(id_, Hook.INPUT, udp(payload), entry, ORIGINAL, 0, 0)
            for id_ in ids
        ]

    def read(self, _limit: int) -> list[QueuedPacket]:
        return self._waiting

    def answer(self, verdicts: list[Verdict]) -> None:
        self.record += verdicts

    def note(self, packet: QueuedPacket, *, quiet: bool, held: bool) -> None:
        self.record.append(f"note {packet.id}{' quiet' * quiet}{' held' * held}")

    def touched(self) -> list[Touched]:
        return self._touched

    def passes_unseen(self, key: FlowKey, timeout: int) -> None:
        self._touched = [(*key, timeout)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(inspection, "Ctnetlink", lambda: made)
    return made


@pytest.fixture
def inspects(world: World) -> Inspection:
    return Inspection(CONFIG, FakeLinks(), world.log, world.clock)  # type: ignore[arg-type]


def served(world: World, inspects: Inspection, *packet: object) -> list[object]:
    """What is done for packets: their payload, their entry, and their ids."""
    world.record.clear()
    world.comes(*packet)  # type: ignore[arg-type]
    inspects.serve(world)  # type: ignore[arg-type]
    return list(world.record)


def test_expectation_is_there_and_its_master_kept_before_the_packet_goes_on(
    world: World, inspects: Inspection
) -> None:
    assert served(world, inspects, b"OPEN 5000", ENTRY, 1) == [
        *("expect 5000", "note 1 held"),
        Verdict(1, conntrack=KEPT),
    ]


def test_packet_that_comes_back_is_not_read_again(
    world: World, inspects: Inspection
) -> None:
    # Of port 22 is told when it is read, of 5000 when it is expected.
    payload = b"TRY 22 5000"
    assert served(world, inspects, payload, BEGUN, 1) == [Verdict(1, Action.REPEAT)]
    assert world.log.counters == {"refused.denied-port": 1}
    assert served(world, inspects, payload, ENTRY, 2) == [
        *("expect 5000", "note 2 held"),
        Verdict(2, conntrack=KEPT),
    ]
    assert world.log.counters == {"refused.denied-port": 1, "expectation": 1}


def test_packet_that_has_not_come_back_is_told_of_in_time(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"OPEN 5000", BEGUN, 1)
    world.clock.now += 2
    inspects.tick([])
    assert world.log.counters == {"refused.not-returned": 1}


@pytest.mark.parametrize(
    "entry", [None, replace(ENTRY, helper=None), replace(ENTRY, helper="line")]
)
def test_packet_that_nobody_reads_goes_on(
    world: World, inspects: Inspection, entry: Conntrack | None
) -> None:
    assert served(world, inspects, b"OPEN 5000", entry, 1, 2) == [
        Verdict(1),
        Verdict(2),
    ]


def test_finished_flow_is_quiet_and_marked_after_its_packet_has_gone_on(
    world: World, inspects: Inspection
) -> None:
    assert served(world, inspects, b"DONE", ENTRY, 1) == [
        "note 1 quiet",
        Verdict(1),
        {"mark": (0x40, 0x40)},
    ]


def test_master_whose_packets_pass_unseen_is_kept(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"OPEN 5000", ENTRY, 1)
    world.record.clear()
    world.clock.now += 10
    world.passes_unseen((ENTRY.id, ENTRY.zone), 30)
    inspects.tick([world])  # type: ignore[list-item]
    assert world.record == [{"timeout": 51}]


@pytest.mark.parametrize(
    ("outcome", "read"),
    [("prepare", True), ("abort", True), ("commit", False)],
)
def test_helper_reads_until_the_kernel_has_a_configuration_without_it(
    world: World, inspects: Inspection, outcome: str, read: bool
) -> None:
    inspects.prepare(NEXT)
    assert inspects.prefilters.keys() == {"line"}
    if outcome != "prepare":
        getattr(inspects, outcome)()
    served(world, inspects, b"OPEN 5000", ENTRY, 1)
    assert ("expect 5000" in world.record) is read
    known = {"datagram"} if outcome == "abort" else {"line"}
    assert inspects.prefilters.keys() == known

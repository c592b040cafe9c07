# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that go round before they are released, and the verdicts."""

import io
import json
from dataclasses import replace
from ipaddress import ip_network

import pytest

from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Policy
from cthelper.core.daemon.gate import Gate
from cthelper.core.daemon.log import Log
from cthelper.core.engine import NOTHING, Decision
from cthelper.core.flows import Flow
from cthelper.core.queue.protocol import (
    Action,
    Hook,
    QueuedPacket,
    Verdict,
)
from cthelper.core.tuples import (
    ORIGINAL,
    Conntrack,
    Expectation,
    Status,
    Transport,
)
from tests.core.builders import CLIENT, SERVER, conntrack, endpoint, flow_tuple

RECEIVED = b"as it came"
ROUND_SECONDS = 2
ROUND_LIMIT = 1024
ALIKE = 8


class Silent(Helper):
    """Asks for nothing: the decisions are made by hand."""

    name = "silent"
    transports = frozenset({UDP})
    ports = (7000,)
    policies = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


def wanted(port: int, **changes: object) -> Expectation:
    expectation = Expectation(
        master=flow_tuple(UDP),
        transport=UDP,
        source=ip_network(SERVER),
        source_port=5353,
        destination=endpoint(CLIENT, port),
        policy="data",
        timeout=60,
        permanent=True,
    )
    return replace(expectation, **changes)  # type: ignore[arg-type]


class World:
    """A gate; `record` is what is to be expected, and the verdicts, in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.record: list[str] = []
        self.output = io.StringIO()
        self.log = Log("debug", "json", clock=lambda: self.now, output=self.output)
        self.given_up: list[Expectation] = []
        self.gate = Gate(
            *(self.log, lambda: self.now, self.given_up.extend), adjusts_twice=True
        )

    def packet(
        self,
        id_: int,
        *ports: int,
        confirmed: bool = False,
        payload: bytes = RECEIVED,
        rewritten: bytes | None = None,
        flow: int = 1,
    ) -> Verdict:
        """One packet comes, announces the ports, and has its answer."""
        entry = entry_of(confirmed=confirmed, id_=flow)
        packet = QueuedPacket(id_, Hook.POSTROUTING, payload, entry, ORIGINAL, 0, 0)
        decided = self.gate.returned(packet, entry)
        if decided is None:
            decided = decision(*ports, packet=rewritten)
            if self.gate.sends_round(entry, decided):
                self.record.append(f"repeat {id_}")
                return self.gate.send_round(packet, entry, decided)
        announced = [each.destination.port for each in decided.expectations]
        self.record += [f"expect {port}" for port in announced]
        verdict = self.gate.verdict(packet, entry, decided)
        self.record.append(f"release {id_}")
        return verdict

    @property
    def events(self) -> list[dict[str, object]]:
        """The lines of the log, without their times."""
        lines = [json.loads(line) for line in self.output.getvalue().splitlines()]
        return [{key: each[key] for key in each if key != "time"} for each in lines]


def entry_of(*, confirmed: bool, id_: int = 1) -> Conntrack:
    original = flow_tuple(UDP, source=(CLIENT, 39999 + id_))
    entry = conntrack(original, id_=id_, helper="silent")
    return entry if confirmed else replace(entry, status=Status(0))


def decision(*ports: int, packet: bytes | None = None) -> Decision:
    return Decision(
        flow=Flow.begin(entry_of(confirmed=True), Silent, Silent.name),
        expectations=tuple(wanted(port) for port in ports),
        packet=packet,
    )


@pytest.fixture
def world() -> World:
    return World()


def test_packet_that_cannot_be_rewritten_is_dropped_where_configured(
    world: World,
) -> None:
    entry = entry_of(confirmed=True)
    packet = QueuedPacket(7, Hook.POSTROUTING, RECEIVED, entry, ORIGINAL, 0, 0)
    verdict = world.gate.verdict(packet, entry, Decision(drop=True))
    assert verdict == Verdict(7, Action.DROP)


# Packets that go round.


@pytest.mark.parametrize("ports", [(1,), (1, 2, 3)])
def test_packet_of_an_unconfirmed_master_goes_round_before_it_expects(
    world: World, ports: tuple[int, ...]
) -> None:
    assert world.packet(7, *ports) == Verdict(7, Action.REPEAT)
    assert world.record == ["repeat 7"]
    assert world.events == []
    assert world.packet(8, confirmed=True) == Verdict(8)
    expects = [f"expect {port}" for port in ports]
    assert world.record[1:] == [*expects, "release 8"]


@pytest.mark.parametrize("confirmed", [True, False])
def test_packet_that_announces_nothing_goes_on_at_once(
    world: World, confirmed: bool
) -> None:
    assert world.packet(7, confirmed=confirmed) == Verdict(7)
    assert world.record == ["release 7"]
    assert world.events == []


def test_packet_of_a_flow_that_nobody_inspects_goes_on_at_once(world: World) -> None:
    entry = entry_of(confirmed=True)
    packet = QueuedPacket(7, Hook.INPUT, RECEIVED, entry, ORIGINAL, 0, 0)
    assert world.gate.verdict(packet, entry, NOTHING) == Verdict(7)


# What the verdict holds.


@pytest.mark.parametrize(
    ("ports", "confirmed"),
    [((), False), ((), True), ((1, 2), True)],
    ids=["nothing", "nothing, confirmed", "by ctnetlink"],
)
def test_rewritten_packet_goes_on_in_place_of_the_received_one(
    world: World, ports: tuple[int, ...], confirmed: bool
) -> None:
    verdict = world.packet(7, *ports, confirmed=confirmed, rewritten=b"new")
    assert (verdict.action, verdict.payload) == (Action.ACCEPT, b"new")


def test_packet_that_goes_round_is_rewritten_when_it_is_released(world: World) -> None:
    # Rewritten twice it would be wrong, and it has to come back as it was received.
    assert world.packet(7, 1, 2, rewritten=b"new").payload is None
    assert world.packet(8, confirmed=True) == Verdict(8, payload=b"new")


# Packets that come back.


def test_packet_whose_flow_is_never_confirmed_does_not_go_round_for_ever(
    world: World,
) -> None:
    for number in range(ALIKE):
        assert world.packet(number, 2, 3).action is Action.REPEAT
    assert world.packet(ALIKE, 2, 3) == Verdict(ALIKE)
    assert world.record[ALIKE:] == ["expect 2", "expect 3", f"release {ALIKE}"]


def test_packet_that_has_come_back_is_a_new_one_the_next_time(world: World) -> None:
    world.packet(7, 1, 2)
    world.packet(8, confirmed=True)
    world.packet(9, 3, confirmed=True)
    assert world.record[-2:] == ["expect 3", "release 9"]


def test_another_packet_of_the_flow_is_not_taken_for_the_one_that_comes_back(
    world: World,
) -> None:
    world.packet(7, 1, 2)
    world.packet(8, 5, confirmed=True, payload=b"another")
    world.packet(9, confirmed=True)
    assert world.record == [
        *("repeat 7", "expect 5", "release 8"),
        *("expect 1", "expect 2", "release 9"),
    ]


def test_several_packets_of_one_flow_may_be_under_way(world: World) -> None:
    world.packet(7, 1)
    world.packet(8, 2, payload=b"another")
    world.packet(9, confirmed=True, payload=b"another")
    world.packet(10, confirmed=True)
    assert world.record[2:] == ["expect 2", "release 9", "expect 1", "release 10"]


def test_second_first_packet_that_is_alike_takes_nothing_from_the_first(
    world: World,
) -> None:
    # Of the second one the engine has another idea: the helper knew the first by then.
    world.packet(7, 1, 2)
    world.packet(8, 3)
    world.packet(9, confirmed=True)
    world.packet(10, confirmed=True)
    world.packet(11, 4, confirmed=True)
    assert world.record == [
        *("repeat 7", "repeat 8"),
        *("expect 1", "expect 2", "release 9", "expect 3", "release 10"),
        *("expect 4", "release 11"),
    ]


def test_alike_packets_are_given_up_like_others(world: World) -> None:
    for number in range(ALIKE):
        world.packet(number, 1)
        world.now += ROUND_SECONDS / ALIKE
    for late in range(1, ALIKE + 1):
        world.gate.give_up_waiting()
        assert world.log.counters == {"refused.not-returned": late}
        world.now += ROUND_SECONDS / ALIKE
    world.packet(5000, 2, confirmed=True)
    assert world.record[-2:] == ["expect 2", "release 5000"]


def test_same_bytes_on_another_flow_are_not_taken_for_it_either(world: World) -> None:
    world.packet(7, 1, 2, flow=1)
    world.packet(8, 5, confirmed=True, flow=2)
    assert world.record[1:] == ["expect 5", "release 8"]


def test_so_many_are_under_way_at_a_time_and_the_first_is_given_up(
    world: World,
) -> None:
    for number in range(ROUND_LIMIT + 1):
        world.packet(number, 1, 2, flow=number)
    assert world.log.counters == {"refused.not-returned": 2}
    del world.record[:]
    world.packet(5000, 4, confirmed=True, flow=0)
    world.packet(5001, 4, confirmed=True, flow=1)
    assert world.record == [
        *("expect 4", "release 5000"),
        *("expect 1", "expect 2", "release 5001"),
    ]


@pytest.mark.parametrize(("seconds", "late"), [(1.9, False), (ROUND_SECONDS, True)])
def test_what_does_not_come_back_in_time_is_refused_once(
    world: World, seconds: float, late: bool
) -> None:
    world.packet(7, 1)
    world.now += seconds
    world.gate.give_up_waiting()
    world.gate.give_up_waiting()
    assert world.log.counters == ({"refused.not-returned": 1} if late else {})
    # One that comes later all the same is read again.
    world.packet(8, 5, confirmed=True)
    assert world.record[1:] == [f"expect {5 if late else 1}", "release 8"]


def test_packet_that_comes_back_with_another_entry_of_its_flow_is_known(
    world: World,
) -> None:
    """Of two first packets at once one is given the entry of the other."""
    world.packet(7, 1)
    entry = replace(entry_of(confirmed=True), id=99)
    packet = QueuedPacket(8, Hook.POSTROUTING, RECEIVED, entry, ORIGINAL, 0, 0)
    decided = world.gate.returned(packet, entry)
    assert decided is not None
    assert decided.expectations == (wanted(1),)


# What NF_STOP is for.


@pytest.mark.parametrize(
    ("transport", "adjusted", "rewritten", "confirmed", "action"),
    [
        (TCP, False, None, True, Action.ACCEPT),
        (TCP, True, None, True, Action.STOP),
        (TCP, False, b"new", True, Action.STOP),
        (TCP, True, b"new", True, Action.STOP),
        # The kernel must still confirm it.
        (TCP, False, b"new", False, Action.ACCEPT),
        # Nothing is to be adjusted on UDP.
        (UDP, False, b"new", True, Action.ACCEPT),
    ],
)
def test_sequence_numbers_are_adjusted_once(
    world: World,
    transport: Transport,
    adjusted: bool,
    rewritten: bytes | None,
    confirmed: bool,
    action: Action,
) -> None:
    entry = conntrack(flow_tuple(transport), helper="silent")
    status = Status.SEQ_ADJUST if adjusted else Status(0)
    if confirmed:
        status |= entry.status
    entry = replace(entry, status=status)
    packet = QueuedPacket(7, Hook.POSTROUTING, RECEIVED, entry, ORIGINAL, 0, 0)
    verdict = world.gate.verdict(packet, entry, decision(packet=rewritten))
    assert verdict == Verdict(7, action, rewritten)
    assert verdict.plain is (rewritten is None)
    once = Gate(
        *(world.log, lambda: world.now, world.given_up.extend), adjusts_twice=False
    )
    assert once.accept(packet, entry, rewritten).action is Action.ACCEPT
    if rewritten is None:
        assert world.gate.accept(packet, entry) == verdict

# SPDX-License-Identifier: GPL-2.0-or-later
"""The one rule: a packet goes on only after what it announces is expected.

Fakes of the kernel's two ends, the one that takes expectations and the one that takes
verdicts, write into one list, so that the order between them can be asserted.
"""

import errno
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network

import pytest

from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Policy, Prefilter
from cthelper.core.daemon.gate import Expecter, Gate
from cthelper.core.daemon.log import Log
from cthelper.core.engine import NOTHING, Decision
from cthelper.core.errors import ExpectationRefused, NetlinkError
from cthelper.core.flows import Flow
from cthelper.core.netlink import encoding
from cthelper.core.queue.protocol import (
    Action,
    Hook,
    Packet,
    Queue,
    QueuedPacket,
    Statistics,
    Touched,
    Verdict,
)
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Conntrack,
    Expectation,
    FlowKey,
    Status,
    Translation,
    Transport,
    Tuple,
)
from tests.core.builders import CLIENT, SERVER, conntrack, endpoint, flow_tuple

RECEIVED = b"as it came"
EVENT_SECONDS = 2
REPEATING_LIMIT = 1024


class Silent(Helper):
    """Asks for nothing: the decisions are made by hand."""

    name = "silent"
    transports = frozenset({UDP})
    ports = (7000,)
    policies = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


class FakeExpecter:
    """Takes expectations, or refuses them with the errors given for their ports."""

    def __init__(self, record: list[str]) -> None:
        self._record = record
        self.errors: dict[int, int] = {}
        self.owners: dict[int, Expectation] = {}
        self.entries: dict[Tuple, Conntrack] = {}

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        return self.entries[original]

    def delete_expectation(self, expectation: Expectation) -> None:
        port = expectation.destination.port
        self._record.append(f"delete {port}")
        if port in self.errors:
            raise NetlinkError.of(self.errors[port], f"delete expectation {port}")

    def expect(self, expectation: Expectation) -> Expectation:
        port = expectation.destination.port
        if port in self.errors:
            self._record.append(f"refuse {port}")
            raise NetlinkError.of(self.errors[port], f"expect {expectation}")
        self._record.append(f"expect {port}")
        return self.owners.get(port, expectation)


class FakeQueue:
    """Takes verdicts. What rides in one is in the kernel before the packet goes on."""

    def __init__(self, record: list[str], ports: dict[bytes, int]) -> None:
        self.number = 0
        self._record = record
        self._ports = ports

    @property
    def statistics(self) -> Statistics:
        raise AssertionError("nothing is counted")

    def filters(self, filters: Mapping[str, Prefilter]) -> None:
        raise AssertionError("nothing is filtered")

    def note(self, packet: Packet, *, quiet: bool, held: bool) -> None:
        raise AssertionError("the gate notes nothing")

    def forget(self, key: FlowKey) -> None:
        raise AssertionError("the gate forgets nothing")

    def touched(self) -> list[Touched]:
        raise AssertionError("nothing passes unseen")

    def fileno(self) -> int:
        raise AssertionError("nothing waits for a fake")

    def read(self, limit: int) -> list[QueuedPacket]:
        raise AssertionError("the test makes its packets itself")

    def answer(self, verdicts: Sequence[Verdict]) -> None:
        for each in verdicts:
            if each.expectation is not None:
                self._record.append(f"ride {self._ports[each.expectation]}")
            action = "repeat" if each.action is Action.REPEAT else "release"
            self._record.append(f"{action} {each.id}")

    def close(self) -> None:
        raise AssertionError("the test closes nothing")


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
    """A gate between the two fakes; `record` is what the kernel saw, in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.record: list[str] = []
        self.output = io.StringIO()
        self.log = Log("debug", "json", clock=lambda: self.now, output=self.output)
        self.expecter = FakeExpecter(self.record)
        expecter: Expecter = self.expecter
        self.gate = Gate(expecter, self.log, lambda: self.now, lengthen=self.lengthen)
        self.queue: Queue = FakeQueue(
            self.record,
            {encoding.expectation(wanted(port)): port for port in range(1, 9)},
        )

    def lengthen(self, master: Tuple, expectation: Expectation) -> None:
        """What the gate calls for an expectation that hangs on another master."""
        self.record.append(f"lengthen {master} for {expectation.destination.port}")

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
        verdict = self.gate.returned(packet, entry) or self.gate.verdict(
            packet, entry, decision(*ports, packet=rewritten)
        )
        self.queue.answer([verdict])
        return verdict

    @property
    def events(self) -> list[dict[str, object]]:
        """The lines of the log, without their times."""
        lines = [json.loads(line) for line in self.output.getvalue().splitlines()]
        return [{key: each[key] for key in each if key != "time"} for each in lines]


def entry_of(*, confirmed: bool, id_: int = 1) -> Conntrack:
    entry = conntrack(flow_tuple(UDP), id_=id_, helper="silent")
    return entry if confirmed else replace(entry, status=Status(0))


def decision(*ports: int, packet: bytes | None = None) -> Decision:
    return Decision(
        flow=Flow.begin(entry_of(confirmed=True), Silent),
        expectations=tuple(wanted(port) for port in ports),
        packet=packet,
    )


@pytest.fixture
def world() -> World:
    return World()


# Placed while the helper waits.


def translated(port: int, *, to: int | None = None) -> Expectation:
    """One of a translated flow, that leads to port `to` of the server."""
    translation = Translation(ORIGINAL, port if to is None else to)
    return wanted(port, translation=translation)


def place(world: World, *expectations: Expectation) -> list[int] | None:
    """The ports of those that were not there before; None: there is another."""
    made = world.gate.place(entry_of(confirmed=True), "silent", expectations)
    return None if made is None else [each.destination.port for each in made]


def test_all_are_placed_and_told(world: World) -> None:
    assert place(world, translated(1), translated(2)) == [1, 2]
    assert world.record == ["expect 1", "expect 2"]
    assert [each["event"] for each in world.events] == ["expectation"] * 2


def test_none_is_placed_where_one_overlaps_another_flows(world: World) -> None:
    world.expecter.errors[3] = errno.EBUSY
    assert place(world, translated(1), translated(2), translated(3)) is None
    assert world.record == [
        *("expect 1", "expect 2", "refuse 3"),
        *("delete 1", "delete 2"),
    ]
    assert world.events == []


def test_other_error_refuses_what_is_placed(world: World) -> None:
    world.expecter.errors[2] = errno.EMFILE
    with pytest.raises(ExpectationRefused) as caught:
        place(world, translated(1), translated(2))
    assert caught.value.reason == "kernel-emfile"
    assert world.record == ["expect 1", "refuse 2", "delete 1"]


OTHER = flow_tuple(UDP, source=(CLIENT, 999))


@pytest.mark.parametrize(
    ("present", "server", "shared"),
    [
        (translated(1), SERVER, True),
        # Translated to another port, or another server, or not at all.
        (translated(1, to=9), SERVER, False),
        (translated(1), "203.0.113.7", False),
        (wanted(1), SERVER, False),
    ],
)
def test_expectation_of_another_flow_is_shared_if_it_leads_alike(
    world: World, present: Expectation, server: str, shared: bool
) -> None:
    world.expecter.owners[1] = replace(present, master=OTHER)
    world.expecter.entries[OTHER] = conntrack(
        OTHER, flow_tuple(UDP, (server, 7000), (CLIENT, 999))
    )
    # It is the other flow's, and not to be withdrawn.
    assert place(world, translated(1)) == ([] if shared else None)
    lengthened = [f"lengthen {OTHER} for 1"] if shared else []
    assert world.record == ["expect 1", *lengthened]


@pytest.mark.parametrize("client", [CLIENT, "192.0.2.77"])
def test_flow_that_the_server_opens_goes_to_its_own_client(
    world: World, client: str
) -> None:
    # Both clients are known to the server by one address: the reply tuples are alike.
    towards = replace(translated(1), translation=Translation(REPLY, 1))
    other = flow_tuple(UDP, source=(client, 999))
    world.expecter.owners[1] = replace(towards, master=other)
    world.expecter.entries[other] = conntrack(
        other, flow_tuple(UDP, (SERVER, 7000), (CLIENT, 999))
    )
    assert place(world, towards) == ([] if client == CLIENT else None)


@pytest.mark.parametrize(("to", "made"), [(1, []), (9, None)])
def test_own_expectation_is_found_again_if_it_leads_alike(
    world: World, to: int, made: list[int] | None
) -> None:
    world.expecter.owners[1] = translated(1, to=to)
    assert place(world, translated(1)) == made
    assert world.record == ["expect 1"]


def test_withdrawing_what_is_gone_already_is_no_failure(world: World) -> None:
    world.expecter.errors[1] = errno.ENOENT
    world.gate.withdraw([translated(1), translated(2)])
    assert world.record == ["delete 1", "delete 2"]
    assert world.events == []


def test_what_cannot_be_withdrawn_is_told(world: World) -> None:
    world.expecter.errors[1] = errno.EPERM
    world.gate.withdraw([translated(1)])
    assert [each["event"] for each in world.events] == ["step-failed"]


def test_packet_that_cannot_be_rewritten_is_dropped_where_configured(
    world: World,
) -> None:
    entry = entry_of(confirmed=True)
    packet = QueuedPacket(7, Hook.POSTROUTING, RECEIVED, entry, ORIGINAL, 0, 0)
    verdict = world.gate.verdict(packet, entry, Decision(drop=True))
    assert verdict == Verdict(7, Action.DROP)


# The order.


def test_confirmed_master_expects_then_releases(world: World) -> None:
    world.packet(7, 1, 2, 3, confirmed=True)
    assert world.record == ["expect 1", "expect 2", "expect 3", "release 7"]


def test_master_of_the_expectation_that_covers_this_one_is_lengthened_first(
    world: World,
) -> None:
    other = flow_tuple(UDP, source=(CLIENT, 999))
    world.expecter.owners[2] = wanted(2, master=other)
    world.packet(7, 1, 2, confirmed=True)
    assert world.record == [
        "expect 1",
        "expect 2",
        f"lengthen {other} for 2",
        "release 7",
    ]


def test_unconfirmed_master_has_its_one_expectation_ride_in_the_verdict(
    world: World,
) -> None:
    world.packet(7, 1)
    assert world.record == ["ride 1", "release 7"]


def test_unconfirmed_master_with_several_repeats_once_and_then_releases(
    world: World,
) -> None:
    world.packet(7, 1, 2, 3)
    assert world.record == ["ride 1", "repeat 7"]
    world.packet(8, confirmed=True)
    assert world.record[2:] == ["expect 2", "expect 3", "release 8"]


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


def test_verdict_carries_the_expectation_as_the_kernel_reads_it(world: World) -> None:
    verdict = world.packet(7, 1)
    assert verdict == Verdict(7, expectation=encoding.expectation(wanted(1)))


@pytest.mark.parametrize(
    ("ports", "confirmed"),
    [((), False), ((), True), ((1,), False), ((1, 2), True)],
    ids=["nothing", "nothing, confirmed", "riding", "by ctnetlink"],
)
def test_rewritten_packet_goes_on_in_place_of_the_received_one(
    world: World, ports: tuple[int, ...], confirmed: bool
) -> None:
    verdict = world.packet(7, *ports, confirmed=confirmed, rewritten=b"new")
    assert (verdict.action, verdict.payload) == (Action.ACCEPT, b"new")


def test_packet_that_repeats_is_rewritten_when_it_is_released(world: World) -> None:
    # Rewritten twice it would be wrong, and it has to come back as it was received.
    assert world.packet(7, 1, 2, rewritten=b"new").payload is None
    assert world.packet(8, confirmed=True) == Verdict(8, payload=b"new")


# Packets that come back.


def test_packet_is_never_repeated_twice(world: World) -> None:
    # It came back, and its flow is not confirmed even now.
    world.expecter.errors = {2: errno.ENOENT, 3: errno.ENOENT}
    world.packet(7, 1, 2, 3)
    verdict = world.packet(8, 1, 2, 3)
    assert verdict == Verdict(8)
    assert world.record[2:] == ["refuse 2", "refuse 3", "release 8"]
    assert world.log.counters["refused.kernel-enoent"] == 2


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
        "ride 1",
        "repeat 7",
        "expect 5",
        "release 8",
        "expect 2",
        "release 9",
    ]


def test_same_bytes_on_another_flow_are_not_taken_for_it_either(world: World) -> None:
    world.packet(7, 1, 2, flow=1)
    world.packet(8, 5, confirmed=True, flow=2)
    assert world.record[2:] == ["expect 5", "release 8"]


def test_packets_that_never_come_back_are_forgotten(world: World) -> None:
    for number in range(REPEATING_LIMIT + 1):
        world.packet(number, 1, 2, flow=number)
    del world.record[:]
    world.packet(5000, 4, confirmed=True, flow=0)
    world.packet(5001, 4, confirmed=True, flow=1)
    assert world.record == ["expect 4", "release 5000", "expect 2", "release 5001"]


# What the kernel refuses.


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EMFILE, "kernel-emfile"),
        (errno.EBUSY, "kernel-ebusy"),
        (errno.EPERM, "kernel-eperm"),
        (errno.ENOENT, "kernel-enoent"),
        (4000, "kernel-4000"),
    ],
)
def test_expectation_that_the_kernel_refuses_is_counted_and_the_packet_goes_on(
    world: World, code: int, reason: str
) -> None:
    world.expecter.errors = {2: code}
    assert world.packet(7, 1, 2, 3, confirmed=True) == Verdict(7)
    assert world.record == ["expect 1", "refuse 2", "expect 3", "release 7"]
    assert world.log.counters == {"expectation": 2, f"refused.{reason}": 1}
    (refused,) = [each for each in world.events if each["event"] == "refused"]
    detail = refused.pop("detail")
    assert refused == {
        "level": "warning",
        "event": "refused",
        "reason": reason,
        "helper": "silent",
        "flow": str(flow_tuple(UDP)),
        "expects": str(wanted(2)),
    }
    assert isinstance(detail, str)
    assert str(wanted(2)) in detail


# What rides in a verdict shows in an event, or never.


def created(port: int) -> dict[str, object]:
    return {
        "level": "info",
        "event": "expectation",
        "helper": "silent",
        "policy": "data",
        "flow": str(flow_tuple(UDP)),
        "expects": str(wanted(port)),
        "permanent": True,
        "timeout": 60,
    }


def test_acknowledged_expectation_is_logged_at_once(world: World) -> None:
    world.packet(7, 1, confirmed=True)
    assert world.events == [created(1)]


def test_expectation_in_a_verdict_is_logged_when_its_event_comes(world: World) -> None:
    world.packet(7, 1)
    assert world.events == []
    # The kernel keeps neither the policy's name nor the timeout that we asked for.
    world.gate.confirm(wanted(1, policy=None, timeout=59))
    assert world.events == [created(1)]


def test_expectation_whose_event_came_is_not_awaited_any_more(world: World) -> None:
    world.packet(7, 1)
    world.gate.confirm(wanted(1))
    world.gate.confirm(wanted(1))
    world.now += 1000
    world.gate.give_up_waiting()
    assert world.log.counters == {"expectation": 1}


@pytest.mark.parametrize(
    "other",
    [
        wanted(2),
        wanted(1, source=None),
        wanted(1, source_port=None),
        wanted(1, destination=endpoint(SERVER, 1)),
    ],
    ids=["port", "source", "source port", "address"],
)
def test_event_of_another_expectation_confirms_nothing(
    world: World, other: Expectation
) -> None:
    world.packet(7, 1)
    world.gate.confirm(other)
    assert world.events == []


@pytest.mark.parametrize(("seconds", "silent"), [(1.9, False), (EVENT_SECONDS, True)])
def test_expectation_without_an_event_is_refused_after_two_seconds(
    world: World, seconds: float, silent: bool
) -> None:
    world.packet(7, 1)
    world.now += seconds
    world.gate.give_up_waiting()
    world.gate.give_up_waiting()
    assert world.log.counters == ({"refused.kernel-silent": 1} if silent else {})


def test_event_that_comes_too_late_confirms_nothing(world: World) -> None:
    world.packet(7, 1)
    world.now += EVENT_SECONDS
    world.gate.give_up_waiting()
    world.gate.confirm(wanted(1))
    assert world.log.counters == {"refused.kernel-silent": 1}


def test_only_the_first_of_several_is_awaited(world: World) -> None:
    world.packet(7, 1, 2)
    world.packet(8, confirmed=True)
    assert world.events == [created(2)]
    world.now += EVENT_SECONDS
    world.gate.give_up_waiting()
    assert world.log.counters == {"expectation": 1, "refused.kernel-silent": 1}


def test_lost_events_leave_nothing_to_wait_for(world: World) -> None:
    world.packet(7, 1)
    world.now += EVENT_SECONDS
    world.gate.give_up_waiting(forget=True)
    world.gate.give_up_waiting()
    assert world.log.counters == {}


# In chain mode.


@pytest.mark.parametrize(
    ("transport", "adjusted", "rewritten", "confirmed", "helper", "action"),
    [
        (TCP, False, None, True, "silent", Action.ACCEPT),
        (TCP, True, None, True, "silent", Action.STOP),
        (TCP, False, b"new", True, "silent", Action.STOP),
        (TCP, True, b"new", True, "silent", Action.STOP),
        # The kernel must still confirm it.
        (TCP, False, b"new", False, "silent", Action.ACCEPT),
        # Nothing is to be adjusted on UDP.
        (UDP, False, b"new", True, "silent", Action.ACCEPT),
        # Not in chain mode.
        (TCP, True, b"new", True, "other", Action.ACCEPT),
    ],
)
def test_sequence_numbers_are_adjusted_once(
    world: World,
    transport: Transport,
    adjusted: bool,
    rewritten: bytes | None,
    confirmed: bool,
    helper: str,
    action: Action,
) -> None:
    world.gate.chained = {"silent"}
    entry = conntrack(flow_tuple(transport), helper=helper)
    status = Status.SEQ_ADJUST if adjusted else Status(0)
    if confirmed:
        status |= entry.status
    entry = replace(entry, status=status)
    packet = QueuedPacket(7, Hook.POSTROUTING, RECEIVED, entry, ORIGINAL, 0, 0)
    verdict = world.gate.verdict(packet, entry, decision(packet=rewritten))
    assert verdict == Verdict(7, action, rewritten)
    assert verdict.plain is (rewritten is None)
    if rewritten is None:
        assert world.gate.accept(packet, entry) == verdict

# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets in, verdicts out: engine, gate and masters together, between fakes.

What the kernel and the queue see is one record, so that its order can be asserted.
"""

import errno
import io
import json
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.core.api import Effects, Helper, Message
from cthelper.core.config import Budget, Config, DaemonConfig, HelperConfig
from cthelper.core.daemon.expectation_table import MOST, ExpectationTable
from cthelper.core.daemon.inspection import Inspection
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import UNKNOWN
from cthelper.core.daemon.progress import NOT_BEGUN, Progress, Subject
from cthelper.core.declaration import declare, stand_in
from cthelper.core.engine import Decision
from cthelper.core.errors import Malformed, NetlinkError, NotFound
from cthelper.core.expecter import Expecter
from cthelper.core.guard import UNLIMITED
from cthelper.core.netlink import encoding
from cthelper.core.netlink.ctnetlink import ExpectationMade
from cthelper.core.quarantine import Quarantine
from cthelper.core.queue.protocol import Action, Hook, QueuedPacket, Touched, Verdict
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Conntrack,
    Direction,
    Expectation,
    FlowKey,
    Status,
    Tuple,
    key_of,
)
from tests.core.builders import CLIENT, SERVER, conntrack, flow_tuple, udp
from tests.core.host import Clock, Datagrams, Lines, configured
from tests.core.offline.tracking import wanted

CONFIG: Final = Config(
    helpers={"datagram": configured(Datagrams)}, daemon=DaemonConfig(mark=0x40)
)
NEXT: Final = Config(helpers={"line": configured(Lines)})
ENTRY: Final = replace(conntrack(flow_tuple(UDP), helper="datagram"), timeout=30)
PROVEN: Final = replace(ENTRY, status=ENTRY.status | Status.ASSURED)
BEGUN: Final = replace(ENTRY, status=Status(0))
KEPT: Final = encoding.entry_timeout(61)


class FakeLinks:
    """Every host is another one, but for those of `own`."""

    def __init__(self, *own: Address) -> None:
        self._own = own

    def is_local(self, address: Address) -> bool:
        return address in self._own

    def on_link(self, _address: Address) -> tuple[()]:
        return ()


class World:
    """A queue, and the kernel's conntrack."""

    number = 7

    def __init__(self) -> None:
        self.record: list[object] = []
        self.clock = Clock()
        self.output = io.StringIO()
        self.log = Log("debug", "json", clock=self.clock, output=self.output)
        self.progress = Progress()
        # Seconds that the clock goes on with each expectation.
        self.slow = 0.0
        self.errors: dict[int, int] = {}
        # Expectations in the table, and whether ours are still there.
        self.held = 0
        self.lives = False
        self._waiting: list[QueuedPacket] = []
        self._touched: list[Touched] = []

    # Conntrack.

    port = 4711

    def expect(self, expectation: Expectation) -> None:
        error = self.errors.get(expectation.destination.port)
        if error is not None:
            raise NetlinkError.of(error, f"expect {expectation}")
        self.record.append(f"expect {expectation.destination.port}")
        self.clock.now += self.slow
        self.begun = self.progress.subject

    def covering(self, expectation: Expectation) -> Expectation:
        if self.lives:
            return expectation
        raise NotFound.of(errno.ENOENT, f"get expectation {expectation}")

    def delete_expectation(self, expectation: Expectation) -> None:
        self.record.append(f"delete {expectation.destination.port}")

    def expectation_count(self) -> int:
        return self.held

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

    def serves(
        self, inspects: Inspection, packets: list[QueuedPacket]
    ) -> list[Verdict]:
        """The answers to packets that wait."""
        self.record.clear()
        self._waiting = packets
        inspects.serve(self)  # type: ignore[arg-type]
        return [each for each in self.record if isinstance(each, Verdict)]

    def read(self, _limit: int) -> list[QueuedPacket]:
        return self._waiting

    def answer(self, verdicts: list[Verdict]) -> None:
        self.record += verdicts

    def note(self, packet: QueuedPacket, *, quiet: bool, held: bool) -> None:
        self.record.append(f"note {packet.id}{' quiet' * quiet}{' held' * held}")

    def touched(self) -> list[Touched]:
        return self._touched

    def passes_unseen(self, key: FlowKey, timeout: int) -> None:
        self._touched = [(key, timeout)]


@pytest.fixture
def world() -> World:
    return World()


def inspection_of(
    config: Config,
    world: World,
    *own: Address,
    quarantine: Quarantine | None = None,
    most: Path = MOST,
    timer: Callable[[], float] = time.perf_counter,
) -> Inspection:
    """What a server with this configuration does with packets."""
    follow: list[bool] = []
    return Inspection(
        config,
        FakeLinks(*own),  # type: ignore[arg-type]
        world.log,
        world.clock,
        follow.append,
        UNKNOWN,
        world.progress,
        quarantine or Quarantine(world.clock),
        world,  # type: ignore[arg-type]
        ExpectationTable(world, most),  # type: ignore[arg-type]
        timer,
    )


@pytest.fixture
def inspects(world: World) -> Inspection:
    return inspection_of(CONFIG, world)


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
    (told,) = [each for each in lines(world) if each["event"] == "refused"]
    assert (told["endpoint"], told["transport"]) == (f"{CLIENT}:22", "udp")
    assert served(world, inspects, payload, ENTRY, 2) == [
        *("expect 5000", "note 2 held"),
        Verdict(2, conntrack=KEPT),
    ]
    assert world.log.counters == {"refused.denied-port": 1, "expectation": 1}


def test_two_first_packets_at_once_have_both_what_they_announce_expected(
    world: World, inspects: Inspection
) -> None:
    repeats = [Verdict(1, Action.REPEAT), Verdict(2, Action.REPEAT)]
    assert served(world, inspects, b"OPEN 5000", BEGUN, 1, 2) == repeats
    kept = replace(ENTRY, timeout=61)
    assert served(world, inspects, b"OPEN 5000", kept, 3, 4) == [
        *("expect 5000", "note 3 held", "expect 5000", "note 4 held"),
        *(Verdict(3), Verdict(4)),
    ]
    world.clock.now += 3
    inspects.tick([])
    assert world.log.counters == {"expectation": 2}


def test_packet_that_has_not_come_back_is_told_of_in_time(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"OPEN 5000", BEGUN, 1)
    world.clock.now += 2
    inspects.tick([])
    assert world.log.counters == {"refused.not-returned": 1}


def lines(world: World) -> list[dict[str, object]]:
    """What has been logged, without the times."""
    output = world.output.getvalue().splitlines()
    logged = [json.loads(line) for line in output]
    return [{key: each[key] for key in each if key != "time"} for each in logged]


def test_expectation_is_told_as_the_kernel_has_it(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"OPEN 5000", ENTRY, 1)
    (told,) = lines(world)
    assert told == {
        "level": "info",
        "event": "expectation",
        "helper": "datagram",
        "policy": "data",
        "flow": str(ENTRY.original),
        "expects": f"udp {SERVER} > {CLIENT}:5000",
        "permanent": False,
        "timeout": 60,
        "how": "created",
        "flows": 1,
    }


def test_expectation_is_withdrawn_before_the_packet_goes_on_and_told(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"LABEL 5000 x", ENTRY, 1)
    world.lives = True
    record = served(world, inspects, b"WITHDRAW x", ENTRY, 2)
    assert record == ["delete 5000", Verdict(2)]
    *_, told = lines(world)
    assert told == {
        "level": "info",
        "event": "expectation-withdrawn",
        "helper": "datagram",
        "policy": "data",
        "flow": str(ENTRY.original),
        "expects": f"udp {SERVER} > {CLIENT}:5000",
        "flows": 0,
    }
    # It is there no more, and so no error.
    world.lives = False
    assert served(world, inspects, b"WITHDRAW x", ENTRY, 3) == [Verdict(3)]
    assert world.log.counters == {"expectation": 1, "expectation-withdrawn": 1}


def test_flow_that_has_ended_can_take_nothing_back(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"LABEL 5000 x", ENTRY, 1)
    world.lives = True
    inspects.forget(key_of(ENTRY))
    assert served(world, inspects, b"WITHDRAW x", ENTRY, 2) == [Verdict(2)]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EMFILE, "kernel-emfile"),
        (errno.EPERM, "kernel-eperm"),
        (errno.ENOENT, "kernel-enoent"),
        (4000, "kernel-4000"),
    ],
)
def test_expectation_that_the_kernel_refuses_is_told_and_the_packet_goes_on(
    world: World, inspects: Inspection, code: int, reason: str
) -> None:
    world.errors[5001] = code
    assert served(world, inspects, b"TRY 5000 5001 5002", ENTRY, 1) == [
        *("expect 5000", "expect 5002", "note 1 held"),
        Verdict(1, conntrack=KEPT),
    ]
    assert world.log.counters == {"expectation": 2, f"refused.{reason}": 1}
    (told,) = [each for each in lines(world) if each["event"] == "refused"]
    assert (told["reason"], told["helper"]) == (reason, "datagram")
    assert str(told["expects"]).endswith(":5001")
    assert str(told["expects"]) in str(told["detail"])


@pytest.mark.interpreted
@pytest.mark.parametrize("others", [True, False])
def test_only_what_others_have_put_in_is_told_to_the_expecter(
    world: World,
    inspects: Inspection,
    monkeypatch: pytest.MonkeyPatch,
    others: bool,
) -> None:
    told: list[Expectation] = []
    monkeypatch.setattr(Expecter, "renewed", lambda _, each: told.append(each))
    made = wanted()
    inspects.told(ExpectationMade(made, world.port + others))
    assert told == [made] * others


@pytest.mark.parametrize(
    ("own", "indev", "direction", "read"),
    [
        # What this host sends comes from no interface, or by its own way to itself.
        (True, 0, ORIGINAL, True),
        (True, 1, ORIGINAL, True),
        (True, 2, ORIGINAL, False),
        # Answers to it come from outside, and so do others' messages.
        (True, 2, REPLY, True),
        (False, 2, ORIGINAL, True),
    ],
)
def test_message_of_ours_that_came_from_outside_is_not_read(
    world: World, own: bool, indev: int, direction: Direction, read: bool
) -> None:
    """Over IPv6 the kernel drops no packet that has our own address as its source."""
    source = ENTRY.original.source.address
    inspects = inspection_of(CONFIG, world, *([source] if own else []))
    packet = replace(waits(b"OPEN 5000", 1, ENTRY), indev=indev, direction=direction)
    world.serves(inspects, [packet])
    assert ("expect 5000" in world.record) is read


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
    world.passes_unseen(key_of(ENTRY), 30)
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


def test_helpers_take_the_place_of_their_stand_ins(world: World) -> None:
    (helper,) = CONFIG.helpers.values()
    declared = replace(helper, helper=stand_in(declare(Datagrams, "", None)))
    quarantine = Quarantine(world.clock)
    quarantine.hold_flow(key_of(ENTRY))
    inspects = inspection_of(
        replace(CONFIG, helpers={"datagram": declared}), world, quarantine=quarantine
    )
    inspects.load(CONFIG)
    other = replace(ENTRY, id=ENTRY.id + 1)
    assert "expect 5000" in served(world, inspects, b"OPEN 5000", other, 1)
    # Nor do they read what a server before has died of.
    assert "expect 5001" not in served(world, inspects, b"OPEN 5001", ENTRY, 2)


# Budgets.


def test_evicted_flows_are_told_and_counted(world: World) -> None:
    few = replace(CONFIG, daemon=DaemonConfig(mark=0x40, flow_limit=2))
    inspects = inspection_of(few, world)
    entries = [replace(ENTRY, id=number) for number in range(9)]
    for entry in entries[:5]:
        served(world, inspects, b"NOTHING", entry, 1)
    inspects.tick([])
    inspects.tick([])
    line = json.loads(world.output.getvalue())
    told = line["event"], line["level"], line["reason"], line["flows"]
    assert told == ("evicted", "warning", "flows", 3)
    assert world.log.counters["evicted.flows"] == 3
    served(world, inspects, b"NOTHING", entries[5], 1)
    inspects.tick([])
    assert world.log.counters["evicted.flows"] == 4


def test_source_that_takes_too_much_is_told_of_once(world: World) -> None:
    timer = Clock()

    class Slow(Datagrams):
        def on_message(self, message: Message) -> Effects:
            timer.now += 0.3
            yield from ()

    patient = replace(CONFIG, budget=Budget(deadline=1000))
    slow = replace(patient, helpers=enabled(Slow))
    inspects = inspection_of(slow, world, timer=timer)
    entries = [replace(ENTRY, id=number) for number in range(9)]
    assert served(world, inspects, b"NOTHING", entries[0], 1) == [Verdict(1)]
    for number, entry in enumerate(entries[1:], 2):
        assert served(world, inspects, b"OPEN 5000", entry, number) == [Verdict(number)]
    inspects.tick([])
    inspects.tick([])
    lines = [json.loads(line) for line in world.output.getvalue().splitlines()]
    overspent, uninspected = (
        line for line in lines if line["event"] in ("overspent", "uninspected")
    )
    assert (overspent["reason"], overspent["level"]) == ("source-cpu", "warning")
    assert CLIENT in overspent["detail"]
    assert (uninspected["reason"], uninspected["packets"]) == ("source-cpu", 8)
    assert world.log.counters["uninspected.source-cpu"] == 8
    # The flow that it was for is finished with its next packet.
    served(world, inspects, b"OPEN 5000", entries[0], 99)
    assert world.log.counters["finished.source-cpu"] == 1
    inspects.prepare(replace(CONFIG, helpers=enabled(Slow), budget=Budget(messages=1)))
    inspects.commit()
    assert served(world, inspects, b"NOTHING", entries[1], 1)
    assert world.log.counters["finished.source-cpu"] == 1
    assert inspects._engine.budget.messages == 1


def test_memory_that_is_bounded_is_so_in_the_daemon(world: World) -> None:
    little = replace(CONFIG, budget=Budget(memory=4000))
    inspects = inspection_of(little, world)
    for number in range(9):
        served(world, inspects, b"NOTHING", replace(ENTRY, id=number), number)
    inspects.tick([])
    assert world.log.counters["evicted.memory"] >= 5


def enabled(helper: type[Helper]) -> dict[str, HelperConfig]:
    return {"datagram": configured(helper)}


# Whatever goes wrong, no packet is left without a verdict.


class Bug:
    """Decides as the engine does, but for packets with these bytes."""

    def __init__(self, inspects: Inspection, error: BaseException) -> None:
        self._engine = inspects._engine
        self._handle = self._engine.handle
        self._error = error
        self._engine.handle = self  # type: ignore[method-assign, assignment]

    def __call__(self, packet: bytes, *given: Any, **more: Any) -> Decision:
        decision = self._handle(packet, *given, **more)
        if b"BUG" in packet:
            raise self._error
        return decision


def waits(payload: bytes, id_: int, entry: Conntrack) -> QueuedPacket:
    return QueuedPacket(id_, Hook.INPUT, udp(payload), entry, ORIGINAL, 0, 0)


FIRST, SECOND, THIRD = (replace(ENTRY, id=number) for number in (1, 2, 3))
BATCH: Final = [
    waits(b"OPEN 5000", 1, FIRST),
    waits(b"NOTHING BUG", 2, SECOND),
    waits(b"OPEN 5001", 3, THIRD),
]
AROUND: Final = [Verdict(1, conntrack=KEPT), Verdict(3, conntrack=KEPT)]


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError(), RecursionError(), MemoryError(), AssertionError()),
        *(OSError(105, "No buffer space"), Malformed("x"), struct.error()),
        *(SystemExit(1), KeyboardInterrupt(), GeneratorExit()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_bug_ends_the_inspection_of_its_flow_and_of_no_other(
    world: World, inspects: Inspection, error: BaseException
) -> None:
    Bug(inspects, error)
    assert world.serves(inspects, BATCH) == [AROUND[0], Verdict(2), AROUND[1]]
    assert world.log.counters["step-failed.inspection"] == 1
    assert {"mark": (0x40, 0x40)} in world.record
    reason = "memory" if isinstance(error, MemoryError) else "fault"
    assert world.log.counters[f"marked.{reason}"] == 1
    # Neither is it asked again, nor has another one to suffer.
    later = [waits(b"OPEN 5002", 4, SECOND), waits(b"OPEN 5003", 5, FIRST)]
    assert world.serves(inspects, later)[0] == Verdict(4)
    assert "expect 5002" not in world.record
    assert "expect 5003" in world.record


@pytest.mark.interpreted
def test_packet_of_a_bug_is_dropped_where_its_helper_fails_closed(world: World) -> None:
    helper = replace(configured(Datagrams), queue=World.number, fail_closed=True)
    closed = replace(CONFIG, helpers={"datagram": helper})
    inspects = inspection_of(closed, world)
    Bug(inspects, RuntimeError())
    dropped = Verdict(2, Action.DROP)
    assert world.serves(inspects, BATCH) == [AROUND[0], dropped, AROUND[1]]


@pytest.mark.interpreted
def test_packet_of_a_bug_goes_on_with_its_sequence_numbers_adjusted_once(
    world: World, inspects: Inspection
) -> None:
    Bug(inspects, RuntimeError())
    tcp_entry = conntrack(flow_tuple(TCP), helper="datagram")
    adjusted = replace(tcp_entry, status=tcp_entry.status | Status.SEQ_ADJUST)
    batch = [waits(b"BUG", 1, adjusted)]
    assert world.serves(inspects, batch) == [Verdict(1, Action.STOP)]


@pytest.mark.interpreted
def test_all_are_answered_even_where_a_bug_cannot_be_told_of(
    world: World, inspects: Inspection
) -> None:
    Bug(inspects, RuntimeError())
    world.log.event = None  # type: ignore[method-assign, assignment]
    first = waits(b"NOTHING", 1, FIRST)
    with pytest.raises(TypeError):
        world.serves(inspects, [first, *BATCH[1:]])
    assert world.record == [Verdict(1), Verdict(2), Verdict(3)]


def test_supervisor_sees_the_packet_that_is_in_work(
    world: World, inspects: Inspection
) -> None:
    served(world, inspects, b"OPEN 5000", ENTRY, 1)
    assert ENTRY.helper is not None
    assert world.begun == Subject(
        key_of(ENTRY),
        ENTRY.helper,
        ENTRY.original.source.address,
        ENTRY.original.destination.address,
        ORIGINAL,
        assured=False,
    )
    assert world.progress.subject is None
    assert world.progress.mark != NOT_BEGUN


def test_packets_that_are_decided_do_not_wait_for_slow_ones_of_their_batch(
    world: World, inspects: Inspection
) -> None:
    world.slow = CONFIG.budget.deadline / 1000 / 7
    packets = [
        QueuedPacket(id_, Hook.INPUT, udp(b"OPEN 5000"), ENTRY, ORIGINAL, 0, 0)
        for id_ in (1, 2, 3)
    ]
    world.serves(inspects, packets)
    kinds = [each for each in world.record if not isinstance(each, str)]
    assert [each.id for each in kinds if isinstance(each, Verdict)] == [1, 2, 3]
    steps = [
        "verdict" if isinstance(each, Verdict) else str(each).split()[0]
        for each in world.record
    ]
    assert steps == ["expect", "note", "verdict"] * 3


def refusals(world: World) -> dict[str, int]:
    """Why expectations were refused, and how often."""
    counters = world.log.counters.items()
    return {key: number for key, number in counters if key.startswith("refused.")}


def limited(**limits: int) -> Config:
    return replace(CONFIG, limits=replace(UNLIMITED, **limits))


def test_end_of_a_flow_and_what_the_kernel_refuses_make_room(world: World) -> None:
    inspects = inspection_of(limited(live_all=1), world)
    world.errors[5000] = errno.EMFILE
    served(world, inspects, b"OPEN 5000", PROVEN, 1)
    assert "expect 5001" in served(world, inspects, b"OPEN 5001", PROVEN, 2)
    world.lives = True
    served(world, inspects, b"OPEN 5002", PROVEN, 3)
    inspects.forget(key_of(ENTRY))
    assert "expect 5003" in served(world, inspects, b"OPEN 5003", PROVEN, 4)
    assert refusals(world) == {"refused.kernel-emfile": 1, "refused.live-all": 1}


def test_one_that_was_met_makes_room(world: World) -> None:
    inspects = inspection_of(limited(live_all=1), world)
    for port in range(5000, 5100):
        payload = b"OPEN %d" % port
        assert f"expect {port}" in served(world, inspects, payload, PROVEN, port)
    assert refusals(world) == {}


def test_other_limits_hold_from_a_reload_on_and_what_lives_counts(
    world: World,
) -> None:
    world.lives = True
    inspects = inspection_of(limited(live_all=2), world)
    for port in (5000, 5001):
        served(world, inspects, b"OPEN %d" % port, PROVEN, port)
    inspects.prepare(limited(live_all=3))
    inspects.commit()
    for port in (5002, 5003):
        served(world, inspects, b"OPEN %d" % port, PROVEN, port)
    assert refusals(world) == {"refused.live-all": 1}


def test_quarter_of_the_kernels_table_is_left_to_others(
    world: World, tmp_path: Path
) -> None:
    most = tmp_path / "most"
    most.write_text("120")
    world.held = 89
    inspects = inspection_of(limited(), world, most=most)
    assert "expect 5000" in served(world, inspects, b"OPEN 5000", ENTRY, 1)
    served(world, inspects, b"OPEN 5001", ENTRY, 2)
    assert refusals(world) == {"refused.live-all": 1}


def test_packets_that_others_of_their_batch_would_keep_for_too_long_pass_unread(
    world: World, inspects: Inspection
) -> None:
    world.slow = CONFIG.budget.deadline / 1000 / 3
    packets = [
        QueuedPacket(id_, Hook.INPUT, udp(b"OPEN 5000"), ENTRY, ORIGINAL, 0, 0)
        for id_ in range(1, 11)
    ]
    verdicts = world.serves(inspects, packets)
    assert [each.id for each in verdicts] == list(range(1, 11))
    assert world.record.count("expect 5000") == 2
    assert world.log.counters["uninspected.deadline"] == 8

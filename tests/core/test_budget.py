# SPDX-License-Identifier: GPL-2.0-or-later
"""What inspection may cost: messages of a packet, memory, CPU of a source."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import TCP, UDP, Done, Effects, Helper, Message
from cthelper.core.config import Budget, parse
from cthelper.core.engine import Decision, Engine
from cthelper.core.guard import Guard
from cthelper.core.outcome import Finished
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import ORIGINAL, REPLY, Direction, Status
from tests.core.builders import conntrack, cut, flow_tuple, tcp, udp
from tests.core.host import (
    Datagrams,
    Host,
    Lines,
    expectation,
    fault_of,
    on_link,
)
from tests.live.traffic import getport_call, getport_reply

# Messages.


@pytest.mark.parametrize("count", [1, 3, 4])
def test_so_many_messages_of_a_packet_are_read(count: int) -> None:
    host = Host(Lines)
    host.engine.budget = Budget(messages=4)
    assert host.send(b"NOTHING\n" * count).events == ()
    assert len(host.messages) == count
    assert host.send(b"OPEN 5000\n").expectations == (expectation(host, 5000),)


def test_packet_with_more_messages_is_the_last_that_is_read() -> None:
    host = Host(Lines)
    host.engine.budget = Budget(messages=4)
    decision = host.send(b"OPEN 5000\n" + b"NOTHING\n" * 3 + b"OPEN 5001\n")
    assert decision.expectations == (expectation(host, 5000),)
    (event,) = decision.events
    assert event == Finished("too-many-messages")
    assert "over 4 messages" in str(event)
    assert host.send(b"OPEN 5002\n") == Decision(decision.flow)
    assert host.send(b"OPEN 5002\n", REPLY) == Decision(decision.flow)


def test_messages_of_several_packets_are_not_added_up() -> None:
    host = Host(Lines)
    host.engine.budget = Budget(messages=2)
    for piece in cut(b"NOTHING\n" * 64, range(16, 512, 16)):
        assert host.send(piece).events == ()
    assert len(host.messages) == 64


def test_messages_that_one_segment_makes_available_count() -> None:
    host = Host(Lines)
    host.engine.budget = Budget(messages=2)
    host.send(b"")
    assert host.segment(1, b"OTHING\nNOTHING\nNOTHING\n").events == ()
    assert host.segment(0, b"N").events == (Finished("too-many-messages"),)


class Tired(Lines):
    """Gives up."""

    def on_message(self, message: Message) -> Effects:
        yield Done("nothing was said", "idle")


def test_helper_may_say_by_which_reason_it_is_done() -> None:
    assert Host(Tired).send(b"NOTHING\n").events == (Finished("idle"),)
    assert Done("a") == Done("b", "idle")


# Memory.


class Hungry(Lines):
    """Asks for more memory than there is, after an expectation."""

    name = "hungry"

    def on_message(self, message: Message) -> Effects:
        yield from super().on_message(message)
        raise MemoryError

    def frame(self, data: memoryview) -> int | None:
        if bytes(data[:1]) == b"!":
            raise MemoryError
        return super().frame(data)


class HungryAtOnce(Lines):
    """Asks for it at its beginning."""

    def __init__(self) -> None:
        raise MemoryError


@pytest.mark.parametrize(
    ("helper", "payload"),
    [(Hungry, b"OPEN 5000\n"), (Hungry, b"!"), (HungryAtOnce, b"OPEN 5000\n")],
)
def test_want_of_memory_is_nobodys_fault(helper: type[Helper], payload: bytes) -> None:
    host = Host(helper)
    for _ in range(20):
        decision = host.send(payload)
        assert (decision.expectations, decision.packet) == ((), None)
        assert decision.events == (Finished("memory"),)
        assert host.send(payload) == Decision(decision.flow)
        host.next_flow()


def test_memory_of_all_flows_is_bounded() -> None:
    host = Host(Lines)
    host.engine.budget = Budget(memory=20_000)
    for _ in range(15):
        host.send(b"NOTHING\n")
        host.send(b"OPEN ")
        table = host.engine.flows
        assert table.weight == sum(each.measured for each in table) <= 20_000
        host.next_flow()
    assert table.evicted["memory"] > 0
    assert table.evicted["flows"] == 0


def test_flow_that_is_finished_takes_less() -> None:
    host = Host(Lines)
    host.send(b"NOTHING\n")
    before = host.engine.flows.weight
    host.engine.helpers = {}
    assert host.send(b"NOTHING\n").events == (Finished("helper-removed"),)
    assert 1000 <= host.engine.flows.weight < before


class Slotted(Datagrams):
    """Has attributes of both kinds."""

    __slots__ = ("numbers", "unset")

    def __init__(self) -> None:
        super().__init__()
        self.text = b""
        self.numbers: dict[int, bytes] = {}


def test_helper_says_what_it_keeps_unless_it_says_otherwise() -> None:
    helper = Slotted()
    empty = helper.footprint()
    helper.text = bytes(5000)
    assert empty + 4900 < helper.footprint() < empty + 5100
    helper.numbers = {number: bytes(1000) for number in range(100)}
    assert empty + 105_000 < helper.footprint() < empty + 120_000
    assert Datagrams().footprint() < empty


class Wrong(Datagrams):
    """Cannot say what it keeps."""

    def footprint(self) -> int:
        raise ZeroDivisionError


def test_footprint_that_fails_is_the_helpers_fault() -> None:
    decision = Host(Wrong).send(b"OPEN 5000")
    assert fault_of(decision).error == "ZeroDivisionError: "


# Whatever is said.

REAL = builtin_helpers()


@st.composite
def packets(draw: st.DrawFn) -> list[tuple[int, bool, bool, bytes]]:
    """Flow, whether it is assured, whether it is an answer, and what is said."""
    said = st.sampled_from(
        [
            bytes.fromhex("003a00000100000000000000") + bytes(46),  # TNS, CONNECT
            bytes.fromhex("4000000006000000") + bytes(3000),  # DATA, not all of it
            bytes.fromhex("0008000006000000") * 30,
            *(getport_call(number) for number in range(3)),
            *(getport_reply(number, 20_048) for number in range(3)),
            bytes(1400),
        ]
    )
    step = st.tuples(st.integers(0, 9), st.booleans(), st.booleans(), said)
    return draw(st.lists(step, max_size=60))


@given(packets(), st.sampled_from([2000, 20_000, 1 << 20]), st.integers(0, 200))
def test_what_is_kept_is_accounted_for_and_within_the_budget(
    steps: list[tuple[int, bool, bool, bytes]], memory: int, hole: int
) -> None:
    config = parse("", Path("test"), REAL)
    engine = Engine(
        config.helpers,
        guard=Guard(),
        on_link=on_link,
        clock=lambda: 0.0,
        flow_limit=6,
        budget=Budget(memory=memory),
    )
    sequences: dict[tuple[int, Direction], int] = {}
    for number, sure, reply, payload in steps:
        transport, name = [(TCP, "tns"), (TCP, "sunrpc"), (UDP, "sunrpc")][number % 3]
        entry = conntrack(
            flow_tuple(transport, (f"192.0.2.{number}", 40000)),
            id_=number,
            helper=name,
        )
        if sure:
            entry = replace(entry, status=entry.status | Status.ASSURED)
        direction = REPLY if reply else ORIGINAL
        if transport is UDP:
            packet = udp(payload, direction=direction)
        elif (number, direction) not in sequences:
            packet = tcp(b"", 0, flags="SA" if reply else "S", direction=direction)
            sequences[number, direction] = 1
        else:
            at = sequences[number, direction]
            sequences[number, direction] += len(payload)
            at += hole if len(payload) % 7 == 0 else 0
            packet = tcp(payload, at, direction=direction)
        engine.handle(packet, entry, direction)
        table = engine.flows
        assert table.weight == sum(each.measured for each in table) <= memory

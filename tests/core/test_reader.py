# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers read messages: how these are cut, what is malformed, and what faults."""

from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import UDP as ScapyUDP

from cthelper.core import quarantine
from cthelper.core.api import (
    Done,
    Effect,
    Effects,
    Expect,
    ExpectationRefused,
    Helper,
    Message,
    expect,
)
from cthelper.core.engine import Decision
from cthelper.core.outcome import Damaged, Event, Finished, Refused
from cthelper.core.quarantine import FAULTS
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    Direction,
)
from tests.core.builders import (
    CLIENT,
    SERVER,
    conntrack,
    cut,
    endpoint,
    tcp,
    udp,
)
from tests.core.host import (
    BOTH,
    FIRST,
    Commands,
    Datagrams,
    Host,
    Lines,
    configured,
    expectation,
    fault_of,
)

# Messages on TCP.


def test_only_the_completing_segment_gives_the_expectation() -> None:
    host = Host(Lines)
    decisions = [host.send(piece) for piece in (b"OP", b"EN 50", b"00", b"\n", b"NO")]
    assert [len(each.expectations) for each in decisions] == [0, 0, 0, 1, 0]
    assert decisions[3].expectations == (expectation(host, 5000),)


def test_messages_of_one_segment_give_all_their_expectations() -> None:
    host = Host(Lines)
    decision = host.send(b"OPEN 5000\nNOTHING\nOPEN 5001\nOPEN 50")
    assert decision.expectations == (expectation(host, 5000), expectation(host, 5001))
    assert host.send(b"02\n").expectations == (expectation(host, 5002),)


def test_directions_have_streams_of_their_own() -> None:
    host = Host(Lines)
    host.send(b"OPEN ")
    host.send(b"NOTH", REPLY)
    host.send(b"5000\n")
    host.send(b"ING\n", REPLY)
    assert [message.payload for message in host.messages] == [
        b"OPEN 5000\n",
        b"NOTHING\n",
    ]


@given(
    st.lists(st.integers(1, 65535), max_size=6),
    st.sets(st.integers(1, 80), max_size=12),
)
def test_any_segmentation_gives_the_same_expectations(
    ports: list[int], cuts: set[int]
) -> None:
    content = b"".join(b"TRY %d\n" % port for port in ports)
    whole = Host(Lines).send(content)
    host = Host(Lines)
    decisions = [host.send(piece) for piece in cut(content, cuts)]
    assert tuple(made for each in decisions for made in each.expectations) == (
        whole.expectations
    )
    assert tuple(event for each in decisions for event in each.events) == whole.events
    assert all(each.packet is None for each in decisions)


def test_retransmission_gives_no_second_expectation() -> None:
    host = Host(Lines)
    host.send(b"OPEN 5000\n")
    assert host.segment(0, b"OPEN 5000\n") == Decision(
        host.engine.flows.find(host.entry)
    )


def test_segment_that_fills_the_hole_gives_the_expectation() -> None:
    host = Host(Lines)
    host.send(b"")
    assert host.segment(5, b"5000\n").expectations == ()
    assert host.segment(0, b"OPEN ").expectations == (expectation(host, 5000),)


@pytest.mark.parametrize(
    ("packets", "reason"),
    [
        ([tcp(b"OPEN 5000\n", FIRST)], "mid-stream"),
        ([tcp(b"", FIRST, flags="A")], "mid-stream"),
        (
            [tcp(b"", FIRST - 1, flags="S"), *[tcp(b"OPEN 5000\n", FIRST + 30)] * 65],
            "gap",
        ),
        (
            [
                tcp(b"", FIRST - 1, flags="S"),
                tcp(b"OPEN 5000", FIRST),
                tcp(b"5001\n", FIRST + 5),
            ],
            "overlap",
        ),
    ],
    ids=["mid-stream", "mid-stream without payload", "gap", "overlap"],
)
def test_lost_stream_finishes_the_flow_once(packets: list[bytes], reason: str) -> None:
    host = Host(Lines)
    *earlier, last = packets
    assert all(host.handle(packet).events == () for packet in earlier)
    decision = host.handle(last)
    assert decision.flow is not None
    assert decision == Decision(decision.flow, events=(Finished(reason),))
    assert decision.flow.finished == reason
    # Nothing is read any longer, not even what begins afresh.
    for packet in (tcp(b"", 8, flags="S"), tcp(b"OPEN 5000\n", 9)):
        assert host.handle(packet) == Decision(decision.flow)
        assert host.handle(packet, REPLY) == Decision(decision.flow)


# What is malformed.


def damaged(decision: Decision) -> bool:
    assert decision.expectations == ()
    assert decision.packet is None
    return [type(event) for event in decision.events] == [Damaged]


def test_malformed_message_ends_one_direction_of_tcp() -> None:
    host = Host(Lines)
    decision = host.send(b"HELO\n")
    assert decision.events == (Damaged("command 'HELO'"),)
    assert host.send(b"OPEN 5000\n") == Decision(decision.flow)
    assert len(host.send(b"OPEN 5000\n", REPLY).expectations) == 1


def test_flow_is_finished_when_both_directions_are_malformed() -> None:
    host = Host(Lines)
    assert damaged(host.send(b"HELO\n"))
    decision = host.send(b"220 ready\n", REPLY)
    assert [type(event) for event in decision.events] == [Damaged, Finished]
    assert decision.events[1] == Finished("malformed")
    assert host.send(b"OPEN 5000\n", REPLY) == Decision(decision.flow)


def test_messages_before_the_malformed_one_count() -> None:
    host = Host(Lines)
    decision = host.send(b"OPEN 5000\nHELO\nOPEN 5001\n")
    assert decision.expectations == (expectation(host, 5000),)
    assert decision.events == (Damaged("command 'HELO'"),)


def test_malformed_frame_ends_the_direction() -> None:
    # frame() still holds a view of the pending bytes when the exception arrives.
    host = Host(Lines)
    decision = host.send(b"!12")
    assert decision.events == (Damaged("2 bytes behind a !"),)
    assert host.send(b"\nOPEN 5000\n") == Decision(decision.flow)


@pytest.mark.parametrize(
    "pieces",
    [[b"OPEN" + b" " * 24 + b"5000\n"], [b"OPEN" + b" " * 24, b"5000", b"0"]],
    ids=["whole", "not yet whole"],
)
def test_message_over_the_limit_is_oversized(pieces: list[bytes]) -> None:
    host = Host(Lines)
    *earlier, last = pieces
    assert all(host.send(piece).events == () for piece in earlier)
    decision = host.send(last)
    assert damaged(decision)
    assert "33 bytes" in str(decision.events[0])
    assert host.send(b"\nOPEN 5000\n") == Decision(decision.flow)


def test_message_of_the_limit_is_read() -> None:
    host = Host(Lines)
    assert host.send(b"OPEN" + b" " * 23 + b"500").events == ()
    assert host.send(b"0").events == ()
    assert host.send(b"\n").expectations == (expectation(host, 5000),)


def test_malformed_datagram_is_ignored() -> None:
    host = Host(Datagrams)
    assert damaged(host.send(b"HELO"))
    assert host.send(b"OPEN 5000").expectations == (expectation(host, 5000),)


def test_malformed_datagrams_never_end_a_direction_of_udp() -> None:
    # Anybody can forge as many of them as he likes, in either direction.
    host = Host(Datagrams)
    for direction in Direction:
        for _ in range(1000):
            assert damaged(host.send(b"HELO", direction))
    for direction in Direction:
        assert len(host.send(b"OPEN 5000", direction).expectations) == 1


@BOTH
def test_malformed_packet_is_counted_and_changes_nothing(helper: type[Helper]) -> None:
    # The kernel calls it invalid: the two ends have not sent it.
    host = Host(helper)
    host.send(b"NOTHING\n")
    packet = tcp(b"", FIRST + 8) if helper is Lines else udp(b"OPEN 5000\n")
    assert damaged(host.handle(packet[:-1]))
    assert len(host.send(b"OPEN 5000\n").expectations) == 1


def test_fragment_is_accepted_without_events() -> None:
    host = Host(Datagrams)
    packet = bytes(IP(src=CLIENT, dst=SERVER, flags="MF") / ScapyUDP() / b"HELO")
    decision = host.handle(packet)
    assert decision == Decision(decision.flow)
    assert len(host.send(b"OPEN 5000").expectations) == 1


# What a helper does wrong.


class Broken(Commands):
    """Breaks the contract in the way that the test wants."""

    name = "line"
    transports = frozenset({TCP})
    length: ClassVar[int | None] = None

    def frame(self, data: memoryview) -> int | None:
        return self.length


class Unmakeable(Lines):
    """Cannot be instantiated."""

    def __init__(self) -> None:
        raise OSError("no such file")


class Plain(Lines):
    """Its on_message is no generator."""

    def on_message(self, message: Message) -> Effects:
        return None  # type: ignore[return-value]  # the fault that is tested


class Ending(Lines):
    """Its on_message is no generator, and raises what one ends with."""

    def on_message(self, message: Message) -> Effects:
        nothing: list[Effects] = []
        return next(iter(nothing))


class Vain(Lines):
    """Yields nothing where it should yield an effect."""

    def on_message(self, message: Message) -> Effects:
        yield None  # type: ignore[misc]  # the fault that is tested


class Foreign(Lines):
    """Yields what is no effect."""

    def on_message(self, message: Message) -> Effects:
        yield "OPEN"  # type: ignore[misc]  # the fault that is tested


class UnicodeFault(Lines):
    """Lets an exception of the codec out of frame()."""

    def frame(self, data: memoryview) -> int | None:
        return len(bytes(data).decode("ascii"))


@BOTH
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (b"RAISE bug\n", "ZeroDivisionError: in the helper"),
        (b"RAISE assert\n", "AssertionError: in the helper"),
        (b"OPEN-RAISE 5000\n", "RuntimeError: after the expectation"),
        (b"GRANT\n", "IndexError: list index out of range"),
    ],
    ids=["exception", "assertion", "after an expectation", "index"],
)
def test_exception_of_a_helper_is_a_fault_with_its_place(
    helper: type[Helper], command: bytes, error: str
) -> None:
    host = Host(helper)
    fault = fault_of(host.send(command))
    assert fault.error == error
    assert not fault.quarantined
    name, _, line = fault.where.partition(":")
    assert name == "host.py"
    assert int(line) > 0
    decision = host.send(b"OPEN 5000\n")
    assert decision == Decision(decision.flow)


def test_fault_in_a_library_is_placed_in_the_helper_that_called_it() -> None:
    fault = fault_of(Host(UnicodeFault).send(b"\xff"))
    assert fault.where.startswith("test_reader.py:")


@pytest.mark.parametrize(
    ("helper", "error"),
    [
        (Unmakeable, "OSError: no such file"),
        (Plain, "TypeError: "),
        (Ending, "StopIteration: "),
        (Vain, "HelperFault: yielded None, which is no effect"),
        (Foreign, "HelperFault: yielded 'OPEN', which is no effect"),
        (UnicodeFault, "UnicodeDecodeError: "),
    ],
)
def test_helper_that_breaks_the_contract_is_at_fault(
    helper: type[Helper], error: str
) -> None:
    host = Host(helper)
    syn = host.handle(tcp(b"", FIRST - 1, flags="S"))
    decision = syn if syn.events else host.segment(0, b"OPEN \xff\n")
    assert fault_of(decision).error.startswith(error)


class Unlike(Lines):
    """Frames its requests as lines, and takes replies as they come."""

    def frame_of(self, direction: Direction, data: memoryview) -> int | None:
        return self.frame(data) if direction is ORIGINAL else len(data)


def test_direction_is_framed_in_its_own_way() -> None:
    host = Host(Unlike)
    for direction, expected in ((ORIGINAL, 0), (REPLY, 1)):
        decision = host.send(b"OPEN 5000", direction)
        assert len(decision.expectations) == expected
    assert len(host.send(b"\n").expectations) == 1


@pytest.mark.parametrize("length", [0, -1, 11])
def test_frame_of_no_length_or_too_much_is_a_fault(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "length", length)
    fault = fault_of(Host(Broken).send(b"OPEN 5000\n"))
    assert fault.error == f"HelperFault: frame() returned {length} of 10 bytes"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (b"POLICY other", "HelperFault: no policy 'other', known are data, chained"),
        (b"BEYOND", "HelperFault: rewrite of a span that leaves the datagram"),
    ],
    ids=["unknown policy", "rewrite out of range"],
)
def test_wish_that_cannot_be_is_a_fault(command: bytes, error: str) -> None:
    assert fault_of(Host(Datagrams).send(command)).error.startswith(error)


def line_of(where: str) -> str:
    """The line of the tests' sources that a fault is placed at."""
    name, _, number = where.partition(":")
    return (Path(__file__).parent / name).read_text().splitlines()[int(number) - 1]


def test_wrong_policy_is_blamed_on_the_line_of_the_helper() -> None:
    fault = fault_of(Host(Datagrams).send(b"POLICY other"))
    assert "yield from expect(" in line_of(fault.where)


class Stubborn(Lines):
    """Catches what it should not."""

    def on_message(self, message: Message) -> Effects:
        with suppress(Exception):
            yield from expect(message.source, policy="other")
        with suppress(Exception):
            yield from expect(message.source, policy="other")


def test_wrong_policy_is_a_fault_whatever_the_helper_catches() -> None:
    decision = Host(Stubborn).send(b"x\n")
    fault = fault_of(decision)
    assert fault.error.startswith("HelperFault: no policy 'other'")
    assert decision.expectations == ()


@pytest.mark.parametrize("helper", [Broken, Plain, Foreign])
def test_fault_that_no_line_of_the_helper_raised_is_placed_at_its_class(
    helper: type[Helper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "length", 0)
    fault = fault_of(Host(helper).send(b"OPEN 5000\n"))
    assert line_of(fault.where).startswith(f"class {helper.__name__}(")


def test_peer_that_faults_again_and_again_is_in_quarantine() -> None:
    host = Host(Datagrams)
    waiting = host.entry
    host.send(b"NOTHING")
    for number in range(1, FAULTS + 1):
        host.next_flow()
        fault = fault_of(host.send(b"RAISE bug"))
        assert fault.quarantined == ("peer" if number == FAULTS else "")
    # Neither flows that go on nor new ones are inspected.
    host.next_flow()
    for entry in (waiting, host.entry):
        decision = host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL)
        assert decision == Decision(decision.flow, events=(Finished("quarantine"),))
        again = host.engine.handle(udp(b"OPEN 5000"), entry, ORIGINAL)
        assert again == Decision(decision.flow)
    # It heals by itself.
    host.clock.now += quarantine.FIRST + 1
    host.next_flow()
    assert len(host.send(b"OPEN 5000").expectations) == 1
    for _ in range(FAULTS):
        host.next_flow()
        host.send(b"RAISE bug")
    host.engine.release()
    host.next_flow()
    assert len(host.send(b"OPEN 5000").expectations) == 1


def test_quarantine_is_of_one_helper() -> None:
    host = Host(Datagrams)
    for _ in range(FAULTS):
        host.next_flow()
        host.send(b"RAISE bug")
    host.engine.helpers = {**host.engine.helpers, "line": configured(Lines)}
    other = conntrack(id_=99, helper="line")
    host.engine.handle(tcp(b"", FIRST - 1, flags="S"), other, ORIGINAL)
    decision = host.engine.handle(tcp(b"OPEN 5000\n", FIRST), other, ORIGINAL)
    assert len(decision.expectations) == 1


# What is refused.

LOW = Refused(
    "low-port",
    "port 1000 is below guard.lowest_port, 1024",
    Expect(endpoint(CLIENT, 1000), "data"),
)


@BOTH
@pytest.mark.parametrize(
    ("command", "ports", "events"),
    [
        (b"OPEN 1000\n", [], (LOW,)),
        (b"OPEN 5000 1000 5001\n", [5000], (LOW,)),
        (b"TRY 1000\n", [], (LOW,)),
        (b"TRY 1000 5000 1000\n", [5000], (LOW, LOW)),
        (b"AGAIN 1000 5000\n", [5000], (LOW,)),
        (b"AGAIN 1000 1000\n", [], (LOW, LOW)),
        (b"REFUSE\n", [], (Refused("out-of-turn", "nobody asked", None),)),
    ],
    ids=[
        "uncaught",
        "uncaught after another",
        "caught",
        "caught twice",
        "caught, another wish",
        "caught, another wish is refused too",
        "raised by the helper",
    ],
)
def test_refusal_is_counted_once_and_the_flow_goes_on(
    helper: type[Helper], command: bytes, ports: list[int], events: tuple[Event, ...]
) -> None:
    host = Host(helper)
    decision = host.send(command)
    assert [made.destination.port for made in decision.expectations] == ports
    assert decision.events == events
    assert host.send(b"OPEN 6000\n").expectations == (expectation(host, 6000),)


class Eager(Datagrams):
    """Refuses before its generator runs."""

    def on_message(self, message: Message) -> Effects:
        raise ExpectationRefused("out-of-turn", "nobody asked")


def test_refusal_by_a_helper_without_a_generator_is_no_fault() -> None:
    decision = Host(Eager).send(b"x")
    assert decision.events == (Refused("out-of-turn", "nobody asked", None),)


# Rewrites and the end.


@BOTH
@pytest.mark.parametrize("command", [b"REWRITE same\n", b"GRANT 5000\n"])
def test_rewrite_to_the_same_bytes_is_dropped(
    helper: type[Helper], command: bytes
) -> None:
    decision = Host(helper).send(command)
    assert (decision.packet, decision.events) == (None, ())


def test_rewrite_of_a_datagram_replaces_the_packet() -> None:
    decision = Host(Datagrams).send(b"CHANGE me")
    assert decision.packet == udp(b"was and me")
    assert decision.events == ()


def test_rewrite_of_a_segment_is_a_fault() -> None:
    fault = fault_of(Host(Lines).send(b"CHANGE me\n"))
    assert fault.error.startswith("HelperFault: rewrite of a TCP segment")


@BOTH
def test_done_finishes_the_flow_once(helper: type[Helper]) -> None:
    host = Host(helper)
    assert len(host.send(b"OPEN 5000\n").expectations) == 1
    decision = host.send(b"DONE\n")
    assert decision == Decision(decision.flow, events=(Finished("done"),))
    for direction in Direction:
        assert host.send(b"OPEN 5000\n", direction) == Decision(decision.flow)


def test_messages_after_done_are_not_read() -> None:
    decision = Host(Lines).send(b"OPEN 5000\nDONE\nOPEN 5001\n")
    assert [made.destination.port for made in decision.expectations] == [5000]
    assert decision.events == (Finished("done"),)


class Parting(Lines):
    """Says why it is done."""

    def on_message(self, message: Message) -> Effects:
        yield Done(message.payload.decode())


@pytest.mark.parametrize(
    ("packets", "detail"),
    [
        ([tcp(b"", FIRST - 1, flags="S"), tcp(b"BYE\n", FIRST)], "BYE\n"),
        ([tcp(b"BYE\n", FIRST)], "first segment seen is not a SYN"),
    ],
)
def test_why_a_flow_is_finished_is_said_in_words(
    packets: list[bytes], detail: str
) -> None:
    host = Host(Parting)
    *_, decision = map(host.handle, packets)
    (event,) = decision.events
    assert isinstance(event, Finished)
    assert event.detail == detail


# Looking on.


class Onlooker:
    """Writes down what the engine tells it."""

    def __init__(self) -> None:
        self.told: list[bytes | Effect] = []

    def message(self, helper: Helper, message: Message) -> None:
        assert isinstance(helper, Commands)
        assert message not in helper.messages
        self.told.append(message.payload)

    def effect(self, effect: Effect) -> None:
        self.told.append(effect)


@BOTH
def test_watch_is_told_of_messages_and_effects_in_their_order(
    helper: type[Helper],
) -> None:
    onlooker = Onlooker()
    host = Host(helper, onlooker)
    port = endpoint(CLIENT, 22)
    for payload in (b"TRY 22 5000\n", b"NONSENSE\n"):
        host.send(payload)
    assert onlooker.told == [
        b"TRY 22 5000\n",
        Expect(port, "data"),
        Expect(endpoint(CLIENT, 5000), "data"),
        b"NONSENSE\n",
    ]


def test_helper_describes_nothing_unless_it_says_so() -> None:
    host = Host(Datagrams)
    host.send(b"NOTHING")
    (message,) = host.messages
    assert Datagrams().describe(message) == {}

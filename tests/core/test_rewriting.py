# SPDX-License-Identifier: GPL-2.0-or-later
"""Announcements of translated flows are granted and rewritten.

A server behind destination NAT: the client knows it as PUBLIC.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    DONE,
    REPLY,
    TCP,
    UDP,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Message,
    Policy,
    Rewrite,
    RewriteRefused,
    Transport,
    expect,
)
from cthelper.core.config import Budget, HelperConfig, NatConfig
from cthelper.core.engine import Decision, Engine
from cthelper.core.guard import Guard
from cthelper.core.outcome import Event, Fault, Refused
from cthelper.core.packet import COPIED, locate
from cthelper.core.tuples import Network, Translation
from tests.core.builders import (
    CLIENT,
    CLIENT_PORT,
    SERVER,
    SERVER_PORT,
    conntrack,
    cut,
    endpoint,
    flow_tuple,
    tcp,
    udp,
)
from tests.core.host import Kernel

PUBLIC = "203.0.113.80"
FIRST = 2**32 - 9
LINE = re.compile(rb"(OPEN|PAIR|TELL|LENGTH|DONE|NOTE) ?(\d*)(.*)\n", re.DOTALL)


class Lines(Helper):
    """OPEN PORT and PAIR PORT announce; the grant is written. LENGTH waits for OPEN.

    TELL PORT writes the next port, and asks for nothing.

    The line ``LENGTH n`` has the length of the OPEN that follows it.
    """

    name = "line"
    transports = frozenset({TCP, UDP})
    ports = (SERVER_PORT,)
    policies = (Policy("data", max_expected=8, timeout=60),)

    def __init__(self) -> None:
        self._length_at: int | None = None
        self._read = 0

    def frame(self, data: memoryview) -> int | None:
        return bytes(data).find(b"\n") + 1 or None

    def on_message(self, message: Message) -> Effects:
        at = self._read
        self._read += len(message.payload)
        found = LINE.fullmatch(message.payload)
        if found is None:
            return
        word, number, _ = found.groups()
        if word == b"DONE":
            yield DONE
        elif word == b"TELL":
            yield Rewrite(found.span(2), b"%d" % (int(number) + 1))
        elif word == b"LENGTH":
            self._length_at = at + found.start(2)
        elif word in (b"OPEN", b"PAIR"):
            own = Endpoint(message.source.address, int(number))
            grant = yield from expect(own, policy="data", pair=word == b"PAIR")
            data = b"%d" % grant.endpoint.port
            yield Rewrite(found.span(2), data)
            if self._length_at is not None:
                start = self._length_at - at
                length = len(message.payload) + len(data) - len(number)
                yield Rewrite((start, start + 2), b"%02d" % length)


def nothing_on_link(address: object) -> tuple[Network, ...]:
    raise ExpectationRefused("off-link", f"{address}")


class Host:
    """An engine, the kernel's table, and one translated flow."""

    def __init__(self, transport: Transport = TCP, **changes: object) -> None:
        config = HelperConfig(
            helper=Lines,
            queue=0,
            ports=Lines.ports,
            policies=Lines.policies,
            options={},
        )
        self.kernel = Kernel()
        self.engine = Engine(
            {"line": replace(config, **changes)},  # type: ignore[arg-type]
            guard=Guard(),
            on_link=nothing_on_link,
            clock=lambda: 0.0,
            flow_limit=4,
            placer=self.kernel,
            budget=Budget(messages=1 << 16),
        )
        self.entry = conntrack(
            flow_tuple(transport, destination=(PUBLIC, SERVER_PORT)),
            flow_tuple(transport, (SERVER, SERVER_PORT), (CLIENT, CLIENT_PORT)),
        )
        if transport is TCP:
            self.handle(tcp(b"", FIRST - 1, flags="S", direction=REPLY))

    def handle(self, packet: bytes) -> Decision:
        return self.engine.handle(packet, self.entry, REPLY)

    def segment(self, offset: int, payload: bytes) -> Decision:
        return self.handle(tcp(payload, FIRST + offset, direction=REPLY))

    def datagram(self, payload: bytes) -> Decision:
        return self.handle(udp(payload, direction=REPLY))


def payload_of(packet: bytes | None, otherwise: bytes) -> bytes:
    """The payload that goes on: that of the packet, or as it came."""
    if packet is None:
        return otherwise
    segment = locate(packet)
    assert segment is not None
    return packet[segment.start : segment.stop]


def reasons(events: Sequence[Event]) -> list[str]:
    return [each.reason for each in events if isinstance(each, Refused)]


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_client_is_let_in_where_it_knows_the_server(transport: Transport) -> None:
    host = Host(transport)
    packet = b"OPEN 5000\n"
    decision = host.segment(0, packet) if transport is TCP else host.datagram(packet)
    (placed,) = decision.placed
    expectation = placed.expectation
    assert host.kernel.present == [expectation]
    assert expectation.destination == endpoint(PUBLIC, 5000)
    assert str(expectation.source) == f"{CLIENT}/32"
    assert expectation.translation is not None
    assert expectation.translation.port == 5000
    assert (decision.expectations, decision.packet, decision.events) == ((), None, ())


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_port_that_is_taken_leads_to_the_next_and_is_written(
    transport: Transport,
) -> None:
    host = Host(transport)
    host.kernel.taken = {9999, 10000, 10001}
    line = b"OPEN 9999 and more\n"
    decision = host.segment(0, line) if transport is TCP else host.datagram(line)
    (placed,) = decision.placed
    expectation = placed.expectation
    assert expectation.destination == endpoint(PUBLIC, 10002)
    assert expectation.translation == Translation(
        direction=expectation.translation.direction,  # type: ignore[union-attr]
        port=9999,
    )
    assert payload_of(decision.packet, line) == b"OPEN 10002 and more\n"


def test_denied_port_is_not_told_in_the_place_of_another() -> None:
    host = Host()
    host.kernel.taken = {3388}
    (placed,) = host.segment(0, b"OPEN 3388\n").placed
    expectation = placed.expectation
    assert expectation.destination.port == 3390


def test_pair_is_placed_whole_and_keeps_its_parity() -> None:
    host = Host()
    host.kernel.taken = {5003}
    decision = host.segment(0, b"PAIR 5002\n")
    made = [each.expectation for each in decision.placed]
    assert [each.destination.port for each in made] == [5004, 5005]
    ports = [each.translation.port for each in made if each.translation]
    assert ports == [5002, 5003]
    assert payload_of(decision.packet, b"") == b"PAIR 5004\n"


def test_pair_with_a_denied_port_is_refused() -> None:
    assert reasons(Host().segment(0, b"PAIR 3388\n").events) == ["denied-port"]


def test_so_many_ports_are_tried_and_no_more() -> None:
    host = Host()
    host.kernel.taken = set(range(5000, 5032))
    decision = host.segment(0, b"OPEN 5000\n")
    assert (decision.placed, reasons(decision.events)) == ((), ["kernel-ebusy"])


def test_refusal_of_the_kernel_reaches_the_helper() -> None:
    host = Host()
    host.kernel.full = True
    decision = host.segment(0, b"OPEN 5000\n")
    assert (decision.placed, reasons(decision.events)) == ((), ["kernel-emfile"])


def test_flow_that_is_not_confirmed_has_its_expectation_go_with_the_packet() -> None:
    host = Host(UDP)
    host.entry = replace(host.entry, status=type(host.entry.status)(0))
    decision = host.datagram(b"OPEN 5000\n")
    assert decision.placed == ()
    assert [str(each) for each in decision.expectations] == [
        f"udp {CLIENT} > {PUBLIC}:5000"
    ]


def test_host_behind_nat_is_announced_by_its_outside_address() -> None:
    outside = {ip_address(SERVER): ip_address("203.0.113.7")}
    host = Host(nat=NatConfig(outside=outside))
    # The announcer itself is known by what the flow says.
    (placed,) = host.segment(0, b"OPEN 5000\n").placed
    expectation = placed.expectation
    assert expectation.destination == endpoint(PUBLIC, 5000)


# Bytes that have gone on.


def test_message_in_two_segments_is_rewritten_if_the_span_is_in_the_second() -> None:
    host = Host()
    host.kernel.taken = {9999}
    assert host.segment(0, b"OP").packet is None
    decision = host.segment(2, b"EN 9999\n")
    assert payload_of(decision.packet, b"") == b"EN 10000\n"


@pytest.mark.parametrize("drop", [False, True])
def test_span_that_has_gone_on_refuses_what_it_announces(drop: bool) -> None:
    host = Host(nat=NatConfig(drop_unrewritable=drop))
    host.kernel.taken = {9999}
    host.segment(0, b"OPEN 99")
    decision = host.segment(7, b"99\n")
    assert reasons(decision.events) == ["rewrite-passed"]
    assert (decision.placed, decision.packet, decision.drop) == ((), None, drop)
    # What was placed is taken out again.
    assert host.kernel.present == []


@pytest.mark.parametrize("drop", [False, True])
def test_span_that_has_gone_on_and_comes_again_with_the_rest_refuses(
    drop: bool,
) -> None:
    """The receiver may have it, and would keep it: the stream would not fit."""
    host = Host(nat=NatConfig(drop_unrewritable=drop))
    host.kernel.taken = {9999}
    assert host.segment(0, b"OPEN 9999").packet is None
    decision = host.segment(0, b"OPEN 9999\n")
    assert reasons(decision.events) == ["rewrite-passed"]
    assert (decision.placed, decision.packet, decision.drop) == ((), None, drop)


def test_span_that_has_gone_on_beyond_a_missing_segment_refuses() -> None:
    host = Host()
    host.kernel.taken = {9999}
    host.segment(5, b"9999")
    decision = host.segment(0, b"OPEN 9999\n")
    assert reasons(decision.events) == ["rewrite-passed"]


def test_segment_that_repeats_other_bytes_is_rewritten() -> None:
    host = Host()
    host.kernel.taken = {9999}
    host.segment(0, b"NOTE\nOP")
    decision = host.segment(0, b"NOTE\nOPEN 9999\n")
    assert payload_of(decision.packet, b"") == b"NOTE\nOPEN 10000\n"


def test_span_in_an_earlier_message_of_the_packet_is_rewritten() -> None:
    host = Host()
    host.kernel.taken = {9999}
    decision = host.segment(0, b"LENGTH 10\nOPEN 9999\n")
    assert payload_of(decision.packet, b"") == b"LENGTH 11\nOPEN 10000\n"


def test_span_in_a_message_that_has_gone_on_refuses() -> None:
    host = Host()
    host.kernel.taken = {9999}
    host.segment(0, b"LENGTH 10\n")
    decision = host.segment(10, b"OPEN 9999\n")
    assert reasons(decision.events) == ["rewrite-passed"]
    assert host.kernel.present == []


def test_packet_grows_to_what_every_link_takes_and_no_further() -> None:
    # Headers are 40 bytes; the port becomes one byte longer.
    for room, reason in ((0, []), (1, ["rewrite-too-long"])):
        host = Host()
        host.kernel.taken = {9999}
        line = b"OPEN 9999" + b" " * (1280 - 40 - 1 - 10 + room) + b"\n"
        decision = host.segment(0, line)
        assert reasons(decision.events) == reason
        assert len(decision.packet or b"") == (0 if reason else 1280)


def test_segment_that_the_queue_has_copied_a_part_of_is_read_and_never_rewritten() -> (
    None
):
    # What would take its place would lack the rest.
    for taken, reason in ((set(), []), ({8888}, ["rewrite-too-long"])):
        host = Host()
        host.kernel.taken = taken
        lines = b"OPEN 8888\n" + b"NOTE\n" * 13098
        whole = tcp(lines[: 0xFFFF - 40], FIRST, direction=REPLY)
        decision = host.handle(whole[:COPIED])
        assert reasons(decision.events) == reason
        assert (len(decision.placed), decision.packet) == (not reason, None)
        assert len(host.kernel.present) == (not reason)
        assert decision.flow is not None
        assert decision.flow.finished is None


def test_rewritten_bytes_that_are_sent_again_in_such_a_segment_are_not_cut() -> None:
    host = Host()
    host.kernel.taken = {8888}
    assert host.segment(0, b"OPEN 8888\n").packet is not None
    whole = tcp((b"OPEN 8888\n" * 7000)[: 0xFFFF - 40], FIRST, direction=REPLY)
    decision = host.handle(whole[:COPIED])
    assert "rewrite-too-long" in reasons(decision.events)
    assert decision.packet is None


def test_packet_that_does_not_grow_may_be_as_long_as_it_is() -> None:
    host = Host()
    host.kernel.taken = {8888}
    line = b"OPEN 8888" + b" " * 1400 + b"\n"
    decision = host.segment(0, line)
    assert payload_of(decision.packet, b"") == line.replace(b"8888", b"8889")


# A packet whole, or not at all.


def test_all_messages_of_a_packet_are_rewritten_and_sent_again_alike() -> None:
    host = Host()
    ports = range(9000, 9800, 20)
    host.kernel.taken = set(ports)
    text = b"".join(b"OPEN %d\n" % port for port in ports)
    first = host.segment(0, text)
    assert reasons(first.events) == []
    assert [each.expectation.destination.port for each in first.placed] == [
        port + 1 for port in ports
    ]
    assert payload_of(first.packet, b"") == b"".join(
        b"OPEN %d\n" % (port + 1) for port in ports
    )
    assert host.segment(0, text).packet == first.packet
    # Parts of it, too: the first twenty lines, and the rest.
    halves = [host.segment(at, text[at : at + 200]).packet for at in (0, 200)]
    assert b"".join(payload_of(each, b"") for each in halves) == payload_of(
        first.packet, b""
    )


def test_packet_grows_by_all_its_messages_to_what_every_link_takes() -> None:
    # Each line grows by one byte, and fits alone.
    for room, reason in ((0, []), (1, ["rewrite-too-long"])):
        host = Host()
        host.kernel.taken = {9998, 9999}
        lines = b"OPEN 9998\nOPEN 9999\n"
        text = lines + b"NOTE" + b" " * (1280 - 40 - 2 - 25 + room) + b"\n"
        decision = host.segment(0, text)
        assert reasons(decision.events) == reason
        assert len(decision.packet or b"") == (0 if reason else 1280)
        assert len(decision.placed) == len(host.kernel.present) == (0 if reason else 2)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_packet_with_a_message_that_cannot_be_rewritten_is_left_as_it_is(
    transport: Transport, drop: bool
) -> None:
    host = Host(transport, nat=NatConfig(drop_unrewritable=drop), helper=Unable)
    host.kernel.taken = {9999}
    text = b"OPEN 9999\n" + b"OPEN 5000 no\n"
    decision = host.segment(0, text) if transport is TCP else host.datagram(text)
    assert reasons(decision.events) == ["too-hard"]
    assert (decision.placed, decision.expectations, decision.packet) == ((), (), None)
    assert decision.drop is drop
    assert host.kernel.present == []


class Unable(Lines):
    """Cannot write what it was granted for a line with ``no``."""

    def on_message(self, message: Message) -> Effects:
        yield from super().on_message(message)
        if b"no" in message.payload:
            raise RewriteRefused("too-hard", "no")


def test_flow_that_is_not_confirmed_expects_nothing_that_cannot_be_rewritten() -> None:
    host = Host(UDP, helper=Unable)
    host.entry = replace(host.entry, status=type(host.entry.status)(0))
    decision = host.datagram(b"OPEN 5000 no\n")
    assert (reasons(decision.events), decision.expectations) == (["too-hard"], ())


def test_message_behind_a_part_of_what_was_rewritten_is_refused_with_it() -> None:
    host = Host()
    host.kernel.taken = {9999}
    host.segment(0, b"OPEN 9999\n")
    kept = list(host.kernel.present)
    decision = host.segment(7, b"99\nOPEN 5000\nOPEN 9999\n")
    assert reasons(decision.events) == ["rewrite-cut"]
    assert (decision.placed, decision.packet) == ((), None)
    assert host.kernel.present == kept


def test_what_was_rewritten_before_stays_so_where_the_rest_is_refused() -> None:
    host = Host()
    host.kernel.taken = {9999, 9998}
    host.segment(0, b"OPEN 9999\n")
    # Sent again, with more behind it that does not fit.
    more = b"OPEN 9998" + b" " * 1300 + b"\n"
    decision = host.segment(0, b"OPEN 9999\n" + more)
    assert reasons(decision.events) == ["rewrite-too-long"]
    assert payload_of(decision.packet, b"") == b"OPEN 10000\n" + more
    assert len(host.kernel.present) == 1


def test_packet_with_more_rewrites_than_are_kept_is_refused_whole() -> None:
    host = Host()
    text = b"NOTE\n" + b"".join(b"TELL %d\n" % port for port in range(9000, 9257))
    decision = host.segment(0, text)
    assert reasons(decision.events) == ["rewrite-many"]
    assert (decision.packet, host.kernel.present) == (None, [])
    # Another packet is not the worse for it.
    assert host.segment(len(text), b"TELL 9000\n").packet is not None


class Twice(Lines):
    """Rewrites the same bytes twice: a bug."""

    def on_message(self, message: Message) -> Effects:
        yield from expect(Endpoint(message.source.address, 5000), policy="data")
        yield Rewrite((0, 2), b"a")
        yield Rewrite((1, 3), b"b")


@pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
def test_rewrites_that_overlap_are_a_fault_and_leave_nothing_open(
    transport: Transport,
) -> None:
    host = Host(transport, helper=Twice)
    line = b"OPEN 5000\n"
    decision = host.segment(0, line) if transport is TCP else host.datagram(line)
    fault = decision.events[0]
    assert isinstance(fault, Fault)
    assert "overlaps another" in fault.error
    assert (decision.expectations, decision.placed, decision.packet) == ((), (), None)
    assert host.kernel.present == []


# Segments that are sent again.


def test_segment_that_is_sent_again_gets_the_same_bytes() -> None:
    host = Host()
    host.kernel.taken = {9999}
    first = host.segment(0, b"OPEN 9999\n")
    again = host.segment(0, b"OPEN 9999\n")
    assert again.packet == first.packet
    assert (again.placed, again.events) == ((), ())
    joined = host.segment(0, b"OPEN 9999\nNOTE\n")
    assert payload_of(joined.packet, b"") == b"OPEN 10000\nNOTE\n"


def test_segment_that_is_sent_again_after_the_end_gets_the_same_bytes() -> None:
    host = Host()
    host.kernel.taken = {9999}
    first = host.segment(0, b"OPEN 9999\n")
    assert host.segment(10, b"DONE\n").events
    assert host.segment(0, b"OPEN 9999\n").packet == first.packet
    assert host.segment(15, b"OPEN 9999\n").packet is None


@pytest.mark.parametrize("drop", [False, True])
def test_segment_with_a_part_of_what_was_rewritten_is_told(drop: bool) -> None:
    host = Host(nat=NatConfig(drop_unrewritable=drop))
    host.kernel.taken = {9999}
    host.segment(0, b"OPEN 9999\n")
    decision = host.segment(7, b"99\n")
    assert reasons(decision.events) == ["rewrite-cut"]
    assert (decision.packet, decision.drop) == (None, drop)


lines = st.lists(
    st.one_of(
        st.integers(9990, 9999).map(lambda port: b"OPEN %d\n" % port),
        st.binary(max_size=8).map(
            lambda text: b"NOTE " + text.translate(None, b"\r\n\v\f\x1c\x1d\x1e\x85")
        ),
    ).map(lambda line: line.rstrip(b"\n") + b"\n"),
    min_size=1,
    max_size=6,
)


@given(lines, st.data())
def test_receiver_gets_one_stream_whatever_is_lost_and_sent_again(
    sent: list[bytes], data: st.DataObject
) -> None:
    """Of any segments the same bytes become the same others, and all of them fit."""
    host = Host()
    host.kernel.taken = {9999, 9998}
    # Lines are not cut here: what a cut in a span leads to is told above.
    stream = b"".join(sent)
    ends = [sum(map(len, sent[:number])) for number in range(len(sent) + 1)]
    inside = data.draw(st.sets(st.sampled_from(ends)))
    segments = cut(stream, inside)
    received: dict[int, bytes] = {}
    offset = 0
    for segment in segments:
        decision = host.segment(offset, segment)
        assert not [each for each in decision.events if isinstance(each, Fault)]
        received[offset] = payload_of(decision.packet, segment)
        offset += len(segment)
    whole = b"".join(received.values())
    opened = [each.destination.port for each in host.kernel.present]
    told = [int(port) for port in re.findall(rb"^OPEN (\d+)$", whole, re.MULTILINE)]
    assert told[: len(opened)] == opened
    # Any run of lines that is sent again is what went on before.
    start, stop = sorted(data.draw(st.tuples(*[st.sampled_from(ends)] * 2)))
    again = host.segment(start, stream[start:stop])
    before = _between(sent, whole, start, stop)
    assert payload_of(again.packet, stream[start:stop]) == before
    assert again.placed == ()


def _between(sent: list[bytes], whole: bytes, start: int, stop: int) -> bytes:
    """The lines of `whole` in the place of those of `sent` from `start` to `stop`."""
    stream = b"".join(sent)
    lines = whole.splitlines(keepends=True)
    return b"".join(lines[stream[:start].count(b"\n") : stream[:stop].count(b"\n")])

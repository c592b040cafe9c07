# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue in C: it decodes, sieves and answers as the Python beside it does.

Messages are handed in as if they had been received, at the end of mapped memory, and
what is sent goes to a socket of the test's.
"""

import gc
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import Match, Prefilter
from cthelper.core.errors import Malformed, Truncated
from cthelper.core.packet import COPIED, locate
from cthelper.core.queue.messages import Decoder, decode, id_of, verdict
from cthelper.core.queue.native import native_queue
from cthelper.core.queue.protocol import Hook, QueuedPacket, Verdict
from cthelper.core.queue.sieve import Sieve
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Direction,
    Status,
    Transport,
    Tuple,
    key_of,
)
from tests.core.builders import endpoint, packet6, tcp, udp
from tests.core.netlink.test_decoding import (
    HELP,
    HELP_NAME,
    ID,
    NESTED,
    STATUS,
    TIMEOUT,
    TUPLE_ORIG,
    TUPLE_REPLY,
    ZONE,
    attribute,
    tuple_,
    u32,
)
from tests.core.queue.test_messages import CT, CT_INFO, PAYLOAD, header

NUMBER = 2077
CONFIRMED = Status.CONFIRMED | Status.HELPER
ASKS = Prefilter(
    request=((Match(0, 8, ord("A")),), (Match(4, 8, 0x16), Match(8, 8, ord("b")))),
    reply=((Match(0, 8, ord("B")),),),
    answers=True,
)


class Bench:
    """A queue in C whose verdicts the test reads, and the sieve in Python."""

    def __init__(self) -> None:
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.setblocking(False)
        self._ours = ours
        self.queue = native_queue(ours.fileno(), NUMBER, 4)
        self.sieve = Sieve(4)

    def close(self) -> None:
        self._ours.close()
        self.kernel.close()

    def sent(self) -> list[bytes]:
        """The netlink messages that have been sent since, one send joined."""
        try:
            data = self.kernel.recv(1 << 20)
        except BlockingIOError:
            return []
        messages = []
        while data:
            (size,) = struct.unpack_from("=I", data)
            messages.append(data[:size])
            data = data[size:]
        return messages


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def entry(
    original: Tuple,
    *,
    id_: int = 7,
    zone: int = 0,
    status: Status = CONFIRMED,
    helper: str = "line",
    timeout: int = 30,
) -> bytes:
    turned = Tuple(original.transport, original.destination, original.source)
    return (
        tuple_(TUPLE_ORIG, original)
        + tuple_(TUPLE_REPLY, turned)
        + u32(STATUS, status)
        + attribute(NESTED | HELP, attribute(HELP_NAME, helper.encode() + b"\0"))
        + u32(TIMEOUT, timeout)
        + u32(ID, id_)
        + attribute(ZONE, zone.to_bytes(2))
    )


FLOWS = [
    Tuple(transport, endpoint("192.0.2.1", port), endpoint("198.51.100.2", 7000))
    for transport in (TCP, UDP)
    for port in (40000, 40001)
]


def message(
    packet: bytes, entry_: bytes, id_: int = 1, direction: Direction = ORIGINAL
) -> bytes:
    info = 2 if direction is ORIGINAL else 5
    body = (
        header(id_)
        + attribute(NESTED | CT, entry_)
        + u32(CT_INFO, info)
        + attribute(PAYLOAD, packet)
    )
    return struct.pack("=IHHII4x", 20 + len(body), 0x300, 0, 0, 0) + body


def accepts(id_: int, *, batch: bool = False) -> bytes:
    whole = verdict(NUMBER, Verdict(id_))
    return whole[:4] + (0x303 if batch else 0x301).to_bytes(2, "little") + whole[6:]


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, Direction]:
    """A message, its packet and direction."""
    flow = draw(st.sampled_from(FLOWS))
    payload = draw(st.sampled_from((b"", b"A", b"B", b"Ab", b"abc", b"x" * 70)))
    if draw(st.booleans()):
        packet = packet6(flow.transport, payload)
    elif flow.transport is TCP:
        flags = draw(st.sampled_from(("A", "PA", "S", "SA", "FA", "R")))
        packet = tcp(payload, 1, flags=flags)
    else:
        packet = udp(payload)
    direction = draw(st.sampled_from((ORIGINAL, REPLY)))
    made = entry(
        flow,
        id_=draw(st.integers(1, 3)),
        zone=draw(st.sampled_from((0, 5))),
        status=draw(
            st.sampled_from((CONFIRMED, Status.HELPER, CONFIRMED | Status.SEQ_ADJUST))
        ),
        helper=draw(st.sampled_from(("line", "other"))),
        timeout=draw(st.sampled_from((10, 30))),
    )
    return message(packet, made, direction=direction), packet, direction


def outcome(
    read: Callable[[bytes], QueuedPacket], data: bytes
) -> QueuedPacket | type[Exception]:
    try:
        return read(data)
    except (Truncated, ValueError) as error:
        return type(error)


@given(st.lists(st.tuples(messages(), st.integers(0, 2**32 - 1)), max_size=12))
def test_message_is_read_as_before_where_its_first_part_is_known(
    drawn: list[tuple[tuple[bytes, bytes, Direction], int]],
) -> None:
    decoder = Decoder()
    for (data, packet, _), id_ in drawn:
        # The kernel does not pad the last attribute.
        data = data[:24] + id_.to_bytes(4) + data[28 : len(data) - -len(packet) % 4]
        for _ in range(2):
            decoded = decoder.decode(data)
            assert decoded == decode(data)
            assert (decoded.id, decoded.payload) == (id_, packet)
        assert id_of(data) == id_
        for end in range(0, len(data), 7):
            assert outcome(decoder.decode, data[:end]) == outcome(decode, data[:end])


@given(
    st.lists(
        st.tuples(
            messages(),
            st.sampled_from(("", "quiet", "held", "both", "gone", "later")),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_sieve_lets_pass_what_the_one_in_python_does(
    steps: list[tuple[tuple[bytes, bytes, Direction], str]], filtered: bool
) -> None:
    bench = Bench()
    if filtered:
        bench.sieve.filters({"line": ASKS})
        bench.queue.filters((("line", ASKS.request, ASKS.reply, ASKS.answers),))
    for (data, packet, direction), note in steps:
        queued = decode(data)
        known = queued.conntrack
        assert known is not None
        assert (queued.payload, queued.direction) == (packet, direction)
        found = bench.queue.inject(data)
        assert (not found) is bench.sieve.passes(queued)
        if note == "later":
            for _ in range(120):
                assert sorted(bench.queue.touched()) == sorted(bench.sieve.touched())
        elif note == "gone":
            bench.queue.forget(key_of(known))
            bench.sieve.forget(key_of(known))
        elif note and found:
            quiet, held = note in ("quiet", "both"), note in ("held", "both")
            bench.queue.note(found[0], quiet, held)
            bench.sieve.note(known, quiet=quiet, held=held)
    assert sorted(bench.queue.touched()) == sorted(bench.sieve.touched())
    bench.close()


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        changed[draw(st.integers(20, len(data) - 1))] = draw(st.integers(0, 255))
    end = draw(st.integers(16, len(data)))
    changed[:4] = struct.pack("=I", end)
    return bytes(changed[:end])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data, _, _ = draw(messages())
    return mutated(draw, data)


@given(damaged())
def test_any_bytes_are_decoded_as_in_python_or_refused(data: bytes) -> None:
    bench = Bench()
    found = bench.queue.inject(data)
    refused = bench.queue.statistics()[4]
    try:
        expected = decode(data)
    except (Truncated, ValueError):
        # What passes is not decoded to its depths.
        assert not found
        assert refused == 1 or bench.queue.statistics()[5] == 1
    else:
        assert refused == 0
        for packet in found:
            assert packet.id == expected.id
            assert packet.hook is expected.hook
            assert packet.direction is expected.direction
            assert packet.conntrack == expected.conntrack
            assert (packet.indev, packet.outdev) == (expected.indev, expected.outdev)
            assert bytes(packet.payload) == expected.payload
            if packet.segment is not None:
                assert packet.segment == locate(expected.payload)
    bench.close()


@pytest.mark.parametrize(
    "rest", [attribute(HELP_NAME, b"other\0"), b"\3\0\1\0", b"\xff\0\1\0"]
)
def test_first_name_of_a_helper_counts_whatever_follows(
    bench: Bench, rest: bytes
) -> None:
    named = attribute(NESTED | HELP, attribute(HELP_NAME, b"line\0") + rest)
    data = message(udp(b"A"), entry(FLOWS[2], helper="none") + named)
    (found,) = bench.queue.inject(data)
    assert found.conntrack == decode(data).conntrack
    assert found.conntrack is not None
    assert found.conntrack.helper == "line"


@given(st.binary(max_size=100) | messages().map(lambda each: each[1]))
def test_located_segment_is_that_of_locate(packet: bytes) -> None:
    bench = Bench()
    (found,) = bench.queue.inject(
        message(packet, entry(FLOWS[2], helper="none", status=Status.HELPER))
    )
    if found.segment is not None:
        assert found.segment == locate(packet)
    elif packet:
        try:
            located = locate(packet)
        except Malformed:
            located = None
        assert located is None or packet[0] >> 4 == 6
    bench.close()


# Verdicts.


def waiting(bench: Bench, *ids: int, passing: tuple[int, ...] = ()) -> None:
    for id_ in sorted((*ids, *passing)):
        packet = tcp(b"" if id_ in passing else b"x", 1, flags="PA")
        found = bench.queue.inject(message(packet, entry(FLOWS[0]), id_))
        assert bool(found) is (id_ in ids)


def test_plain_accepts_go_in_one_batch_and_the_others_in_their_order(
    bench: Bench,
) -> None:
    waiting(bench, 2, 5, 6, passing=(1, 3, 4, 7, 8))
    own = verdict(NUMBER, Verdict(5, payload=b"changed"))
    bench.queue.answer([2, 5, 6], [None, own, None])
    assert bench.sent() == [accepts(4, batch=True), own, accepts(8, batch=True)]
    assert bench.queue.statistics() == (8, 8, 0, 0, 0, 5)


def test_single_accept_is_no_batch(bench: Bench) -> None:
    waiting(bench, 1, 2)
    own = verdict(NUMBER, Verdict(2, conntrack=b"MARK"))
    bench.queue.answer([1, 2], [None, own])
    assert bench.sent() == [accepts(1), own]


def test_batch_settles_no_packet_that_still_waits(bench: Bench) -> None:
    waiting(bench, 1, 3, 4, passing=(2,))
    bench.queue.answer([4, 3], [None, None])
    assert bench.sent() == [accepts(4), accepts(3)]
    bench.queue.answer([1], [None])
    assert bench.sent() == [accepts(2, batch=True)]
    with pytest.raises(KeyError, match="packet 1 does not wait"):
        bench.queue.answer([1], [None])


def test_large_answers_are_sent_in_pieces(bench: Bench) -> None:
    bench.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    waiting(bench, 1, 2, 3)
    own: list[bytes | None] = [
        verdict(NUMBER, Verdict(id_, payload=bytes(60_000))) for id_ in (1, 2, 3)
    ]
    bench.queue.answer([1, 2, 3], own)
    sent = []
    while part := bench.sent():
        sent += part
    assert sent == own


def test_verdicts_that_are_no_messages_are_refused(bench: Bench) -> None:
    waiting(bench, 1)
    wrong: list[tuple[Any, Any]] = [([1], ["x"]), ([1], []), (["1"], [None])]
    for ids, own in wrong:
        with pytest.raises((TypeError, ValueError)):
            bench.queue.answer(ids, own)
    bench.queue.answer([1], [None])
    assert bench.sent() == [accepts(1)]


def test_gap_in_the_ids_counts_as_bypassed(bench: Bench) -> None:
    waiting(bench, 4, 9)
    assert bench.queue.statistics()[2] == 4


# Memory.


def test_packets_and_views_outlive_their_queue() -> None:
    bench = Bench()
    content = udp(b"kept")
    (packet,) = bench.queue.inject(message(content, entry(FLOWS[2])))
    view = packet.payload
    bench.close()
    del bench, packet
    gc.collect()
    assert view.readonly
    assert bytes(view) == content


def test_packets_do_not_leak() -> None:
    bench = Bench()
    data = message(udp(b"A"), entry(FLOWS[2]))
    before = memory()
    for _ in range(20_000):
        (packet,) = bench.queue.inject(data)
        bench.queue.answer([packet.id], [None])
        bench.sent()
    assert memory() - before < 4 << 20
    bench.close()


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_flows_are_noted_up_to_the_limit(bench: Bench) -> None:
    data = [message(udp(b"x"), entry(FLOWS[2], id_=id_)) for id_ in range(1, 7)]
    for each in data:
        (packet,) = bench.queue.inject(each)
        bench.queue.note(packet, True, False)
    assert [bool(bench.queue.inject(each)) for each in data] == [False] * 4 + [True] * 2


def test_answers_are_read_a_while_where_it_cannot_be_noted_who_asked(
    bench: Bench,
) -> None:
    bench.queue.filters((("line", ASKS.request, ASKS.reply, ASKS.answers),))
    for id_ in range(1, 6):
        assert bench.queue.inject(message(udp(b"A"), entry(FLOWS[2], id_=id_)))
    answer = message(udp(b"B"), entry(FLOWS[2], id_=5), direction=REPLY)
    for _ in range(119):
        assert bench.queue.touched() == []
    assert bench.queue.inject(answer)
    assert bench.queue.touched() == []
    assert not bench.queue.inject(answer)
    # Those that are noted are so still.
    noted = message(udp(b"B"), entry(FLOWS[2], id_=4), direction=REPLY)
    assert bench.queue.inject(noted)


@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("length", [COPIED, COPIED + 1, 0xFFFF])
def test_packet_that_the_queue_has_copied_a_part_of_is_located_as_in_python(
    bench: Bench, transport: Transport, length: int
) -> None:
    build = partial(tcp, sequence=7) if transport is TCP else udp
    headers = len(build(b""))
    packet = build(bytes(length - headers))[:COPIED]
    flow = FLOWS[0 if transport is TCP else 2]
    (found,) = bench.queue.inject(message(packet, entry(flow)))
    assert found.segment == locate(packet)
    assert (found.segment is None) is (transport is UDP and length > COPIED)
    (cut,) = bench.queue.inject(message(packet[:-1], entry(flow)))
    assert cut.segment is None


@pytest.mark.parametrize(
    "alternatives",
    [
        ((),),
        (((0, 0, 1),),),
        (((0, 33, 1),),),
        (((500, 16, 1),),),
        ("x",),
        (((0, 8),),),
    ],
)
def test_filters_without_sense_are_refused(bench: Bench, alternatives: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        bench.queue.filters((("line", alternatives, None, False),))
    (packet,) = bench.queue.inject(message(udp(b"x"), entry(FLOWS[2])))
    assert packet.hook is Hook.POSTROUTING

# SPDX-License-Identifier: GPL-2.0-or-later
"""The queue against real packets of tagged flows, answered by the tests."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import pytest

from cthelper.core.api import Match, Prefilter
from cthelper.core.errors import NotFound, QueueError
from cthelper.core.netlink import encoding
from cthelper.core.netlink.socket import SO_RCVBUFFORCE
from cthelper.core.packet import COPIED, locate, replace_payload
from cthelper.core.queue.backends import Backend, choose
from cthelper.core.queue.binding import Binding, bound_queues
from cthelper.core.queue.messages import verdict
from cthelper.core.queue.protocol import (
    Action,
    Hook,
    Packet,
    Queue,
    Verdict,
)
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack, Status, key_of
from tests.live.netlink_lab import (
    NAME,
    PORT,
    QUEUE,
    ZONE,
    ZONE_PORT,
    Flow,
    Lab,
    expected_flow,
    readable,
    until,
)
from tests.live.world import (
    CLIENT,
    GATEWAY_LAN,
    LAN,
    SERVER,
    WAN,
    Family,
    World,
)

pytestmark = pytest.mark.live

LARGE: Final = 8 * 1024 * 1024
SMALL: Final = 64 * 1024


@pytest.fixture(scope="module")
def lab(world: World) -> Iterator[Lab]:
    """The helpers of this module, whose packets are queued."""
    with Lab(world, queueing=True) as lab:
        yield lab


@pytest.fixture(scope="module", params=["native", "netfilterqueue"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the backends: all that is tested here holds with both."""
    return choose(request.param)


@contextmanager
def bound(lab: Lab, backend: Backend, receive_buffer: int = LARGE) -> Iterator[Queue]:
    """The queue of the rules, bound and read for a while."""
    with held(lab, backend, receive_buffer) as binding:
        binding.resume()
        yield backend.read(binding, 65536)


@contextmanager
def held(
    lab: Lab, backend: Backend, receive_buffer: int = LARGE, *, fail_open: bool = True
) -> Iterator[Binding]:
    """The queue of the rules, bound and paused for a while."""
    with lab.world.gateway.entered():
        binding = backend.bind(QUEUE, receive_buffer, fail_open=fail_open)
    try:
        yield binding
    finally:
        binding.close()


@pytest.fixture
def queue(lab: Lab, backend: Backend) -> Iterator[Queue]:
    """The queue with a large receive buffer."""
    with bound(lab, backend) as queue:
        yield queue


def take(queue: Queue) -> Packet:
    """The next packet, which must be the only one."""
    assert readable(queue.fileno()), "no packet came to the queue"
    (packet,) = queue.read(64)
    return packet


def entry_of(packet: Packet) -> Conntrack:
    """The conntrack entry that came with a packet."""
    assert packet.conntrack is not None
    return packet.conntrack


def accept(queue: Queue, packet: Packet) -> None:
    """Let a packet go as it is."""
    queue.answer([Verdict(packet.id)])


def payload_of(packet: Packet) -> bytes:
    """The transport payload of a packet."""
    segment = locate(packet.payload)
    assert segment is not None
    return bytes(packet.payload[segment.start : segment.stop])


def with_payload(packet: Packet, payload: bytes) -> bytes:
    """The IP packet with another transport payload."""
    segment = locate(packet.payload)
    assert segment is not None
    return replace_payload(bytes(packet.payload), segment, payload)


def establish(queue: Queue, flow: Flow) -> Conntrack:
    """A datagram to the server and one back; the entry as the last one brought it."""
    flow.client.send(b"hello")
    accept(queue, take(queue))
    assert flow.server.recv(100) == b"hello"
    flow.server.send(b"answer")
    packet = take(queue)
    accept(queue, packet)
    assert flow.client.recv(100) == b"answer"
    return entry_of(packet)


def establish_unread(queue: Queue, flow: Flow) -> None:
    """A datagram to the server that its helper does not read."""
    flow.client.send(b"hello")
    until(lambda: not queue.read(64) and readable(flow.server.fileno(), 0.0))
    assert flow.server.recv(100) == b"hello"


# What comes with a packet


@pytest.mark.parametrize("family", [4, 6])
def test_packet_comes_with_its_entry(lab: Lab, queue: Queue, family: Family) -> None:
    with lab.world.gateway.entered():
        devices = {name: socket.if_nametoindex(name) for name in (LAN, WAN)}
    with Flow(lab.world, family=family) as flow:
        flow.client.send(b"call")
        first = take(queue)
        entry = entry_of(first)
        assert payload_of(first) == b"call"
        assert first.hook is Hook.POSTROUTING
        assert first.direction is ORIGINAL
        assert (first.indev or devices[LAN], first.outdev) == (
            devices[LAN],
            devices[WAN],
        )
        assert (entry.original, entry.reply) == (flow.original, flow.reply)
        assert (entry.helper, entry.zone, entry.mark) == (NAME, 0, 0)
        assert entry.master is None
        assert entry.id
        assert not entry.confirmed
        assert Status.HELPER in entry.status
        accept(queue, first)
        assert flow.server.recv(100) == b"call"

        flow.server.send(b"reply")
        second = take(queue)
        answered = entry_of(second)
        assert payload_of(second) == b"reply"
        assert second.direction is REPLY
        assert second.outdev == devices[LAN]
        assert second.id != first.id
        assert answered.confirmed
        assert answered.id == entry.id
        assert (answered.original, answered.reply) == (flow.original, flow.reply)
        accept(queue, second)
        assert flow.client.recv(100) == b"reply"
        assert queue.statistics.received == queue.statistics.answered == 2
        assert queue.statistics.bypassed == 0


@pytest.mark.parametrize("family", [4, 6])
def test_entry_of_a_packet_is_the_one_that_ctnetlink_gives(
    lab: Lab, queue: Queue, family: Family
) -> None:
    with Flow(lab.world, family=family) as flow:
        establish(queue, flow)
        lab.ctnetlink.update(flow.original, mark=(0xCAFE, 0xFFFF), timeout=90)
        flow.server.send(b"again")
        packet = take(queue)
        found = lab.ctnetlink.get(flow.original)
        accept(queue, packet)
    assert replace(entry_of(packet), timeout=0) == replace(found, timeout=0)
    assert abs(entry_of(packet).timeout - found.timeout) <= 2
    assert found.mark == 0xCAFE


def test_packet_of_a_zone_says_so(lab: Lab, queue: Queue) -> None:
    with Flow(lab.world, ZONE_PORT) as flow:
        entry = establish(queue, flow)
        assert entry.zone == ZONE
        assert entry.original == flow.original
        assert entry.id == lab.ctnetlink.get(flow.original, ZONE).id


def test_packet_to_the_gateway_itself_waits_at_the_input_hook(
    lab: Lab, queue: Queue
) -> None:
    with lab.world.gateway.entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        index = socket.if_nametoindex(LAN)
    with lab.world.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind((GATEWAY_LAN, PORT))
        server.settimeout(5.0)
        client.sendto(b"call", (GATEWAY_LAN, PORT))
        packet = take(queue)
        assert packet.hook is Hook.INPUT
        assert (packet.indev, packet.outdev) == (index, 0)
        accept(queue, packet)
        assert server.recv(100) == b"call"


def test_segments_of_a_handshake_come_and_its_acknowledgement_passes(
    lab: Lab, queue: Queue
) -> None:
    with lab.world.server.entered():
        listener = socket.socket()
    with lab.world.client.entered():
        client = socket.socket()
    with listener, client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, PORT))
        listener.listen()
        client.setblocking(False)
        client.connect_ex((SERVER, PORT))
        packets = []
        for _ in range(2):
            packets.append(take(queue))
            accept(queue, packets[-1])
        until(lambda: not queue.read(64) and queue.statistics.passed == 1)
        client.settimeout(5.0)
        client.sendall(b"call")
        data = take(queue)
        accept(queue, data)
        # What closing it sends would come to the queue of the next test.
        lab.ctnetlink.delete(entry_of(data).original)
    entries = [entry_of(packet) for packet in packets]
    assert [each.confirmed for each in entries] == [False, True]
    assert len({each.id for each in entries}) == 1
    assert [each.direction for each in packets] == [ORIGINAL, REPLY]
    assert entries[0].original.source.address.exploded == CLIENT
    syn = locate(packets[0].payload)
    assert syn is not None
    assert syn.syn
    assert payload_of(data) == b"call"


# What passes unseen


def test_flow_of_which_nothing_is_left_to_read_passes(lab: Lab, queue: Queue) -> None:
    with Flow(lab.world) as flow:
        establish(queue, flow)
        flow.client.send(b"last")
        packet = take(queue)
        queue.note(packet, quiet=True, held=True)
        accept(queue, packet)
        assert flow.server.recv(100) == b"last"
        for content in (b"one", b"two"):
            flow.client.send(content)
            until(lambda: not queue.read(64) and readable(flow.server.fileno(), 0.0))
            assert flow.server.recv(100) == content
        entry = entry_of(packet)
        ((key, timeout),) = queue.touched()
        assert key == key_of(entry)
        assert 25 <= timeout <= 120
        assert queue.statistics.passed == 2
        assert queue.statistics.answered == queue.statistics.received == 5
        queue.forget(key_of(entry))
        flow.client.send(b"read again")
        accept(queue, take(queue))


def test_datagrams_that_the_helper_does_not_read_pass(lab: Lab, queue: Queue) -> None:
    queue.filters({NAME: Prefilter(request=((Match(0, 8, ord("?")),),), answers=True)})
    with Flow(lab.world) as flow:
        flow.client.send(b"!")
        until(lambda: not queue.read(64) and readable(flow.server.fileno(), 0.0))
        assert flow.server.recv(100) == b"!"
        flow.server.send(b"!")
        until(lambda: not queue.read(64) and readable(flow.client.fileno(), 0.0))
        assert flow.client.recv(100) == b"!"
        assert lab.ctnetlink.get(flow.original).helper == NAME
        flow.client.send(b"?")
        packet = take(queue)
        assert payload_of(packet) == b"?"
        accept(queue, packet)
        flow.server.send(b"an answer")
        accept(queue, take(queue))
        assert flow.client.recv(100) == b"an answer"
    assert queue.statistics.passed == 2


def test_packets_that_pass_keep_their_place_among_the_others(
    lab: Lab, queue: Queue
) -> None:
    queue.filters({NAME: Prefilter(request=((Match(0, 8, ord("?")),),))})
    sent = [b"?1", b"!2", b"!3", b"?4", b"!5", b"!6"]
    with Flow(lab.world) as flow:
        establish_unread(queue, flow)
        for content in sent:
            flow.client.send(content)
        with lab.world.gateway.entered():
            until(lambda: bound_queues()[QUEUE].waiting == len(sent))
        packets = queue.read(64)
        assert [payload_of(each) for each in packets] == [b"?1", b"?4"]
        other = with_payload(packets[1], b"changed")
        queue.answer([Verdict(packets[0].id), Verdict(packets[1].id, payload=other)])
        got = [flow.server.recv(100) for _ in sent]
    assert sorted(got) == sorted([*sent[:3], b"changed", *sent[4:]])
    assert queue.statistics.refused == 0


# Reading and binding


def test_read_takes_no_more_than_its_limit(lab: Lab, queue: Queue) -> None:
    with Flow(lab.world) as flow:
        establish(queue, flow)
        for number in range(5):
            flow.client.send(bytes([number]))
        with lab.world.gateway.entered():
            until(lambda: bound_queues()[QUEUE].waiting == 5)
        packets = list(queue.read(2))
        assert len(packets) == 2
        packets += queue.read(2)
        assert len(packets) == 4
        packets += queue.read(64)
        assert [payload_of(each) for each in packets] == [
            bytes([number]) for number in range(5)
        ]
        assert queue.read(64) == []
        queue.answer([Verdict(each.id) for each in reversed(packets)])
        assert [flow.server.recv(100) for _ in packets] == [
            bytes([number]) for number in reversed(range(5))
        ]


def test_queue_that_is_bound_is_refused_to_another(
    lab: Lab, backend: Backend, queue: Queue
) -> None:
    with (
        lab.world.gateway.entered(),
        pytest.raises(QueueError, match=f"queue {QUEUE} is bound by another process"),
    ):
        backend.bind(QUEUE, LARGE, fail_open=True)
    with Flow(lab.world) as flow:
        establish(queue, flow)


def test_bound_queue_and_its_length_are_listed(lab: Lab, queue: Queue) -> None:
    with Flow(lab.world) as flow, lab.world.gateway.entered():
        establish(queue, flow)
        assert bound_queues()[QUEUE].waiting == 0
        flow.client.send(b"one")
        flow.client.send(b"two")
        until(lambda: bound_queues()[QUEUE].waiting == 2)
        queue.answer([Verdict(packet.id) for packet in queue.read(64)])
        assert bound_queues()[QUEUE].waiting == 0


def test_closed_queue_can_be_bound_again_and_flows_pass_meanwhile(
    lab: Lab, backend: Backend
) -> None:
    with Flow(lab.world) as flow:
        with bound(lab, backend) as queue:
            establish(queue, flow)
        with lab.world.gateway.entered():
            assert QUEUE not in bound_queues()
        flow.client.send(b"meanwhile")
        assert flow.server.recv(100) == b"meanwhile"
        with bound(lab, backend) as queue:
            establish(queue, flow)


def arrives(flow: Flow, content: bytes) -> bool:
    """Whether the server is sent a datagram that the client sends now."""
    flow.client.send(content)
    if not readable(flow.server.fileno(), 1.0):
        return False
    assert flow.server.recv(100) == content
    return True


def test_packets_pass_by_a_paused_queue_and_none_waits(
    lab: Lab, backend: Backend
) -> None:
    with Flow(lab.world) as flow, held(lab, backend) as binding:
        assert arrives(flow, b"before")
        binding.resume()
        queue = backend.read(binding, 65536)
        establish(queue, flow)
        flow.client.send(b"waits")
        packet = take(queue)
        binding.pause()
        assert arrives(flow, b"passes")
        with lab.world.gateway.entered():
            assert bound_queues()[QUEUE].waiting == 1
        accept(queue, packet)
        assert flow.server.recv(100) == b"waits"
        binding.resume()
        establish(queue, flow)


def test_what_a_reader_leaves_is_released_and_the_next_one_goes_on(
    lab: Lab, backend: Backend
) -> None:
    """One packet that it has read, and one that it has not."""
    with Flow(lab.world) as flow, held(lab, backend) as binding:
        binding.resume()
        first = backend.read(binding, 65536)
        establish(first, flow)
        flow.client.send(b"read")
        take(first)
        flow.client.send(b"unread")
        with lab.world.gateway.entered():
            until(lambda: bound_queues()[QUEUE].waiting == 2)
            binding.release()
            assert bound_queues()[QUEUE].waiting == 0
        assert {flow.server.recv(100) for _ in range(2)} == {b"read", b"unread"}
        second = backend.read(binding, 65536)
        # It reads what nobody had read, and is told that it waits no more.
        accept(second, take(second))
        until(lambda: not second.read(64) and second.statistics.refused == 1)
        establish(second, flow)
        assert not readable(flow.server.fileno(), 0.2), "delivered twice"


def test_queue_that_fails_closed_drops_what_it_is_paused_for_and_what_is_released(
    lab: Lab, backend: Backend
) -> None:
    with Flow(lab.world) as flow, held(lab, backend, fail_open=False) as binding:
        assert not arrives(flow, b"paused")
        binding.resume()
        queue = backend.read(binding, 65536)
        establish(queue, flow)
        flow.client.send(b"left")
        take(queue)
        with lab.world.gateway.entered():
            binding.release()
        assert not readable(flow.server.fileno(), 0.5)
        binding.set_fail_open(True)
        binding.pause()
        assert arrives(flow, b"open now")


# Verdicts


@pytest.mark.parametrize(
    ("family", "size"),
    [
        *((4, COPIED - 28), (4, COPIED - 27), (4, 0xFFFF - 28)),
        *((6, COPIED - 48), (6, COPIED - 47), (6, 0xFFFF - 8)),
    ],
)
def test_datagram_is_located_or_told_to_be_cut_and_delivered_whole(
    lab: Lab, queue: Queue, family: Family, size: int
) -> None:
    content = os.urandom(size)
    with Flow(lab.world, family=family) as flow:
        flow.client.send(content)
        packet = take(queue)
        whole = size + (28 if family == 4 else 48)
        assert len(packet.payload) == min(whole, COPIED)
        segment = locate(packet.payload)
        assert packet.segment == segment
        assert (segment is None) is (whole > COPIED)
        accept(queue, packet)
        assert flow.server.recv(0xFFFF) == content


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("size", [20_000, 60_000])
def test_large_datagram_arrives_whole_and_is_delivered_whole(
    lab: Lab, queue: Queue, family: Family, size: int
) -> None:
    content = os.urandom(size)
    with Flow(lab.world, family=family) as flow:
        flow.client.send(content)
        packet = take(queue)
        assert payload_of(packet) == content
        assert entry_of(packet).original == flow.original
        accept(queue, packet)
        assert flow.server.recv(65535) == content

        changed = os.urandom(size)
        flow.client.send(content)
        packet = take(queue)
        queue.answer([Verdict(packet.id, payload=with_payload(packet, changed))])
        assert flow.server.recv(65535) == changed
    assert queue.statistics.refused == 0


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("payload", [b"longer than it was", b"!"])
def test_payload_of_a_verdict_is_delivered(
    lab: Lab, queue: Queue, family: Family, payload: bytes
) -> None:
    with Flow(lab.world, family=family) as flow:
        for _ in ("unconfirmed", "confirmed"):
            flow.client.send(b"original")
            packet = take(queue)
            queue.answer([Verdict(packet.id, payload=with_payload(packet, payload))])
            assert flow.server.recv(100) == payload
        flow.server.send(b"original")
        packet = take(queue)
        queue.answer([Verdict(packet.id, payload=with_payload(packet, payload))])
        assert flow.client.recv(100) == payload


def test_verdict_sets_the_timeout_of_a_confirmed_entry(lab: Lab, queue: Queue) -> None:
    with Flow(lab.world) as flow:
        establish(queue, flow)
        flow.client.send(b"call")
        packet = take(queue)
        assert entry_of(packet).timeout < 301
        queue.answer([Verdict(packet.id, conntrack=encoding.entry_timeout(301))])
        assert flow.server.recv(100) == b"call"
        assert 299 <= lab.ctnetlink.get(flow.original).timeout <= 301
    assert queue.statistics.refused == 0


def test_repeated_packet_comes_back_confirmed_and_with_another_id(
    lab: Lab, queue: Queue
) -> None:
    with Flow(lab.world) as flow:
        first, second = flow.expectation(), flow.expectation()
        flow.client.send(b"call")
        packet = take(queue)
        with pytest.raises(NotFound):
            lab.ctnetlink.expect(first)
        queue.answer([Verdict(packet.id, Action.REPEAT)])

        again = take(queue)
        assert again.id != packet.id
        assert again.payload == packet.payload
        assert not entry_of(packet).confirmed
        assert entry_of(again).confirmed
        assert entry_of(again).id == entry_of(packet).id
        for wanted in (first, second):
            lab.ctnetlink.expect(wanted)
            assert lab.held(wanted)
        accept(queue, again)
        assert flow.server.recv(100) == b"call"
        flow.client.send(b"next")
        accept(queue, take(queue))
        assert flow.server.recv(100) == b"next", "the packet was delivered twice"
        for wanted in (first, second):
            with expected_flow(lab.world, wanted) as original:
                assert lab.ctnetlink.get(original).master == flow.original


def test_verdict_for_an_unknown_packet_counts_as_refused(
    lab: Lab, queue: Queue
) -> None:
    with Flow(lab.world) as flow:
        establish(queue, flow)
        flow.client.send(b"call")
        packet = take(queue)
        # What the queue itself would send for a packet that the kernel has dropped.
        stale = Verdict(packet.id + 1000, payload=bytes(packet.payload))
        with socket.socket(fileno=os.dup(queue.fileno())) as same:
            same.send(verdict(QUEUE, stale))
        assert readable(queue.fileno())
        assert queue.read(64) == []
        assert queue.statistics.refused == 1
        accept(queue, packet)
        assert flow.server.recv(100) == b"call"


# Overload


def test_packets_that_do_not_fit_pass_and_are_counted(
    lab: Lab, backend: Backend
) -> None:
    sent = 500
    with Flow(lab.world) as flow, bound(lab, backend, SMALL) as queue:
        flow.server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
        numbers = [number.to_bytes(2) * 250 for number in range(sent)]
        for content in numbers:
            flow.client.send(content)
        delivered: list[bytes] = []

        def received() -> int:
            while readable(flow.server.fileno(), 0.0):
                delivered.append(flow.server.recv(1000))
            return len(delivered)

        def all_but_those_that_wait() -> bool:
            return received() + bound_queues()[QUEUE].waiting == sent

        with lab.world.gateway.entered():
            until(all_but_those_that_wait)
            waiting = bound_queues()[QUEUE].waiting
        assert 0 < waiting < sent
        assert len(delivered) == sent - waiting

        while packets := queue.read(64):
            queue.answer([Verdict(packet.id) for packet in packets])
        until(lambda: received() == sent)
        assert sorted(delivered) == numbers
        assert queue.statistics.received == waiting

        # The next packet's id tells how many there were before it.
        flow.client.send(b"last")
        accept(queue, take(queue))
        assert flow.server.recv(100) == b"last"
        assert queue.statistics.received == waiting + 1
        assert queue.statistics.received + queue.statistics.bypassed == sent + 1
        assert queue.statistics.answered == queue.statistics.received
        assert queue.statistics.overruns > 0
        assert queue.statistics.refused == 0


def test_flow_that_begins_during_an_overload_is_tracked(
    lab: Lab, backend: Backend
) -> None:
    with (
        Flow(lab.world) as busy,
        Flow(lab.world) as flow,
        bound(lab, backend, SMALL) as queue,
    ):
        establish(queue, busy)
        for _ in range(100):
            busy.client.send(bytes(500))
        assert busy.server.recv(1000) == bytes(500), "the queue is not full"
        flow.client.send(b"call")
        assert flow.server.recv(100) == b"call"
        assert lab.ctnetlink.get(flow.original).confirmed
        while packets := queue.read(64):
            assert flow.original not in {entry_of(each).original for each in packets}
            queue.answer([Verdict(packet.id) for packet in packets])

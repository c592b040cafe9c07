# SPDX-License-Identifier: GPL-2.0-or-later
"""What reads bytes by itself: packets, streams, fragments, captures, netlink, text.

Each function takes any bytes and raises AssertionError, or whatever its subject must
not raise. Beside each stands what it begins with.
"""

import gzip
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Final

from cthelper.core.config import Config, parse
from cthelper.core.errors import CaptureError, Malformed, StreamLost, Truncated
from cthelper.core.netlink import decoding
from cthelper.core.netlink.decoding import conntrack_entry, conntrack_key
from cthelper.core.offline.capture import Capture, Frame
from cthelper.core.offline.events import (
    FaultEvent,
    FlowEvent,
    MessageEvent,
    Summary,
    record,
)
from cthelper.core.offline.fragments import Reassembler
from cthelper.core.offline.replay import Replay
from cthelper.core.packet import locate, replace_payload
from cthelper.core.queue import messages
from cthelper.core.registry import builtin_helpers
from cthelper.core.stream import Stream
from cthelper.core.tuples import TCP, Transport, key_of
from cthelper.helpers.tns_descriptor import (
    ADDRESS_LIMIT,
    is_whole,
    parse_addresses,
    parse_host,
)
from tests.core.netlink import test_decoding as netlink
from tests.core.offline import capture_files
from tests.core.offline import test_fragments as fragments_by_hand
from tests.core.queue import test_messages as queue_messages
from tests.fuzz.oracle import word_sum
from tests.fuzz.script import Script, Step
from tests.fuzz.seeds import captures, frames, packets

_MODULUS: Final = 1 << 32


# A packet.


def packet(data: bytes) -> None:
    """A located payload lies in the packet, and another one can take its place."""
    try:
        segment = locate(data)
    except Malformed:
        return
    if segment is None:
        return
    assert 20 <= segment.header < segment.start <= segment.stop <= len(data)
    payload = data[segment.start : segment.stop]
    for new in (payload, payload[:-1], payload[:1200] + b"more"):
        try:
            changed = replace_payload(data, segment, new)
        except ValueError:
            assert len(data) + 4 > 0xFFFF
            continue
        found = locate(changed)
        assert found == replace(segment, stop=len(changed))
        assert changed[found.start :] == new
        _check_sums(changed, found.transport, found.header)


def _check_sums(packet: bytes, transport: Transport, header: int) -> None:
    if packet[0] >> 4 == 4:
        assert word_sum(packet[: (packet[0] & 15) * 4]) == 0xFFFF
        addresses = packet[12:20]
    else:
        addresses = packet[8:40]
    segment = packet[header:]
    if transport is TCP or packet[0] >> 4 == 6 or segment[6:8] != b"\0\0":
        pseudo = addresses + len(segment).to_bytes(4) + transport.to_bytes(4)
        assert word_sum(pseudo + segment) == 0xFFFF


# A stream.

_CONTENT: Final = bytes((at * 7 + (at >> 8) * 13) & 0xFF for at in range(1 << 13))
_OPENING: Final = 6
_SEGMENT: Final = 5
# As many segments wait at most.
_HELD: Final = 256
_HONEST, _LIE = 0, 2


def stream(data: bytes) -> None:
    """What a stream delivers is what was sent, in order, or it is lost.

    Initial sequence number (4 bytes), limit (2 bytes), then segments: flags, offset (2
    bytes), length (2 bytes). A segment that lies has other content than was sent.
    """
    first = int.from_bytes(data[:4])
    limit = 1 + int.from_bytes(data[4:6]) % 4096
    followed = Stream(limit)
    followed.begin((first + 1) % _MODULUS)
    lied = missed = False
    delivered = b""
    covered = bytearray(len(_CONTENT) + 1)
    reach = sent = furthest = 0
    for at in range(_OPENING, len(data) - _SEGMENT + 1, _SEGMENT):
        flags = data[at]
        start = int.from_bytes(data[at + 1 : at + 3]) % len(_CONTENT)
        size = int.from_bytes(data[at + 3 : at + 5]) % 2048
        payload = _CONTENT[start : start + size]
        if flags & _LIE and payload:
            payload = bytes(each ^ 0xFF for each in payload)
            lied = True
        sequence = (first + 1 + start) % _MODULUS
        sent += len(payload)
        furthest = max(furthest, start + len(payload))
        covered[start : start + len(payload)] = b"\1" * len(payload)
        beyond = furthest - reach > limit or sent > limit or at > _HELD * _SEGMENT
        # What lay too far ahead was passed over, and comes no more.
        missed = missed or beyond
        expected = {"overlap": lied, "gap": beyond}
        try:
            delivered += followed.feed(sequence, payload)
        except StreamLost as error:
            if not expected[error.reason]:
                raise
            return
        reach = covered.index(0)
        at_hand = len(delivered)
        assert at_hand <= reach if missed else at_hand == reach, f"{at_hand} of {reach}"
    if lied:
        assert all(
            got in (byte, byte ^ 0xFF)
            for got, byte in zip(delivered, _CONTENT, strict=False)
        )
    else:
        assert delivered == _CONTENT[: len(delivered)]


def stream_seeds() -> Iterator[bytes]:
    """The segments of captured connections, one direction each, by offset and size."""
    directions: dict[bytes, list[tuple[int, int]]] = {}
    for each in packets():
        segment = locate(each)
        if segment is not None and segment.transport is TCP:
            addresses = each[12:20] if each[0] >> 4 == 4 else each[8:40]
            key = addresses + each[segment.header : segment.header + 4]
            size = segment.stop - segment.start
            directions.setdefault(key, []).append((segment.sequence, size))
    for segments in directions.values():
        first = segments[0][0]
        opening = first.to_bytes(4) + b"\x0f\xff"
        yield opening + b"".join(
            bytes([_HONEST])
            + ((sequence - first - 1) % len(_CONTENT)).to_bytes(2)
            + (size % 2048).to_bytes(2)
            for sequence, size in segments
        )
    honest = [(_HONEST, 5, 9), (_HONEST, 2, 4), (_HONEST, 0, 3)]
    for last in ((_HONEST, 1, 12), (_LIE, 1, 12), (_HONEST, 13, 1), (_LIE, 3000, 1)):
        yield (
            bytes(4)
            + b"\x01\x00"
            + b"".join(
                bytes([flags]) + start.to_bytes(2) + size.to_bytes(2)
                for flags, start, size in [*honest, last]
            )
        )


# Fragments.

_SECONDS: Final = (0.0, 1.0, 29.0, -5.0)


def fragments(data: bytes) -> None:
    """Whatever comes, a packet comes out whole or not at all."""
    reassembler = Reassembler()
    now = 0.0
    for step in Script.read(data, 0).steps:
        now += _SECONDS[step.flags & 3]
        found = reassembler.feed(now, step.payload)
        if found is None or found is step.payload:
            continue
        if found[0] >> 4 == 4:
            assert int.from_bytes(found[2:4]) == len(found)
            assert not int.from_bytes(found[6:8]) & 0x3FFF
            assert word_sum(found[: (found[0] & 15) * 4]) == 0xFFFF
        else:
            assert found[0] >> 4 == 6
            assert int.from_bytes(found[4:6]) + 40 == len(found)
        try:
            locate(found)
        except Malformed:
            continue


def fragment_seeds() -> Iterator[bytes]:
    """Captured payloads in pieces, in and out of order, once and twice."""
    make: Callable[[int, bytes, bool], bytes]
    for make in (fragments_by_hand.v4, fragments_by_hand.v6):
        for content in packets()[:60:7]:
            pieces = [
                make(start, content[start : start + 40], start + 40 < len(content))
                for start in range(0, len(content), 40)
            ]
            for order in (pieces, pieces[::-1], pieces[1:] + pieces):
                yield Script(b"", tuple(Step(0, each) for each in order)).write()


# A capture.

_FRAME_LIMIT: Final = 4096
"""A packed file of a few bytes may hold millions of frames."""


@cache
def _file() -> int:
    return os.memfd_create("capture")


def capture(data: bytes) -> None:
    """Any file gives frames, and at most one warning of each kind, or CaptureError."""
    os.ftruncate(_file(), 0)
    os.pwrite(_file(), data, 0)
    warnings: list[str] = []
    number = 0
    try:
        path = Path(f"/proc/self/fd/{_file()}")
        with Capture(path, warn=warnings.append) as opened:
            for found, time, frame, start in islice(opened, _FRAME_LIMIT):
                assert number < found <= opened.frames
                assert math.isfinite(time)
                assert 0 <= start < len(frame)
                number = found
            assert opened.position <= opened.size == len(data)
    except CaptureError as error:
        warnings.append(str(error))
    assert len(warnings) <= 3
    assert not any("\n" in each for each in warnings)


def capture_seeds() -> Iterator[bytes]:
    """Captures as they are, as pcapng of both byte orders, and packed."""
    for path in captures():
        content = path.read_bytes()
        if len(content) < 2500:
            yield content
    few = [capture_files.ethernet(each) for each in packets()[:4]]
    for order in ("<", ">"):
        yield capture_files.pcap(few, order=order, nano=True)
        yield capture_files.pcapng(few, order)
        options = [(9, b"\x89"), (14, (1000).to_bytes(8))]
        for link in (0, 1, 9, 12, 50, 51, 101, 113, 239, 276):
            frame = capture_files.enhanced(few[0], order=order)
            about = capture_files.interface(
                link, order=order, options=options, snaplen=60
            )
            simple = capture_files.block(3, len(few[0]).to_bytes(4) + few[0], order)
            old = capture_files.block(2, bytes(12) + frame[20:28] + few[0], order)
            yield capture_files.section(order) + about + frame + simple + old
    for content in (capture_files.pcap(few), capture_files.pcapng(few)):
        yield gzip.compress(content, mtime=0)


# Messages from the kernel.


def queue_message(data: bytes) -> None:
    """A message of a queue is a packet, Truncated or ValueError."""
    forget()
    try:
        found = messages.decode(data)
    except (Truncated, ValueError):
        return
    assert found.payload in data
    assert 0 <= found.id < _MODULUS
    assert 0 <= found.indev < _MODULUS


def queue_seeds() -> Iterator[bytes]:
    """Captured packets as a queue hands them out."""
    least = queue_messages.message(queue_messages.header())
    for each in packets()[:200:20]:
        yield (
            least
            + netlink.u32(queue_messages.INPUT, 3)
            + netlink.attribute(queue_messages.PAYLOAD, each)
            + netlink.attribute(queue_messages.CT, next(entry_seeds()))
            + netlink.u32(queue_messages.CT_INFO, 3)
        )


def entry(data: bytes) -> None:
    """The attributes of an entry are an entry, none, or Truncated."""
    forget()
    try:
        found = conntrack_entry(data, 0, len(data))
        if found is not None:
            assert 0 <= found.zone <= 0xFFFF
            assert found.original.transport in tuple(Transport)
        key = conntrack_key(data, 0)
        assert found is None or key_of(found) == key
    except Truncated:
        return


def entry_seeds() -> Iterator[bytes]:
    """Entries of IPv4 and IPv6 with all that is read."""
    for ends in (("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8:1::2")):
        flow = netlink.flow(TCP, *ends)
        yield (
            netlink.tuple_(netlink.TUPLE_ORIG, flow)
            + netlink.tuple_(netlink.TUPLE_REPLY, flow)
            + netlink.u32(netlink.STATUS, 0x2008)
            + netlink.attribute(netlink.HELP, netlink.attribute(1, b"sunrpc\0"))
            + netlink.u32(netlink.TIMEOUT, 30)
            + netlink.u32(netlink.MARK, 1)
            + netlink.u32(netlink.ID, 0xCAFE0001)
            + netlink.tuple_(netlink.TUPLE_MASTER, flow)
            + netlink.attribute(netlink.ZONE, b"\0\7")
        )


def forget() -> None:
    """The same bytes must take the same way each time."""
    decoding.read_tuple.cache_clear()
    decoding._help_name.cache_clear()


# Text.


def descriptor(data: bytes) -> None:
    """A connect descriptor holds a bounded number of addresses, or is Malformed."""
    whole = is_whole(data)
    try:
        addresses = parse_addresses(data)
    except Malformed:
        return
    assert whole, "it was read, yet more of it was waited for"
    assert len(addresses) <= ADDRESS_LIMIT
    for each in addresses:
        assert each.protocol in ("tcp", "tcps")
        assert 0 <= each.port <= 99999
        assert parse_host(str(each.host)) == each.host


def descriptor_seeds() -> Iterator[bytes]:
    """What stands in parentheses in captures, and the forms that none holds."""
    for path in captures("tns"):
        for _, _, data, start in frames(path):
            begin, end = data.find(b"(", start), data.rfind(b")")
            if begin >= 0:
                yield data[begin : end + 1]
    yield b"(address = (port=1521) (host='2001:db8::1') (protocol=TCPS))"
    yield b'(A=(B="(")(C=d))(ADDRESS=(PROTOCOL=tcp)(HOST=[::1])(PORT=1))'


# All of it.


@cache
def _everything() -> Config:
    helpers = builtin_helpers()
    return parse("", Path("settings"), helpers)


def replay(data: bytes) -> None:
    """Replay survives whatever passes, and what it tells can be written as JSON.

    To watch, which takes another way through conntrack, adds events and changes none.
    """
    now = 0.0
    passed: list[Frame] = []
    for number, step in enumerate(Script.read(data, 0).steps, 1):
        now += _SECONDS[step.flags & 3]
        passed.append((number, now, step.payload, 0))
    plain = list(Replay(_everything(), warn=_ignore).run(passed))
    watched = list(Replay(_everything(), warn=_ignore, watch=True).run(passed))
    for event in watched:
        assert not isinstance(event, FaultEvent), f"{event.error} at {event.where}"
        if isinstance(event, MessageEvent):
            assert "describe() failed" not in event.fields, event.fields
        json.dumps(record(event, "capture"))
    assert isinstance(watched[-1], Summary)
    extra = MessageEvent, FlowEvent
    assert plain == [each for each in watched if not isinstance(each, extra)]


def _ignore(text: str) -> None:
    """Nobody reads what Replay warns of here."""


def replay_seeds() -> Iterator[bytes]:
    """The IP packets of each capture that is not large."""
    for path in captures():
        steps = [Step(0, data[start:]) for _, _, data, start in frames(path)]
        seed = Script(b"", tuple(steps)).write()
        if len(seed) < 5000:
            yield seed

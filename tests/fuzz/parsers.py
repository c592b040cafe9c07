# SPDX-License-Identifier: GPL-2.0-or-later
"""Parsers by themselves, without an engine around them: many more bytes in the time.

They give values or raise Malformed, and what is to be rewritten lies where they say.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Cursor,
    Direction,
    Endpoint,
    Expect,
    ExpectationRefused,
    Grant,
    Helper,
    Malformed,
    Matches,
    Message,
    Rewrite,
    RewriteRefused,
    Tuple,
)
from cthelper.core.config import HelperConfig
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.rpcbind import (
    CALL,
    Call,
    read_arguments,
    read_call,
    read_failure,
    read_head,
    read_services,
)
from cthelper.helpers.xdr import join_record, record_length, rewrite_record
from tests.fuzz.conversation import EFFECT_LIMIT, HEAD, Conversations, Scene
from tests.fuzz.cost import WATCH
from tests.fuzz.script import Script, Step
from tests.fuzz.seeds import captures, frames

# DNS.

_NAME_LIMIT: Final = 255
_ASKER: Final = Endpoint(ip_address("192.0.2.1"), 40000)
_GROUP: Final = Endpoint(ip_address("224.0.0.251"), 5353)
_ASKS: Final = Tuple(UDP, _ASKER, _GROUP)
_ANSWERS: Final = Tuple(UDP, _GROUP, _ASKER)


def dns(data: bytes) -> None:
    """The questions of a query are counted as they are here, or Malformed."""
    message = Message(
        direction=ORIGINAL,
        transport=UDP,
        source=_ASKER,
        destination=_GROUP,
        payload=data,
        original=_ASKS,
        reply=_ANSWERS,
        now=0.0,
        options={},
        group=True,
    )
    told = None
    with suppress(Malformed):
        told = Mdns().describe(message)
    if len(data) >= 12 and data[2] & 0xF8 == data[3] & 0x0F == 0:
        found = _questions(data)
        assert (told is None) is (found is None)
        if told is not None and found is not None:
            assert told["questions"] == f"{found[0]}, {found[1]} of them QU"


def _questions(data: bytes) -> tuple[int, int] | None:
    """How many questions there are, and how many ask for unicast; None: malformed."""
    count = int.from_bytes(data[4:6])
    at, unicast = 12, 0
    for _ in range(count):
        start = at
        while at < len(data) and 0 < data[at] < 0x40:
            at += 1 + data[at]
            if at - start >= _NAME_LIMIT:
                return None
        # The end of the name is 0, or a pointer of two bytes.
        if at >= len(data) or 0 < data[at] < 0xC0:
            return None
        at += 2 if data[at] else 1
        if at + 4 > len(data):
            return None
        unicast += data[at + 2] >> 7
        at += 4
    return count, unicast


def dns_seeds() -> Iterator[bytes]:
    """The captured messages of multicast DNS."""
    for path in captures("mdns"):
        for _, _, data, start in frames(path):
            # Behind the header of IPv4 or IPv6, and that of UDP.
            yield data[start + (28 if data[start] >> 4 == 4 else 48) :]
    yield b"\0\0\0\0\0\2\0\0\0\0\0\0\1a\0\0\1\x80\1\xc0\x0c\0\1\0\1"


# Records of ONC RPC on TCP.

_RECORD_HEAD: Final = 6
_RECORD_LIMIT: Final = 2048


def record(data: bytes) -> None:
    """A record that is rewritten is the same record with other bytes in one place.

    Where to begin, how many bytes go and how many come (2 bytes each), then the record.
    """
    start, gone, come = (int.from_bytes(data[at : at + 2]) for at in (0, 2, 4))
    whole = data[_RECORD_HEAD:]
    if not whole:
        return
    try:
        length = record_length(memoryview(whole), _RECORD_LIMIT)
    except Malformed:
        return
    if length is None:
        return
    assert 0 < length <= min(len(whole), _RECORD_LIMIT)
    # Its length is known as soon as it is there, and not before.
    assert record_length(memoryview(whole)[:length], _RECORD_LIMIT) == length
    if length > 1:
        assert record_length(memoryview(whole)[: length - 1], _RECORD_LIMIT) is None
    found = whole[:length]
    body = join_record(found)
    start %= len(body) + 1
    stop = start + gone % (len(body) - start + 1)
    new = b"*" * (come % 300)
    try:
        rewrites = list(rewrite_record(found, [((start, stop), new)]))
    except RewriteRefused:
        return
    changed = apply(found, rewrites)
    assert join_record(changed) == body[:start] + new + body[stop:]
    again = record_length(memoryview(changed), len(changed))
    assert again == len(changed)


def record_seeds() -> Iterator[bytes]:
    """A record of one fragment, of several, of empty ones."""
    for cuts in ((b"abcdefgh",), (b"ab", b"", b"cdef"), (b"",), (b"a" * 900,) * 2):
        marks = [len(each) for each in cuts]
        marks[-1] |= 0x80000000
        parts = zip(marks, cuts, strict=True)
        yield bytes([0, 1, 0, 2, 0, 5]) + b"".join(
            mark.to_bytes(4) + each for mark, each in parts
        )


def apply(data: bytes, rewrites: Iterable[Rewrite]) -> bytes:
    """The bytes with all rewrites made. Raises AssertionError: two overlap."""
    end = len(data)
    for each in sorted(rewrites, key=lambda each: each.span, reverse=True):
        start, stop = each.span
        assert 0 <= start <= stop <= end, f"rewrites overlap at {each.span}"
        data = data[:start] + each.data + data[stop:]
        end = start
    return data


# The portmapper's messages.

_V4: Final = ip_address("203.0.113.7")
_V6: Final = ip_address("2001:db8::7")
_PORT: Final = 40007
# A reply's procedure, by a byte: all that have services in their results.
_PROCEDURES: Final = tuple(
    Call(100000, version, number) for version in (2, 3, 4) for number in range(13)
)


def rpcbind(data: bytes) -> None:
    """What is written into a result is what is read from it then.

    A byte for the procedure that a reply answers, then the message.
    """
    if not data:
        return
    called = _PROCEDURES[data[0] % len(_PROCEDURES)]
    message = data[1:]
    cursor = Cursor(message)
    try:
        _, kind = read_head(cursor)
        if kind == CALL:
            read_arguments(read_call(cursor), cursor)
            return
        if read_failure(cursor) is not None:
            return
        found = list(read_services(called, cursor))
    except Malformed:
        return
    rewrites = []
    for each in found:
        host = each.host and (_V4 if each.host.version == 4 else _V6)
        rewrites.append(Rewrite(each.span, each.emit(host, _PORT)))
    changed = Cursor(apply(message, rewrites))
    read_head(changed)
    assert read_failure(changed) is None
    told = list(read_services(called, changed))
    assert [(each.program, each.transport, each.host, each.port) for each in told] == [
        (
            each.program,
            each.transport,
            each.host and (_V4 if each.host.version == 4 else _V6),
            _PORT,
        )
        for each in found
    ]


def rpcbind_seeds(scripts: Iterable[bytes]) -> Iterator[bytes]:
    """The datagrams of conversations, each as any procedure's."""
    seen = set()
    for data in scripts:
        for step in Script.read(data, HEAD).steps:
            seen.add(step.payload)
    for number, each in enumerate(sorted(seen)):
        for shift in range(4):
            yield bytes([(number + 10 * shift) % len(_PROCEDURES)]) + each


# All helpers, message by message.

_TOLD: Final = 61001


@dataclass(frozen=True, slots=True)
class Messages:
    """Any messages, to all helpers in turn.

    A byte says which of them, then comes a script of `tests.fuzz.conversation`, whose
    steps are whole messages, or over TCP any bytes that are cut into such. Of the
    flags of a step, 8: nothing is granted; 16: another port is.
    """

    helpers: tuple[Conversations, ...]

    def __call__(self, data: bytes) -> None:
        """Have a helper read a script. Raises AssertionError."""
        served = self.helpers[data[0] % len(self.helpers)] if data else self.helpers[0]
        script = Script.read(data[1:], HEAD)
        scene = Scene.read(script.head, served.transport, served.configs())
        helper = scene.config.helper()
        for number, step in enumerate(script.steps):
            with suppress(Malformed, RewriteRefused):
                WATCH.measure(partial(_take, helper, scene, step, float(number)))

    def seeds(self) -> Iterator[bytes]:
        """The conversations of all helpers, one of a few."""
        for number, each in enumerate(self.helpers):
            for seed in list(each.seeds())[::3]:
                if len(seed) < 2500:
                    yield bytes([number]) + seed


def _take(helper: Helper, scene: Scene, step: Step, now: float) -> None:
    """Have the messages of a step read, each before the next one is cut."""
    payloads: Iterable[bytes] = [step.payload]
    if scene.entry.original.transport is TCP:
        direction = REPLY if step.flags & 1 else ORIGINAL
        payloads = _cut(helper, direction, step.payload)
    for payload in payloads:
        _read(helper, scene, _message(scene, payload, step.flags, now), step.flags)


def _cut(helper: Helper, direction: Direction, data: bytes) -> Iterator[bytes]:
    while data:
        length = helper.frame_of(direction, memoryview(data))
        if length is None:
            return
        assert 0 < length <= len(data), f"frame() returned {length} of {len(data)}"
        yield data[:length]
        data = data[length:]


def _message(scene: Scene, payload: bytes, flags: int, now: float) -> Message:
    entry = scene.entry
    direction = REPLY if flags & 1 else ORIGINAL
    tuple_ = entry.original if direction is ORIGINAL else entry.reply
    return Message(
        direction=direction,
        transport=tuple_.transport,
        source=tuple_.source,
        destination=tuple_.destination,
        payload=payload,
        original=entry.original,
        reply=entry.reply,
        now=now,
        options=scene.config.options,
        forwarded=scene.forwarded,
        group=tuple_.destination.address.is_multicast,
        depth=scene.depth,
    )


def _read(helper: Helper, scene: Scene, message: Message, flags: int) -> None:
    """Have a message read, all effects answered. Raises AssertionError."""
    over_udp = message.transport is UDP
    queued = not over_udp or _is_queued(scene.config, message)
    rewrites: list[Rewrite] = []
    answer: Grant | None = None
    refused: ExpectationRefused | None = None
    count = 0
    reaction = helper.on_message(message)
    try:
        while True:
            effect = (
                reaction.send(answer) if refused is None else reaction.throw(refused)
            )
            count += 1
            assert count <= EFFECT_LIMIT, f"more than {EFFECT_LIMIT} effects"
            answer, refused = None, None
            assert queued or not isinstance(effect, Expect), (
                f"{effect} after a datagram that the prefilter leaves out"
            )
            match effect:
                case Expect(endpoint=endpoint):
                    if flags & 8:
                        refused = ExpectationRefused("full", "no room")
                    else:
                        port = _TOLD if flags & 16 else endpoint.port
                        answer = Grant(Endpoint(endpoint.address, port))
                case Rewrite():
                    rewrites.append(effect)
    except (StopIteration, ExpectationRefused):
        apply(message.payload, [each for each in rewrites if each.span[0] >= 0])


def _is_queued(config: HelperConfig, message: Message) -> bool:
    """Whether the prefilter has the datagram read, told bit by bit."""
    prefilter = config.prefilter
    original = message.direction is ORIGINAL
    return _matches(prefilter.request if original else prefilter.reply, message.payload)


def _matches(alternatives: Matches | None, payload: bytes) -> bool:
    bits = int.from_bytes(payload[:64].ljust(64, b"\0"))
    size = 8 * len(payload)
    return alternatives is None or any(
        all(
            offset + length <= size
            and bits >> (512 - offset - length) & (1 << length) - 1 == value
            for offset, length, value in alternative
        )
        for alternative in alternatives
    )

# SPDX-License-Identifier: GPL-2.0-or-later
r"""What the test of a helper needs: messages to play, captures to replay.

A helper's reaction to messages is a list of effects, to be compared with ``==``::

    line = Line.between(TCP, "192.0.2.1:40000", "198.51.100.2:7000")
    assert play(Rendezvous(), [line.answered(b"OPEN 5000\r\n")]) == [
        Expect(endpoint("198.51.100.2:5000"), "data")
    ]

`any_segmentation` cuts a conversation over TCP in all sizes, `write_capture` makes a
capture of messages, which needs scapy, and `replay` runs helpers over one as `cthelper
replay` does. Plain asserts on what they return are the assertions.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as changed
from ipaddress import ip_address
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    Address,
    Direction,
    Done,
    Effect,
    Endpoint,
    Expect,
    ExpectationRefused,
    Grant,
    Helper,
    Malformed,
    Message,
    Network,
    OptionValue,
    Oversized,
    Transport,
    Tuple,
)
from cthelper.core.config import parse
from cthelper.core.contract import check
from cthelper.core.errors import HelperFault, replay_extra
from cthelper.core.grants import find_policy
from cthelper.core.registry import register
from cthelper.core.tuples import is_group

if TYPE_CHECKING:
    from cthelper.core.offline.events import Event

__all__ = [
    "Line",
    "any_segmentation",
    "check",
    "defaults",
    "endpoint",
    "expectations",
    "failures",
    "play",
    "related",
    "replay",
    "withdrawn",
    "write_capture",
]

Granting = Callable[[Expect], Endpoint]
"""What is granted to a wish; it may raise ExpectationRefused."""


def endpoint(text: str) -> Endpoint:
    """The endpoint that ``192.0.2.1:7000`` or ``[2001:db8::1]:7000`` means.

    Raises ValueError for an address that is none, Malformed for a port over 65535.
    """
    address, _, port = text.rpartition(":")
    return Endpoint(ip_address(address.removeprefix("[").removesuffix("]")), int(port))


def defaults(helper: type[Helper]) -> dict[str, OptionValue]:
    """The options of a helper as they are unless configured."""
    return {option.name: option.default for option in helper.options}


@dataclass(frozen=True, slots=True)
class Line:
    """Makes the messages of one flow, which is not translated.

    `options` are the helper's (see `defaults`); `forwarded` is whether the flow came in
    through an interface, `group` whether it goes to a network's broadcast address
    (multicast and the limited broadcast are seen without), `depth` how many flows of
    the helper led to it.
    """

    original: Tuple
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    forwarded: bool = False
    group: bool = False
    depth: int = 0

    @classmethod
    def between(
        cls,
        transport: Transport,
        client: str,
        server: str,
        options: Mapping[str, OptionValue] | None = None,
        *,
        forwarded: bool = False,
    ) -> "Line":
        """A flow that `client` opened to `server`; see `endpoint` for their form."""
        original = Tuple(transport, endpoint(client), endpoint(server))
        return cls(original, options or {}, forwarded)

    def sent(self, payload: bytes, now: float = 0.0) -> Message:
        """A message in the original direction, at `now` seconds."""
        return self.message(ORIGINAL, payload, now)

    def answered(self, payload: bytes, now: float = 0.0) -> Message:
        """A message in the reply direction, at `now` seconds."""
        return self.message(REPLY, payload, now)

    def message(
        self, direction: Direction, payload: bytes, now: float = 0.0
    ) -> Message:
        """A message in `direction`, at `now` seconds."""
        ours = self.original
        theirs = Tuple(ours.transport, ours.destination, ours.source)
        tuple_ = ours if direction is ORIGINAL else theirs
        return Message(
            direction=direction,
            transport=ours.transport,
            source=tuple_.source,
            destination=tuple_.destination,
            payload=payload,
            original=ours,
            reply=theirs,
            now=now,
            options=self.options,
            forwarded=self.forwarded,
            group=self.group or is_group(tuple_.destination.address),
            depth=self.depth,
        )


def as_asked(wish: Expect) -> Endpoint:
    """What is granted without NAT."""
    return wish.endpoint


def play(
    helper: Helper, messages: Iterable[Message], grant: Granting = as_asked
) -> list[Effect]:
    """The effects of `messages`.

    Each Expect is granted as it was asked for, or as `grant` says: another endpoint, as
    behind NAT, or a refusal. What the helper raises comes out; play the messages that
    follow to the same instance. Raises HelperFault for a policy that is not there.
    """
    return [effect for each in messages for effect in _effects(helper, each, grant)]


def _effects(helper: Helper, message: Message, grant: Granting) -> Iterator[Effect]:
    """What the helper yields, answered as the host does."""
    reaction = helper.on_message(message)
    try:
        effect = next(reaction)
        while True:
            yield effect
            if not isinstance(effect, Expect):
                effect = reaction.send(None)
                continue
            try:
                find_policy(helper.policies, effect)
                granted = Grant(grant(effect))
            except ExpectationRefused as error:
                effect = reaction.throw(error)
            except HelperFault as error:
                with suppress(StopIteration):
                    reaction.throw(error)  # from the helper's own line
                raise
            else:
                effect = reaction.send(granted)
    except StopIteration:
        pass


def any_segmentation(
    helper: type[Helper], messages: Sequence[Message], grant: Granting = as_asked
) -> list[Effect | str]:
    """What `messages` of a TCP flow lead to, however segments cut the two streams.

    Effects, and the text of each refusal by the helper itself and of each malformed
    message (after which its direction is not read). Each run of messages in one
    direction is cut into segments of 1 byte, of 2 bytes, and so on up to one segment
    that holds the whole run. `grant` is as for `play`. Raises AssertionError where one
    way of cutting leads to something else than the messages do one by one.
    """
    whole = _Reader(helper, grant)
    for message in messages:
        whole.read(message)
    runs = [
        (run[0], b"".join(each.payload for each in run))
        for _, group in groupby(messages, key=lambda each: each.direction)
        if (run := list(group))
    ]
    longest = max((len(data) for _, data in runs), default=0)
    for size in range(1, longest + 1):
        reader = _Reader(helper, grant)
        for first, data in runs:
            for start in range(0, len(data), size):
                segment = data[start : start + size]
                reader.read(changed(first, payload=segment))
        if reader.found != whole.found:
            raise AssertionError(
                f"segments of {size} bytes lead to {reader.found}, "
                f"whole messages to {whole.found}"
            )
    return whole.found


class _Reader:
    """Reads segments as the host does: `frame_of` cuts each direction's messages."""

    def __init__(self, helper: type[Helper], grant: Granting) -> None:
        self._helper = helper()
        self._grant = grant
        self._pending = dict.fromkeys(Direction, b"")
        self._parsed = set(Direction)
        self.found: list[Effect | str] = []

    def read(self, segment: Message) -> None:
        direction = segment.direction
        if direction not in self._parsed:
            return
        self._pending[direction] += segment.payload
        try:
            while data := self._next(direction):
                self._react(changed(segment, payload=data))
        except Malformed as error:
            self._parsed.discard(direction)
            self.found.append(str(error))

    def _react(self, message: Message) -> None:
        try:
            for effect in _effects(self._helper, message, self._grant):
                self.found.append(effect)
                if isinstance(effect, Done):
                    self._parsed.clear()
        except ExpectationRefused as error:
            self.found.append(str(error))

    def _next(self, direction: Direction) -> bytes:
        """The next whole message; empty: more bytes are needed. Raises Malformed."""
        pending = self._pending[direction]
        if not pending or direction not in self._parsed:
            return b""
        length = self._helper.frame_of(direction, memoryview(pending))
        limit = self._helper.message_limit
        if limit < (len(pending) if length is None else length):
            raise Oversized(f"no complete message in {limit} bytes")
        if length is None:
            return b""
        if not 0 < length <= len(pending):
            raise AssertionError(f"frame() returned {length} of {len(pending)} bytes")
        self._pending[direction] = pending[length:]
        return pending[:length]


def replay(
    capture: str | PathLike[str],
    *helpers: type[Helper],
    settings: str = "",
    networks: Collection[Network] = (),
    hosts: Collection[Address] = (),
    snat: Mapping[Address, Address] | None = None,
    dnat: Mapping[Address, Address] | None = None,
    side: Literal["client", "server"] = "client",
) -> "list[Event]":
    """The events of the capture with these helpers, a Summary last.

    They are the values of `cthelper.core.offline.events`. `settings` is a configuration
    in TOML. The others are what ``--network``, ``--host``, ``--snat``, ``--dnat`` and
    ``--side`` of `cthelper replay` say: `snat` has for a client's own address the one
    that servers know it by, `dnat` for the address that clients know a server by its
    own. Raises CaptureError, ConfigError, RegistryError, and UsageError where the
    addresses contradict each other.
    """
    from cthelper.core.offline.capture import Capture
    from cthelper.core.offline.events import Notice
    from cthelper.core.offline.nat import Nat, Side
    from cthelper.core.offline.replay import Replay

    events: list[Event] = []

    def warn(text: str) -> None:
        events.append(Notice(text=text))

    config = parse(settings, Path("settings"), register(helpers))
    nat = None
    if snat or dnat:
        nat = Nat(sources=snat or {}, destinations=dnat or {}, side=Side(side))
    replayed = Replay(config, networks=networks, hosts=hosts, nat=nat, warn=warn)
    with Capture(Path(capture), warn=warn) as frames:
        events += replayed.run_batches(frames.batches())
    return events


def write_capture(path: str | PathLike[str], messages: Iterable[Message]) -> None:
    """Write a capture of messages, in their order: a small one, to replay.

    A flow over TCP begins with its handshake at its first message and is closed at the
    end; each segment is acknowledged. A message comes at its `now`, in seconds since
    the capture's beginning, or 1 ms after what is before it. Raises OSError, ValueError
    where there is no message or a datagram is too long, and CthelperError where scapy
    is not installed.
    """
    with replay_extra():
        from cthelper.core.offline.specimen import Said, write

    write(
        Path(path),
        [
            Said(each.original, each.direction, each.payload, each.now)
            for each in messages
        ],
    )


def expectations(events: "Iterable[Event]") -> list[tuple[int, str]]:
    """Frame and text, ``tcp 192.0.2.1 > 198.51.100.2:5000``, of each expectation."""
    from cthelper.core.offline.events import ExpectationEvent

    return [
        (each.frame, str(each.expectation))
        for each in events
        if isinstance(each, ExpectationEvent)
    ]


def related(events: "Iterable[Event]") -> list[tuple[int, int]]:
    """First frame of each flow that met an expectation, and the frame that made it."""
    from cthelper.core.offline.events import RelatedEvent

    return [
        (each.frame, each.expectation_frame)
        for each in events
        if isinstance(each, RelatedEvent)
    ]


def withdrawn(events: "Iterable[Event]") -> list[tuple[int, str]]:
    """Frame and text, as of `expectations`, of each expectation that was taken back."""
    from cthelper.core.offline.events import WithdrawnEvent

    return [
        (each.frame, str(each.expectation))
        for each in events
        if isinstance(each, WithdrawnEvent)
    ]


def failures(events: "Iterable[Event]") -> list[tuple[int, str]]:
    """Frame and text of all that went wrong.

    Refusals by their reason code, malformed messages, and bugs of the helper.
    """
    from cthelper.core.offline.events import FaultEvent, MalformedEvent, RefusedEvent

    found: list[tuple[int, str]] = []
    for event in events:
        match event:
            case RefusedEvent():
                found.append((event.frame, f"refused: {event.reason}"))
            case MalformedEvent():
                found.append((event.frame, f"malformed: {event.reason}"))
            case FaultEvent():
                found.append((event.frame, f"fault: {event.error} at {event.where}"))
            case _:
                pass
    return found

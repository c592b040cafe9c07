# SPDX-License-Identifier: GPL-2.0-or-later
"""Why one packet of a capture did, or did not, lead to an expectation, step by step."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    Done,
    Expect,
    Malformed,
    Rewrite,
    Withdraw,
)
from cthelper.core.config import Config
from cthelper.core.engine import Decision
from cthelper.core.nearest import Near, hints, nearest
from cthelper.core.offline.capture import Capture
from cthelper.core.offline.conntrack import Seen, State
from cthelper.core.offline.entries import Entry
from cthelper.core.offline.events import (
    Begin,
    Event,
    ExpectationEvent,
    FaultEvent,
    MalformedEvent,
    MessageEvent,
    RefusedEvent,
    RelatedEvent,
    WithdrawnEvent,
    source_text,
)
from cthelper.core.offline.history import History, began
from cthelper.core.offline.nat import Nat
from cthelper.core.offline.replay import Links, Replay
from cthelper.core.offline.untagged import Unread, unread
from cthelper.core.outcome import Finished
from cthelper.core.packet import locate
from cthelper.core.tuples import Address, Network, Tuple

# Hints that are shown: the last ones.
_HINTS: Final = 4


def explain(
    path: Path,
    frame: int,
    config: Config,
    *,
    networks: Collection[Network] = (),
    hosts: Collection[Address] = (),
    nat: Nat | None = None,
    warn: Callable[[str], None],
    utc: bool = False,
) -> Iterator[str]:
    """The steps that frame `frame` of a capture went through, a line each.

    None where the capture has no such frame; `warn` says so. `utc` is whether to say
    when it came in UTC. The rest is as for Replay.
    Raises CaptureError.
    """
    history = History()
    replay = Replay(
        config,
        networks=networks,
        hosts=hosts,
        nat=nat,
        warn=lambda text: warn(f"{path}: {text}"),
        watch=True,
        history=history,
    )

    def unread_before(flow: Tuple, number: int) -> Iterator[Unread]:
        links = Links(networks, lambda _: None)
        with Capture(path, warn=lambda _: None) as again:
            yield from unread(
                again, flow, config, before=number, on_link=links.on_link, nat=nat
            )

    made: list[ExpectationEvent] = []
    met: list[RelatedEvent] = []
    withdrawn: list[WithdrawnEvent] = []
    told = False
    with Capture(path, warn=warn) as capture:
        for number, time, data, start in capture:
            if not told:
                history.frame(number, max(time, replay.now))
            seen, decision, events = replay.step(number, time, data, start)
            if not told:
                history.passed(decision, events)
            if number == frame:
                told = True
                made = [each for each in events if isinstance(each, ExpectationEvent)]
                then = Begin(capture.begin).utc(time) if utc else None
                yield f"frame {frame} of {path}, at {then or f'{time:.6f} s'}"
                story = _Story(replay, config, history, unread_before)
                for step, text in story.tell(data[start:], seen, decision, events):
                    yield _step(step, text)
            met += [
                each
                for each in events
                if isinstance(each, RelatedEvent) and each.expectation_frame == frame
            ]
            withdrawn += [
                each
                for each in events
                if isinstance(each, WithdrawnEvent)
                and number != frame
                and any(each.expectation == one.expectation for one in made)
            ]
        frames = capture.frames
    if told:
        for step, text in _later(made, met, withdrawn):
            yield _step(step, text)
    elif frame <= frames:
        yield f"frame {frame} of {path} holds no IPv4 or IPv6 packet"
    else:
        warn(f"{path}: there is no frame {frame}: the capture has {frames}")


def _step(step: str, text: str) -> str:
    return f"  {step:<9}  {text}"


def _later(
    made: list[ExpectationEvent],
    met: list[RelatedEvent],
    withdrawn: list[WithdrawnEvent],
) -> Iterator[tuple[str, str]]:
    for event in met:
        yield "later", f"frame {event.frame} met an expectation: {event.flow}"
    for each in withdrawn:
        yield "later", f"frame {each.frame} withdrew it: {each.expectation}"
    if made and not (met or withdrawn):
        yield "later", "no flow met what was expected before the capture's end"


class _Story:
    """Tells what happened to one packet."""

    def __init__(
        self,
        replay: Replay,
        config: Config,
        history: History,
        unread: Callable[[Tuple, int], Iterator[Unread]],
    ) -> None:
        self._replay = replay
        self._history = history
        self._unread = unread
        self._helpers = config.helpers.values()

    def tell(
        self,
        packet: bytes,
        seen: Seen | None,
        decision: Decision | None,
        events: list[Event],
    ) -> Iterator[tuple[str, str]]:
        """The steps: a name and what happened there."""
        if seen is None:
            yield "packet", _unread(packet)
            return
        entry = seen.entry
        if entry is None:
            yield "packet", f"IP packet of {len(seen.packet)} bytes"
            yield "conntrack", "invalid: it belongs to no flow and begins none"
            return
        segment = locate(seen.packet)
        size = 0 if segment is None else segment.stop - segment.start
        travelled = entry.shown(seen.direction)
        yield "packet", f"{travelled}, {size} bytes of payload"
        yield "conntrack", _flow_of(seen, entry)
        if (entry.shown(ORIGINAL), entry.shown(REPLY)) != entry.tuples[:2]:
            yield "", f"translated: {entry.original}, replies {entry.reply}"
        if seen.state is State.INVALID:
            return
        for event in events:
            if isinstance(event, RelatedEvent):
                yield (
                    "conntrack",
                    f"it met the expectation that helper {event.helper} made in frame "
                    f"{event.expectation_frame}",
                )
        if decision is None or decision.flow is None:
            yield from self._unexpected(entry)
            return
        if seen.state is State.NEW and entry.master is None:
            near = self._nearest(entry)
            if near is not None and near.exact:
                yield "expected", f"no: {near}"
        yield "ruleset", f"helper {decision.flow.name} is attached to the flow"
        yield from self._inspected(seen, decision, events, size)

    def _unexpected(self, entry: Entry) -> Iterator[tuple[str, str]]:
        """Why no helper is attached to the flow, and why none expected it."""
        if entry.master is not None:
            yield (
                "ruleset",
                "none: an expected flow is related, and only new ones are tagged",
            )
            return
        if self._history.has(entry.original):
            # A control flow, of which the helper has missed something.
            yield "ruleset", self._unattached(entry.original)
            return
        flow, near = entry.original, self._nearest(entry)
        told = [] if near is None or not near.exact else [str(near)]
        if not told:
            told = [
                f"frame {each.frame} announced it in {each.control}, where helper "
                f"{each.helper} would have read it, but is not attached: "
                f"{self._untagged(each.control, known=True)}"
                for each in islice(self._unread(flow, entry.frame), 1)
            ]
        if not told:
            told = [] if near is None else [str(near)]
            told += deque(hints(flow, self._history.controls), maxlen=_HINTS)
        yield "ruleset", f"none: {self._untagged(flow, known=bool(told))}"
        for text in told:
            yield "expected", f"no: {text}"
        if not told and not self._is_control(flow):
            yield (
                "expected",
                "no: no message announced it that a helper read, or could have read",
            )

    def _unattached(self, original: Tuple) -> str:
        reason = self._replay.finished.get(str(original))
        if reason is not None:
            return f"the flow is no longer inspected ({reason})"
        return f"none: {self._untagged(original, known=False)}"

    def _nearest(self, entry: Entry) -> Near | None:
        # The table notices what has expired when it looks.
        self._replay.table.live(self._replay.now)
        return nearest(entry.original, began(entry), self._history.wishes)

    def _is_control(self, flow: Tuple) -> bool:
        """Whether one of its ports is a control port."""
        return any(
            flow.transport in each.helper.transports
            and {flow.source.port, flow.destination.port} & {*each.ports}
            for each in self._helpers
        )

    def _untagged(self, original: Tuple, *, known: bool) -> str:
        """Why no helper is attached to the flow.

        `known`: the capture holds what would have announced it.
        """
        for config in self._helpers:
            name, port = config.name, original.destination.port
            if original.transport not in config.helper.transports:
                continue
            if port in config.ports:
                return (
                    f"port {port} is helper {name}'s, but its sources and "
                    "destinations leave this flow out"
                )
            if original.source.port in config.ports and not known:
                return (
                    f"port {original.source.port} is helper {name}'s, but the "
                    "capture begins in the middle of the flow, with an answer"
                )
        return (
            f"{original.transport} port {original.destination.port} is no "
            "control port of an enabled helper"
        )

    def _inspected(
        self, seen: Seen, decision: Decision, events: list[Event], size: int
    ) -> Iterator[tuple[str, str]]:
        flow = decision.flow
        assert flow is not None  # noqa: S101 - the caller has looked
        ended = [each for each in decision.events if isinstance(each, Finished)]
        if flow.finished is not None and not ended:
            yield "engine", f"the flow is no longer inspected: {flow.finished}"
            return
        messages = [each for each in events if isinstance(each, MessageEvent)]
        side = flow.side(seen.direction)
        if not messages and flow.finished is None:
            if not side.parsed:
                yield "engine", "this direction is no longer read: it was malformed"
            elif side.stream is not None and side.stream.unread:
                yield (
                    "stream",
                    f"{side.stream.unread} bytes wait for the rest of their message",
                )
            elif size and flow.original.transport is TCP:
                yield "stream", "its bytes are not next: they wait, or came before"
            else:
                yield "stream", "no bytes of a message"
        for message in messages:
            yield from _read(message)
        for event in events:
            yield from _outcome(event)
        for each in ended:
            why = f", {each.detail}" if each.detail else ""
            yield "engine", f"the flow is inspected no longer: {each.reason}{why}"


def _unread(packet: bytes) -> str:
    try:
        locate(packet)
    except Malformed as error:
        return f"malformed: {error}"
    return (
        "neither TCP nor UDP, or a fragment: a fragmented packet is read where its "
        "last fragment came"
    )


def _flow_of(seen: Seen, entry: Entry) -> str:
    text = f"{seen.state.value}, {seen.direction.value} direction"
    if seen.created:
        return f"{text}: it begins the flow"
    return f"{text} of the flow that frame {entry.frame} began: {entry.original}"


def _read(event: MessageEvent) -> Iterator[tuple[str, str]]:
    yield "message", f"{len(event.payload)} bytes, {event.direction.value} direction"
    for name, value in event.fields.items():
        yield "", f"{name}: {value}"
    if not event.effects:
        yield "helper", "asks for nothing"
    for effect in event.effects:
        match effect:
            case Expect():
                yield "helper", _wish(effect)
            case Rewrite():
                start, stop = effect.span
                yield "helper", f"rewrites bytes {start} to {stop}: {effect.data!r}"
            case Withdraw():
                yield "helper", f"withdraws what it has labelled {effect.label!r}"
            case Done():
                why = f": {effect.why}" if effect.why else ""
                yield "helper", f"is done with the flow{why}"


def _wish(wish: Expect) -> str:
    kind = "any number of flows" if wish.permanent else "one flow"
    port = "" if wish.source_port is None else f" port {wish.source_port}"
    transport = "" if wish.transport is None else f" over {wish.transport}"
    return (
        f"asks for {kind} from {source_text(wish.source)}{port} to {wish.endpoint}"
        f"{transport}, policy {wish.policy}"
    )


def _outcome(event: Event) -> Iterator[tuple[str, str]]:
    match event:
        case ExpectationEvent():
            wanted = event.expectation
            text = f"expects {wanted} for {wanted.timeout} s"
            if wanted.translation is not None:
                port = wanted.translation.port
                text += f", translated to the announcer's port {port}"
            yield "kernel", text
        case WithdrawnEvent():
            yield "kernel", f"lets go of {event.what}"
        case RefusedEvent():
            step = "kernel" if event.reason.startswith("kernel-") else "refused"
            yield step, f"{event.reason}: {event.detail}"
        case MalformedEvent():
            yield "malformed", event.reason
        case FaultEvent():
            yield "fault", f"{event.error} at {event.where}: a bug of the helper"

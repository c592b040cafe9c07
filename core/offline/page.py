# SPDX-License-Identifier: GPL-2.0-or-later
"""Replays as one page for a browser: time line, table of events, messages' bytes.

The page is a template and a block of JSON. What leads where is decided here, and the
template's script only draws. Captures hold what anybody has sent: their text reaches
the page in the JSON alone, and the page's policy forbids any other script, and all
that would be loaded from elsewhere.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final

from cthelper.core.api import Done, Effect, Expect, Rewrite, Withdraw
from cthelper.core.errors import CthelperError
from cthelper.core.nearest import Pattern
from cthelper.core.offline.events import (
    Begin,
    Event,
    ExpectationEvent,
    FaultEvent,
    FinishedEvent,
    FlowEvent,
    MalformedEvent,
    MessageEvent,
    Notice,
    RefusedEvent,
    RelatedEvent,
    Summary,
    WithdrawnEvent,
    source_text,
)
from cthelper.core.tuples import Expectation, Tuple

# The JSON's objects: an event of the page, and a capture of it.
_Row = dict[str, object]
_Facts = list[tuple[str, str]]

_TIMED = (
    FlowEvent
    | RelatedEvent
    | MessageEvent
    | WithdrawnEvent
    | ExpectationEvent
    | RefusedEvent
    | MalformedEvent
    | FaultEvent
    | FinishedEvent
)
# The order of events of one frame: as the packet meets them on its way.
_ORDER: Final = (
    Notice,
    FlowEvent,
    RelatedEvent,
    MessageEvent,
    WithdrawnEvent,
    ExpectationEvent,
    RefusedEvent,
    MalformedEvent,
    FaultEvent,
    FinishedEvent,
)
# Characters of a cell of the table; the facts hold all of them.
_CELL_LIMIT: Final = 300


Pages = Sequence[tuple[str, Sequence[Event]]]


@contextmanager
def page_file(path: Path) -> Iterator[Callable[[Pages], None]]:
    """What writes the page of captures, each its label and its events in their order.

    The file is opened at once, and what it holds stays until it is written over. The
    same events give the same bytes. Raises CthelperError where it cannot be written.
    """
    try:
        new = not path.exists()
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise CthelperError(f"{path}: cannot be written: {error.strerror}") from None
    written = False

    def write(pages: Pages) -> None:
        nonlocal written
        text = render(pages)
        try:
            if path.is_file():
                file.truncate(0)
            file.write(text)
            file.close()
        except OSError as error:
            raise CthelperError(
                f"{path}: cannot be written: {error.strerror}"
            ) from None
        written = True

    try:
        yield write
    finally:
        with suppress(OSError):
            file.close()
        if new and not written:
            path.unlink(missing_ok=True)


def render(pages: Pages) -> str:
    """The page as text."""
    text = (files(__package__) / "page.html").read_text("utf-8")
    # The policy admits the template's own style and script by their hashes. A block
    # of JSON is not executed and needs none.
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash_of('script', text)}'",
            f"style-src '{_hash_of('style', text)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    data = json.dumps(_data(pages), separators=(",", ":"), allow_nan=False)
    # JSON is ASCII here, and without < nothing in it can end its element or open a
    # comment.
    data = data.replace("<", "\\u003c")
    return text.replace("{{policy}}", policy).replace("{{data}}", data)


def _hash_of(element: str, text: str) -> str:
    """The hash of the only such element without attributes, as a policy says it."""
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _data(pages: Pages) -> dict[str, object]:
    captures: list[_Row] = []
    rows: list[_Row] = []
    for number, (label, events) in enumerate(pages):
        page = _Page(number, events, first=len(rows))
        captures.append({"label": _visible(label), **page.capture()})
        rows += page.rows()
    return {"captures": captures, "events": rows}


@dataclass(slots=True)
class _Life:
    """An expectation from its creation to its end.

    `end` is None where the capture ends first. `left` is how many flows may still come
    (None: any number). `renewals` are the events that set its timeout anew, and `met`
    those of flows that met it, by their numbers.
    """

    number: int
    event: ExpectationEvent
    end: float | None
    how: str
    left: int | None
    renewals: list[int] = field(default_factory=list)
    met: list[int] = field(default_factory=list)


class _Page:
    """One capture's part of the page. Its events count on from `first`."""

    def __init__(self, capture: int, events: Sequence[Event], *, first: int) -> None:
        self._capture = capture
        self._first = first
        self._summary = Summary()
        listed: list[Event] = []
        for event in events:
            if isinstance(event, Summary):
                self._summary = event
            elif not isinstance(event, Begin):
                listed.append(event)
        # Flows are told of when they end.
        self._events = sorted(listed, key=_place)
        times = [each.time for each in self._events if isinstance(each, _TIMED)]
        times += [
            each.last_time for each in self._events if isinstance(each, FlowEvent)
        ]
        self._begin = min(times, default=0.0)
        self._end = max(times, default=0.0)
        self._flows: dict[Tuple, list[int]] = {}
        self._messages: dict[tuple[int, str], list[int]] = {}
        self._lives: dict[int, _Life] = {}
        self._controls: dict[str, list[FlowEvent]] = {}
        self._expectation_of: dict[int, int] = {}
        self._withdrawn_of: dict[int, int] = {}
        self._index()
        # Numbers of events, by the message that led to them and by their flow.
        self._led_to: dict[int, list[int]] = {}
        self._in_flow: dict[int, list[int]] = {}
        self._message_of: dict[int, int] = {}
        self._flow_of: dict[int, int] = {}
        for number, event in self._numbered():
            self._link(number, event)

    def capture(self) -> _Row:
        """The capture: its counts, its span of time and its lanes."""
        return {
            "summary": _summary(self._summary),
            "begin": _seconds(self._begin),
            "end": _seconds(self._end),
            "lanes": self._lanes(),
        }

    def rows(self) -> list[_Row]:
        """Its events."""
        return [self._row(number, event) for number, event in self._numbered()]

    def _numbered(self) -> Iterable[tuple[int, Event]]:
        return enumerate(self._events, self._first)

    def _event(self, number: int) -> Event:
        return self._events[number - self._first]

    # What belongs together

    def _index(self) -> None:
        made: dict[tuple[int, str], list[_Life]] = {}
        latest: dict[Pattern, _Life] = {}
        for number, event in self._numbered():
            match event:
                case FlowEvent():
                    self._flows.setdefault(event.flow, []).append(number)
                    if event.helper is not None:
                        self._controls.setdefault(event.helper, []).append(event)
                case MessageEvent():
                    place = event.frame, event.helper
                    self._messages.setdefault(place, []).append(number)
                case ExpectationEvent():
                    pattern = Pattern.of(event.expectation)
                    life = latest.get(pattern)
                    end, how = self._ending(event)
                    if life is not None and _outlives(life, event.time):
                        # The kernel has one such expectation, and keeps its master.
                        life.renewals.append(number)
                        life.end, life.how, life.left = end, how, event.flows
                    else:
                        life = _Life(number, event, end, how, event.flows)
                        latest[pattern] = life
                    self._lives[number] = life
                    made.setdefault((event.frame, event.helper), []).append(life)
                case WithdrawnEvent():
                    life = latest.get(Pattern.of(event.expectation))
                    if life is not None:
                        self._withdrawn_of[number] = life.number
                        life.left = event.flows
                        if life.left == 0:
                            life.end = event.time
                            life.how = f"withdrawn in frame {event.frame}"
                case RelatedEvent():
                    announced = event.expectation_frame, event.helper
                    self._meet(number, event, made.get(announced, ()))

    def _ending(self, event: ExpectationEvent) -> tuple[float | None, str]:
        end = event.time + event.expectation.timeout
        if end > self._end:
            return None, "after the capture's end"
        return end, f"timeout, at {end:.6f} s"

    def _meet(self, number: int, event: RelatedEvent, lives: Iterable[_Life]) -> None:
        for life in lives:
            if life.left == 0 or not life.event.expectation.admits(event.flow):
                continue
            life.met.append(number)
            self._expectation_of[number] = life.number
            if life.left is not None:
                life.left -= 1
            if life.left == 0:
                life.end = event.time
                life.how = f"met in frame {event.frame}"
            return

    def _link(self, number: int, event: Event) -> None:
        match event:
            case MessageEvent():
                self._join(number, self._flow_at(event.flow, event.frame))
            case ExpectationEvent():
                message = self._message(event, event.expectation)
                self._attach(number, message)
                master = event.expectation.master
                self._join(number, self._flow_at(master, event.frame))
            case WithdrawnEvent():
                self._attach(number, self._message(event, None))
                master = event.expectation.master
                self._join(number, self._flow_at(master, event.frame))
            case RefusedEvent():
                message = self._message(event, event.wish)
                self._attach(number, message)
                self._join(number, self._flow_by(event, message))
            case MalformedEvent() | FaultEvent():
                message = self._message(event, None)
                self._attach(number, message)
                self._join(number, self._flow_by(event, message))
            case FinishedEvent():
                self._attach(number, self._message(event, None))
                self._join(number, self._flow_at(event.flow, event.frame))
            case RelatedEvent():
                self._join(number, self._flow_at(event.flow, event.frame))

    def _attach(self, number: int, message: int | None) -> None:
        if message is not None:
            self._message_of[number] = message
            self._led_to.setdefault(message, []).append(number)

    def _join(self, number: int, flow: int | None) -> None:
        if flow is not None:
            self._flow_of[number] = flow
            self._in_flow.setdefault(flow, []).append(number)

    def _message(
        self,
        event: ExpectationEvent
        | WithdrawnEvent
        | RefusedEvent
        | MalformedEvent
        | FaultEvent
        | FinishedEvent,
        wish: Expectation | Expect | None,
    ) -> int | None:
        """The message that led to the event: of several in the frame, the one that
        asked for `wish`, else the last one read.
        """
        read = self._messages.get((event.frame, event.helper), [])
        for number in read:
            message = self._event(number)
            if (
                wish is not None
                and isinstance(message, MessageEvent)
                and any(_asks_for(effect, wish) for effect in message.effects)
            ):
                return number
        return read[-1] if read else None

    def _flow_at(self, flow: Tuple, frame: int) -> int | None:
        for number in self._flows.get(flow, ()):
            event = self._event(number)
            if isinstance(event, FlowEvent) and (
                event.frame <= frame <= event.last_frame
            ):
                return number
        return None

    def _flow_by(
        self,
        event: RefusedEvent | MalformedEvent | FaultEvent,
        message: int | None,
    ) -> int | None:
        """The flow of an event that does not name it."""
        if message is not None:
            return self._flow_of.get(message)
        # Without a message, such as for bytes that frame none: the helper's only flow
        # then, if there is just one.
        able = [
            each
            for each in self._controls.get(event.helper, ())
            if each.frame <= event.frame <= each.last_frame
        ]
        return self._flow_at(able[0].flow, event.frame) if len(able) == 1 else None

    # What the page gets

    def _row(self, number: int, event: Event) -> _Row:
        kind, what, flow, facts = self._words(number, event)
        row: _Row = {
            "capture": self._capture,
            "kind": kind,
            "what": _visible(what)[:_CELL_LIMIT],
            "facts": [(name, _visible(value)) for name, value in facts],
            "links": self._links(number, event),
        }
        if isinstance(event, _TIMED):
            row["frame"] = event.frame
            row["time"] = _seconds(event.time)
            if event.helper is not None:
                row["helper"] = _visible(event.helper)
        if flow is not None:
            row["flow"] = str(flow)
        match event:
            case MessageEvent():
                row["bytes"] = base64.b64encode(event.payload).decode()
                row["fields"] = [
                    (_visible(name), _visible(value))
                    for name, value in event.fields.items()
                ]
                row["effects"] = [_visible(_effect(each)) for each in event.effects]
                row["announces"] = any(
                    isinstance(each, Expect) for each in event.effects
                )
            case FlowEvent():
                row["last"] = _seconds(event.last_time)
        message = self._message_behind(number)
        if message is not None:
            row["message"] = message
        return row

    def _message_behind(self, number: int) -> int | None:
        """The message that the page shows with an event.

        For an expected flow and its first packet it is the one that announced them.
        """
        match self._event(number):
            case MessageEvent():
                return number
            case FlowEvent():
                met = (
                    self._message_behind(each)
                    for each in self._in_flow.get(number, ())
                    if each in self._expectation_of
                )
                return next(met, None)
            case RelatedEvent():
                expectation = self._expectation_of.get(number)
                return (
                    None if expectation is None else self._message_of.get(expectation)
                )
            case _:
                return self._message_of.get(number)

    def _words(
        self, number: int, event: Event
    ) -> tuple[str, str, Tuple | None, _Facts]:
        """Kind, short text, flow and facts of an event."""
        match event:
            case MessageEvent():
                what = "; ".join(f"{key}: {text}" for key, text in event.fields.items())
                size = f"{len(event.payload)} bytes"
                return (
                    "message",
                    what or size,
                    event.flow,
                    [
                        ("flow", str(event.flow)),
                        ("direction", event.direction.value),
                        ("length", size),
                    ],
                )
            case ExpectationEvent():
                wanted = event.expectation
                life = self._lives[number]
                facts = [
                    ("expects", str(wanted)),
                    ("policy", str(wanted.policy)),
                    ("permanent", _permanent(event)),
                    ("timeout", f"{wanted.timeout} s"),
                    ("end", life.how),
                    ("master flow", str(wanted.master)),
                    ("announced in", f"{event.direction.value} direction"),
                ]
                if wanted.helper is not None:
                    facts.append(("helper of the expected flow", wanted.helper))
                if life.number != number:
                    renewed = f"what frame {life.event.frame} announced"
                    facts.insert(0, ("renews", renewed))
                return (
                    "expectation",
                    f"{wanted} ({wanted.policy}, {event.admits}, {wanted.timeout} s)",
                    wanted.master,
                    facts,
                )
            case RelatedEvent():
                facts = [("flow", str(event.flow))]
                what = f"met what frame {event.expectation_frame} announced"
                met = self._expectation_of.get(number)
                if met is not None:
                    life = self._lives[met]
                    wanted = life.event.expectation
                    what += f": {wanted}"
                    facts += [
                        ("met", str(wanted)),
                        ("announced", f"{event.time - life.event.time:.6f} s before"),
                        ("master flow", str(wanted.master)),
                    ]
                return "related", what, event.flow, facts
            case WithdrawnEvent():
                wanted = event.expectation
                facts = [("withdrawn", event.what), ("master flow", str(wanted.master))]
                return "withdrawn", event.what, wanted.master, facts
            case RefusedEvent():
                flow = self._tuple_of(number)
                facts = [("reason", event.reason), ("detail", event.detail)]
                if event.wish is not None:
                    facts.append(("asked for", _wish(event.wish)))
                facts.append(("receiver of the message", str(event.peer)))
                return "refused", f"{event.reason}: {event.detail}", flow, facts
            case MalformedEvent():
                flow = self._tuple_of(number)
                return "malformed", event.reason, flow, [("reason", event.reason)]
            case FaultEvent():
                facts = [("error", event.error), ("where", event.where)]
                return "fault", event.error, self._tuple_of(number), facts
            case FinishedEvent():
                facts = [("reason", event.reason)]
                if event.detail:
                    facts.append(("detail", event.detail))
                facts.append(("flow", str(event.flow)))
                return "finished", event.why, event.flow, facts
            case FlowEvent():
                role = "expected flow" if event.helper is None else "control flow"
                count = f"{event.packets} packet{'' if event.packets == 1 else 's'}"
                what = f"{role}, {count} to frame {event.last_frame}"
                facts = [
                    ("flow", str(event.flow)),
                    ("role", role),
                    ("packets", f"{event.packets}, both directions"),
                    ("last frame", str(event.last_frame)),
                    ("last time", f"{event.last_time:.6f} s"),
                ]
                if event.finished is not None:
                    what += f", helper finished: {event.finished}"
                    facts.append(("helper finished", event.finished))
                return "flow", what, event.flow, facts
            case Notice():
                return "notice", event.text, None, [("notice", event.text)]
        raise AssertionError(f"a summary has no row: {event}")

    def _tuple_of(self, number: int) -> Tuple | None:
        flow = self._flow_of.get(number)
        event = None if flow is None else self._event(flow)
        return event.flow if isinstance(event, FlowEvent) else None

    def _links(self, number: int, event: Event) -> list[tuple[str, int]]:
        """What else to look at: why, and the number of the event."""
        links: list[tuple[str, int]] = []
        if number in self._message_of:
            links.append(("message", self._message_of[number]))
        met = self._expectation_of.get(number, self._withdrawn_of.get(number))
        if met is not None:
            links.append(("expectation", met))
        flow = self._flow_of.get(number)
        if flow is not None:
            master = isinstance(event, ExpectationEvent)
            links.append(("master flow" if master else "flow", flow))
        links += [("led to", each) for each in self._led_to.get(number, ())]
        life = self._lives.get(number)
        if life is not None and life.number != number:
            links.append(("renews", life.number))
        elif life is not None:
            links += [("renewed by", each) for each in life.renewals]
            links += [("met by", each) for each in life.met]
        links += [("in this flow", each) for each in self._in_flow.get(number, ())]
        return links

    def _lanes(self) -> list[_Row]:
        """A lane for each control flow, and for each event that belongs to none."""
        lanes: dict[int | str, _Row] = {}
        lives: dict[int | str, list[_Row]] = {}
        marks: dict[int | str, list[int]] = {}

        def lane(key: int | str, label: str) -> int | str:
            if key not in lanes:
                lives[key], marks[key] = [], []
                lanes[key] = {
                    "label": label,
                    "flow": key if isinstance(key, int) else None,
                    "marks": marks[key],
                    "expectations": lives[key],
                }
            return key

        for number, event in self._numbered():
            match event:
                case FlowEvent():
                    if event.helper is not None:
                        lane(number, str(event.flow))
                case ExpectationEvent():
                    life = self._lives[number]
                    if life.number != number:
                        continue
                    master = str(event.expectation.master)
                    key = lane(self._flow_of.get(number, master), master)
                    met = [
                        {"related": each, "flow": self._flow_of.get(each)}
                        for each in life.met
                    ]
                    end = None if life.end is None else _seconds(life.end)
                    lives[key].append(
                        {
                            "event": number,
                            "label": str(event.expectation),
                            "end": end,
                            "renewals": life.renewals,
                            "met": met,
                        }
                    )
                case MessageEvent() | FinishedEvent():
                    label = str(event.flow)
                    marks[lane(self._flow_of.get(number, label), label)].append(number)
                case WithdrawnEvent():
                    label = str(event.expectation.master)
                    marks[lane(self._flow_of.get(number, label), label)].append(number)
                case RefusedEvent() | MalformedEvent() | FaultEvent():
                    label = "flow not known"
                    marks[lane(self._flow_of.get(number, label), label)].append(number)
        return list(lanes.values())


def _place(event: Event) -> tuple[int, int]:
    frame = event.frame if isinstance(event, _TIMED) else 0
    return frame, _ORDER.index(type(event))


def _permanent(event: ExpectationEvent) -> str:
    if event.flows is None:
        return "yes, admits any number of flows"
    return f"no, admits {event.admits}"


def _outlives(life: _Life, time: float) -> bool:
    return life.end is None or life.end > time


def _asks_for(effect: Effect, wish: Expectation | Expect) -> bool:
    if not isinstance(effect, Expect):
        return False
    if isinstance(wish, Expect):
        return effect == wish
    return effect.endpoint == wish.destination


def _effect(effect: Effect) -> str:
    match effect:
        case Expect():
            return f"expect {_wish(effect)}"
        case Rewrite():
            begin, end = effect.span
            octets = effect.data.hex(" ") or "nothing"
            return f"rewrite bytes {begin} to {end}: {octets}"
        case Withdraw():
            return f"withdraw what is labelled {effect.label!r}"
        case Done():
            return f"done: {effect.why or 'the flow announces nothing more'}"


def _wish(wish: Expect) -> str:
    source = source_text(wish.source)
    if wish.source_port is not None:
        source += f" port {wish.source_port}"
    transport = "" if wish.transport is None else f"{wish.transport} "
    kind = "permanent" if wish.permanent else "one flow"
    return f"{transport}{source} > {wish.endpoint} ({wish.policy}, {kind})"


def _summary(summary: Summary) -> str:
    counts = [
        (summary.packets, "packet", "packets"),
        (summary.flows, "flow", "flows"),
        (summary.expectations, "expectation", "expectations"),
        (summary.related, "related", "related"),
        (summary.refused, "refused", "refused"),
        (summary.malformed, "malformed", "malformed"),
        (summary.finished, "finished", "finished"),
    ]
    return ", ".join(
        f"{count} {one if count == 1 else many}" for count, one, many in counts if count
    )


def _seconds(time: float) -> float:
    return round(time, 6)


def _visible(text: str) -> str:
    r"""The text, with what is not printed as an escape, such as ``\x00``.

    Among it are the marks that turn the direction of writing, with which a sender
    could make a line read as another, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )

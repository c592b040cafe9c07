# SPDX-License-Identifier: GPL-2.0-or-later
"""What a daemon remembers of announcements, as `cthelper.core.nearest` has it.

It is made of records as the control socket has them: the events of its memory, and
what lives in the kernel.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Any, Final

from cthelper.core.nearest import (
    Control,
    End,
    Moment,
    Near,
    Pattern,
    Wish,
    fits,
    nearest,
)
from cthelper.core.records import read_endpoint, read_flow, read_transport
from cthelper.core.tuples import Tuple

EVENTS: Final = (
    *("expectation", "expectation-withdrawn", "refused"),
    *("malformed", "finished", "helper-fault"),
)
"""The events that it is made of."""

# After these nothing is missing: the helper has read all that it wanted to.
_WELL: Final = "done"

Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Live:
    """An expectation that is in the kernel: its record, and what it admits."""

    record: Mapping[str, Any]
    pattern: Pattern


class Memory:
    """What was announced, and what of it lives at `now` (seconds since 1970).

    `expectations` are records of what is in the kernel, `masters` the flows that it
    has, `events` those of EVENTS. Raises ValueError.
    """

    def __init__(
        self, now: float, expectations: Records, masters: set[Tuple], events: Records
    ) -> None:
        self._now = now
        self._masters = masters
        self._number = 0
        self.live = [Live(each, read_pattern(each["expects"])) for each in expectations]
        self._wishes: list[Wish] = []
        self._open: dict[tuple[str, Pattern], tuple[Wish, Mapping[str, Any]]] = {}
        self._controls: dict[Tuple, Control] = {}
        # Each process has an order of its own.
        for each in sorted(events, key=lambda each: str(each["time"])):
            self._add(each)
        living = {each.pattern for each in self.live}
        for (_, pattern), (wish, last) in self._open.items():
            if pattern not in living:
                self._end(wish, last)
        self._add_unknown()

    @property
    def controls(self) -> Iterable[Control]:
        """The control flows in which something went wrong."""
        return self._controls.values()

    def admitting(self, flow: Tuple, *, any_port: bool) -> list[Live]:
        """What lives and admits a flow; `any_port`: its source port is not known."""
        return [
            each for each in self.live if fits(_loose(each.pattern, any_port), flow)
        ]

    def nearest(self, flow: Tuple, *, any_port: bool) -> Near | None:
        """What came nearest to admitting a flow that begins now."""
        for wish in self._wishes:
            wish.pattern = _loose(wish.pattern, any_port)
        return nearest(flow, self._moment(self._now, "now"), self._wishes)

    def _add(self, event: Mapping[str, Any]) -> None:
        then = datetime.fromisoformat(event["time"]).timestamp()
        now = self._moment(then, f"{ago(self._now - then)} ago")
        flow = read_flow(event["flow"])
        helper = str(event["helper"])
        match event["event"]:
            case "expectation":
                self._ask(helper, read_pattern(event["expects"]), event, now)
            case "expectation-withdrawn":
                found = self._open.get((helper, read_pattern(event["expects"])))
                if found is not None and event.get("flows") == 0:
                    found[0].end, found[0].ended = End.WITHDRAWN, now
            case "refused":
                self._refuse(helper, flow, event, now)
            case "malformed":
                self._trouble(helper, flow, f"malformed, {event['detail']}", now)
            case "helper-fault":
                trouble = f"a bug of the helper, {event['error']}"
                self._trouble(helper, flow, trouble, now)
            case "finished" if event["reason"] != _WELL:
                trouble = f"read no longer, {event['reason']}, since what came"
                self._trouble(helper, flow, trouble, now)

    def _ask(
        self, helper: str, pattern: Pattern, event: Mapping[str, Any], now: Moment
    ) -> None:
        found = self._open.get((helper, pattern))
        if found is None or found[0].end is not None:
            wish = Wish(helper, pattern, "", [now])
            self._wishes.append(wish)
        else:
            wish = found[0]
            wish.ask_again(now)
        wish.text = _shown(pattern, read_flow(event["flow"]))
        self._open[helper, pattern] = wish, event

    def _refuse(
        self, helper: str, flow: Tuple, event: Mapping[str, Any], now: Moment
    ) -> None:
        refusal = f"{event['reason']}: {event['detail']}"
        pattern = _refused(event)
        if pattern is None:
            self._trouble(helper, flow, f"refused, {refusal}", now)
            return
        what: object = pattern
        if event.get("expects") is None:  # from where is not known
            what = f"a flow over {pattern.transport} to {pattern.destination}"
        wish = Wish(helper, pattern, _shown(what, flow), [now], refusal=refusal)
        self._wishes.append(wish)

    def _trouble(self, helper: str, flow: Tuple, text: str, now: Moment) -> None:
        control = self._controls.setdefault(flow, Control(helper, flow))
        control.trouble(text, now)

    def _end(self, wish: Wish, last: Mapping[str, Any]) -> None:
        """Say how one ended that lives no more, as far as it is known."""
        if wish.end is not None:
            return
        then = "since then"
        over = wish.asked[-1].time + last["timeout"]
        if over <= self._now:
            text = f"{ago(self._now - over)} ago, after its {last['timeout']} s"
            wish.end, wish.ended = End.TIMEOUT, self._moment(over, text)
            if not last["permanent"]:
                wish.ended = self._moment(over, f"{text}, where no flow met it before")
        elif read_flow(last["flow"]) not in self._masters:
            wish.end, wish.ended = End.MASTER, self._moment(self._now, then)
        elif not last["permanent"]:
            wish.end, wish.ended = End.USED_UP, self._moment(self._now, then)
        else:
            # Somebody has deleted it, or the kernel has for a later one of its flow.
            text = f"{then}, before its time"
            wish.end, wish.ended = End.TIMEOUT, self._moment(self._now, text)

    def _add_unknown(self) -> None:
        """Add what lives and was announced before what is remembered, or by hand."""
        known = {pattern for _, pattern in self._open}
        for each in self.live:
            if each.pattern not in known:
                left = f"with {each.record['timeout']} s left"
                helper = each.record["helper"] or "another program"
                asked = [self._moment(0.0, left)]
                text = _shown(each.pattern, read_flow(each.record["flow"]))
                self._wishes.append(Wish(helper, each.pattern, text, asked))

    def _moment(self, time: float, text: str) -> Moment:
        self._number += 1
        return Moment(time, self._number, text)


def read_pattern(record: Mapping[str, Any]) -> Pattern:
    """The flows that an expectation admits, as `expects_record` has told it.

    Raises ValueError.
    """
    source = record["source"]
    return Pattern(
        read_transport(record["transport"]),
        None if source is None else ip_network(source),
        record["source_port"],
        read_endpoint(record["destination"]),
    )


def ago(seconds: float) -> str:
    """A time in its largest unit."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _refused(event: Mapping[str, Any]) -> Pattern | None:
    """The flows that were asked for; None: the helper refused by itself.

    Of what the guard refused the event has only where it was to go.
    """
    expects, endpoint = event.get("expects"), event.get("endpoint")
    if expects is not None:
        return read_pattern(expects)
    if endpoint is None:
        return None
    # Daemons of before have not told it.
    transport = read_transport(event.get("transport") or event["flow"]["transport"])
    destination = read_endpoint(endpoint)
    return Pattern(transport, None, None, destination)


def _shown(what: object, control: Tuple) -> str:
    """What was asked for, and in which control flow."""
    return f"{what} (in {control})"


def _loose(pattern: Pattern, any_port: bool) -> Pattern:
    return pattern._replace(source_port=None) if any_port else pattern

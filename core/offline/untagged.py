# SPDX-License-Identifier: GPL-2.0-or-later
"""Announcements that nobody read, since no helper is attached to their flows."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from cthelper.core.config import Config
from cthelper.core.engine import Engine
from cthelper.core.grants import OnLink
from cthelper.core.guard import UNLIMITED, Guard
from cthelper.core.nearest import Pattern, fits
from cthelper.core.offline.capture import Frame
from cthelper.core.offline.conntrack import State, Table
from cthelper.core.offline.nat import Nat
from cthelper.core.tuples import Tuple


class Unread(NamedTuple):
    """In `frame` the flow `control` announced something that `helper` can read."""

    frame: int
    helper: str
    control: Tuple


def unread(
    frames: Iterable[Frame],
    flow: Tuple,
    config: Config,
    *,
    before: int,
    on_link: OnLink,
    nat: Nat | None,
) -> Iterator[Unread]:
    """What the enabled helpers read of `flow` where none is attached to a flow.

    All of them read all flows of the two hosts, in the frames before the one given.
    """
    now = 0.0
    hosts = {flow.source.address, flow.destination.address}
    engines = {
        name: Engine(
            {name: each},
            guard=Guard(UNLIMITED),
            on_link=on_link,
            clock=lambda: now,
            flow_limit=config.daemon.flow_limit,
        )
        for name, each in config.helpers.items()
    }
    table = Table(config.helpers, nat=nat)
    for number, time, data, start in frames:
        if number >= before:
            return
        now = max(now, time)
        seen = table.track(number, now, data, start)
        if seen is None or seen.entry is None or seen.state is State.INVALID:
            continue
        table.confirm(seen.entry)
        if seen.entry.helper is not None:
            continue
        entry = seen.entry.conntrack(now)
        ends = {entry.original.source.address, entry.original.destination.address}
        if not hosts & ends:
            continue
        for name, engine in engines.items():
            tagged = replace(entry, helper=name)
            decision = engine.handle(seen.packet, tagged, seen.direction)
            if any(fits(Pattern.of(each), flow) for each in decision.expectations):
                yield Unread(number, name, entry.original)

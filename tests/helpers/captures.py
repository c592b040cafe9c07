# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of real captures share: the manifest, replay, what events say."""

import tomllib
from collections.abc import Collection, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.core.config import parse
from cthelper.core.offline.capture import Capture
from cthelper.core.offline.events import (
    Event,
    FaultEvent,
    FlowEvent,
    MalformedEvent,
    RefusedEvent,
    RelatedEvent,
    Summary,
)
from cthelper.core.offline.replay import Replay
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import Address

ROOT: Final = Path(__file__).parents[2]
PCAPS: Final = ROOT / "pcaps"
PUBLIC: Final = ROOT.parent / "shared" / "captures" / "public"
"""Captures that others have published, which are not kept here."""

ROUTER: Final = frozenset(
    map(ip_address, ["10.77.2.1", "fd77:2::1", "fe80::59:dfff:fe32:bf69"])
)
"""Addresses of the router that most captures were taken on."""

Found = list[tuple[int, str]]
"""Frames, and what was found at each."""


def manifest() -> dict[str, dict[str, Any]]:
    """What pcaps/MANIFEST.toml says, by the capture's path there."""
    tables = tomllib.loads((PCAPS / "MANIFEST.toml").read_text("utf-8"))
    assert all(isinstance(table, dict) for table in tables.values())
    return tables


def told(name: str) -> Found:
    """Frame and text of each expectation that the manifest asks for."""
    entries = manifest()[f"{name}.pcap"]["expects"]
    assert all(each.keys() == {"frame", "text", "why"} for each in entries)
    return [(each["frame"], each["text"]) for each in entries]


def replayed(
    path: Path,
    settings: str = "",
    *,
    hosts: Collection[Address] = (),
    on_link: Iterable[str] = (),
) -> list[Event]:
    """The events of a capture that is watched; any warning fails the test."""
    runner = Replay(
        parse(settings, Path("capture.toml"), builtin_helpers()),
        networks=list(map(ip_network, on_link)),
        hosts=hosts,
        warn=pytest.fail,
        watch=True,
    )
    with Capture(path, warn=pytest.fail) as capture:
        return list(runner.run(capture))


def related(events: Iterable[Event]) -> Found:
    """Frame and tuple of the first packet of each flow that was expected."""
    return [
        (each.frame, str(each.flow))
        for each in events
        if isinstance(each, RelatedEvent)
    ]


def refusals(events: Iterable[Event]) -> Found:
    """Frame and reason of each refusal."""
    return [
        (each.frame, each.reason) for each in events if isinstance(each, RefusedEvent)
    ]


def broken(events: Iterable[Event]) -> list[Event]:
    """What was malformed, and bugs of helpers."""
    return [each for each in events if isinstance(each, MalformedEvent | FaultEvent)]


def unwatched(events: list[Event]) -> int:
    """How many flows were neither tagged nor expected.

    Those that were watched are control flows, which have a helper, and expected ones,
    which have none.
    """
    summary = events[-1]
    assert isinstance(summary, Summary)
    watched = [each for each in events if isinstance(each, FlowEvent)]
    control = [each for each in watched if each.helper is not None]
    assert len(watched) == len(control) + summary.related
    return summary.flows - len(watched)


def captures_of(names: Iterable[str]) -> list[str]:
    """All captures in the folders of these, by their paths without the ending."""
    folders = {each.partition("/")[0] for each in names}
    return sorted(
        str(path.relative_to(PCAPS).with_suffix(""))
        for folder in folders
        for path in (PCAPS / folder).glob("*.pcap")
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper flows events``: entries and expectations as they come and go."""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from typing import Final

from cthelper.core.control.bounded import keep
from cthelper.core.control.matching import Ends, Filter, expected, in_state
from cthelper.core.control.tree import Place
from cthelper.core.netlink.listing import Listed
from cthelper.core.netlink.monitor import Happened, Monitor
from cthelper.core.tuples import Conntrack, FlowKey, Kind, Status, Tuple, key_of

# Flows whose helper and master are remembered, which their end does not tell.
_REMEMBERED: Final = 65536
# Several may watch at once.
_BUFFER: Final = 1 << 20
_WAIT_SECONDS: Final = 0.25


class Lineage:
    """Helpers and masters of flows, begun with those that are listed."""

    def __init__(self, table: Iterable[Listed]) -> None:
        self._known: OrderedDict[FlowKey, tuple[str | None, Tuple | None]] = (
            OrderedDict()
        )
        self._helpers: OrderedDict[Place, str] = OrderedDict()
        for each in table:
            self.complete(each.entry)

    def complete(self, entry: Conntrack, *, ended: bool = False) -> None:
        """Give an entry its helper and its master where the event has left them out."""
        key = key_of(entry)
        helper, master = self._known.get(key, (None, None))
        entry.helper = entry.helper or helper
        entry.master = entry.master or master
        if ended:
            self._known.pop(key, None)
        elif entry.helper is not None or entry.master is not None:
            keep(self._known, key, (entry.helper, entry.master), _REMEMBERED)
        if entry.helper is not None:
            place = entry.original, entry.zone
            keep(self._helpers, place, entry.helper, _REMEMBERED)

    def of(self, entry: Conntrack, helpers: Collection[str]) -> bool:
        """Whether an entry has one of these helpers, or one that has expected it.

        Whose control flow is not known any more may be such a one.
        """
        if entry.helper in helpers:
            return True
        if entry.master is None:
            # Before all that is known here it was expected by somebody.
            return Status.EXPECTED in entry.status
        helper = self._helpers.get((entry.master, entry.zone))
        return helper is None or helper in helpers


def watch(
    kinds: Iterable[Kind],
    table: Iterable[Listed],
    wanted: Filter,
    helpers: Collection[str] | None,
) -> Iterator[Happened | int | None]:
    """What happens to the flows that a filter means; with `helpers` of theirs alone.

    A number says how often the kernel has thrown events away because they were not
    read; None that there is nothing now. `table` is listed once all is followed. Raises
    NetlinkError.
    """
    status = Status(0) if helpers is None else Status.HELPER | Status.EXPECTED
    with closing(Monitor(kinds, status=status, buffer=_BUFFER)) as monitor:
        lineage = Lineage(table)
        overruns = 0
        while True:
            for event in monitor.read(_WAIT_SECONDS):
                if _means(event, lineage, wanted, helpers):
                    yield event
            if monitor.overruns != overruns:
                yield monitor.overruns - overruns
                overruns = monitor.overruns
            yield None


def _means(
    event: Happened,
    lineage: Lineage,
    wanted: Filter,
    helpers: Collection[str] | None,
) -> bool:
    if not isinstance(event.subject, Listed):
        known = helpers is None or event.subject.helper in helpers
        return known and expected(event.subject, wanted)
    entry = event.subject.entry
    lineage.complete(entry, ended=event.kind is Kind.DESTROY)
    if helpers is not None and not lineage.of(entry, helpers):
        return False
    if not wanted.concerns(entry.helper, entry.zone):
        return False
    if wanted.state is not None and not in_state(event.subject, wanted.state):
        return False
    return wanted.admits(Ends.of(entry.original))

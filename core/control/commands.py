# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be asked for at the control socket, and what is answered.

Each command takes the request and gives records as they come. What a request may hold,
docs/control.md says.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, Final, cast

from cthelper.core.control.collecting import Collector
from cthelper.core.control.following import (
    ANSWER_SECONDS,
    FOLLOW_SECONDS,
    SUPERVISOR,
    Source,
    next_page,
)
from cthelper.core.control.health import Fill, status
from cthelper.core.control.matching import Ends, Filter, expected
from cthelper.core.control.reports import TOO_LONG, Asker
from cthelper.core.control.statistics import Key, Statistics
from cthelper.core.control.tree import (
    Branch,
    Known,
    branch_record,
    branches,
    entry_record,
    expectation_record,
    meant,
)
from cthelper.core.control.watching import watch
from cthelper.core.errors import CthelperError, NotFound
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.monitor import Happened
from cthelper.core.queue.binding import BoundQueue
from cthelper.core.records import (
    Record,
    flow_record,
    read_endpoint,
    read_flow,
    read_transport,
    time_text,
)
from cthelper.core.tuples import Conntrack, Expectation, FlowKey, Kind, key_of

# Each of several, once others have taken that long.
_LATE_SECONDS: Final = 0.4
# How often who follows flows asks which helpers there are.
_POLICIES_SECONDS: Final = 10.0
# A server answers so many flows at a time, between packets.
_PAGE: Final = 500


_Command = Callable[[Record], Iterator[Record | None]]


class Refused(CthelperError):
    """A request is not granted; `reason` is a code, the message says it in words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Commands:
    """The commands.

    `asked` are the processes that are asked, by number. `queues` are those that are
    bound, `expectations` and `entries` how full the kernel's tables are; `collector`
    has the statistics, where there are any.
    """

    def __init__(
        self,
        asked: Mapping[int, Asker],
        *,
        ctnetlink: Callable[[], Ctnetlink] = Ctnetlink,
        queues: Callable[[], Mapping[int, BoundQueue]],
        expectations: Callable[[], Fill | None],
        entries: Callable[[], Fill | None],
        collector: Collector | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._asked = asked
        self._ctnetlink = ctnetlink
        self._queues = queues
        self._expectations = expectations
        self._entries = entries
        self._collector = collector
        self._clock = clock
        self._sleep = sleep
        self._commands: dict[str, _Command] = {
            "status": self._status,
            "flows": self._flows,
            "expectations": self._list_expectations,
            "events": self._events,
            "flow-events": self._flow_events,
            "stats": self._stats,
        }
        self._changes: dict[str, _Command] = {
            "delete-flows": self._delete_flows,
            "add-expectation": self._add_expectation,
            "delete-expectations": self._delete_expectations,
        }

    def run(self, request: Record, *, root: bool) -> Iterator[Record | None]:
        """What a request asks for. Raises Refused, and other CthelperErrors.

        None says that there is nothing yet, and that whoever asked may have left.
        """
        name = request.get("command")
        known = {**self._commands, **self._changes}
        command = known.get(name) if isinstance(name, str) else None
        if command is None:
            raise Refused("unknown-command", f"there is no command {name}")
        if name in self._changes and not root:
            raise Refused("not-permitted", f"{name} is root's alone")
        try:
            yield from command(request)
        except (ValueError, TypeError, OverflowError) as error:
            raise Refused("wrong-request", str(error)) from None

    # What is asked for

    def _status(self, _request: Record) -> Iterator[Record | None]:
        # Who asks may have no time for each of many that do not answer.
        until = time.monotonic() + ANSWER_SECONDS
        collector = self._collector
        states = {
            number: self._ask(
                number, "state", max(_LATE_SECONDS, until - time.monotonic())
            )
            for number in self._asked
        }
        supervisor = states.pop(SUPERVISOR, None)
        yield status(
            supervisor,
            states,
            self._queues(),
            self._entries(),
            self._expectations(),
            None if collector is None else collector.read(Statistics.totals),
        )

    def _flows(self, request: Record) -> Iterator[Record | None]:
        wanted = Filter.read(request.get("filter", {}))
        policies, known = self._policies(), self._known()
        others = bool(request.get("all"))
        with closing(self._ctnetlink()) as ctnetlink:
            for branch in _branches(ctnetlink, wanted, policies, others=others):
                yield branch_record(branch, known, policies)

    def _list_expectations(self, request: Record) -> Iterator[Record | None]:
        wanted = Filter.read(request.get("filter", {}))
        policies = self._policies()
        with closing(self._ctnetlink()) as ctnetlink:
            found = ctnetlink.expectations()
        for expectation in found:
            if expected(expectation, wanted):
                yield _expectation_record(expectation, policies)

    def _events(self, request: Record) -> Iterator[Record | None]:
        wanted = Filter.read(request.get("filter", {}))
        names = request.get("events") or ()
        if not isinstance(names, list | tuple):
            raise ValueError("events is no list")
        since = request.get("since")
        if since is not None and not isinstance(since, int | float):
            raise ValueError("since is no number of seconds")
        begin = self._clock() - (0.0 if since is None else since)
        sources = [Source(number, each) for number, each in self._asked.items()]
        while True:
            for record in next_page(sources, begin):
                # What was missed may have been of the flows that are asked for.
                missed = record["event"] == "events-missed"
                known = not names or record["event"] in names
                if missed or (known and _told_of(record, wanted)):
                    yield record
            if any(source.more for source in sources):
                continue
            if not request.get("follow"):
                return
            # Whether somebody still listens is seen now.
            yield None
            self._sleep(FOLLOW_SECONDS)

    def _flow_events(self, request: Record) -> Iterator[Record | None]:
        wanted = Filter.read(request.get("filter", {}))
        names = request.get("events") or list(Kind)
        if not isinstance(names, list):
            raise ValueError("events is no list")
        kinds = [Kind(each) for each in dict.fromkeys(names)]
        policies = self._policies()
        helpers = None if request.get("all") else policies
        due = self._clock() + _POLICIES_SECONDS
        with closing(self._ctnetlink()) as ctnetlink:
            for event in watch(kinds, ctnetlink.listed(), wanted, helpers):
                if event is None:
                    yield None
                    if self._clock() > due:
                        # A reload may have brought others.
                        with suppress(Refused):
                            policies.update(self._policies())
                        due = self._clock() + _POLICIES_SECONDS
                    continue
                told = _happened_record(event, policies)
                yield {"time": time_text(self._clock()), **told}

    def _stats(self, request: Record) -> Iterator[Record | None]:
        wanted = Filter.read(request.get("filter", {}))
        if self._collector is None:
            raise Refused(
                "no-statistics",
                "statistics are off: [control] statistics = true, and restart cthelper",
            )
        if (wanted.sport, wanted.state, wanted.zone) != (None, None, None):
            raise ValueError(
                "statistics know no port of who asks, no state and no zone"
            )
        yield self._collector.read(Statistics.totals)
        rows, live = self._collector.read(Statistics.rows)
        packets: Counter[Key] = Counter()
        size: Counter[Key] = Counter()
        if live:
            with closing(self._ctnetlink()) as ctnetlink:
                for each in ctnetlink.listed():
                    owner = live.get(key_of(each.entry))
                    if owner is not None:
                        packets[owner] += each.packets
                        size[owner] += each.bytes
        for key, row in rows.items():
            helper, peer, (transport, to) = key
            ends = Ends(transport, peer, None, to.address, to.port)
            if wanted.helper in (None, helper) and wanted.admits(ends):
                yield {**row, "live_packets": packets[key], "live_bytes": size[key]}

    # What is changed

    def _delete_flows(self, request: Record) -> Iterator[Record | None]:
        wanted = _narrow(request)
        policies, known = self._policies(), self._known()
        with closing(self._ctnetlink()) as ctnetlink:
            for branch in list(_branches(ctnetlink, wanted, policies)):
                # What belongs to others than those that are meant stays.
                if not wanted.admits(Ends.of(branch.original)):
                    continue
                ends = [] if branch.listed is None else [branch.listed]
                if request.get("data"):
                    ends += branch.flows
                deleted = 0
                for each in ends:
                    with suppress(NotFound):  # it has ended by itself
                        # Its expectations go with it (nf_ct_remove_expectations).
                        ctnetlink.delete(each.entry.original, each.entry.zone)
                        deleted += 1
                if deleted:
                    yield {**branch_record(branch, known, policies), "deleted": deleted}

    def _add_expectation(self, request: Record) -> Iterator[Record | None]:
        policies = self._policies()
        zone = request.get("zone", 0)
        if not isinstance(zone, int) or not 0 <= zone <= 0xFFFF:
            raise ValueError(f"zone {zone} is no number from 0 to 65535")
        flow = read_flow(request.get("flow"))
        with closing(self._ctnetlink()) as ctnetlink:
            master = ctnetlink.get(flow, zone)
            if master.helper not in policies:
                raise ValueError(f"{flow} has none of this daemon's helpers")
            expectation = _wanted(request, master, policies[master.helper])
            ctnetlink.expect(expectation)
            # The kernel has given it the timeout of its policy.
            yield _expectation_record(ctnetlink.covering(expectation), policies)

    def _delete_expectations(self, request: Record) -> Iterator[Record | None]:
        wanted = _narrow(request)
        policies = self._policies()
        with closing(self._ctnetlink()) as ctnetlink:
            for expectation in ctnetlink.expectations():
                ours = expectation.helper in policies
                if ours and expected(expectation, wanted):
                    with suppress(NotFound):  # it was met, or its time is over
                        ctnetlink.delete_expectation(expectation)
                        yield _expectation_record(expectation, policies)

    # Where it comes from

    def _ask(
        self, number: int, what: str, seconds: float, **details: object
    ) -> Record | None:
        """What a process answers; None where it says nothing, or too much."""
        answer = self._asked[number].ask(what, seconds, **details)
        return None if answer is None or TOO_LONG in answer else answer

    def _policies(self) -> dict[str, tuple[str, ...]]:
        """The policies of each helper, in the kernel's order. Raises Refused."""
        state = self._ask(SUPERVISOR, "state", ANSWER_SECONDS)
        if state is None:
            raise Refused("busy", "the supervisor does not answer: try again")
        helpers: Mapping[str, Any] = cast(Mapping[str, Any], state["helpers"])
        return {name: tuple(each["policies"]) for name, each in helpers.items()}

    def _known(self) -> dict[FlowKey, Known]:
        """What the servers know of flows; nothing of one that does not answer."""
        known: dict[FlowKey, Known] = {}
        for number in self._asked.keys() - {SUPERVISOR}:
            at = 0
            while True:
                page = self._ask(number, "flows", ANSWER_SECONDS, at=at, most=_PAGE)
                rows = None if page is None else cast(list[list[Any]], page["flows"])
                if not rows:
                    break
                for key, finished in rows:
                    known[key] = Known(number, finished)
                at += len(rows)
        return known


def _branches(
    ctnetlink: Ctnetlink,
    wanted: Filter,
    policies: Mapping[str, tuple[str, ...]],
    *,
    others: bool = False,
) -> Iterator[Branch]:
    """The control flows that a filter means, with what is theirs."""
    # In this order: one that is met between the two is listed twice, and not never.
    expectations = ctnetlink.expectations()
    found = branches(ctnetlink.listed(), expectations, policies, others=others)
    return (each for each in found if meant(each, wanted))


def _narrow(request: Record) -> Filter:
    """The filter of a request that deletes. Raises ValueError where it means all."""
    wanted = Filter.read(request.get("filter", {}))
    if wanted.all and not request.get("all"):
        raise ValueError('nothing says which: give a filter, or "all"')
    return wanted


def _expectation_record(
    expectation: Expectation, policies: Mapping[str, tuple[str, ...]]
) -> Record:
    helper = expectation.helper
    return {
        "helper": helper,
        "flow": flow_record(expectation.master),
        "zone": expectation.zone,
        **expectation_record(expectation, policies.get(helper or "", ())),
    }


def _wanted(request: Record, master: Conntrack, policies: Sequence[str]) -> Expectation:
    """The expectation that a request asks for. Raises ValueError."""
    expects, policy = request.get("expects"), request.get("policy", policies[0])
    if not isinstance(expects, Mapping):
        raise ValueError("expects is no object")
    if policy not in policies:
        raise ValueError(
            f"{policy} is no policy of {master.helper}: {', '.join(policies)}"
        )
    source, port = expects.get("source"), expects.get("source_port")
    if port is not None and not (isinstance(port, int) and 0 < port <= 0xFFFF):
        raise ValueError(f"source port {port} is no number from 1 to 65535")
    destination = read_endpoint(expects.get("destination"))
    network = None if source is None else ip_network(str(source))
    if network is not None and network.version != destination.address.version:
        raise ValueError("source and destination are of two versions of IP")
    return Expectation(
        master=master.original,
        transport=read_transport(expects.get("transport")),
        source=network,
        source_port=port,
        destination=destination,
        policy=str(policy),
        timeout=0,
        class_=list(policies).index(str(policy)),
        permanent=bool(request.get("permanent")),
        helper=None,
        zone=master.zone,
    )


def _happened_record(
    event: Happened | int, policies: Mapping[str, tuple[str, ...]]
) -> Record:
    if isinstance(event, int):
        return {"event": "events-missed", "times": event}
    if isinstance(event.subject, Expectation):
        told = _expectation_record(event.subject, policies)
    else:
        master = event.subject.entry.master
        told = {
            **entry_record(event.subject),
            "master": None if master is None else flow_record(master),
        }
    return {"event": str(event.kind), **told}


def _told_of(event: Record, wanted: Filter) -> bool:
    """Whether an event is of a flow, or of flows, that a filter means."""
    if wanted.all:
        return True
    if wanted.helper not in (None, event.get("helper")):
        return False
    plain = replace(wanted, helper=None, state=None, zone=None)
    if plain.all:
        return True
    found = [event.get(key) for key in ("flow", "expects")]
    return any(
        plain.admits(Ends.told(each)) for each in found if isinstance(each, Mapping)
    )

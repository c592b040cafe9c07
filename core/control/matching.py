# SPDX-License-Identifier: GPL-2.0-or-later
"""Which flows a command means, in the words of conntrack(8)."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final, NamedTuple

from cthelper.core.netlink.listing import TCP_STATES, Listed
from cthelper.core.records import Record, read_endpoint, read_flow, read_transport
from cthelper.core.tuples import Address, Expectation, Network, Transport, Tuple

_TEXTS: Final = ("transport", "source", "destination", "helper", "state")
# What conntrack(8) shows of an entry in brackets, of UDP's too.
_UNREPLIED, _ASSURED = "UNREPLIED", "ASSURED"
STATES: Final = (*TCP_STATES, _UNREPLIED, _ASSURED)
"""What a filter may ask for."""

_NUMBERS: Final = {"sport": 0xFFFF, "dport": 0xFFFF, "zone": 0xFFFF}


class Ends(NamedTuple):
    """What a flow is, or may be: None stands for any, and a network for some of it."""

    transport: Transport
    source: Address | Network | None
    sport: int | None
    destination: Address
    dport: int

    @classmethod
    def of(cls, flow: Tuple) -> "Ends":
        """Those of a flow."""
        source, destination = flow.source, flow.destination
        return cls(
            flow.transport,
            *(source.address, source.port),
            *(destination.address, destination.port),
        )

    @classmethod
    def expected(cls, expectation: Expectation) -> "Ends":
        """Those that an expectation admits."""
        to = expectation.destination
        return cls(
            *(expectation.transport, expectation.source, expectation.source_port),
            *(to.address, to.port),
        )

    @classmethod
    def told(cls, record: Mapping[str, Any]) -> "Ends":
        """Those of a flow's record, or of what an expectation admits."""
        if "source_port" not in record:
            return cls.of(read_flow(record))
        to, source = read_endpoint(record["destination"]), record["source"]
        return cls(
            read_transport(record["transport"]),
            None if source is None else ip_network(source),
            record["source_port"],
            *(to.address, to.port),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Flows from and to networks and ports; what is None is not looked at.

    Source and destination are those of the original direction, as for ``conntrack -s``
    and ``-d``. `state` is one of STATES.
    """

    transport: Transport | None = None
    source: Network | None = None
    destination: Network | None = None
    sport: int | None = None
    dport: int | None = None
    helper: str | None = None
    state: str | None = None
    zone: int | None = None

    @classmethod
    def read(cls, record: object) -> "Filter":
        """What a request says. Raises ValueError, with what is wrong in one line."""
        if not isinstance(record, dict):
            raise ValueError("the filter is no object")
        known = {*_TEXTS, *_NUMBERS}
        if unknown := record.keys() - known:
            raise ValueError(f"the filter has no key {min(unknown)}")
        given = {key: value for key, value in record.items() if value is not None}
        for key, value in given.items():
            if key in _TEXTS and not isinstance(value, str):
                raise ValueError(f"{key} is no text")
            most = _NUMBERS.get(key)
            if most is not None and (
                not isinstance(value, int)
                or isinstance(value, bool)
                or not 0 <= value <= most
            ):
                raise ValueError(f"{key} {value} is no number from 0 to {most}")
        state, transport = given.get("state"), given.get("transport")
        if state is not None and state not in STATES:
            raise ValueError(f"{state} is no state: {', '.join(STATES)}")
        return cls(
            transport=None if transport is None else read_transport(transport),
            source=_network(given.get("source")),
            destination=_network(given.get("destination")),
            **{
                key: given.get(key)
                for key in ("sport", "dport", "helper", "state", "zone")
            },
        )

    def record(self) -> Record:
        """The request's."""
        found = {
            "transport": self.transport and str(self.transport),
            "source": self.source and str(self.source),
            "destination": self.destination and str(self.destination),
            "sport": self.sport,
            "dport": self.dport,
            "helper": self.helper,
            "state": self.state,
            "zone": self.zone,
        }
        return {key: value for key, value in found.items() if value is not None}

    @property
    def all(self) -> bool:
        """Whether it means all flows."""
        return self == Filter()

    def concerns(self, helper: str | None, zone: int) -> bool:
        """Whether flows with a helper, in a zone, may be what it says."""
        return self.helper in (None, helper) and self.zone in (None, zone)

    def admits(self, ends: Ends) -> bool:
        """Whether flows are from, to and of what it says.

        Those that may be from anywhere are not: whoever says where from means others.
        """
        return (
            self.transport in (None, ends.transport)
            and (self.source is None or _in(ends.source, self.source))
            and (self.destination is None or _in(ends.destination, self.destination))
            and self.sport in (None, ends.sport)
            and self.dport in (None, ends.dport)
        )


def in_state(listed: Listed, state: str) -> bool:
    """Whether an entry is in a state of TCP's, or unanswered, or assured."""
    if state == _UNREPLIED:
        return not listed.entry.answered
    if state == _ASSURED:
        return listed.entry.assured
    return listed.state == state


def expected(expectation: Expectation, wanted: Filter) -> bool:
    """Whether a filter means an expectation, by itself or by its control flow."""
    if wanted.state is not None:
        return False
    if not wanted.concerns(expectation.helper, expectation.zone):
        return False
    return any(
        map(wanted.admits, (Ends.expected(expectation), Ends.of(expectation.master)))
    )


def _in(where: Address | Network | None, network: Network) -> bool:
    if where is None or where.version != network.version:
        return False
    found = ip_network(where)
    return found.overlaps(network)


def _network(text: str | None) -> Network | None:
    return None if text is None else ip_network(text)

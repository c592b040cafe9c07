# SPDX-License-Identifier: GPL-2.0-or-later
"""What a gateway translated, seen from the side of it on which a capture was taken.

The two sides know a host by different addresses::

                on the client's side           on the server's side
    client      its own                        what `sources` has for it
    server      a key of `destinations`        its own, the value there

A capture shows one side's. Both tuples of a flow come out of it, and of who opened it:
the original one is what the opener's side shows, the reply tuple what the other one
does. Ports stay as they are, except those of expected flows (nf_nat_follow_master).
"""

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cthelper.core.errors import UsageError
from cthelper.core.nat import announcing
from cthelper.core.tuples import (
    ORIGINAL,
    Address,
    Endpoint,
    Expectation,
    Translation,
    Tuple,
)


class Side(enum.Enum):
    """Where a capture was taken: between client and gateway, or beyond that."""

    CLIENT = "client"
    SERVER = "server"


class Tuples(NamedTuple):
    """A flow's two tuples, and whether a host on the capture's side opened it."""

    original: Tuple
    reply: Tuple
    here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """The translated addresses, and the capture's side.

    `sources` has for a client's own address the one that servers know it by (source
    NAT, masquerading), `destinations` for the address that clients know a server by
    the server's own (destination NAT, port forwarding). Raises UsageError where the
    capture's side would show two hosts by one address.
    """

    sources: Mapping[Address, Address] = field(default_factory=dict)
    destinations: Mapping[Address, Address] = field(default_factory=dict)
    side: Side = Side.CLIENT
    # By the address that the capture's side shows, the one that the other side does:
    # of hosts on the capture's side, of hosts on the other one, and of both.
    _ours: Mapping[Address, Address] = field(init=False, repr=False, compare=False)
    _theirs: Mapping[Address, Address] = field(init=False, repr=False, compare=False)
    _beyond: Mapping[Address, Address] = field(init=False, repr=False, compare=False)
    # By the address that the other side shows, that of a host on the capture's side.
    _known: Mapping[Address, Address] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ours, theirs = self.sources, self.destinations
        if self.side is Side.SERVER:
            ours, theirs = _inverse(self.destinations), _inverse(self.sources)
        for address in ours:
            if address in theirs:
                raise UsageError(
                    f"{address} cannot mean a host on either side of the translation "
                    f"in a capture of the {self.side.value}'s side"
                )
        count = Counter(ours.values())
        known = {outside: own for own, outside in ours.items() if count[outside] == 1}
        object.__setattr__(self, "_ours", ours)
        object.__setattr__(self, "_theirs", theirs)
        object.__setattr__(self, "_beyond", {**ours, **theirs})
        object.__setattr__(self, "_known", known)

    def begin(self, seen: Tuple) -> Tuples:
        """The tuples of a flow whose first packet the capture shows as `seen`."""
        source, destination = seen.source.address, seen.destination.address
        here = source in self._ours or destination in self._theirs
        there = source in self._theirs or destination in self._ours
        if here == there:
            # Not through the gateway, or nothing of it is translated.
            return Tuples(seen, turned(seen), here=True)
        beyond = Tuple(
            seen.transport, self._other(seen.source), self._other(seen.destination)
        )
        if here:
            return Tuples(seen, turned(beyond), here=True)
        return Tuples(beyond, turned(seen), here=False)

    def follow(self, seen: Tuple, wanted: Expectation, master: Tuples) -> Tuples:
        """The tuples of a flow that met `wanted`, an expectation of `master`.

        It is translated as the master is (nf_nat_follow_master in nf_nat_helper.c), or,
        where `wanted` has no translation, as any flow is.
        """
        if wanted.translation is None:
            return self.begin(seen)
        if not _opened_here(wanted.translation, master):
            opener = Endpoint(self.opener(seen.source.address), seen.source.port)
            original = Tuple(seen.transport, opener, wanted.destination)
            return Tuples(original, turned(seen), here=False)
        sent = announcing(wanted.translation, master.original, master.reply)
        reply = Tuple(
            seen.transport,
            Endpoint(sent.source.address, wanted.translation.port),
            Endpoint(sent.destination.address, seen.source.port),
        )
        return Tuples(seen, reply, here=True)

    def shown(self, wanted: Expectation, master: Tuples) -> Endpoint:
        """Where the capture shows the first packet that meets `wanted` to go.

        The packet met it before translation, on its opener's side.
        """
        translation, end = wanted.translation, wanted.destination
        if translation is None:
            # Another host, which the user's own rules translate.
            return Endpoint(self._known.get(end.address, end.address), end.port)
        if _opened_here(translation, master):
            return end
        sent = announcing(translation, master.original, master.reply)
        return Endpoint(sent.source.address, translation.port)

    def opener(self, source: Address) -> Address:
        """The own address of the host that the capture shows as a packet's source."""
        return self._theirs.get(source, source)

    def _other(self, end: Endpoint) -> Endpoint:
        return Endpoint(self._beyond.get(end.address, end.address), end.port)


def turned(flow: Tuple) -> Tuple:
    """The tuple of the answers, as the same side shows them."""
    return Tuple(flow.transport, flow.destination, flow.source)


def _opened_here(translation: Translation, master: Tuples) -> bool:
    return master.here is (translation.direction is ORIGINAL)


def _inverse(addresses: Mapping[Address, Address]) -> dict[Address, Address]:
    """The keys by the values. Raises UsageError where two have one value."""
    result: dict[Address, Address] = {}
    for key, value in addresses.items():
        if value in result:
            raise UsageError(
                f"{result[value]} and {key} cannot be told apart on the server's side, "
                f"which shows both as {value}"
            )
        result[value] = key
    return result

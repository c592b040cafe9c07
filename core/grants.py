# SPDX-License-Identifier: GPL-2.0-or-later
"""What a helper wishes, and what is granted: expectations, or a refusal."""

import enum
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Protocol

from cthelper.core.api import Expect, Grant, Hook, Message, Policy, Source
from cthelper.core.config import HelperConfig
from cthelper.core.errors import ExpectationRefused, HelperFault
from cthelper.core.guard import Guard
from cthelper.core.ledger import Asker, Standing
from cthelper.core.nat import Opening, opening_for, ports
from cthelper.core.tuples import (
    Address,
    Conntrack,
    Endpoint,
    Expectation,
    Network,
    Tuple,
    host_network,
    key_of,
    version_of,
)

OnLink = Callable[[Address], tuple[Network, ...]]
"""The networks that an address is on-link with; raises ExpectationRefused if none."""

CHAINS: Final = 4096
"""Flows whose expected flows are inspected, too, of which the depth is known."""


class How(enum.StrEnum):
    """What the kernel has made of an expectation."""

    CREATED = "created"
    RENEWED = "renewed"
    """Its flow expected the same already."""
    SHARED = "shared"
    """Another flow expected the same already."""


@dataclass(slots=True)
class Placed:
    """An expectation that the kernel has.

    `flows` is how many may still come that it lets in, whoever asked for them; None:
    any number.
    """

    expectation: Expectation
    how: How
    flows: int | None

    def __init__(
        self,
        expectation: Expectation,
        how: How,
        flows: int | None,
    ) -> None:
        self.expectation = expectation
        self.how = how
        self.flows = flows


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What a flow has taken back of what it had labelled.

    `flows` is how many may still come that the expectation lets in, as others have
    asked for it: 0 where the kernel has it no more; None: any number.
    """

    expectation: Expectation
    flows: int | None


class Placer(Protocol):
    """Puts expectations of translated flows into the kernel, while a helper waits.

    Only the kernel knows which ports are taken, and the message must name the port. And
    it takes them out again.
    """

    def place(
        self, entry: Conntrack, expectations: Sequence[Expectation]
    ) -> Sequence[Placed] | None:
        """Put in all of them, or none; None: one overlaps another that leads elsewhere.

        Raises ExpectationRefused where the kernel refuses for another reason.
        """

    def withdraw(self, placed: Sequence[Placed]) -> None:
        """Take back what `place` has put in."""

    def revoke(self, entry: Conntrack, label: bytes) -> Sequence[Withdrawn]:
        """Take back what a flow has labelled, as far as it is there still."""


# Not frozen, which would treble what it costs to make one for each packet.
@dataclass(slots=True)
class Granted:
    """What answers a wish: expectations that the kernel has, or is still to be given.

    `wanted` are those that it has not got.
    """

    grant: Grant
    wanted: tuple[Expectation, ...]
    placed: tuple[Placed, ...]

    def __init__(
        self,
        grant: Grant,
        wanted: tuple[Expectation, ...] = (),
        placed: tuple[Placed, ...] = (),
    ) -> None:
        self.grant = grant
        self.wanted = wanted
        self.placed = placed


class Grants:
    """Grants wishes, within what the guard allows."""

    def __init__(self, guard: Guard, on_link: OnLink, placer: Placer | None) -> None:
        self.guard = guard
        self._on_link = on_link
        self._placer = placer
        # Depth of the flows that may expect others with their helper, by original
        # tuple and zone.
        self._chains: OrderedDict[tuple[Tuple, int], int] = OrderedDict()

    def depth(self, entry: Conntrack) -> int:
        """How many flows with the helper led to this one."""
        if entry.master is None:
            return 0
        return self._chains.get((entry.master, entry.zone), 0) + 1

    def grant(
        self, wish: Expect, message: Message, entry: Conntrack, config: HelperConfig
    ) -> Granted:
        """Grant a wish, with an expectation for each source network and port.

        Raises ExpectationRefused, and HelperFault for a policy that is not there.
        """
        class_, policy = find_policy(config.policies, wish)
        opening = self._opening(wish, message, entry, config)
        networks = self._networks(wish, opening)
        name = config.name
        # As the helper knows itself.
        helper = name if wish.helper == config.helper.name else wish.helper
        wanted: list[Expectation] = []
        for network in networks:
            expectation = Expectation(
                master=entry.original,
                transport=wish.transport or message.transport,
                source=network,
                source_port=wish.source_port,
                destination=opening.destination,
                policy=policy.name,
                timeout=policy.timeout,
                class_=class_,
                permanent=wish.permanent,
                helper=helper,
                zone=entry.zone,
                translation=opening.translation,
                label=wish.label,
            )
            wanted += _pair(expectation, pair=wish.pair)
        placer = self._placer
        if opening.translation is None or not entry.confirmed:
            placer = None
        asker = _asker(name, message, entry)
        moves = placer is not None
        self.guard.charge(message.now, asker, config.guard, wanted, moves=moves)
        if helper == name:
            self._chain(entry, message.depth)
        if placer is None:
            granted = Granted(Grant(opening.destination), tuple(wanted))
        else:
            granted = self._place(placer, wish, opening, wanted, entry, config)
            wanted = [each.expectation for each in granted.placed]
        self.guard.ledger.enter(message.now, asker, wanted, placed=moves)
        return granted

    def withdraw(self, granted: Granted) -> None:
        """Take back what was granted, for the receiver is not told of it."""
        self.guard.ledger.cancel(granted.wanted)
        if granted.placed and self._placer is not None:
            self._placer.withdraw(granted.placed)
            self.guard.ledger.remove(
                each.expectation for each in granted.placed if each.how is How.CREATED
            )

    def revoke(
        self, label: bytes, entry: Conntrack, pending: list[Granted]
    ) -> list[Withdrawn]:
        """Take back what a flow has labelled, and what of that others still need.

        What is `pending` was granted for the same packet, and nobody was told.
        """
        untold: list[Expectation] = []
        for granted in list(pending):
            placed = [each.expectation for each in granted.placed]
            (first, *_) = [*granted.wanted, *placed]
            if first.label == label:
                pending.remove(granted)
                self.guard.ledger.cancel(granted.wanted)
                untold += placed
        if self._placer is None:
            return []
        withdrawn = self._placer.revoke(entry, label)
        self.guard.ledger.remove(
            each.expectation for each in withdrawn if each.flows == 0
        )
        return [each for each in withdrawn if each.expectation not in untold]

    def _opening(
        self, wish: Expect, message: Message, entry: Conntrack, config: HelperConfig
    ) -> Opening:
        # An expected flow comes in, and its master has been judged.
        local_only = Hook.PREROUTING not in config.hooks and not message.depth
        if message.forwarded and local_only:
            raise ExpectationRefused(
                "forwarded",
                f"{message.source} is another host, and hooks lacks prerouting",
            )
        announcer = message.source.address
        if entry.translated and not config.helper.nat:
            name = config.name
            raise ExpectationRefused(
                "nat", f"{entry.original} is translated, which {name} does not support"
            )
        endpoint = wish.endpoint
        if wish.alternative and not config.guard.allows(announcer, endpoint):
            raise ExpectationRefused(
                "other-address",
                f"{announcer} announced {endpoint}, which it may not by guard.allow",
            )
        opening = opening_for(entry, message.direction, endpoint, config.nat.outside)
        if opening.translation is not None:
            # The announcer itself, though it may have named the address that the other
            # side knows it by.
            endpoint = Endpoint(announcer, endpoint.port)
        self.guard.check(endpoint, announcer, config.guard)
        if wish.pair:
            second = Endpoint(endpoint.address, endpoint.port + 1)
            self.guard.check(second, announcer, config.guard)
        if version_of(endpoint.address) != version_of(announcer):
            raise ExpectationRefused(
                "address-family", f"{endpoint} on a flow of IPv{announcer.version}"
            )
        return opening

    def _networks(self, wish: Expect, opening: Opening) -> tuple[Network | None, ...]:
        match wish.source:
            case Source.PEER:
                return (host_network(opening.source),)
            case Source.ON_LINK:
                return self._on_link(wish.endpoint.address)
            case Source.ANY:
                return (None,)
            case IPv4Network() | IPv6Network():
                if wish.source.version != wish.endpoint.address.version:
                    raise HelperFault(f"source {wish.source} for {wish.endpoint}")
                return (wish.source,)

    def _place(
        self,
        placer: Placer,
        wish: Expect,
        opening: Opening,
        wanted: Sequence[Expectation],
        entry: Conntrack,
        config: HelperConfig,
    ) -> Granted:
        """Have the kernel take the expectations, with another port if need be."""
        announced = opening.destination.port
        candidates = ports(announced, config.guard.lowest_port, pair=wish.pair)
        for port in candidates if opening.any_port else (announced,):
            moved = [_moved(each, port - announced) for each in wanted]
            if any(
                each.destination.port in config.guard.denied_ports
                or (port != announced and config.guard.refusal(each.destination.port))
                for each in moved
            ):
                continue
            placed = placer.place(entry, moved)
            if placed is not None:
                grant = Grant(Endpoint(opening.destination.address, port))
                return Granted(grant, placed=tuple(placed))
        raise ExpectationRefused(
            "kernel-ebusy", f"{opening.destination} and others in its place are taken"
        )

    def _chain(self, entry: Conntrack, depth: int) -> None:
        """Remember how deep the master of a flow that is to be inspected is."""
        key = entry.original, entry.zone
        self._chains[key] = depth
        self._chains.move_to_end(key)
        if len(self._chains) > CHAINS:
            self._chains.popitem(last=False)


def _asker(helper: str, message: Message, entry: Conntrack) -> Asker:
    """For whom a message asks."""
    if entry.assured or not message.forwarded:
        standing = Standing.PROVEN
    else:
        standing = Standing.ANSWERED if entry.answered else Standing.UNANSWERED
    # Behind destination NAT servers are told apart by their own addresses.
    server = None if message.group else entry.reply.source.address
    return Asker(helper, entry.original.source.address, server, standing, key_of(entry))


def _pair(expectation: Expectation, *, pair: bool) -> list[Expectation]:
    """An expectation, and with `pair` that of the next port, translated alike."""
    if not pair:
        return [expectation]
    translation = expectation.translation
    if translation is not None:
        translation = replace(translation, port=translation.port + 1)
    second = replace(_moved(expectation, 1), translation=translation)
    return [expectation, second]


def _moved(expectation: Expectation, distance: int) -> Expectation:
    """The expectation with another port for the receiver to go to."""
    end = expectation.destination
    return replace(expectation, destination=Endpoint(end.address, end.port + distance))


def find_policy(policies: tuple[Policy, ...], wish: Expect) -> tuple[int, Policy]:
    """The policy that a wish names, and its class. Raises HelperFault."""
    for class_, policy in enumerate(policies):
        if policy.name == wish.policy:
            return class_, policy
    known = ", ".join(policy.name for policy in policies)
    raise HelperFault(f"no policy {wish.policy!r}, known are {known}")

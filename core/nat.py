# SPDX-License-Identifier: GPL-2.0-or-later
"""Announced endpoint to granted endpoint.

A conntrack entry has two tuples: `original` is what the client sends, `reply` what the
server sends. Without NAT one is the other turned round. With it each side has an
address of its own and one that the other side knows it by::

                     sends as                   is known to the other side as
    client           original.source            reply.destination     (source NAT)
    server           reply.source               original.destination  (destination NAT)

The receiver of an announcement opens the flow. Its first packet meets the expectation
before any translation, so that source and destination are those that the receiver
itself knows; and that is what the announcement must say when it arrives there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cthelper.core.errors import ExpectationRefused
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Address,
    Conntrack,
    Direction,
    Endpoint,
    Translation,
    Tuple,
    same,
)

PORT_ATTEMPTS: Final = 32
"""Ports that are tried where others are taken."""


# Not frozen, which would treble what it costs to make one for each packet.
@dataclass(slots=True)
class Opening:
    """The expected flow's two sides, as the kernel sees its first packet.

    `any_port` is whether the receiver may be told another port than the announced one.
    """

    source: Address
    destination: Endpoint
    translation: Translation | None
    any_port: bool

    def __init__(
        self,
        source: Address,
        destination: Endpoint,
        translation: Translation | None = None,
        any_port: bool = False,
    ) -> None:
        self.source = source
        self.destination = destination
        self.translation = translation
        self.any_port = any_port


def opening_for(
    entry: Conntrack,
    direction: Direction,
    endpoint: Endpoint,
    outside: Mapping[Address, Address],
) -> Opening:
    """Who opens a flow, and to where, after `endpoint` went by in `direction`.

    Where the announcer announced itself, the expected flow is translated as the master
    is. Where its address is translated, another host is known to the receiver by the
    address that `outside` has for it, and there the user's own rules translate. Raises
    ExpectationRefused with reason ``nat`` where nothing tells what that host is known
    by.
    """
    ours, theirs = entry.original, entry.reply
    if direction is ORIGINAL:
        own, seen_as = ours.source, theirs.destination
        receiver, opens = theirs.source.address, REPLY
    else:
        own, seen_as = theirs.source, ours.destination
        receiver, opens = ours.source.address, ORIGINAL
    announcer, known = own.address, seen_as.address
    address, port = endpoint.address, endpoint.port
    alike = same(known, announcer)
    if same(address, announcer) or same(address, known):
        # The port that the flow itself comes from may be translated, too.
        itself = endpoint == own
        return Opening(
            receiver,
            seen_as if itself else Endpoint(known, port),
            Translation(opens, port) if entry.translated else None,
            any_port=not (alike or itself),
        )
    if alike:
        # The receiver is on the announcer's side, and knows its hosts as they are.
        return Opening(receiver, endpoint)
    if address not in outside:
        raise ExpectationRefused(
            "nat",
            f"{announcer} is translated to {known}, "
            f"and nat.outside has no address for {address}",
        )
    return Opening(receiver, Endpoint(outside[address], port))


def announcing(translation: Translation, original: Tuple, reply: Tuple) -> Tuple:
    """The tuple in which the announcer sends on the master, which has these two.

    Its addresses are those that the expected flow gets (nf_nat_follow_master).
    """
    return reply if translation.direction is ORIGINAL else original


def leads(
    translation: Translation | None, original: Tuple, reply: Tuple
) -> tuple[Translation, Address, Address] | None:
    """All that says where an expected flow is led, its master having these tuples.

    None: nowhere else.
    """
    if translation is None:
        return None
    sent = announcing(translation, original, reply)
    return translation, sent.source.address, sent.destination.address


def ports(wanted: int, lowest: int, *, pair: bool) -> Iterator[int]:
    """The wanted port and others in its place, PORT_ATTEMPTS at most, none twice.

    None is below `lowest`. With `pair` the next higher port is free to be used as well:
    each is as odd or even as the wanted one.
    """
    step = 2 if pair else 1
    last = 0xFFFF - pair
    first = lowest + (wanted - lowest) % step
    port = wanted
    for _ in range(min(PORT_ATTEMPTS, (last - first) // step + 1)):
        yield port
        port += step
        if port > last:
            port = first

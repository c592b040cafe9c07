# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes of packets are replaced by what was granted, or it is told why not."""

from typing import Final

from cthelper.core.errors import HelperFault
from cthelper.core.flows import Side
from cthelper.core.outcome import Located, Outcome, Refused
from cthelper.core.packet import replace_payload
from cthelper.core.patches import Patch, Patches
from cthelper.core.tuples import TCP

_GROWN_LIMIT: Final = 1280
"""Bytes of a packet that a rewrite has made longer: every link takes so many (RFC 8200,
section 5). A longer one might have to be fragmented, which TCP forbids."""


def check(
    packet: Located, side: Side, earlier: list[Patch], patches: list[Patch]
) -> Refused | None:
    """Why the patches of a message cannot be made to its packet; None: they can.

    `earlier` are those of the packet's earlier messages. Raises HelperFault.
    """
    data = packet.payload
    over_tcp = packet.segment.transport is TCP
    if any(each.length < 0 for each in patches):
        raise HelperFault("rewrite of a span that ends before it begins")
    if over_tcp and not packet.entry.translated:
        raise HelperFault("rewrite of a TCP segment on a flow without NAT")
    if not all(each.is_inside(packet.sequence, len(data)) for each in patches):
        if not over_tcp:
            raise HelperFault("rewrite of a span that leaves the datagram")
        return Refused(
            "rewrite-passed", "bytes to be rewritten have gone on already", None
        )
    grown = sum(len(each.data) - each.length for each in patches)
    length = packet.segment.stop + grown
    if grown > 0 and length > _GROWN_LIMIT:
        return Refused("rewrite-too-long", f"a packet of {length} bytes", None)
    trial = Patches(side.patches or ())
    trial.add([*earlier, *patches])
    trial.apply(packet.sequence, data)
    return None


def rewrite(packet: Located, side: Side, outcome: Outcome) -> bytes | None:
    """The packet that takes the place of this one, or None."""
    patches = side.patches or Patches()
    if outcome.patches:
        patches.add(outcome.patches)
        if packet.segment.transport is TCP:
            side.patches = patches
    data = packet.payload
    result = patches.apply(packet.sequence, data)
    if result is None:
        outcome.unrewritable = True
        outcome.events.append(
            Refused("rewrite-cut", "a segment has a part of what was rewritten", None)
        )
        return None
    if result == data:
        return None
    return replace_payload(bytes(packet.data), packet.segment, result)

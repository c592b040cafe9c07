# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes of packets are replaced by what was granted, all of a packet's or none."""

from collections.abc import Sequence
from typing import Final

from cthelper.core.errors import HelperFault, RewriteRefused
from cthelper.core.flows import Side
from cthelper.core.outcome import Located
from cthelper.core.packet import COPIED, replace_payload
from cthelper.core.patches import Patch, Patches
from cthelper.core.tuples import TCP

_GROWN_LIMIT: Final = 1280
"""Bytes of a packet that a rewrite has made longer: every link takes so many (RFC 8200,
section 5). A longer one might have to be fragmented, which TCP forbids."""


def rewrite(
    packet: Located,
    side: Side,
    patches: Sequence[Patch] = (),
    acknowledged: int | None = None,
) -> bytes | None:
    """The packet that takes the place of this one; None: it stays as it is.

    With `patches`, and with those that were made to its bytes when they came before.
    `acknowledged` is what the receiver has. Raises RewriteRefused where not all of them
    can be made, and then keeps none of the new ones; HelperFault where they must not.
    """
    data = packet.payload
    made = side.patches or Patches()
    if patches:
        _check(packet, patches)
        made = made.plus(patches, acknowledged)
    result = made.apply(packet.sequence, data)
    if result is None:
        raise RewriteRefused(
            "rewrite-cut", "a segment has a part of what was rewritten"
        )
    replacement = None
    if result != data:
        length = packet.segment.start + len(result)
        if patches and len(result) > len(data) and length > _GROWN_LIMIT:
            raise _too_long(length)
        # What takes the place of a packet that was copied in part would lack the rest.
        length = max(length, len(packet.data))
        if length >= COPIED:
            raise _too_long(length)
        replacement = replace_payload(bytes(packet.data), packet.segment, result)
    if patches and packet.segment.transport is TCP:
        side.patches = made
    return replacement


def _too_long(length: int) -> RewriteRefused:
    return RewriteRefused("rewrite-too-long", f"a packet of {length} bytes")


def _check(packet: Located, patches: Sequence[Patch]) -> None:
    """Raise HelperFault or RewriteRefused for patches that are none of this packet."""
    over_tcp = packet.segment.transport is TCP
    if any(each.length < 0 for each in patches):
        raise HelperFault("rewrite of a span that ends before it begins")
    if over_tcp and not packet.entry.translated:
        raise HelperFault("rewrite of a TCP segment on a flow without NAT")
    size = packet.segment.stop - packet.segment.start
    inside = all(each.is_inside(packet.sequence, size) for each in patches)
    if not inside and not over_tcp:
        raise HelperFault("rewrite of a span that leaves the datagram")
    # A segment may repeat bytes, joined with those that complete a message.
    if not inside or any(_came(packet, each) for each in patches):
        raise RewriteRefused(
            "rewrite-passed", "bytes to be rewritten have gone on already"
        )


def _came(packet: Located, patch: Patch) -> bool:
    """Whether some of what a patch replaces went on before, as it was."""
    start = patch.offset(packet.sequence)
    stop = start + max(patch.length, 1)
    return any(first < stop and start < last for first, last in packet.came)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Announced endpoint to granted endpoint, and rewrites to a payload."""

from collections.abc import Sequence
from dataclasses import dataclass

from cthelper.core.api import Rewrite
from cthelper.core.errors import ExpectationRefused, HelperFault
from cthelper.core.tuples import ORIGINAL, Address, Conntrack, Direction, Endpoint


@dataclass(frozen=True, slots=True)
class Opening:
    """The expected flow's two sides, as the kernel sees its first packet."""

    source: Address
    destination: Endpoint


def grant(entry: Conntrack, direction: Direction, endpoint: Endpoint) -> Opening:
    """Who opens a flow, and to where, after `endpoint` went by in `direction`.

    The receiver of the message opens the flow. Its packets meet the expectation before
    any translation, so both sides are those that the receiver itself knows. Where the
    announcer is translated, the receiver knows it by another address than the one that
    it announced: refused with reason ``nat``. The receiver may be translated
    (masquerade): the user's own rules then translate the expected flow as well.
    """
    ours, theirs = entry.original, entry.reply
    if direction is ORIGINAL:
        announcer, as_known = ours.source, theirs.destination
        receiver = theirs.source
    else:
        announcer, as_known = theirs.source, ours.destination
        receiver = ours.source
    if announcer.address != as_known.address:
        raise ExpectationRefused(
            "nat", f"{announcer.address} is translated to {as_known.address}"
        )
    return Opening(receiver.address, endpoint)


def rewritten(payload: bytes, rewrites: Sequence[Rewrite]) -> bytes:
    """`payload` with all `rewrites` done; each span counts from its old beginning.

    Raises HelperFault where spans overlap or leave the payload.
    """
    result = payload
    limit = len(payload)
    for rewrite in sorted(rewrites, key=lambda each: each.span)[::-1]:
        start, stop = rewrite.span
        if not 0 <= start <= stop <= limit:
            raise HelperFault(
                f"rewrite of {start}..{stop} in a payload of {len(payload)} bytes "
                "overlaps another or leaves it"
            )
        result = result[:start] + rewrite.data + result[stop:]
        limit = start
    return result

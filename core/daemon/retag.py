# SPDX-License-Identifier: GPL-2.0-or-later
"""UDP entries that began before the ruleset: deleted, so that they begin anew, tagged.

The kernel attaches a helper to a flow only at its first packet, and a busy UDP flow (a
host's mDNS) never ends. From Linux 7.2 on it may name one that was unregistered since.
A TCP flow is left alone: begun in mid-stream it is of no use to a helper.
"""

from collections.abc import Collection
from contextlib import suppress

from cthelper.core.config import HelperConfig
from cthelper.core.errors import NotFound
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.tuples import UDP, Conntrack


def retag(ctnetlink: Ctnetlink, helpers: Collection[HelperConfig]) -> int:
    """Delete the UDP entries without a helper that a rule would tag; how many.

    An entry does not tell its interface, so a rule's interfaces are not considered.
    Raises NetlinkError.
    """
    deleted = 0
    for entry in ctnetlink.entries():
        if entry.original.transport is not UDP:
            continue
        if not any(config.tags(entry.original) for config in helpers):
            continue
        with suppress(NotFound):  # it has ended by itself
            if not _is_tagged(ctnetlink, entry):
                ctnetlink.delete(entry.original, entry.zone)
                deleted += 1
    return deleted


def _is_tagged(ctnetlink: Ctnetlink, entry: Conntrack) -> bool:
    helper = entry.helper
    return helper is not None and ctnetlink.is_attached(
        entry.original, helper, entry.zone
    )

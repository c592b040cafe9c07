# SPDX-License-Identifier: GPL-2.0-or-later
"""UDP entries that began before the ruleset: deleted, so that they begin anew, tagged.

The kernel attaches a helper to a flow only at its first packet, and a busy UDP flow (a
host's mDNS) never ends. A TCP flow is left alone: begun in mid-stream it is of no use
to a helper.
"""

from collections.abc import Iterable

from cthelper.core.config import HelperConfig
from cthelper.core.errors import NotFound
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.tuples import UDP


def retag(ctnetlink: Ctnetlink, helpers: Iterable[HelperConfig]) -> int:
    """Delete the untagged UDP entries that a helper's rules would tag; how many.

    An entry does not tell its interface, so a rule's interfaces are not considered.
    Raises NetlinkError.
    """
    deleted = 0
    for entry in ctnetlink.entries():
        if entry.helper is not None or entry.original.transport is not UDP:
            continue
        if any(config.tags(entry.original) for config in helpers):
            try:
                ctnetlink.delete(entry.original, entry.zone)
            except NotFound:
                continue
            deleted += 1
    return deleted

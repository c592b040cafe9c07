# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``cthelper ruleset`` does to the kernel: registrations and table together."""

import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final

from cthelper import nft
from cthelper.core.config import Config, HelperConfig
from cthelper.core.daemon.retag import retag
from cthelper.core.errors import Busy, NetlinkError, RestartNeeded
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import (
    FAMILIES,
    HelperTable,
    Registration,
    other_policies,
)
from cthelper.core.queue.binding import bound_queues

ASKED_WITH: Final = "cthelper-probe"
"""The helper that the kernel is asked with, see probe.py."""

# nft frees a table's objects a moment after it answers (a work queue of nf_tables).
_RELEASE_SECONDS: Final = 5.0
_RELEASE_PAUSE: Final = 0.02


def registrations(helpers: Iterable[HelperConfig]) -> list[Registration]:
    """The registrations that these helpers need: a family and a transport each."""
    return [
        Registration(
            name=config.name,
            family=family,
            transport=transport,
            queue=config.queue,
            policies=config.policies,
        )
        for config in helpers
        for family in FAMILIES
        for transport in sorted(config.helper.transports)
    ]


def absent(helpers: HelperTable, config: Config) -> list[Registration]:
    """The registrations that are needed and not there. Raises NetlinkError."""
    present = {each.key for each in helpers.list()}
    needed = registrations(config.helpers.values())
    return [each for each in needed if each.key not in present]


def register(
    helpers: HelperTable,
    wanted: Iterable[Registration],
    *,
    keeps_limits: Callable[[], bool],
) -> None:
    """Register helpers, and change those that are registered otherwise.

    Raises NetlinkError, and RestartNeeded, before any is changed, where the kernel
    cannot change one: its policies are others, or it would get the first one's limits
    in all of them, for which `keeps_limits` is asked (`Kernel`).
    """
    present = {each.key: each for each in helpers.list()}
    pending = [each for each in wanted if present.get(each.key) != each]
    for each in pending:
        before = present.get(each.key)
        if before is None:
            continue
        if _names(before) != _names(each):
            raise other_policies(each)
        limits = {(policy.max_expected, policy.timeout) for policy in each.policies}
        if len(limits) > 1 and not keeps_limits():
            raise RestartNeeded(
                f"helper {each} is registered otherwise, and this kernel mixes up the "
                "limits of a helper that is changed: restart cthelper to replace it"
            )
    for each in pending:
        helpers.put(each)


def _names(registration: Registration) -> list[str]:
    return [policy.name for policy in registration.policies]


def check(config: Config) -> None:
    """Have the kernel check the ruleset.

    Helpers that are registered stay as they are, so that a running daemon's limits do
    not change; the others are registered while it checks. Raises CthelperError.
    """
    with closing(HelperTable()) as helpers:
        added = absent(helpers, config)
        try:
            for registration in added:
                helpers.put(registration)
            nft.check(config)
        finally:
            unregister(helpers, added)


def install(
    config: Config,
    *,
    retag_flows: bool,
    keeps_limits: Callable[[], bool],
    hands_down: Callable[[], bool],
) -> int | None:
    """Register the helpers and load the ruleset.

    How many conntrack entries were deleted to be tagged anew, or None where that was
    not asked for. Raises CthelperError. What the kernel does (`Kernel`) is asked where
    it matters.
    """
    wanted = registrations(config.helpers.values())
    with closing(HelperTable()) as helpers:
        try:
            register(helpers, wanted, keeps_limits=keeps_limits)
        except RestartNeeded:
            # Of whatever number: the file may say another one than the daemon has.
            if bound_queues():
                raise
            nft.remove()
            unregister(helpers, wanted)
            register(helpers, wanted, keeps_limits=keeps_limits)
    goes_on = any(each.tags_expected for each in config.helpers.values())
    nft.install(config, hands_down=goes_on and hands_down())
    if not retag_flows:
        return None
    with closing(Ctnetlink()) as ctnetlink:
        return retag(ctnetlink, config.helpers.values())


def remove() -> list[str]:
    """Delete the table, and the helpers of ours whose queue nobody serves.

    Ours are those that the kernel has and that are not enabled, whatever has registered
    them: no configuration is asked. The names of those that a daemon serves. Raises
    CthelperError.
    """
    nft.remove()
    served = bound_queues()
    with closing(HelperTable()) as helpers:
        ours = [each for each in helpers.list() if not each.enabled]
        if any(each.queue in served for each in ours):
            # It goes at the daemon's end.
            ours = [each for each in ours if each.name != ASKED_WITH]
        unregister(helpers, (each for each in ours if each.queue not in served))
    return sorted({each.name for each in ours if each.queue in served})


def unregister(helpers: HelperTable, unwanted: Iterable[Registration]) -> None:
    """Unregister helpers, waiting for nft to let go of them.

    One that somebody else's ruleset keeps does not keep the others. Raises
    NetlinkError, once all have been tried.

    Let no packet wait in a queue meanwhile: when a helper goes, the kernel drops them
    all (nf_ct_iterate_destroy in nf_conntrack_core.c).
    """
    deadline = time.monotonic() + _RELEASE_SECONDS
    kept: NetlinkError | None = None
    for registration in unwanted:
        try:
            while not _deleted(helpers, registration, deadline):
                time.sleep(_RELEASE_PAUSE)
        except NetlinkError as error:
            kept = kept or error
    if kept is not None:
        raise kept


def _deleted(helpers: HelperTable, registration: Registration, deadline: float) -> bool:
    """Delete a helper; whether that went. Raises NetlinkError; Busy only when late."""
    try:
        helpers.delete(registration)
    except Busy:
        if time.monotonic() > deadline:
            raise
        return False
    return True

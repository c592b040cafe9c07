# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's table of expectations, as the ledger wants to know it."""

import os
from pathlib import Path
from typing import Final

from cthelper.core.errors import CthelperError, NetlinkError, NotFound
from cthelper.core.ledger import Room
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.tuples import Expectation

MOST: Final = Path("/proc/sys/net/netfilter/nf_conntrack_expect_max")


class ExpectationTable:
    """What is asked of the table; what it does not answer is taken for the better.

    The file is opened once, since a server that has given up its rights may open none.
    """

    def __init__(self, ctnetlink: Ctnetlink, most: Path = MOST) -> None:
        self._ctnetlink = ctnetlink
        try:
            self._most: int | None = os.open(most, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._most = None

    def lives(self, expectation: Expectation) -> bool:
        """Whether the kernel has this expectation, or one that covers it."""
        try:
            self._ctnetlink.covering(expectation)
        except NotFound:
            return False
        except NetlinkError:
            return True
        return True

    def room(self) -> Room | None:
        """How full the table is; None: the kernel does not say."""
        if self._most is None:
            return None
        try:
            most = int(os.pread(self._most, 32, 0))
            return Room(self._ctnetlink.expectation_count(), most)
        except (OSError, ValueError, CthelperError):
            return None

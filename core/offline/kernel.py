# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of conntrack as the daemon's parts ask the kernel: with ctnetlink's errors.

What puts in expectations and what cares for masters are the daemon's own.
"""

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mypy_extensions import mypyc_attr

from cthelper.core.errors import AlreadyExists, NetlinkError, NotFound
from cthelper.core.offline.conntrack import Table
from cthelper.core.offline.entries import Entry, Expected
from cthelper.core.offline.expectations import Outcome
from cthelper.core.tuples import Conntrack, Expectation, Tuple

ERRNO: Final = {
    Outcome.CLASH: errno.EBUSY,
    Outcome.FULL: errno.EMFILE,
    Outcome.ALREADY: errno.EALREADY,
    Outcome.INVALID: errno.EINVAL,
    Outcome.NO_MASTER: errno.ENOENT,
    Outcome.NO_HELPER: errno.EOPNOTSUPP,
}
"""What the kernel answers where it refuses."""


# For tests, which make a kernel that refuses more.
@mypyc_attr(allow_interpreted_subclasses=True)
class ModelKernel:
    """Requests to a table, whose time is `now`. `frame` is what is looked at."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.frame = 0

    @property
    def now(self) -> float:
        """The table's clock, which moves forward only."""
        return self._table.now

    @now.setter
    def now(self, now: float) -> None:
        self._table.now = now

    # Entries

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        """The entry with this original tuple. Raises NotFound."""
        return self._find(original).conntrack(self.now)

    def update(
        self,
        original: Tuple,
        zone: int = 0,
        *,
        timeout: int | None = None,
        mark: tuple[int, int] | None = None,
    ) -> None:
        """Set an entry's timeout, or mark it as finished. Raises NotFound."""
        entry = self._find(original)
        if timeout is not None:
            self._table.keep(self.now, entry, timeout)
        if mark is not None:
            self._table.leave(entry)

    def _find(self, original: Tuple) -> Entry:
        entry = self._table.find(original)
        if entry is None:
            raise NotFound.of(errno.ENOENT, f"get conntrack entry {original}")
        return entry

    # Expectations

    def expect(self, expectation: Expectation) -> None:
        """Put in an expectation. Raises what the kernel says, AlreadyExists for one."""
        if self._table.covering(self.now, expectation) is not None:
            raise AlreadyExists.of(errno.EEXIST, f"expect {expectation}")
        self._put(expectation)

    def covering(self, expectation: Expectation) -> Expectation:
        """The one in the table that covers this one. Raises NotFound."""
        present = self._table.covering(self.now, expectation)
        if present is None:
            raise NotFound.of(errno.ENOENT, f"get expectation {expectation}")
        return self._told(present)

    def towards(self, expectation: Expectation) -> list[Expectation]:
        """Those in the table that lead to the same destination."""
        return list(map(self._told, self._table.towards(self.now, expectation)))

    def renew(self, expectation: Expectation, seconds: int) -> None:
        """Set what is left of the life of the one that covers this one."""
        self._put(replace(expectation, timeout=seconds))

    def replace_expectations(
        self, old: Sequence[Expectation], new: Expectation, seconds: int
    ) -> None:
        """Put in one for so many seconds in place of others, gone or not.

        It was made in the frame that the first of them was made in. Raises NotFound
        where its master is gone, for one.
        """
        found = [self._table.covering(self.now, each) for each in old]
        present = [each for each in found if each is not None]
        master = self._master(new)
        self._check(
            self._table.replace(self.now, present, master, new, self.frame), new
        )
        self.renew(new, seconds)

    def delete_expectation(self, expectation: Expectation) -> None:
        """Take one out, if it is there."""
        self._table.withdraw(expectation)

    def _put(self, expectation: Expectation) -> None:
        master = self._master(expectation)
        outcome, _ = self._table.expect(self.now, master, expectation, self.frame)
        self._check(outcome, expectation)

    def _master(self, expectation: Expectation) -> Entry:
        master = self._table.find(expectation.master)
        if master is None:
            raise NotFound.of(errno.ENOENT, f"expect {expectation}")
        return master

    def _check(self, outcome: Outcome, expectation: Expectation) -> None:
        if outcome in ERRNO:
            raise NetlinkError.of(ERRNO[outcome], f"expect {expectation}")

    def _told(self, present: Expected) -> Expectation:
        """An expectation as the kernel tells it: the helper is its master's."""
        return replace(
            present.expectation,
            timeout=max(0, int(present.expires - self.now)),
            helper=present.helper or None,
            policy=None,
        )

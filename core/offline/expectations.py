# SPDX-License-Identifier: GPL-2.0-or-later
"""The model's table of expectations: what becomes of one, and which flow meets it."""

import enum
from collections.abc import Callable

from cthelper.core.nearest import End
from cthelper.core.offline.entries import Entry, Expected, destination_key, tuple_of
from cthelper.core.offline.nat import Nat
from cthelper.core.tuples import Expectation, Transport


class Outcome(enum.Enum):
    """What becomes of an expectation. Refusals are the reason codes of the log."""

    CREATED = "created"
    REFRESHED = "refreshed"
    CLASH = "kernel-ebusy"
    FULL = "kernel-emfile"
    ALREADY = "kernel-ealready"
    INVALID = "kernel-einval"
    NO_MASTER = "kernel-enoent"
    NO_HELPER = "kernel-enotsup"


class Expectations:
    """The table of expectations.

    `nat` is what was translated where the packets were seen, `most` how many there may
    be (nf_conntrack_expect_max). `destroy` is told of a master that is found to have
    ended, and has its expectations forgotten. `on_end` is told of each expectation that
    ends, and how.
    """

    def __init__(
        self,
        nat: Nat | None,
        most: int,
        destroy: Callable[[Entry], None],
        on_end: Callable[[Expected, End], None] | None = None,
    ) -> None:
        self._nat = nat
        self._most = most
        self._destroy = destroy
        self._on_end = on_end
        self._count = 0
        # By their destinations, and by what the capture shows of those.
        self._expected: dict[bytes, list[Expected]] = {}
        self._shown = self._expected if nat is None else {}

    def put(
        self, now: float, master: Entry, expectation: Expectation, frame: int
    ) -> tuple[Outcome, Expected | None]:
        """Put in an expectation of `master`; where it is there, the one in the table.

        For a confirmed master as ctnetlink does it on EXP_NEW (ctnetlink_new_expect in
        nf_conntrack_netlink.c): one that covers the same, whoever's, is refreshed. For
        another as in a verdict (ctnetlink_glue_attach_expect).
        """
        name = "" if master.helper is None else master.helper.name
        wanted = Expected(expectation, master, frame, name)
        if self._nat is not None:
            end = self._nat.shown(expectation, master.tuples)
            wanted.shown = destination_key(expectation.transport, end)
        rivals = self._expected.get(wanted.key, [])
        self._expire(now, rivals)
        if master.confirmed:
            # Found before anybody asks for the master.
            for rival in rivals:
                if rival.takes(wanted.source, wanted.port):
                    rival.expires = now + expectation.timeout
                    return Outcome.REFRESHED, rival
            if master.expires <= now:
                self._destroy(master)
        if master.gone:
            return Outcome.NO_MASTER, None
        if master.helper is None:
            return Outcome.NO_HELPER, None
        if wanted.class_ >= len(master.helper.policies):
            return Outcome.INVALID, None
        # __nf_ct_expect_check in nf_conntrack_expect.c.
        for rival in list(rivals):
            if rival.master is master and rival.equals(wanted):
                if rival.class_ != wanted.class_:
                    return Outcome.ALREADY, None
                self._remove(rival, End.EVICTED)
                break
            if rival.clashes(wanted):
                return Outcome.CLASH, None
        policy = master.helper.policies[wanted.class_]
        alike = [
            each
            for each in master.expectations
            if each.expires > now and each.class_ == wanted.class_
        ]
        if len(alike) >= policy.max_expected:
            self._remove(alike[-1], End.EVICTED)
        if self._count >= self._most:
            self.live(now)
            if self._count >= self._most:
                return Outcome.FULL, None
        wanted.expires = now + policy.timeout
        master.expectations.insert(0, wanted)
        self._expected.setdefault(wanted.key, []).insert(0, wanted)
        if self._nat is not None:
            self._shown.setdefault(wanted.shown, []).insert(0, wanted)
        self._count += 1
        return Outcome.CREATED, wanted

    def covering(self, now: float, expectation: Expectation) -> Expected | None:
        """The expectation in the table that covers this one (__nf_ct_expect_find)."""
        network = expectation.source
        source = 0 if network is None else int(network.network_address)
        for each in self.towards(now, expectation):
            if each.takes(source, expectation.source_port or 0):
                return each
        return None

    def towards(self, now: float, expectation: Expectation) -> list[Expected]:
        """Those in the table that lead to the same destination."""
        key = destination_key(expectation.transport, expectation.destination)
        rivals = self._expected.get(key, [])
        self._expire(now, rivals)
        return list(rivals)

    def withdraw(self, master: Entry, expectation: Expectation) -> None:
        """Take out an expectation of `master`, if it is there.

        Another master's that covers the same stays.
        """
        wanted = Expected(expectation, master, 0, "")
        for expected in list(master.expectations):
            if expected.key == wanted.key and expected.equals(wanted):
                self._remove(expected, End.WITHDRAWN)

    def replace(self, expected: Expected) -> None:
        """Take one out for another that is put in at once."""
        self._remove(expected, None)

    def forget(self, master: Entry) -> None:
        """Take out all expectations of a flow (nf_ct_remove_expectations)."""
        for expected in list(master.expectations):
            self._remove(expected, End.MASTER)

    def near(self, entry: Entry) -> list[Expectation]:
        """Those of flows to where this one goes, as the capture shows it."""
        if not self._count:
            return []
        found = self._shown.get(bytes((entry.transport,)) + _destination(entry.key), ())
        return [each.expectation for each in found]

    def live(self, now: float) -> list[Expected]:
        """The expectations in the table."""
        for each in list(self._expected.values()):
            self._expire(now, each)
        return [each for found in self._expected.values() for each in found]

    def meet(self, now: float, transport: Transport, key: bytes) -> Expected | None:
        """The expectation that a first packet meets (nf_ct_find_expectation).

        One that is for one flow is used up.
        """
        if not self._count:
            return None
        candidates = self._shown.get(bytes((transport,)) + _destination(key))
        if candidates is None:
            return None
        self._expire(now, candidates)
        size = (len(key) - 4) // 2
        source, port = int.from_bytes(key[:size]), int.from_bytes(key[-4:-2])
        if self._nat is not None:
            source = int(self._nat.opener(tuple_of(transport, key).source.address))
        for expected in candidates:
            if expected.takes(source, port):
                # Only the first is looked at, whatever comes of it.
                if not expected.master.confirmed:
                    return None
                if not expected.expectation.permanent:
                    self._remove(expected, End.USED_UP)
                return expected
        return None

    def _expire(self, now: float, candidates: list[Expected]) -> None:
        for expected in list(candidates):
            if expected.master.gone:
                # With another one of its expectations, just now.
                continue
            if expected.expires <= now:
                self._remove(expected, End.TIMEOUT)
            elif expected.master.confirmed and expected.master.expires <= now:
                self._destroy(expected.master)

    def _remove(self, expected: Expected, how: End | None) -> None:
        expected.master.expectations.remove(expected)
        _drop(self._expected, expected.key, expected)
        if self._nat is not None:
            _drop(self._shown, expected.shown, expected)
        self._count -= 1
        if self._on_end is not None and how is not None:
            self._on_end(expected, how)


def _destination(key: bytes) -> bytes:
    """Address and port that a flow with this key goes to."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[-2:]


def _drop(index: dict[bytes, list[Expected]], key: bytes, expected: Expected) -> None:
    found = index[key]
    found.remove(expected)
    if not found:
        del index[key]

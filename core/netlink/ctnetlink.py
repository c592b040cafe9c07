# SPDX-License-Identifier: GPL-2.0-or-later
"""ctnetlink: conntrack entries and expectations, and the events of both.

net/netfilter/nf_conntrack_netlink.c. Our values go in and come out.
"""

import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cthelper.core.errors import Busy, NotFound, NotSupported
from cthelper.core.netlink import encoding, messages
from cthelper.core.netlink.decoding import (
    conntrack_entry,
    conntrack_key,
    expectation_entry,
    expectations_made,
)
from cthelper.core.netlink.listing import Listed, listed_entry
from cthelper.core.netlink.messages import CTNETLINK, CTNETLINK_EXP, nfgen_msg
from cthelper.core.netlink.socket import (
    CREATE,
    EXCLUSIVE,
    HEADERS,
    NETLINK_NETFILTER,
    Filter,
    Frame,
    NetlinkSocket,
    Request,
)
from cthelper.core.tuples import (
    Address,
    Conntrack,
    Expectation,
    FlowKey,
    Status,
    Tuple,
    version_of,
)

# NFNLGRP_* of include/uapi/linux/netfilter/nfnetlink.h.
_GROUP_CONNTRACK_NEW: Final = 1
_GROUP_CONNTRACK_DESTROY: Final = 3
_GROUP_EXPECTATION_NEW: Final = 4

_EVENT_BUFFER: Final = 4 * 1024 * 1024
# More events cannot wait: the kernel doubles the size that it is told, and a message
# with its sk_buff takes 512 bytes at least.
_WAITING: Final = 2 * _EVENT_BUFFER // 512
# Of events of new entries those that have a CTA_TUPLE_MASTER; of entries gone those
# that had a helper (IPS_HELPER), or that were expected (IPS_EXPECTED): a helper may be
# handed down to them without the other bit. All kernels tell an entry's status at its
# end (ctnetlink_conntrack_event). Of expectations all.
_CTA_STATUS: Final = 3
_CTA_TUPLE_MASTER: Final = 14
_FILTERS: Final = (
    Filter(CTNETLINK | messages.NEW, HEADERS, _CTA_TUPLE_MASTER),
    Filter(
        *(CTNETLINK | messages.DELETE, HEADERS, _CTA_STATUS),
        bits=Status.HELPER | Status.EXPECTED,
    ),
)
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class _Asked:
    """What a request asks for; most succeed, and then nobody wants it in words."""

    __slots__ = ("_subject", "_verb")

    def __init__(self, verb: str, subject: object) -> None:
        self._verb = verb
        self._subject = subject

    def __str__(self) -> str:
        return f"{self._verb} {self._subject}"


@dataclass(frozen=True, slots=True)
class EntryGone:
    """The conntrack entry with this id and zone is gone."""

    key: FlowKey


@dataclass(frozen=True, slots=True)
class ExpectationMade:
    """An expectation was put in, on a request of the socket with this port."""

    expectation: Expectation
    port: int


@dataclass(frozen=True, slots=True)
class ExpectationMet:
    """A flow has begun that another expected: `master`; both are original tuples."""

    flow: Tuple
    master: Tuple
    zone: int


class Ctnetlink:
    """Requests to ctnetlink, by a socket of its own unless it is given one.

    Every method raises NetlinkError.
    """

    def __init__(self, netlink: NetlinkSocket | None = None) -> None:
        self._socket = netlink or NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        """The entry with this original tuple. Raises NotFound, for one."""
        what = _Asked("get conntrack entry", original)
        key = encoding.entry_key(original, zone)
        frames = self._request(original, key, CTNETLINK | messages.GET, 0, what)
        entry = _try_entry(frames[0]) if frames else None
        if entry is None:
            raise NotFound.of(errno.ENOENT, what)
        return entry

    def entries(self) -> list[Conntrack]:
        """All TCP and UDP entries of this network namespace."""
        frames = self._dump(CTNETLINK, "list conntrack entries")
        return [each for frame in frames if (each := _try_entry(frame))]

    def listed(self) -> Iterator[Listed]:
        """The same with what a list shows of each, as they come.

        Ask for nothing else before its end.
        """
        for message in _every_family():
            for frame in self._socket.stream(
                message, CTNETLINK | messages.GET, "list conntrack entries"
            ):
                each = listed_entry(frame.data, HEADERS)
                if each is not None:
                    yield each

    def update(
        self,
        original: Tuple,
        zone: int = 0,
        *,
        timeout: int | None = None,
        mark: tuple[int, int] | None = None,
    ) -> None:
        """Change an entry: timeout in seconds, mark as value and mask.

        Raises NotFound, for one.
        """
        attributes = encoding.entry_key(original, zone)
        if timeout is not None:
            attributes += encoding.entry_timeout(timeout)
        if mark is not None:
            attributes += encoding.entry_mark(*mark)
        what = _Asked("update conntrack entry", original)
        # Without NLM_F_CREATE the kernel changes what is there and makes nothing.
        self._request(original, attributes, CTNETLINK | messages.NEW, 0, what)

    def is_attached(self, original: Tuple, helper: str, zone: int = 0) -> bool:
        """Whether an entry has the helper that is registered by this name.

        From Linux 7.2 on an entry goes on to name its helper when that is unregistered,
        and one that is registered by the same name later is not attached to it. An
        entry that was expected is not told from those. Whoever follows entries sees an
        update of one that has it. Raises NotFound, for one.
        """
        # To give an entry the helper that it has changes nothing; it gets no other
        # (ctnetlink_change_helper).
        attributes = encoding.entry_key(original, zone) + encoding.entry_helper(helper)
        what = _Asked(f"ask for helper {helper} of", original)
        try:
            self._request(original, attributes, CTNETLINK | messages.NEW, 0, what)
        except (Busy, NotSupported):
            return False
        return True

    def delete(self, original: Tuple, zone: int = 0) -> None:
        """Delete an entry, and with it its expectations. Raises NotFound, for one."""
        key = encoding.entry_key(original, zone)
        what = _Asked("delete conntrack entry", original)
        self._request(original, key, CTNETLINK | messages.DELETE, 0, what)

    @property
    def port(self) -> int:
        """What events name the asker by."""
        return self._socket.port

    def expect(self, expectation: Expectation) -> None:
        """Put in an expectation.

        Raises NotFound where the master is not confirmed, NotSupported where it has no
        helper, AlreadyExists where one in the table covers it, whoever's, Busy where it
        overlaps one, TableFull (ctnetlink_new_expect).
        """
        self._request(
            expectation.master,
            *_new(expectation, CREATE | EXCLUSIVE),
            _Asked("expect", expectation),
        )

    def covering(self, expectation: Expectation) -> Expectation:
        """The expectation in the table that covers this one. Raises NotFound, for one.

        Its timeout is what is left of it, its helper that of its master.
        """
        what = _Asked("get expectation", expectation)
        frames = self._request(
            expectation.master,
            encoding.expectation(expectation),
            CTNETLINK_EXP | messages.GET,
            0,
            what,
        )
        found = _try_expectation(frames[0]) if frames else None
        if found is None:
            raise NotFound.of(errno.ENOENT, what)
        return found

    def towards(self, expectation: Expectation) -> list[Expectation]:
        """Those in the table that lead to the same destination."""
        return [
            each
            for each in self.expectations()
            if (each.transport, each.destination, each.zone)
            == (expectation.transport, expectation.destination, expectation.zone)
        ]

    def renew(self, expectation: Expectation, seconds: int) -> None:
        """Have the one in the table that covers this one live for so long from now."""
        # Without NLM_F_EXCL all that changes is the timeout (ctnetlink_change_expect).
        self._request(
            expectation.master,
            *_new(replace(expectation, timeout=seconds), CREATE),
            _Asked("renew expectation", expectation),
        )

    def replace_expectations(
        self, old: Sequence[Expectation], new: Expectation, seconds: int
    ) -> None:
        """Put in one for so many seconds in place of others, gone or not.

        Raises NotFound where its master is gone, for one. A packet that comes in the
        microseconds between finds neither.
        """
        deletions = [
            (encoding.expectation(each), CTNETLINK_EXP | messages.DELETE, 0)
            for each in old
        ]
        # The kernel gives a new one its policy's timeout.
        *_, made, _ = self._socket.send_together(
            _family(new.master.source.address),
            [
                *deletions,
                _new(new, CREATE | EXCLUSIVE),
                _new(replace(new, timeout=seconds), CREATE),
            ],
            _Asked("expect", new),
        )
        if made is not None:
            raise made

    def expectations(self) -> list[Expectation]:
        """All expectations of this network namespace."""
        frames = self._dump(CTNETLINK_EXP, "list expectations")
        return [each for frame in frames if (each := _try_expectation(frame))]

    def expectation_count(self) -> int:
        """How many expectations there are in this network namespace.

        The kernel limits just these (nf_conntrack_expect_max); it does not tell their
        number, but how many were put in and taken out (nf_ct_expect_insert and
        nf_ct_unlink_expect_report in nf_conntrack_expect.c).
        """
        type_ = CTNETLINK_EXP | messages.EXPECTATION_STATISTICS
        frames = self._socket.dump(nfgen_msg(), type_, "count expectations")
        made = sum(expectations_made(each.data, HEADERS) for each in frames)
        return made & 0xFFFFFFFF

    def delete_expectation(self, expectation: Expectation) -> None:
        """Delete an expectation. Raises NotFound, for one."""
        self._request(
            expectation.master,
            encoding.expectation(expectation),
            CTNETLINK_EXP | messages.DELETE,
            0,
            _Asked("delete expectation", expectation),
        )

    def flush_expectations(self, helper: str | None = None) -> None:
        """Delete all expectations, or those whose master has this helper."""
        self._socket.send(
            socket.AF_UNSPEC,
            b"" if helper is None else encoding.helper_name(helper),
            *(CTNETLINK_EXP | messages.DELETE, 0, "flush expectations"),
        )

    def _request(
        self, flow: Tuple, attributes: bytes, type_: int, flags: int, what: object
    ) -> list[Frame]:
        family = _family(flow.source.address)
        return self._socket.send(family, attributes, type_, flags, what)

    def _dump(self, subsystem: int, what: str) -> Iterator[Frame]:
        """The entries of a table, of IPv4 and then of IPv6."""
        for message in _every_family():
            yield from self._socket.dump(message, subsystem | messages.GET, what)


class Events:
    """The events that the daemon follows: entries gone, expectations made and met.

    Of entries only those are told of that could have a helper: most flows end without
    waking anybody. Events of expectations come while they are followed (`follow`).
    """

    def __init__(self) -> None:
        # With nf_conntrack_events = 2, the default, the kernel prepares a flow for
        # events only while somebody listens to a group of conntrack entries: those
        # of expectations do not count (nfnetlink_bind in nfnetlink.c).
        self._socket = NetlinkSocket(
            NETLINK_NETFILTER,
            groups=(_GROUP_CONNTRACK_DESTROY,),
            receive_buffer=_EVENT_BUFFER,
        )
        self._socket.filter(*_FILTERS)
        self._following = False

    @property
    def overruns(self) -> int:
        """How often the kernel threw events away because they were not read."""
        return self._socket.overruns

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def follow(self, *, expectations: bool) -> None:
        """Have the events of expectations come, or come no more. Raises NetlinkError.

        Meanwhile the kernel makes a message of every new flow; those of flows that
        nobody expected do not come here.
        """
        if expectations is self._following:
            return
        change = self._socket.join if expectations else self._socket.leave
        for group in (_GROUP_CONNTRACK_NEW, _GROUP_EXPECTATION_NEW):
            change(group)
        self._following = expectations

    def read(
        self, most: int = _WAITING
    ) -> Iterator[EntryGone | ExpectationMade | ExpectationMet]:
        """The events that wait, of at most so many messages; never waits itself.

        By default all that waited at the call are among them, even if others come as
        quickly as they are read. An event is read when it is asked for: whoever stops
        has the rest later. Raises NetlinkError.
        """
        # The kernel puts each event into a datagram of its own (nfnetlink_send).
        for frame in self._socket.events(most):
            if frame.type == CTNETLINK | messages.DELETE:
                yield EntryGone(conntrack_key(frame.data, HEADERS))
            elif frame.type == CTNETLINK_EXP | messages.NEW:
                expectation = _try_expectation(frame)
                if expectation is not None:
                    yield ExpectationMade(expectation, frame.port)
            elif frame.type == CTNETLINK | messages.NEW:
                entry = _try_entry(frame)
                if entry is not None and entry.master is not None:
                    yield ExpectationMet(entry.original, entry.master, entry.zone)


def _every_family() -> Iterator[Any]:
    """What asks for IPv4, and what then for IPv6."""
    for family in _FAMILIES:
        message = nfgen_msg()
        message["nfgen_family"] = family
        yield message


def _new(expectation: Expectation, flags: int) -> Request:
    """The request that puts in an expectation."""
    attributes = encoding.master(expectation.master) + encoding.expectation(expectation)
    return attributes, CTNETLINK_EXP | messages.NEW, flags


def _family(address: Address) -> int:
    return socket.AF_INET if version_of(address) == 4 else socket.AF_INET6


def _try_entry(frame: Frame) -> Conntrack | None:
    """The entry in a message; None where it is of another transport."""
    return conntrack_entry(frame.data, HEADERS, len(frame.data))


def _try_expectation(frame: Frame) -> Expectation | None:
    """The expectation in a message; None where it is of another transport."""
    return expectation_entry(frame.data, HEADERS)

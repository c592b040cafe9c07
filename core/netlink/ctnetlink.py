# SPDX-License-Identifier: GPL-2.0-or-later
"""ctnetlink: conntrack entries and expectations, and the events of both.

net/netfilter/nf_conntrack_netlink.c. Our values go in and come out; pyroute2's
declarations stay inside.
"""

import enum
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cthelper.core.errors import AlreadyExists, NotFound
from cthelper.core.netlink import encoding, messages
from cthelper.core.netlink.decoding import (
    conntrack_entry,
    conntrack_key,
    expectation_entry,
)
from cthelper.core.netlink.messages import (
    CTNETLINK,
    CTNETLINK_EXP,
    conntrack_message,
    expectation_message,
)
from cthelper.core.netlink.socket import (
    CREATE,
    EXCLUSIVE,
    NETLINK_NETFILTER,
    Frame,
    NetlinkSocket,
)
from cthelper.core.tuples import (
    Address,
    Conntrack,
    Expectation,
    FlowKey,
    Tuple,
)

# NFNLGRP_* of include/uapi/linux/netfilter/nfnetlink.h.
_GROUP_CONNTRACK_DESTROY: Final = 3
_GROUP_EXPECTATION_NEW: Final = 4
_GROUP_EXPECTATION_DESTROY: Final = 6

_HEADERS: Final = 20  # nlmsghdr and nfgenmsg
_EVENT_BUFFER: Final = 4 * 1024 * 1024
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


class Change(enum.Enum):
    """What an event says has happened."""

    NEW = "new"
    DESTROY = "destroy"


class _Asked(NamedTuple):
    """What a request asks for; most succeed, and then nobody wants it in words."""

    verb: str
    subject: object

    def __str__(self) -> str:
        return f"{self.verb} {self.subject}"


@dataclass(frozen=True, slots=True)
class EntryGone:
    """The conntrack entry with this id and zone is gone."""

    key: FlowKey


@dataclass(frozen=True, slots=True)
class ExpectationEvent:
    """An expectation was made or is gone (met, expired, evicted, deleted).

    Some kernels tell of an expired one only when its master ends.
    """

    change: Change
    expectation: Expectation


class Ctnetlink:
    """Requests to ctnetlink. Every method raises NetlinkError."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER)

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
        frames = self._dump(conntrack_message, CTNETLINK, "list conntrack entries")
        return [each for frame in frames if (each := _try_entry(frame))]

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

    def delete(self, original: Tuple, zone: int = 0) -> None:
        """Delete an entry, and with it its expectations. Raises NotFound, for one."""
        key = encoding.entry_key(original, zone)
        what = _Asked("delete conntrack entry", original)
        self._request(original, key, CTNETLINK | messages.DELETE, 0, what)

    def expect(self, expectation: Expectation) -> Expectation:
        """Put in an expectation, or refresh the one that covers it already.

        What is in the table: the expectation itself, or another flow's that expects the
        same; the kernel makes no second one and says nothing (ctnetlink_new_expect).
        Raises NotFound where the master is not confirmed, NotSupported where it has no
        helper, Busy where it overlaps another one, TableFull.
        """
        what = _Asked("expect", expectation)
        try:
            self._expect(expectation, CREATE | EXCLUSIVE, what)
        except AlreadyExists:
            present = self._present(expectation)
            self._expect(expectation, CREATE, what)
            return present
        return expectation

    def _expect(self, expectation: Expectation, flags: int, what: object) -> None:
        master = expectation.master
        attributes = encoding.master(master) + encoding.expectation(expectation)
        self._request(master, attributes, CTNETLINK_EXP | messages.NEW, flags, what)

    def _present(self, expectation: Expectation) -> Expectation:
        """The expectation in the table that covers this one."""
        try:
            frames = self._request(
                expectation.master,
                encoding.expectation(expectation),
                CTNETLINK_EXP | messages.GET,
                0,
                _Asked("get expectation", expectation),
            )
        except NotFound:  # it has ended meanwhile
            return expectation
        found = _try_expectation(frames[0]) if frames else None
        return expectation if found is None else found

    def expectations(self) -> list[Expectation]:
        """All expectations of this network namespace."""
        frames = self._dump(expectation_message, CTNETLINK_EXP, "list expectations")
        return [each for frame in frames if (each := _try_expectation(frame))]

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
        message = expectation_message()
        if helper is not None:
            message["attrs"] = [["CTA_EXPECT_HELP_NAME", helper]]
        self._socket.request(
            message, CTNETLINK_EXP | messages.DELETE, 0, "flush expectations"
        )

    def _request(
        self, flow: Tuple, attributes: bytes, type_: int, flags: int, what: object
    ) -> list[Frame]:
        family = _family(flow.source.address)
        return self._socket.send(family, attributes, type_, flags, what)

    def _dump(self, kind: type[Any], subsystem: int, what: str) -> Iterator[Frame]:
        """The entries of a table, of IPv4 and then of IPv6."""
        for family in _FAMILIES:
            message = kind()
            message["nfgen_family"] = family
            yield from self._socket.dump(message, subsystem | messages.GET, what)


class Events:
    """The events that the daemon follows: entries gone, expectations made and gone.

    Those of expectations come while they are followed (`follow`).
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
        """Have the events of expectations come, or come no more.

        Each costs as much as making one, in the kernel and here.
        """
        if expectations is self._following:
            return
        self._following = expectations
        change = self._socket.join if expectations else self._socket.leave
        for group in (_GROUP_EXPECTATION_NEW, _GROUP_EXPECTATION_DESTROY):
            change(group)

    def read(self) -> Iterator[EntryGone | ExpectationEvent]:
        """The events since the last call; never waits. Raises NetlinkError."""
        for frame in self._socket.events():
            number = frame.type & 0xFF
            if frame.type & 0xFF00 == CTNETLINK_EXP:
                change = Change.DESTROY if number == messages.DELETE else Change.NEW
                expectation = _try_expectation(frame)
                if expectation is not None:
                    yield ExpectationEvent(change, expectation)
            elif number == messages.DELETE:
                # Every flow of the namespace ends with one of these.
                yield EntryGone(conntrack_key(frame.data, _HEADERS))


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _try_entry(frame: Frame) -> Conntrack | None:
    """The entry in a message; None where it is of another transport."""
    return conntrack_entry(frame.data, _HEADERS, len(frame.data))


def _try_expectation(frame: Frame) -> Expectation | None:
    """The expectation in a message; None where it is of another transport."""
    return expectation_entry(frame.data, _HEADERS)

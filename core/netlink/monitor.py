# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries and expectations as they come and go, whole: what ``conntrack -E`` shows.

What the daemon itself follows is in ctnetlink.py, and is less.
"""

import select
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cthelper.core.netlink import messages
from cthelper.core.netlink.decoding import expectation_entry
from cthelper.core.netlink.listing import Listed, listed_entry
from cthelper.core.netlink.messages import CTNETLINK, CTNETLINK_EXP
from cthelper.core.netlink.socket import (
    CREATE,
    HEADERS,
    NETLINK_NETFILTER,
    Filter,
    NetlinkSocket,
)
from cthelper.core.tuples import Expectation, Kind, Status

_CTA_STATUS: Final = 3
# Messages that one call reads at most.
_MOST: Final = 512


# NFNLGRP_* of include/uapi/linux/netfilter/nfnetlink.h.
_GROUPS: Final = {
    Kind.NEW: 1,
    Kind.UPDATE: 2,
    Kind.DESTROY: 3,
    Kind.EXPECTATION_NEW: 4,
    Kind.EXPECTATION_DESTROY: 6,
}
# An entry's; by the type of the message, and for both whether it is made.
_ENTRIES: Final = {
    (CTNETLINK | messages.NEW, True): Kind.NEW,
    (CTNETLINK | messages.NEW, False): Kind.UPDATE,
    (CTNETLINK | messages.DELETE, False): Kind.DESTROY,
}
_EXPECTATIONS: Final = {
    CTNETLINK_EXP | messages.NEW: Kind.EXPECTATION_NEW,
    CTNETLINK_EXP | messages.DELETE: Kind.EXPECTATION_DESTROY,
}


@dataclass(frozen=True, slots=True)
class Happened:
    """What has become of an entry, or of an expectation.

    The end of an entry tells neither its helper nor its master.
    """

    kind: Kind
    subject: Listed | Expectation


class Monitor:
    """Follows events of some kinds, of TCP and UDP.

    With `status` those of entries come only that have one of these bits. `buffer` is
    how many bytes of events the kernel keeps. While somebody follows, the kernel makes
    a message of every event of these kinds, whether it comes here or not. Raises
    NetlinkError.
    """

    def __init__(self, kinds: Iterable[Kind], *, status: Status, buffer: int) -> None:
        # The filter is there before the first event is.
        self._socket = NetlinkSocket(NETLINK_NETFILTER, receive_buffer=buffer)
        try:
            if status:
                self._socket.filter(
                    *(
                        Filter(CTNETLINK | type_, HEADERS, _CTA_STATUS, bits=status)
                        for type_ in (messages.NEW, messages.DELETE)
                    )
                )
            self._socket.follow()
            for kind in kinds:
                self._socket.join(_GROUPS[kind])
        except BaseException:
            self._socket.close()
            raise

    @property
    def overruns(self) -> int:
        """How often the kernel threw events away because they were not read."""
        return self._socket.overruns

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read(self, seconds: float) -> Iterator[Happened]:
        """Some events; waits so long for the first one. Raises NetlinkError."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return
        for frame in self._socket.events(_MOST):
            kind = _ENTRIES.get((frame.type, bool(frame.flags & CREATE)))
            subject: Listed | Expectation | None
            if kind is not None:
                subject = listed_entry(frame.data, HEADERS)
            elif (kind := _EXPECTATIONS.get(frame.type)) is not None:
                subject = expectation_entry(frame.data, HEADERS)
            else:
                continue
            if subject is not None:
                yield Happened(kind, subject)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the model of conntrack holds: flows and expectations, and how long these live.

A flow is found by its key: both addresses of its first packet, then both ports, as
they stand in the headers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.config import HelperConfig
from cthelper.core.offline.nat import Tuples
from cthelper.core.offline.tcp import ESTABLISHED, TCP_TIMEOUTS, Connection
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    Conntrack,
    Direction,
    Endpoint,
    Expectation,
    Status,
    Transport,
    Tuple,
)

# Members of a Flag are slow to combine: all that a flow may have, by its properties
# assured, confirmed, seen_reply, expected and tagged.
_STATUS: Final = tuple(
    Status(
        assured * Status.ASSURED
        | confirmed * Status.CONFIRMED
        | seen * Status.SEEN_REPLY
        | expected * Status.EXPECTED
        | tagged * Status.HELPER
    )
    for assured in (0, 1)
    for confirmed in (0, 1)
    for seen in (0, 1)
    for expected in (0, 1)
    for tagged in (0, 1)
)

# A UDP flow is a stream after this many seconds (nf_conntrack_udp_packet).
STREAM_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds: nf_conntrack_udp_timeout, ..._udp_timeout_stream, TCP's by its states.

    The defaults are the kernel's (nf_conntrack_proto_udp.c, nf_conntrack_proto_tcp.c).
    """

    udp: float = 30.0
    udp_stream: float = 120.0
    tcp: Mapping[int, float] = field(default_factory=lambda: TCP_TIMEOUTS)
    tcp_unacknowledged: float = 300.0


class Entry:
    """A flow. `frame` is its first packet's number; `began`, `expires` are times.

    `helper` is what is attached to it now, `master` the flow that expected it. `tcp` is
    where its connection stands, over TCP.
    """

    __slots__ = (
        "_tuples",
        "assured",
        "began",
        "confirmed",
        "expectations",
        "expires",
        "frame",
        "gone",
        "helper",
        "id",
        "key",
        "master",
        "quiet",
        "reply_key",
        "seen_reply",
        "tcp",
        "transport",
    )

    def __init__(
        self,
        id_: int,
        frame: int,
        transport: Transport,
        key: bytes,
        now: float,
        tcp: Connection | None = None,
    ) -> None:
        self.id = id_
        self.frame = frame
        self.transport = transport
        self.key = key
        self.reply_key = turned_key(key)
        self._tuples: Tuples | None = None
        self.helper: HelperConfig | None = None
        self.master: Entry | None = None
        # Newest first, as the kernel's list (nf_ct_expect_insert).
        self.expectations: list[Expected] = []
        self.confirmed = False
        self.gone = False
        self.seen_reply = False
        # Whether it is a TCP connection, or a stream of datagrams (IPS_ASSURED).
        self.assured = False
        # Whether its next packet changes nothing but the timeout, and nobody wants to
        # know: no helper, and for TCP established.
        self.quiet = False
        self.expires = now
        self.began = now
        self.tcp = tcp

    @property
    def original(self) -> Tuple:
        """The tuple of its first packet, before translation."""
        return self.tuples.original

    @property
    def reply(self) -> Tuple:
        """The tuple of the answers, before translation."""
        return self.tuples.reply

    @property
    def tuples(self) -> Tuples:
        """Both; those that the capture shows, unless `translate` has said others."""
        # Most flows never need them.
        if self._tuples is None:
            self._tuples = Tuples(self.shown(ORIGINAL), self.shown(REPLY), here=True)
        return self._tuples

    def translate(self, tuples: Tuples) -> None:
        """Behind NAT the flow has these."""
        self._tuples = tuples

    def shown(self, direction: Direction) -> Tuple:
        """The tuple of a packet in this direction as the capture shows it."""
        key = self.key if direction is ORIGINAL else self.reply_key
        return tuple_of(self.transport, key)

    def renew_udp(self, timeouts: Timeouts, now: float, *, reply: bool) -> None:
        """A packet came: nf_conntrack_udp_packet; nf_conntrack_in for an answer."""
        if self.seen_reply and now > self.began + STREAM_SECONDS:
            self.assured = True
            self.expires = now + timeouts.udp_stream
        else:
            self.expires = now + timeouts.udp
        if reply:
            self.seen_reply = True

    def renew_tcp(self, timeouts: Timeouts, now: float) -> None:
        """A segment came, which has brought `tcp` to its state."""
        assert self.tcp is not None  # noqa: S101 - the callers are TCP's
        seconds = timeouts.tcp[self.tcp.state]
        if self.tcp.state == ESTABLISHED:
            if self.seen_reply:
                self.assured = True
            else:
                # Picked up in mid-stream: no long life before an answer.
                seconds = min(seconds, timeouts.tcp_unacknowledged)
        self.expires = now + seconds

    def conntrack(self, now: float) -> Conntrack:
        """The entry as the kernel would report it at the time `now`."""
        tagged, expected = self.helper is not None, self.master is not None
        status = _STATUS[
            self.assured << 4
            | self.confirmed << 3
            | self.seen_reply << 2
            | expected << 1
            | tagged
        ]
        return Conntrack(
            id=self.id,
            original=self.original,
            reply=self.reply,
            status=status,
            helper=None if self.helper is None else self.helper.name,
            timeout=max(0, int(self.expires - now)),
            master=None if self.master is None else self.master.original,
        )


class Expected:
    """An expectation in the table, made in `frame`; `helper` is its master's.

    `key` is its destination, and `shown` that of a packet that meets it, as the capture
    shows it.
    """

    __slots__ = (
        "class_",
        "expectation",
        "expires",
        "frame",
        "helper",
        "key",
        "mask",
        "master",
        "port",
        "port_mask",
        "shown",
        "source",
    )

    def __init__(
        self, expectation: Expectation, master: Entry, frame: int, helper: str
    ) -> None:
        self.expectation = expectation
        self.master = master
        self.frame = frame
        self.helper = helper
        self.expires = 0.0
        self.class_ = expectation.class_
        self.key = destination_key(expectation.transport, expectation.destination)
        self.shown = self.key
        network = expectation.source
        self.source = 0 if network is None else int(network.network_address)
        self.mask = 0 if network is None else int(network.netmask)
        self.port = expectation.source_port or 0
        self.port_mask = 0 if expectation.source_port is None else 0xFFFF

    def takes(self, source: int, port: int) -> bool:
        """Whether it covers a source, its destination being equal."""
        return source & self.mask == self.source and port & self.port_mask == self.port

    def equals(self, other: "Expected") -> bool:
        """Same source and masks, its destination being equal (expect_matches)."""
        return (self.source, self.mask, self.port, self.port_mask) == (
            other.source,
            other.mask,
            other.port,
            other.port_mask,
        )

    def clashes(self, other: "Expected") -> bool:
        """Whether one packet could meet both (expect_clash)."""
        mask = self.mask & other.mask
        ports = self.port_mask & other.port_mask
        return (
            self.source & mask == other.source & mask
            and self.port & ports == other.port & ports
        )


def turned_key(key: bytes) -> bytes:
    """The key of the other direction: addresses and ports change places."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]


def tuple_of(transport: Transport, key: bytes) -> Tuple:
    """The tuple that a flow's key is of."""
    size = (len(key) - 4) // 2
    kind = IPv4Address if size == 4 else IPv6Address
    return Tuple(
        transport,
        Endpoint(kind(key[:size]), int.from_bytes(key[-4:-2])),
        Endpoint(kind(key[size : 2 * size]), int.from_bytes(key[-2:])),
    )


def destination_key(transport: Transport, end: Endpoint) -> bytes:
    """What expectations of flows to `end` are found by."""
    return bytes((transport,)) + end.address.packed + end.port.to_bytes(2)

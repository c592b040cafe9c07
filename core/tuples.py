# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of connection tracking: endpoints, tuples, conntrack entries, expectations."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
)
from typing import Final, Literal

from cthelper.core.errors import Malformed
from cthelper.core.travel import reduced

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Transport(enum.IntEnum):
    """The transports that a helper can serve, by IP protocol number."""

    TCP = 6
    UDP = 17

    def __str__(self) -> str:
        return "tcp" if self is Transport.TCP else "udp"


TCP: Final = Transport.TCP
UDP: Final = Transport.UDP


class Direction(enum.Enum):
    """Direction of a packet relative to the first packet of its flow."""

    ORIGINAL = "original"
    REPLY = "reply"


ORIGINAL: Final = Direction.ORIGINAL
REPLY: Final = Direction.REPLY


class Cast(enum.Enum):
    """Addresses that no network holds."""

    BROADCAST = "broadcast"

    def __str__(self) -> str:
        return self.value


BROADCAST: Final = Cast.BROADCAST
"""Every broadcast address of IPv4: the limited one, and those of networks."""

Destination = Network | Cast

# A network of two addresses or of one has no broadcast address (RFC 3021).
_POINT_TO_POINT: Final = 31
LIMITED_BROADCAST: Final = IPv4Address("255.255.255.255")


def is_group(address: Address, networks: Iterable[Network] = ()) -> bool:
    """Whether `address` is multicast, the limited broadcast, or that of a network."""
    return (
        address.is_multicast
        or address == LIMITED_BROADCAST
        or any(
            isinstance(each, IPv4Network)
            and each.prefixlen < _POINT_TO_POINT
            and address == each.broadcast_address
            for each in networks
        )
    )


def may_be_broadcast(source: Address, destination: Address) -> bool:
    """Whether some network with `source` has `destination` as its broadcast address.

    To ask which networks there are is dear, and this is seldom true: all bits of the
    two are alike but those at the end, which are ones.
    """
    if isinstance(destination, IPv6Address) or isinstance(source, IPv6Address):
        return False
    host = int(source) ^ int(destination)
    mask = (1 << host.bit_length()) - 1
    return host != 0 and int(destination) & mask == mask


@lru_cache(maxsize=4096)
def host_network(address: Address) -> Network:
    """The network that holds `address` alone."""
    if isinstance(address, IPv4Address):
        return IPv4Network(address)
    return IPv6Network(address)


def collapsed(networks: Iterable[Network], version: int) -> tuple[Network, ...]:
    """The networks of one IP version, those inside others left out."""
    if version == 4:
        return tuple(
            collapse_addresses(
                each for each in networks if isinstance(each, IPv4Network)
            )
        )
    return tuple(
        collapse_addresses(each for each in networks if isinstance(each, IPv6Network))
    )


def version_of(address: Address) -> Literal[4, 6]:
    """The address's version of IP, without the call that asking itself takes."""
    return 4 if isinstance(address, IPv4Address) else 6


def same(one: Address, other: Address) -> bool:
    """Whether two addresses are one: mostly the same object, and comparing is dear."""
    return one is other or one == other


def _with_port(address: Address, port: int) -> str:
    if isinstance(address, IPv6Address):
        return f"[{_text6(address)}]:{port}"
    # Each decision tells of its flow in words, and ipaddress takes twice as long.
    number = int(address)
    first, second, third = number >> 24, number >> 16 & 0xFF, number >> 8 & 0xFF
    return f"{first}.{second}.{third}.{number & 0xFF}:{port}"


@lru_cache(maxsize=4096)
def _text6(address: IPv6Address) -> str:
    return str(address)


# What is made for every packet has an `__init__` of its own, here and elsewhere: the
# one that dataclass makes stays interpreted where the class is compiled, and for a
# frozen one it sets each field by a call.
@dataclass(slots=True)
class Endpoint:
    """An address and a port, 0 to 65535.

    Raises Malformed where the port is outside that range, so that a parser may build
    an Endpoint from what the wire said. Port 0 is a value here; the guard refuses it.
    """

    address: Address
    port: int

    def __init__(self, address: Address, port: int) -> None:
        if not 0 <= port <= 0xFFFF:
            limit = "below 0" if port < 0 else "over 65535"
            raise Malformed(f"port {port} is {limit}")
        self.address = address
        self.port = port

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Endpoint)
            and self.port == other.port
            and same(self.address, other.address)
        )

    def __hash__(self) -> int:
        return hash((self.address, self.port))

    def __str__(self) -> str:
        return _with_port(self.address, self.port)

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


@dataclass(slots=True)
class Tuple:
    """One direction of a flow, as conntrack keys it (nf_conntrack_tuple.h)."""

    transport: Transport
    source: Endpoint
    destination: Endpoint

    def __init__(
        self,
        transport: Transport,
        source: Endpoint,
        destination: Endpoint,
    ) -> None:
        self.transport = transport
        self.source = source
        self.destination = destination

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Tuple)
            and self.transport is other.transport
            and self.source == other.source
            and self.destination == other.destination
        )

    def __hash__(self) -> int:
        return hash((self.transport, self.source, self.destination))

    def __str__(self) -> str:
        return f"{self.transport} {self.source} > {self.destination}"

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


class Status(enum.IntFlag):
    """IPS_* of include/uapi/linux/netfilter/nf_conntrack_common.h."""

    EXPECTED = 1 << 0
    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    SEQ_ADJUST = 1 << 6
    SRC_NAT_DONE = 1 << 7
    DST_NAT_DONE = 1 << 8
    DYING = 1 << 9
    FIXED_TIMEOUT = 1 << 10
    TEMPLATE = 1 << 11
    UNTRACKED = 1 << 12
    HELPER = 1 << 13
    OFFLOAD = 1 << 14


class Kind(enum.StrEnum):
    """What becomes of entries, in the words of conntrack(8), and of expectations."""

    NEW = "new"
    UPDATE = "update"
    DESTROY = "destroy"
    EXPECTATION_NEW = "expectation-new"
    EXPECTATION_DESTROY = "expectation-destroy"


# What is asked of every packet's entry: as a number, which is five times faster.
_SEEN_REPLY: Final = int(Status.SEEN_REPLY)
_ASSURED: Final = int(Status.ASSURED)
_CONFIRMED: Final = int(Status.CONFIRMED)
_SEQ_ADJUST: Final = int(Status.SEQ_ADJUST)


# Not frozen, which would treble what it costs to make one for each packet; but nobody
# changes one.
@dataclass(slots=True, kw_only=True)
class Conntrack:
    """A conntrack entry as the kernel reported it.

    `timeout` is in seconds from the report. `helper` is the name of the helper that
    is attached now; `master` is the original tuple of the flow that expected this one.
    """

    id: int
    original: Tuple
    reply: Tuple
    status: Status
    zone: int
    helper: str | None
    mark: int
    timeout: int
    master: Tuple | None

    def __init__(
        self,
        *,
        id: int,
        original: Tuple,
        reply: Tuple,
        status: Status,
        zone: int = 0,
        helper: str | None = None,
        mark: int = 0,
        timeout: int = 0,
        master: Tuple | None = None,
    ) -> None:
        self.id = id
        self.original = original
        self.reply = reply
        self.status = status
        self.zone = zone
        self.helper = helper
        self.mark = mark
        self.timeout = timeout
        self.master = master

    @property
    def translated(self) -> bool:
        """Whether either side knows the other by another endpoint than its own."""
        ours, theirs = self.original, self.reply
        client, server = theirs.destination, theirs.source
        # Comparing is dear, and what was decoded alike is the same object.
        return (ours.source is not client and ours.source != client) or (
            ours.destination is not server and ours.destination != server
        )

    @property
    def answered(self) -> bool:
        """Whether packets have passed in both directions (IPS_SEEN_REPLY)."""
        return bool(int.__and__(self.status, _SEEN_REPLY))

    @property
    def assured(self) -> bool:
        """Whether the kernel keeps it when its table is full (IPS_ASSURED).

        TCP: the handshake is complete. UDP: it goes on after an answer.
        """
        return bool(int.__and__(self.status, _ASSURED))

    @property
    def confirmed(self) -> bool:
        """Whether the entry is in the kernel's table (IPS_CONFIRMED)."""
        return bool(int.__and__(self.status, _CONFIRMED))

    @property
    def adjusted(self) -> bool:
        """Whether the kernel adjusts its TCP sequence numbers (IPS_SEQ_ADJUST)."""
        return bool(int.__and__(self.status, _SEQ_ADJUST))


_LINK_LOCAL: Final = 0xFE80 >> 6  # fe80::/10


def host_number(address: Address) -> int:
    """An address as a number, of IPv6 its /64 alone: one host may have any in that.

    RFC 4291, 2.5.4. The link-local /64 is that of all hosts of a link, and there each
    address counts.
    """
    number = int(address)
    if isinstance(address, IPv4Address) or number >> 118 == _LINK_LOCAL:
        return number
    return number >> 64


def host_of(address: Address) -> tuple[int, int]:
    """What tells one host from all others, see `host_number`: with its version."""
    return version_of(address), host_number(address)


FlowKey = int
"""A conntrack id with the zone above its 32 bits; there may be 100,000 of them."""


def flow_key(id: int, zone: int) -> FlowKey:
    """What tells the flow of a conntrack id from all others that there are now."""
    return zone << 32 | id


def zone_of(key: FlowKey) -> int:
    """The zone of a flow."""
    return key >> 32


def key_of(entry: Conntrack) -> FlowKey:
    """What tells the entry's flow from all others that there are now."""
    return flow_key(entry.id, entry.zone)


@dataclass(frozen=True, slots=True)
class Translation:
    """An expected flow is translated as its master is (nf_nat_follow_master).

    `direction` is that of the expected flow relative to its master's: ORIGINAL where
    the same side opens it. It goes to `port` of the side that announced it.
    """

    direction: Direction
    port: int

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


Identity = tuple[object, ...]
"""What tells one expectation in the kernel from another."""


# Not frozen, see Conntrack.
@dataclass(slots=True, kw_only=True)
class Expectation:
    """Permission for a flow that has not begun, as the kernel takes it.

    `source` is the network that the flow may come from, or None for anywhere;
    `source_port` is None for any. Address and port of `destination` are always exact
    (the kernel ignores a mask there). `timeout` is in seconds and is that of the
    helper's policy: the kernel takes no other. `policy` is the policy's name
    (None: read back from the kernel, which keeps none) and `class_` its index among the
    helper's policies. `helper` names the helper of the
    expected flow, or is None. `label` is what its flow may take it back by, which the
    kernel does not know. `translation` is None where the expected flow is not to
    be translated, or the user's own rules do that.
    """

    master: Tuple
    transport: Transport
    source: Network | None
    source_port: int | None
    destination: Endpoint
    policy: str | None
    timeout: int
    class_: int
    permanent: bool
    helper: str | None
    zone: int
    translation: Translation | None
    label: bytes | None = field(compare=False)
    _identity: Identity | None = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        *,
        master: Tuple,
        transport: Transport,
        source: Network | None,
        source_port: int | None,
        destination: Endpoint,
        policy: str | None,
        timeout: int,
        class_: int = 0,
        permanent: bool = False,
        helper: str | None = None,
        zone: int = 0,
        translation: Translation | None = None,
        label: bytes | None = None,
    ) -> None:
        self.master = master
        self.transport = transport
        self.source = source
        self.source_port = source_port
        self.destination = destination
        self.policy = policy
        self.timeout = timeout
        self.class_ = class_
        self.permanent = permanent
        self.helper = helper
        self.zone = zone
        self.translation = translation
        self.label = label
        self._identity = None

    @property
    def identity(self) -> Identity:
        """What tells it from others in the kernel: transport, ends and zone.

        As numbers, since hashing addresses and enums is dear, and made but once.
        """
        identity = self._identity
        if identity is None:
            address, source = self.destination.address, self.source
            identity = self._identity = (
                int(self.transport),
                version_of(address),
                int(address),
                self.destination.port,
                None if source is None else int(source.network_address),
                None if source is None else source.prefixlen,
                self.source_port,
                self.zone,
            )
        return identity

    def __str__(self) -> str:
        if self.source is None:
            source = "any"
        elif self.source.num_addresses == 1:
            source = str(self.source.network_address)
        else:
            source = str(self.source)
        if self.source_port is not None:
            source += f" port {self.source_port}"
        return f"{self.transport} {source} > {self.destination}"

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)

    def admits(self, flow: Tuple) -> bool:
        """Whether a flow with this original tuple meets it, in the same zone."""
        return (
            self.transport is flow.transport
            and self.destination == flow.destination
            and (self.source is None or flow.source.address in self.source)
            and self.source_port in (None, flow.source.port)
        )

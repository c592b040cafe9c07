# SPDX-License-Identifier: GPL-2.0-or-later
"""A gateway alone, between two TUN devices whose other ends the test holds.

A packet that is written to one end has passed the gateway when write() returns, so its
state can be told at once: the gateway's rules leave it in the TTL. Netlink goes over a
socket of its own with its own encoding, since thousands of requests are made and all
entries are listed again and again.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cthelper.core.api import Policy
from cthelper.core.daemon.ruleset import unregister
from cthelper.core.netlink.nfnetlink_cthelper import FAMILIES, HelperTable, Registration
from cthelper.core.offline.conntrack import State
from cthelper.core.tuples import (
    Address,
    Endpoint,
    Expectation,
    Status,
    Transport,
    Tuple,
)
from tests.live.world import Namespace

HELPERS: Final[dict[str, tuple[int, tuple[Policy, ...]]]] = {
    "lab-one": (7300, (Policy("long", 3, 30), Policy("brief", 2, 2))),
    "lab-two": (7301, (Policy("middle", 1, 4),)),
}
"""By name: the control port, for TCP and UDP, and the policies."""

LEFT4, RIGHT4 = "10.0.0.0/9", "10.128.0.0/9"
LEFT6, RIGHT6 = "fd0a::/16", "fd0b::/16"

_STATES: Final = {
    101: State.NEW,
    102: State.ESTABLISHED,
    103: State.RELATED,
    104: State.INVALID,
}

_SETTINGS: Final = """
modprobe -q tun || true
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
"""
_LINKS: Final = f"""
ip link set lo up
ip link set left up
ip link set right up
ip route add {LEFT4} dev left
ip route add {RIGHT4} dev right
ip -6 route add {LEFT6} dev left
ip -6 route add {RIGHT6} dev right
"""


def _table() -> str:
    objects, tags = [], []
    for name, (port, _) in HELPERS.items():
        for transport in Transport:
            objects.append(
                f"ct helper {name}-{transport} "
                f'{{ type "{name}" protocol {transport}; }}'
            )
            tags.append(f'{transport} dport {port} ct helper set "{name}-{transport}"')
    states = [
        f"ct state {state.value} {field} set {ttl}"
        for ttl, state in _STATES.items()
        for field in ("ip ttl", "ip6 hoplimit")
    ]
    lines = "\n".join
    return f"""
table inet lab {{
{lines(objects)}
chain tag {{
type filter hook prerouting priority -150; policy accept;
ct state != new return
{lines(tags)}
}}
chain tell {{
type filter hook forward priority 0; policy accept;
{lines(states)}
}}
}}
"""


_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000

_NETLINK_NETFILTER: Final = 12
_HEADERS: Final = 20
_ENTRY, _EXPECTATION = 0x0100, 0x0200
_NEW, _GET, _DELETE = 0, 1, 2
_REQUEST, _ACK, _CREATE, _DUMP = 0x001, 0x004, 0x400, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NESTED: Final = 0x8000


@dataclass(frozen=True, slots=True)
class Held:
    """An expectation as the kernel lists it."""

    master: Tuple
    tuple: Tuple
    mask: Address
    port_mask: int
    permanent: bool
    class_: int
    timeout: int


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry as the kernel lists it."""

    original: Tuple
    status: Status
    helper: str | None
    master: Tuple | None
    timeout: int


class TunLab:
    """The gateway, its rules and the registered helpers; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._folder = folder
        self._sequence = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.gateway = Namespace("tun", self._folder, mounts=False)
            stack.callback(self.gateway.close)
            self.gateway.tell(_SETTINGS)
            with self.gateway.entered():
                self._left = _open_tun("left")
                stack.callback(os.close, self._left)
                self._right = _open_tun("right")
                stack.callback(os.close, self._right)
                self._socket = stack.enter_context(
                    socket.socket(
                        socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER
                    )
                )
                helpers = HelperTable()
            stack.callback(helpers.close)
            self._socket.settimeout(10.0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self.gateway.tell(_LINKS)
            registrations = list(_registrations())
            stack.callback(unregister, helpers, registrations)
            for registration in registrations:
                helpers.put(registration)
            self.gateway.run("nft", "-f", "-", input=_table(), timeout=60.0, check=True)
            stack.callback(
                self.gateway.run, "nft", "flush", "ruleset", timeout=60.0, check=True
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def set(self, name: str, value: int) -> None:
        """A setting of conntrack: ``nf_conntrack_`` and the name."""
        self.gateway.tell(f"echo {value} >/proc/sys/net/netfilter/nf_conntrack_{name}")

    def expect_max(self) -> int:
        """How many expectations the kernel takes (nf_conntrack_expect_max)."""
        path = "/proc/sys/net/netfilter/nf_conntrack_expect_max"
        return int(self.gateway.run("cat", path, check=True).stdout)

    def send(self, packet: bytes, *, from_left: bool) -> State | None:
        """Send a packet through the gateway: its state there, None if it dropped it."""
        source, sink = (
            (self._left, self._right) if from_left else (self._right, self._left)
        )
        os.write(source, packet)
        while True:
            try:
                passed = os.read(sink, 2048)
            except BlockingIOError:
                return None
            # The kernel sends ICMPv6 of its own.
            if passed[0] >> 4 == 4 and passed[12:20] == packet[12:20]:
                return _STATES[passed[8]]
            if passed[0] >> 4 == 6 and passed[8:40] == packet[8:40]:
                return _STATES[passed[7]]

    def flush(self) -> None:
        """Delete all entries, and their expectations with them."""
        self._ask(_ENTRY | _DELETE, 0, socket.AF_UNSPEC, b"")

    def expect(self, expectation: Expectation) -> int:
        """Put in an expectation; the errno, or 0 (ctnetlink_new_expect, no EXCL)."""
        wanted, mask = _wanted(expectation)
        attributes = (
            _nested(1, _tuple(expectation.master))
            + _nested(2, wanted)
            + _nested(3, mask)
            + _u32(4, expectation.timeout)
        )
        if expectation.helper is not None:
            attributes += _attribute(6, expectation.helper.encode() + b"\0")
        attributes += _u32(9, expectation.class_)
        attributes += _u32(8, int(expectation.permanent))
        return self._ask(
            _EXPECTATION | _NEW, _CREATE, _family(expectation.master), attributes
        )

    def delete(self, original: Tuple) -> int:
        """Delete an entry; the errno, or 0."""
        key = _nested(1, _tuple(original))
        return self._ask(_ENTRY | _DELETE, 0, _family(original), key)

    def keep(self, original: Tuple, seconds: int) -> int:
        """Set an entry's timeout; the errno, or 0."""
        attributes = _nested(1, _tuple(original)) + _u32(7, seconds)
        return self._ask(_ENTRY | _NEW, 0, _family(original), attributes)

    def collect(self) -> list[bytes]:
        """List the entries, which has the kernel delete those that have expired.

        ctnetlink_dump_table in nf_conntrack_netlink.c.
        """
        return list(self._list(_ENTRY | _GET))

    def entries(self) -> list[Listed]:
        """All entries of TCP and UDP."""
        return [entry for each in self.collect() if (entry := _entry(each)) is not None]

    def expectations(self) -> list[Held]:
        """All expectations."""
        return [_expectation(each) for each in self._list(_EXPECTATION | _GET)]

    def _ask(self, kind: int, flags: int, family: int, attributes: bytes) -> int:
        self._send(kind, flags | _REQUEST | _ACK, family, attributes)
        while True:
            answer = self._socket.recv(65536)
            if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", answer, 16)
                return -int(code)

    def _list(self, kind: int) -> Iterator[bytes]:
        self._send(kind, _REQUEST | _DUMP, socket.AF_UNSPEC, b"")
        while True:
            answer = self._socket.recv(1 << 17)
            at = 0
            while at < len(answer):
                size, type_ = struct.unpack_from("=IH", answer, at)
                if type_ == _NLMSG_DONE:
                    return
                assert type_ != _NLMSG_ERROR, answer
                yield answer[at + _HEADERS : at + size]
                at += size + 3 & ~3

    def _send(self, kind: int, flags: int, family: int, attributes: bytes) -> None:
        self._sequence += 1
        size = _HEADERS + len(attributes)
        head = struct.pack("=IHHII", size, kind, flags, self._sequence, 0)
        self._socket.send(head + struct.pack("!BBH", family, 0, 0) + attributes)


def _open_tun(name: str) -> int:
    """The test's end of a new device in the present network namespace."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def _registrations() -> Iterator[Registration]:
    for name, (_, policies) in HELPERS.items():
        for family in FAMILIES:
            for transport in Transport:
                yield Registration(
                    name=name,
                    family=family,
                    transport=transport,
                    queue=4078,
                    policies=policies,
                )


def _family(original: Tuple) -> int:
    version = original.source.address.version
    return socket.AF_INET if version == 4 else socket.AF_INET6


# Attributes: include/uapi/linux/netfilter/nfnetlink_conntrack.h


def _attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, value.to_bytes(4))


def _tuple(value: Tuple) -> bytes:
    return _ends(
        value.source.address,
        value.source.port,
        value.destination.address,
        value.destination.port,
        value.transport,
    )


def _ends(
    source: Address, port: int, destination: Address, to: int, transport: Transport
) -> bytes:
    first = 1 if source.version == 4 else 3
    addresses = _attribute(first, source.packed)
    addresses += _attribute(first + 1, destination.packed)
    ports = _attribute(1, bytes((transport,)))
    ports += _attribute(2, port.to_bytes(2)) + _attribute(3, to.to_bytes(2))
    return _nested(1, addresses) + _nested(2, ports)


def _wanted(expectation: Expectation) -> tuple[bytes, bytes]:
    """The tuple and the mask of an expectation."""
    end = expectation.destination
    size = len(end.address.packed)
    network = expectation.source
    nowhere, everywhere = ip_address(bytes(size)), ip_address(b"\xff" * size)
    source = nowhere if network is None else network.network_address
    netmask = nowhere if network is None else network.netmask
    port = expectation.source_port
    return (
        _ends(source, port or 0, end.address, end.port, expectation.transport),
        _ends(
            netmask,
            0 if port is None else 0xFFFF,
            everywhere,
            0xFFFF,
            expectation.transport,
        ),
    )


def _read(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return found


def _read_tuple(data: bytes) -> Tuple | None:
    parts = _read(data)
    addresses, ports = _read(parts[1]), _read(parts[2])
    if ports[1][0] not in tuple(Transport):
        return None
    kind, first = (IPv4Address, 1) if 1 in addresses else (IPv6Address, 3)
    return Tuple(
        Transport(ports[1][0]),
        Endpoint(kind(addresses[first]), int.from_bytes(ports[2])),
        Endpoint(kind(addresses[first + 1]), int.from_bytes(ports[3])),
    )


def _known(data: bytes) -> Tuple:
    found = _read_tuple(data)
    assert found is not None
    return found


def _entry(data: bytes) -> Listed | None:
    attributes = _read(data)
    original = _read_tuple(attributes[1])
    if original is None:
        return None
    helper = _read(attributes[5])[1].rstrip(b"\0").decode() if 5 in attributes else None
    return Listed(
        original,
        Status(int.from_bytes(attributes[3])),
        helper,
        _known(attributes[14]) if 14 in attributes else None,
        int.from_bytes(attributes[7]),
    )


def _expectation(data: bytes) -> Held:
    attributes = _read(data)
    mask = _known(attributes[3])
    return Held(
        _known(attributes[1]),
        _known(attributes[2]),
        mask.source.address,
        mask.source.port,
        bool(int.from_bytes(attributes[8]) & 1),
        int.from_bytes(attributes[9]),
        int.from_bytes(attributes[4]),
    )

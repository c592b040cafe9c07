# SPDX-License-Identifier: GPL-2.0-or-later
"""Other addresses in the place of those of a recording, the same one each time.

Hosts of one network (/24, /64) stay together. An address and the one that takes its
place are as long in every way in which they are written: each number of an IPv4 address
has as many digits, each group of an IPv6 address too, and zeros stay zeros. So a
message keeps its length. None of a recording's networks takes the place of another.
"""

import random
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.tuples import Address

_LINK_LOCAL4: Final = bytes((169, 254))
_LINK_LOCAL6: Final = bytes((0xFE, 0x80)) + bytes(6)
_LINK_LOCALS: Final = range(0xFE80, 0xFEC0)
_LOOPBACK: Final = 127
_GROUPS: Final = 224
# Numbers of one, two and three digits.
_ALIKE: Final = (range(10), range(10, 100), range(100, 256))
# Global unicast as it is given out.
_GLOBAL: Final = range(0x2000, 0x4000)
_ATTEMPTS: Final = 1000

Network = bytes
"""The first 3 bytes of an IPv4 address, or the first 8 of an IPv6 one."""


def is_host(address: Address) -> bool:
    """Whether it says who somebody is; what does not, such as a group, stays."""
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return False
    if isinstance(address, IPv6Address):
        return any(address.packed[:8])
    return 0 < address.packed[0] < 240


def network(address: Address) -> Network:
    """Of the hosts that stay together."""
    return address.packed[: 3 if address.version == 4 else 8]


class Replacements:
    """What takes the place of an address of a recording, which has `addresses`."""

    def __init__(self, addresses: Iterable[Address], draw: random.Random) -> None:
        self._draw = draw
        self._taken: set[Network] = {_LINK_LOCAL6}
        link_local: set[bytes] = set()
        for each in addresses:
            self._taken.add(network(each))
            if network(each) == _LINK_LOCAL6:
                link_local.add(each.packed[len(_LINK_LOCAL6) :])
        # There is one link-local network of IPv6, which everybody has.
        self._networks: dict[Network, Network | None] = {_LINK_LOCAL6: _LINK_LOCAL6}
        self._hosts: dict[Address, Address | None] = {}
        # Of each network the rest of the addresses that have taken a place.
        self._rests: dict[Network, set[bytes]] = {_LINK_LOCAL6: link_local}

    def of(self, address: Address) -> Address | None:
        """The address itself where it `is_host` not; None: there is none left."""
        if not is_host(address):
            return address
        if address not in self._hosts:
            self._hosts[address] = self._replaced(address)
        return self._hosts[address]

    def _replaced(self, address: Address) -> Address | None:
        own = network(address)
        if own not in self._networks:
            self._networks[own] = self._first(self._drawn_networks(own), self._taken)
        other = self._networks[own]
        if other is None:
            return None
        used = self._rests.setdefault(own, set())
        rest = self._first(self._drawn_rests(address.packed[len(own) :]), used)
        if rest is None:
            return None
        packed = other + rest
        return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)

    @staticmethod
    def _first(drawn: Iterator[bytes], used: set[bytes]) -> bytes | None:
        """The first that is not used yet, which it is from now on."""
        found = next((each for each in drawn if each not in used), None)
        if found is not None:
            used.add(found)
        return found

    def _drawn_networks(self, own: Network) -> Iterator[Network]:
        if own[:2] == _LINK_LOCAL4:
            yield from (_LINK_LOCAL4 + each for each in self._numbers(own[2:]))
        elif len(own) == 3:
            for each in self._numbers(own):
                if _is_usable(each) and _digits(each) == _digits(own):
                    yield each
        else:
            yield from self._groups(own, first=True)

    def _drawn_rests(self, own: bytes) -> Iterator[bytes]:
        if len(own) > 1:
            yield from self._groups(own, first=False)
        elif own[0] in (0, 255):
            # A network's own address, and that of its broadcasts.
            yield own
        else:
            left = [each for each in _alike(own[0]) if each not in (0, 255)]
            self._draw.shuffle(left)
            yield from (bytes((each,)) for each in left)

    def _numbers(self, own: bytes) -> Iterator[bytes]:
        for _ in range(_ATTEMPTS):
            yield bytes(self._draw.choice(_alike(each)) for each in own)

    def _groups(self, own: bytes, *, first: bool) -> Iterator[bytes]:
        """Groups of 16 bits, as many hexadecimal digits each."""
        groups = [int.from_bytes(own[at : at + 2]) for at in range(0, len(own), 2)]
        ranges = [_as_long(each) for each in groups]
        if first and groups[0] in _LINK_LOCALS:
            ranges[0] = _LINK_LOCALS
        elif first and len(ranges[0]) > len(_GLOBAL):
            ranges[0] = _GLOBAL
        for _ in range(_ATTEMPTS):
            yield b"".join(self._draw.choice(each).to_bytes(2) for each in ranges)


def _alike(number: int) -> range:
    return _ALIKE[len(str(number)) - 1]


def _is_usable(own: Network) -> bool:
    return 0 < own[0] < _GROUPS and own[0] != _LOOPBACK and own[:2] != _LINK_LOCAL4


def _digits(packed: Network) -> int:
    """Of its addresses where they are written as one number."""
    return len(str(int.from_bytes(packed + b"\0")))


def _as_long(group: int) -> range:
    if not group:
        return range(1)
    digits = len(f"{group:x}")
    return range(16 ** (digits - 1), 16**digits)

# SPDX-License-Identifier: GPL-2.0-or-later
"""KNXnet/IP (KNX 03_08_02, section 7.6.1): gateways to a building's bus are searched.

A SEARCH_REQUEST (0x0201), or an extended one (0x020B), goes to 224.0.23.12, port 3671.
It says in a HPAI where the answer is to go: an address and a port of UDP; zeros mean
where the packet came from, for askers behind NAT. Gateways answer by unicast, mostly
from port 3671. There is IPv4 alone. Tunnels and routing are not served.

Security. The HPAI must name the asker's address, else its question opens nothing: not a
third host's port, nor a group. But it may name a port that another process holds, so
that any process of this host can have a port above 1023 opened, for 10 s, to hosts of
the link that send from port 3671. Ports that must stay closed to the link belong into
`denied_ports`.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from cthelper.core.api import (
    Cursor,
    Endpoint,
    ExpectationRefused,
    Malformed,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.helpers.discovery import GroupQuery, any_sport

_PORT: Final = 3671
# Length of the header, and version 1.0.
_HEADER: Final = 0x0610
_SEARCHES: Final = {0x0201: "search", 0x020B: "extended search"}
# Length of the HPAI, and UDP.
_UDP: Final = 0x0801


class Knx(GroupQuery):
    """Searches for KNXnet/IP gateways."""

    name = "knx"
    ports = (_PORT,)
    # Scanners wait for 3 to 10 s.
    policies = (Policy("answer", max_expected=8, timeout=10),)
    options = (any_sport(_PORT),)
    destinations = (IPv4Network("224.0.23.12"),)
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Searches alone."""
        request = tuple((Match(16, 16, each),) for each in _SEARCHES)
        return Prefilter(request=request, reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """What the HPAI says."""
        service, told = _read_search(message.payload)
        if service not in _SEARCHES or told is None:
            return None
        if told.address.is_unspecified or told.port == 0:
            return message.source
        if told.address.is_multicast:
            # Then answers go to the group, which needs no help.
            return None
        if told.address != message.source.address:
            text = f"{message.source.address} wants answers sent to {told.address}"
            raise ExpectationRefused("third-party-address", text)
        return told

    def describe(self, message: Message) -> dict[str, str]:
        """Which service it is, and where a search wants its answers."""
        service, told = _read_search(message.payload)
        fields = {"type": _SEARCHES.get(service, f"service {service:#06x}")}
        return fields if told is None else fields | {"answers to": str(told)}


def _read_search(data: bytes) -> tuple[int, Endpoint | None]:
    """The service, 0 to 65535, and the HPAI of a search over UDP. Raises Malformed."""
    cursor = Cursor(data)
    header, service, length = cursor.u16(), cursor.u16(), cursor.u16()
    if header != _HEADER or length != len(data):
        raise Malformed(f"header {header:#06x}, length {length} of {len(data)}")
    if service not in _SEARCHES or cursor.u16() != _UDP:
        return service, None
    return service, Endpoint(IPv4Address(cursor.take(4)), cursor.u16())

# SPDX-License-Identifier: GPL-2.0-or-later
"""What an expectation may open.

Each check has a reason code, and each refusal leaves nothing open. An announced
address must be the announcer's own: this is what stops redirects to third parties
(FTP bounce, NAT slipstreaming, TNS poison).
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.errors import ExpectationRefused
from cthelper.core.tuples import Address, Endpoint

DENIED_PORTS: Final = frozenset({22, 23, 25, 53, 80, 135, 139, 443, 445, 3389})
"""Ports never to be opened by default: what they serve is not announced by a helper."""

_BROADCAST: Final = IPv4Address("255.255.255.255")


class Guard:
    """Refuses announced endpoints that no honest announcement names."""

    def __init__(self, denied_ports: frozenset[int] = DENIED_PORTS) -> None:
        self._denied_ports = denied_ports

    def check(self, endpoint: Endpoint, announcer: Address, lowest_port: int) -> None:
        """Raise ExpectationRefused unless `announcer` may announce `endpoint`.

        `lowest_port` is the lowest port that the helper declares.
        """
        address, port = endpoint.address, endpoint.port
        reason = _unusable(address)
        if reason is not None:
            raise ExpectationRefused(reason, f"{address} cannot be a host's address")
        if address != announcer:
            raise ExpectationRefused(
                "third-party-address", f"{announcer} announced {address}"
            )
        if port == 0:
            raise ExpectationRefused("port-zero", f"{address} announced port 0")
        if port in self._denied_ports:
            raise ExpectationRefused("denied-port", f"port {port} is on the deny list")
        if port < lowest_port:
            raise ExpectationRefused("low-port", f"port {port} is below {lowest_port}")


def _unusable(address: Address) -> str | None:
    # First, because newer Pythons answer the other questions for the mapped address.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return "v4-mapped-address"
    if address.is_unspecified:
        return "unspecified-address"
    if address.is_loopback:
        return "loopback-address"
    if address.is_multicast:
        return "multicast-address"
    if address == _BROADCAST:
        return "broadcast-address"
    return None

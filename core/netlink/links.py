# SPDX-License-Identifier: GPL-2.0-or-later
"""The addresses of this host and the networks that they are on-link with."""

from ipaddress import IPv6Network, ip_address, ip_interface
from typing import Final

from cthelper.core.errors import ExpectationRefused
from cthelper.core.netlink.messages import ifaddrmsg
from cthelper.core.netlink.socket import NETLINK_ROUTE, Frame, NetlinkSocket
from cthelper.core.tuples import Address, Network, collapsed

# include/uapi/linux/rtnetlink.h
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_GROUP_IPV4_ADDRESS: Final = 5
_GROUP_IPV6_ADDRESS: Final = 9

_LINK_LOCAL: Final = IPv6Network("fe80::/10")


class Links:
    """Addresses and prefixes of the interfaces, kept up to date by events.

    Raises NetlinkError.
    """

    def __init__(self) -> None:
        groups = (_GROUP_IPV4_ADDRESS, _GROUP_IPV6_ADDRESS)
        self._events = NetlinkSocket(NETLINK_ROUTE, groups=groups)
        self._prefixes: dict[int, dict[Address, Network]] = {}
        self._own: dict[Address, int] = {}
        self._overruns = 0
        self._load()

    def fileno(self) -> int:
        """The descriptor that becomes readable when addresses change."""
        return self._events.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._events.close()

    def update(self) -> None:
        """Take in what has changed; never waits for that.

        Raises NetlinkError. What was known before holds then, until the next call.
        """
        frames = list(self._events.events())
        if self._events.overruns != self._overruns:
            self._load()
        elif frames:
            for frame in frames:
                self._apply(frame)
            self._index()

    def is_local(self, address: Address) -> bool:
        """Whether `address` is one of this host's own."""
        return address in self._own

    def on_link(self, address: Address) -> tuple[Network, ...]:
        """The networks of the hosts that share a link with `address`.

        For one of this host's own addresses, all prefixes of its family on its
        interface, and over IPv6 the link-local ones too: a neighbour may answer from
        any address it has. For another address, those of the interfaces that have a
        prefix around it. Raises ExpectationRefused with reason ``off-link`` if none.
        """
        own = self._own.get(address)
        if own is not None:
            indexes = [own]
        elif address.is_link_local:
            indexes = []  # such an address says nothing about which link it is on
        else:
            indexes = [
                index
                for index, prefixes in self._prefixes.items()
                if any(address in prefix for prefix in prefixes.values())
            ]
        if not indexes:
            raise ExpectationRefused(
                "off-link", f"{address} is on no link of this host"
            )
        prefixes = [
            prefix for index in indexes for prefix in self._prefixes[index].values()
        ]
        if address.version == 6:
            prefixes.append(_LINK_LOCAL)
        return collapsed(prefixes, address.version)

    def _load(self) -> None:
        overruns = self._events.overruns
        with NetlinkSocket(NETLINK_ROUTE) as requests:
            frames = requests.dump(ifaddrmsg(), _RTM_GETADDR, "list addresses")
        self._prefixes.clear()
        for frame in frames:
            self._apply(frame)
        self._index()
        self._overruns = overruns

    def _apply(self, frame: Frame) -> None:
        if frame.type not in (_RTM_NEWADDR, _RTM_DELADDR):
            return
        message = ifaddrmsg(frame.data)
        message.decode()
        # On a point-to-point interface IFA_ADDRESS is the other end's and IFA_LOCAL is
        # ours; the prefix is of the other end's. IPv6 has no IFA_LOCAL otherwise.
        far = message.get_attr("IFA_ADDRESS")
        near = message.get_attr("IFA_LOCAL") or far
        if near is None:
            return
        prefixes = self._prefixes.setdefault(message["index"], {})
        address = ip_address(near)
        if frame.type == _RTM_DELADDR:
            prefixes.pop(address, None)
        else:
            prefixes[address] = ip_interface(f"{far}/{message['prefixlen']}").network

    def _index(self) -> None:
        self._own = {
            address: index
            for index, prefixes in self._prefixes.items()
            for address in prefixes
        }

# SPDX-License-Identifier: GPL-2.0-or-later
"""WS-Discovery (OASIS 1.1): devices and services that are probed for by multicast.

A Probe or a Resolve, an envelope of SOAP over UDP, goes to 239.255.255.250 or ff02::c,
port 3702 (section 2.4), up to four times within two seconds. Each target that matches
answers by unicast to the port that asked: mostly from port 3702, though hosts of
Windows were seen to answer from others. Hello and Bye go to the group and need a static
rule. What the answers name is fetched over TCP, by the asker.

The envelope is not parsed: what counts is the name of its action, in one of the two
namespaces, among its first 2 KiB.

Security. No address of an answer is read, and so nothing else is opened than the
asker's port, for 10 s, to hosts of the link that send from port 3702.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from cthelper.core.api import (
    Endpoint,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.helpers.discovery import GroupQuery, any_sport

_PORT: Final = 3702
_MARK: Final = b"\xef\xbb\xbf"
_LOOKED_AT: Final = 2048
# Of April 2005, which devices speak, and of 1.1.
_ACTIONS: Final = {
    f"{namespace}/{action}".encode(): action
    for namespace in ("/ws/2005/04/discovery", "/ws-dd/ns/discovery/2009/01")
    for action in ("Probe", "Resolve")
}


class Wsd(GroupQuery):
    """WS-Discovery's probes for devices and services."""

    name = "wsd"
    ports = (_PORT,)
    # Half a second for a match (MATCH_TIMEOUT), repetitions, and slow devices.
    policies = (Policy("answer", max_expected=8, timeout=10),)
    options = (any_sport(_PORT),)
    destinations = (IPv4Network("239.255.255.250"), IPv6Network("ff02::c"))
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """What may be XML, with or without a byte order mark."""
        return Prefilter(request=((Match(0, 8, 0x3C),), (Match(0, 8, 0xEF),)), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that probed."""
        return None if _read_action(message.payload) is None else message.source

    def describe(self, message: Message) -> dict[str, str]:
        """Which question it is."""
        return {"type": _read_action(message.payload) or "no question"}


def _read_action(data: bytes) -> str | None:
    """Probe or Resolve; None: another message, or none of the protocol's."""
    data = data[:_LOOKED_AT].removeprefix(_MARK)
    if not data.startswith(b"<"):
        return None
    for action, name in _ACTIONS.items():
        at = data.find(action)
        # ProbeMatches and ResolveMatches are answers.
        while at >= 0:
            if not data[at + len(action) : at + len(action) + 1].isalpha():
                return name
            at = data.find(action, at + 1)
    return None

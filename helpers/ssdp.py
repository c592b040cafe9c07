# SPDX-License-Identifier: GPL-2.0-or-later
"""UPnP's search for devices (SSDP; UPnP Device Architecture 2.0, section 1.3).

A control point sends ``M-SEARCH * HTTP/1.1`` with ``MAN: "ssdp:discover"`` and a target
``ST`` to 239.255.255.250 or to ff02::c, ff05::c, ff08::c, port 1900. Each device that
has it answers within ``MX`` seconds, 1 to 5, several times over, by unicast to the port
that asked and mostly from port 1900. Announcements (NOTIFY) go to the group and need a
static rule. What the answers name is fetched over TCP, by the asker.

Events (GENA, section 4) are not served. A program asks a device for them by SUBSCRIBE,
which names a port of the program's own, and the device connects to that port at each
change, for half an hour and more. SUBSCRIBE goes over TCP to a port that only the
answers' LOCATION tells; the same port often carries films, and each renewal comes in a
new flow. So a helper would have to tag flows by what an answer said, to let those go at
once that begin with something else, and to know of a subscription what another flow
said; the host offers none of that, and to queue all TCP instead would cost more than it
helps. Have the program use a port that you choose, and admit the link to it; most go on
without events, and learn of a change when they ask next.

Security. No answer's LOCATION is read, and so nothing else is opened than the asker's
port, for 8 s, to hosts of the link that send from port 1900. Programs that ask from
port 1900 have that open for so long. Searches of other hosts open nothing.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from cthelper.core.api import (
    Endpoint,
    Malformed,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.helpers.discovery import GroupQuery, any_sport

_PORT: Final = 1900
_REQUEST: Final = b"M-SEARCH * HTTP/1."
_DISCOVER: Final = "ssdp:discover"
# Bytes of a search that are looked at; searches have some 200.
_LONGEST: Final = 2048


class Ssdp(GroupQuery):
    """UPnP's searches for devices."""

    name = "ssdp"
    ports = (_PORT,)
    # The longest MX, and as much again for slow devices.
    policies = (Policy("answer", max_expected=8, timeout=8),)
    options = (any_sport(_PORT),)
    destinations = (
        IPv4Network("239.255.255.250"),
        *(IPv6Network(f"ff0{scope}::c") for scope in (2, 5, 8)),
    )
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """What begins as a search."""
        request = ((Match(0, 32, int.from_bytes(_REQUEST[:4])),),)
        return Prefilter(request=request, reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that searched."""
        fields = _read_search(message.payload)
        if fields is None or fields.get("MAN", "").strip('"') != _DISCOVER:
            return None
        if not fields.get("ST"):
            raise Malformed("a search for nothing (ST)")
        return message.source

    def describe(self, message: Message) -> dict[str, str]:
        """What is searched for, and how long answers may take."""
        fields = _read_search(message.payload)
        if fields is None:
            return {"type": "no search"}
        shown = (key for key in ("ST", "MX") if key in fields)
        return {"type": "search"} | {key: repr(fields[key]) for key in shown}


def _read_search(data: bytes) -> dict[str, str] | None:
    """The fields of a search by their names in capitals; None: it is none.

    Raises Malformed where it is too long, or a line is no field.
    """
    if not data.startswith(_REQUEST):
        return None
    if len(data) > _LONGEST:
        raise Malformed(f"search of {len(data)} bytes")
    _, *lines = data.decode("latin-1").split("\n")
    fields = {}
    for line in lines:
        if not line.strip("\r"):
            break
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed(f"no field: {line!r}")
        fields[name.strip().upper()] = value.strip()
    return fields

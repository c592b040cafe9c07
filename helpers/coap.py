# SPDX-License-Identifier: GPL-2.0-or-later
"""CoAP (RFC 7252, section 8; RFC 10020): a request to a group of devices.

A request that needs no confirmation (NON) goes to 224.0.1.187 or to ff02::fd, ff05::fd,
ff08::fd, port 5683 (section 12.8). Servers answer by unicast from port 5683 to the port
that asked, after up to 5 s (DEFAULT_LEISURE, section 8.2), so that not all do at once.
Requests that need a confirmation may not go to a group (section 8.1). DTLS, port 5684,
has no groups. Observation (RFC 7641) of a group is not served beyond the window.

Security. The asker's port is open for 8 s to hosts of the link that send from port
5683; with `responders` "any" to everybody, for groups that routers carry.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from cthelper.core.api import (
    Cursor,
    Endpoint,
    Malformed,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.helpers.discovery import RESPONDERS, GroupQuery

_VERSION: Final = 1
_NON: Final = 1
_TOKEN_LIMIT: Final = 8
_METHODS: Final = {
    **{1: "GET", 2: "POST", 3: "PUT", 4: "DELETE"},
    **{5: "FETCH", 6: "PATCH", 7: "iPATCH"},
}


class Coap(GroupQuery):
    """CoAP's requests to groups of devices."""

    name = "coap"
    ports = (5683,)
    # DEFAULT_LEISURE, the way there and back, and slow devices.
    policies = (Policy("answer", max_expected=8, timeout=8),)
    options = (RESPONDERS,)
    destinations = (
        IPv4Network("224.0.1.187"),
        *(IPv6Network(f"ff0{scope}::fd") for scope in (2, 5, 8)),
    )
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Requests of version 1 that need no confirmation."""
        return Prefilter(request=((Match(0, 4, 5), Match(8, 3, 0)),), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that asked."""
        kind, code = _read_header(message.payload)
        return message.source if kind == _NON and 1 <= code <= 31 else None

    def describe(self, message: Message) -> dict[str, str]:
        """What kind of message it is, and the method of a request."""
        kind, code = _read_header(message.payload)
        kinds = ("confirmable", "non-confirmable", "acknowledgement", "reset")
        name = _METHODS.get(code, f"code {code >> 5}.{code & 31:02}")
        return {"type": kinds[kind], "code": name}


def _read_header(data: bytes) -> tuple[int, int]:
    """Type, 0 to 3, and code, 0 to 255 (RFC 7252, section 3). Raises Malformed."""
    cursor = Cursor(data)
    first, code = cursor.u8(), cursor.u8()
    cursor.skip(2)
    token = first & 0x0F
    if first >> 6 != _VERSION or token > _TOKEN_LIMIT:
        raise Malformed(f"version {first >> 6}, token of {token} bytes")
    cursor.skip(token)
    return first >> 4 & 3, code

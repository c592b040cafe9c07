# SPDX-License-Identifier: GPL-2.0-or-later
"""BACnet/IP (ASHRAE 135, Annex J): devices of a building that are asked who they are.

Who-Is and Who-Has go by broadcast to port 47808 (0xBAC0), in a frame of BVLC
(Original-Broadcast-NPDU). Some devices answer by unicast from port 47808 to the port
that asked, which is 47808, too, with nearly all programs; others broadcast their
answer, which needs a static rule. There is IPv4 alone here. Devices beyond a BBMD
answer themselves, and are not on the link: not served.

Security. Port 47808 of this host is open for 10 s after each question to hosts of the
link that send from the same port: so is all that its BACnet program does for others,
writing properties among it. Narrow `interfaces` to the building's network.
"""

from collections.abc import Mapping
from typing import Final

from cthelper.core.api import (
    BROADCAST,
    Cursor,
    Endpoint,
    Malformed,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.helpers.discovery import GroupQuery

# BVLC for IPv4, Original-Broadcast-NPDU.
_FRAME: Final = 0x810B
_VERSION: Final = 1
_TO_NETWORK: Final = 0x20
_FROM_NETWORK: Final = 0x08
_OF_NETWORK_LAYER: Final = 0x80
_UNCONFIRMED: Final = 1
_QUESTIONS: Final = {7: "Who-Has", 8: "Who-Is"}


class Bacnet(GroupQuery):
    """BACnet's questions for devices, by broadcast."""

    name = "bacnet"
    ports = (47808,)
    # Devices on slow buses behind a router take seconds.
    policies = (Policy("answer", max_expected=8, timeout=10),)
    destinations = (BROADCAST,)
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Broadcasts of a program's own."""
        return Prefilter(request=((Match(0, 16, _FRAME),),), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that asked."""
        return message.source if _read_question(message.payload) else None

    def describe(self, message: Message) -> dict[str, str]:
        """Which question it is."""
        return {"type": _read_question(message.payload) or "no question"}


def _read_question(data: bytes) -> str | None:
    """Who-Is or Who-Has (clauses 6.2 and 20.1.4); None: another message.

    Raises Malformed.
    """
    cursor = Cursor(data)
    frame, length = cursor.u16(), cursor.u16()
    if frame != _FRAME:
        return None
    version, control = cursor.u8(), cursor.u8()
    if length != len(data) or version != _VERSION:
        raise Malformed(f"version {version}, length {length} of {len(data)}")
    if control & _OF_NETWORK_LAYER:
        return None
    for part in (_TO_NETWORK, _FROM_NETWORK):
        if control & part:
            cursor.skip(2)
            cursor.skip(cursor.u8())
    if control & _TO_NETWORK:
        cursor.skip(1)  # hops
    kind, service = cursor.u8(), cursor.u8()
    return _QUESTIONS.get(service) if kind >> 4 == _UNCONFIRMED else None

# SPDX-License-Identifier: GPL-2.0-or-later
"""GigE Vision's control protocol (AIA GigE Vision 2): cameras are looked for.

DISCOVERY_CMD goes by broadcast to port 3956. Each camera answers within a millisecond
or so from port 3956, by unicast to the port that asked; where the flag 0x10 permits it,
it may broadcast the answer, which needs a static rule. There is IPv4 alone. The stream
of a camera goes to a port that the program tells it: not served.

Security. The asker's port is open for 2 s to hosts of the link that send from port
3956.
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

_COMMAND: Final = 0x42
_DISCOVERY: Final = 0x0002


class Gvcp(GroupQuery):
    """GigE Vision's search for cameras."""

    name = "gvcp"
    ports = (3956,)
    # Cameras answer at once, or within the second that the flag 0x10 spreads them over.
    policies = (Policy("answer", max_expected=8, timeout=2),)
    destinations = (BROADCAST,)
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """The search alone."""
        search = (Match(0, 8, _COMMAND), Match(16, 16, _DISCOVERY))
        return Prefilter(request=(search,), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that searched."""
        return message.source if _read_command(message.payload) == _DISCOVERY else None

    def describe(self, message: Message) -> dict[str, str]:
        """Which command it is."""
        command = _read_command(message.payload)
        return {
            "type": "search for cameras"
            if command == _DISCOVERY
            else f"command {command:#06x}"
        }


def _read_command(data: bytes) -> int:
    """The command, 0 to 65535. Raises Malformed where it is none, or a length lies."""
    cursor = Cursor(data)
    key = cursor.u8()
    cursor.skip(1)
    command, length = cursor.u16(), cursor.u16()
    cursor.skip(2)
    if key != _COMMAND or length != cursor.remaining:
        raise Malformed(f"key {key:#04x}, length {length} of {cursor.remaining}")
    return command

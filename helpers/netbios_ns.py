# SPDX-License-Identifier: GPL-2.0-or-later
"""NetBIOS name service (RFC 1001, RFC 1002): a name is looked for by broadcast.

A query goes to the broadcast address, port 137, with the flag B (section 4.2.12): for a
name (NB, type 0x20) or for a host's state (NBSTAT, type 0x21). Who has the name answers
by unicast from port 137 to the port that asked, each host for itself, and one with
several addresses from each of them. Registrations and releases (operation codes 5 and
6) want no answer; nmbd sends them from the same port 137 as its queries, so that they
end nothing.

Security. From a port below 1024 a query opens port 137 alone, the service's own, which
nmbd asks from; all that listens there can then be reached from the link for 5 s. An
answer is believed by whoever asked: a forged one of a host on the link can name any
address, here as without a firewall.

The kernel has a helper of this name, too (nf_conntrack_netbios_ns): it reads nothing,
opens for 3 s what the first packet to port 137 came from, and skips an interface's
further addresses.
"""

from collections.abc import Mapping
from typing import Final

from cthelper.core.api import (
    BROADCAST,
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
from cthelper.helpers.discovery import GroupQuery
from cthelper.helpers.dns import read_header, read_question_classes

_PORT: Final = 137
_PRIVILEGED: Final = 1024
_BROADCAST_FLAG: Final = 0x0010
_TYPES: Final = {0x20: "NB", 0x21: "NBSTAT"}
# A name's 16 bytes, each as two letters of A to P (RFC 1001, section 14.1).
_LETTERS: Final = 32


class NetbiosNs(GroupQuery):
    """NetBIOS names that are looked for by broadcast."""

    name = "netbios-ns"
    ports = (_PORT,)
    # Three queries 250 ms apart (RFC 1002, section 6), and slow hosts.
    policies = (Policy("answer", max_expected=8, timeout=5),)
    destinations = (BROADCAST,)
    lowest_port = _PORT
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Queries with the flag B."""
        return Prefilter(request=((Match(16, 5, 0), Match(27, 1, 1)),), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that asked for one name."""
        cursor = Cursor(message.payload)
        header = read_header(cursor)
        if not header.is_standard_query or not header.flags & _BROADCAST_FLAG:
            return None
        if header.questions != 1:
            return None
        _read_question(message.payload, cursor)
        port = message.source.port
        if port < _PRIVILEGED and port != _PORT:
            raise ExpectationRefused("source-port", f"a query from port {port}")
        return message.source

    def describe(self, message: Message) -> dict[str, str]:
        """The name that is asked for, and how."""
        cursor = Cursor(message.payload)
        header = read_header(cursor)
        if not header.is_standard_query or header.questions != 1:
            return {"type": "no query"}
        name, kind = _read_question(message.payload, cursor)
        return {"type": f"{_TYPES[kind]} query", "name": name}


def _read_question(data: bytes, cursor: Cursor) -> tuple[str, int]:
    """The question's name without its padding, and its type. Raises Malformed."""
    start = cursor.position
    read_question_classes(cursor, 1)
    letters = data[start + 1 : start + 1 + _LETTERS]
    if data[start] != _LETTERS or not all(65 <= each <= 80 for each in letters):
        raise Malformed(f"no name of NetBIOS: {data[start : start + 33]!r}")
    kind = int.from_bytes(data[cursor.position - 4 : cursor.position - 2])
    if kind not in _TYPES:
        raise Malformed(f"question of type {kind:#x}")
    pairs = zip(letters[::2], letters[1::2], strict=True)
    name = bytes((high - 65) << 4 | (low - 65) for high, low in pairs)
    return f"{name[:15].decode('latin-1').rstrip()!r}, suffix {name[15]:#04x}", kind

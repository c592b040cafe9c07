# SPDX-License-Identifier: GPL-2.0-or-later
"""Link-Local Multicast Name Resolution (RFC 4795): a name is asked for on the link.

A query goes to 224.0.0.252 or ff02::1:3, port 5355, in the form of DNS (section 2.1):
one question, no answers. Responders send their answers from port 5355 by unicast to the
port that asked (section 2.3). Two more queries follow within a second or so (section
2.7). One with the flag C tells of a conflict and is not answered. An answer that was
cut off (TC) has the asker come over TCP, which is a connection of its own.

Security. systemd-resolved asks from port 5355 itself, which is then open to port 5355
of the link for 3 s. An answer is believed by whoever asked: a forged one of a host on
the link can name any address, here as without a firewall.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from cthelper.core.api import (
    Cursor,
    Endpoint,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.helpers.discovery import GroupQuery
from cthelper.helpers.dns import read_header, read_question_classes

_CONFLICT: Final = 0x0400


class Llmnr(GroupQuery):
    """Link-local names that are asked for by multicast."""

    name = "llmnr"
    ports = (5355,)
    # Three queries, each of which responders answer within 100 ms.
    policies = (Policy("answer", max_expected=8, timeout=3),)
    destinations = (IPv4Network("224.0.0.252"), IPv6Network("ff02::1:3"))
    enabled = False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Standard queries: the bit QR and the operation code are 0."""
        return Prefilter(request=((Match(16, 5, 0),),), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port that asked, where a responder has to answer."""
        cursor = Cursor(message.payload)
        header = read_header(cursor)
        records = message.payload[6:10]  # answers and name servers, of which are none
        if not header.is_standard_query or header.flags & _CONFLICT:
            return None
        if header.questions != 1 or any(records):
            return None
        read_question_classes(cursor, 1)
        return message.source

    def describe(self, message: Message) -> dict[str, str]:
        """The name that is asked for, where it is a query."""
        if self.asks(message) is None:
            return {"type": "no query"}
        cursor = Cursor(message.payload)
        read_header(cursor)
        start = cursor.position
        read_question_classes(cursor, 1)
        labels = message.payload[start : cursor.position - 4]
        return {"type": "query", "name": repr(labels)[1:]}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Multicast DNS (RFC 6762): a query that is answered by unicast to the asker's port.

Queries go to 224.0.0.251 or ff02::fb, port 5353. Conntrack matches the answer to no
flow, since it comes from the responder's own address. Two kinds of query get a unicast
answer: a one-shot query, sent from any port but 5353 (sections 5.1 and 6.7), and a
question with the unicast-response bit, QU (section 5.4). All other answers are
multicast and need a static rule.

Responders answer from port 5353 and must be on the asker's link (sections 6 and 11),
from any of their addresses: over IPv6 a query from a link-local address is answered
from a global one. Only this host's own queries open anything, unless `hooks` has
prerouting, which is for reflectors: the answers to others do not pass here. NAT is not
supported: these queries do not leave the link.
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
from cthelper.helpers.discovery import GroupQuery
from cthelper.helpers.dns import read_header, read_question_classes

_PORT: Final = 5353
# Top bit of a question's class (RFC 6762, section 5.4).
_UNICAST_RESPONSE: Final = 0x8000
# A message, without its headers (RFC 6762, section 17).
_LONGEST: Final = 9000


class Mdns(GroupQuery):
    """Multicast DNS queries that are answered by unicast."""

    name = "mdns"
    ports = (_PORT,)
    # Responders answer within half a second and askers ask again. One query takes an
    # expectation for each on-link prefix.
    policies = (Policy("answer", max_expected=8, timeout=10),)
    destinations = (IPv4Network("224.0.0.251"), IPv6Network("ff02::fb"))

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Standard queries: the bit QR and the operation code are 0."""
        return Prefilter(request=((Match(16, 5, 0),),), reply=())

    def asks(self, message: Message) -> Endpoint | None:
        """The port of a query that asks for unicast answers."""
        if len(message.payload) > _LONGEST:
            raise Malformed(f"message of {len(message.payload)} bytes")
        cursor = Cursor(message.payload)
        header = read_header(cursor)
        if not header.is_standard_query or header.questions == 0:
            return None
        classes = read_question_classes(cursor, header.questions)
        one_shot = message.source.port != _PORT
        if not one_shot and not any(each & _UNICAST_RESPONSE for each in classes):
            return None
        return message.source

    def describe(self, message: Message) -> dict[str, str]:
        """Query or response, and how a query wants its answers."""
        cursor = Cursor(message.payload)
        header = read_header(cursor)
        if not header.is_standard_query:
            return {"type": "response, or no standard query"}
        classes = read_question_classes(cursor, header.questions)
        unicast = sum(bool(each & _UNICAST_RESPONSE) for each in classes)
        return {
            "type": "query",
            "questions": f"{header.questions}, {unicast} of them QU",
            "asked from": "port 5353"
            if message.source.port == _PORT
            else f"port {message.source.port}: one-shot",
        }

# SPDX-License-Identifier: GPL-2.0-or-later
"""TFTP (RFC 1350): a server answers a request from a port of its own.

::

    client: RRQ or WRQ, to port 69: opcode, file, mode, options (RFC 2347)
    server: OACK, DATA 1, ACK 0 or ERROR, from a new port, to the port that asked

All of a transfer goes between these two ports, its transfer identifiers (section 4).
The expectation is for one flow, from any port of the server that was asked. A client
may ask again from the same port, for another file or since nothing came, and each
request opens anew; so the flow is never done with.

A server may answer from port 69 instead (dnsmasq's tftp-single-port). DATA and ACK then
are in the flow of the request, and are left out of the queue, by their opcodes. Data
that go to a group (RFC 2090) are not expected: a group is no host.

No message holds an endpoint, so that nothing is rewritten behind NAT: the expectation
is for the port that the request's own flow is translated to.

Security. What is opened is the very port that asked, to the server that was asked, for
30 s, as long as conntrack keeps a flow that nobody has answered: to whom the request
alone opens that port from 69. A port below 1024 is not opened: a service listens there,
or the request is forged. A server that answers from another address is not let in, nor
would a client take it (section 4). A request to a group or by broadcast opens nothing;
servers are not to answer it (RFC 1123, section 4.2.3.5).
"""

from collections.abc import Mapping
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    UDP,
    Cursor,
    Effects,
    ExpectationRefused,
    Helper,
    Malformed,
    Match,
    Message,
    OptionValue,
    Policy,
    Prefilter,
    expect,
)

_REQUESTS: Final = {1: "RRQ", 2: "WRQ"}
_OTHERS: Final = {3: "DATA", 4: "ACK", 5: "ERROR", 6: "OACK"}
_MODES: Final = frozenset({b"netascii", b"octet", b"mail"})
# RFC 2347, packet formats.
_REQUEST_LIMIT: Final = 512


class Tftp(Helper):
    """TFTP's transfers, which come from a port of the server's own."""

    name = "tftp"
    transports = frozenset({UDP})
    ports = (69,)
    # Who repeats a request repeats the expectation, which is the same.
    policies = (Policy("transfer", max_expected=1, timeout=30),)

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Requests; not the transfer, where the server goes on from port 69."""
        requests = tuple((Match(0, 16, each),) for each in _REQUESTS)
        return Prefilter(request=requests, reply=())

    def on_message(self, message: Message) -> Effects:
        """Expect the server's answer to a request, at the port that asked."""
        if message.direction is ORIGINAL and parse_request(message.payload):
            target = message.destination
            if message.group or target.address.is_multicast:
                raise ExpectationRefused("group", f"a request to {target.address}")
            yield from expect(message.source, policy="transfer")

    def describe(self, message: Message) -> dict[str, str]:
        """The kind of a packet, and what a request asks for."""
        request = parse_request(message.payload)
        if request is None:
            return {"type": _OTHERS[Cursor(message.payload).u16()]}
        kind, file, mode, *options = request
        fields = {"type": kind, "file": repr(file), "mode": mode}
        return fields | {"options": " ".join(options)} if options else fields


def parse_request(datagram: bytes) -> tuple[str, ...] | None:
    """Kind, file and mode of a request, and the strings of its options.

    None for any other packet of TFTP. Raises Malformed, and nothing else.
    """
    cursor = Cursor(datagram)
    opcode = cursor.u16()
    if opcode in _OTHERS:
        return None
    if opcode not in _REQUESTS or len(datagram) > _REQUEST_LIMIT:
        raise Malformed(f"opcode {opcode} in a datagram of {len(datagram)} bytes")
    file, *strings = cursor.take(cursor.remaining).split(b"\0")
    # The last string ends as the others do, so that nothing is left.
    if not file or len(strings) < 2 or strings.pop():
        raise Malformed(f"file, mode or option is missing: {datagram[:40]!r}")
    if strings[0].lower() not in _MODES:
        raise Malformed(f"mode {strings[0][:40]!r}")
    texts = (each.decode("utf-8", "backslashreplace") for each in (file, *strings))
    return (_REQUESTS[opcode], *texts)

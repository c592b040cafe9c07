# SPDX-License-Identifier: GPL-2.0-or-later
"""SunRPC portmapper and rpcbind (RFC 1833): a reply names the port of a service.

A client asks port 111 where a program is: with GETPORT of version 2, or with GETADDR
of versions 3 and 4, which modern clients use first. The reply holds only the answer,
so it means nothing without its call: calls are kept by xid until they are answered,
60 s at most. GETPORT is answered with a port; GETADDR with a universal address, host
and port in one string (RFC 5665, section 5.2.3), whose host is the server's address or
unspecified.

Messages are RPC calls and replies (RFC 5531, section 9) in XDR; on TCP in records of
one or more fragments (section 11). Over UDP libtirpc calls the service from the very
port that asked, over TCP from a new one: the source port is left open.

Behind destination NAT the announced address is not the one that the client knows, and
the expectation is refused (reason ``nat``). Masquerading of the client is fine.
"""

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    TCP,
    UDP,
    Address,
    Cursor,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Malformed,
    Message,
    Option,
    Policy,
    Transport,
    expect,
)
from cthelper.helpers.xdr import join_record, read_opaque, read_string, record_length

PORTMAPPER: Final = 100000

# RFC 5531, section 9.
_CALL: Final = 0
_REPLY: Final = 1
_RPC_VERSION: Final = 2
_ACCEPTED: Final = 0
_SUCCESS: Final = 0
_AUTH_LIMIT: Final = 400
# Versions and procedures of RFC 1833, sections 2.2.1 and 3.
_GETPORT: Final = (2, 3)
_GETADDR: Final = ((3, 3), (4, 3))
_STRING_LIMIT: Final = 255

_PENDING_LIMIT: Final = 32
_PENDING_SECONDS: Final = 60.0

# RFC 1833, sections 2.1 and 3.1, by version and number.
_PROCEDURES: Final = {
    2: ("NULL", "SET", "UNSET", "GETPORT", "DUMP", "CALLIT"),
    3: (
        *("NULL", "SET", "UNSET", "GETADDR", "DUMP", "CALLIT", "GETTIME"),
        *("UADDR2TADDR", "TADDR2UADDR"),
    ),
    4: (
        *("NULL", "SET", "UNSET", "GETADDR", "DUMP", "BCAST", "GETTIME"),
        *("UADDR2TADDR", "TADDR2UADDR", "GETVERSADDR", "INDIRECT", "GETADDRLIST"),
        "GETSTAT",
    ),
}

# RFC 5665, section 5.2.2, and the IP version that each means.
_NETIDS: Final = {"tcp": (TCP, 4), "udp": (UDP, 4), "tcp6": (TCP, 6), "udp6": (UDP, 6)}


@dataclass(slots=True)
class _Call:
    """A call that waits for its reply; `answer` is the endpoint once it has come.

    `netid` is None for GETPORT.
    """

    program: int
    transport: Transport
    netid: str | None
    expires: float
    answer: Endpoint | None = None


class SunRpc(Helper):
    """SunRPC portmapper and rpcbind: GETPORT and GETADDR."""

    name = "sunrpc"
    transports = frozenset({TCP, UDP})
    ports = (111,)
    policies = (Policy("service", max_expected=8, timeout=300),)
    options = (
        Option(
            "mode",
            "service",
            "service: the client may open any number of flows to the announced port "
            "until the policy's timeout; oneshot: one flow",
            choices=("service", "oneshot"),
        ),
        Option(
            "netid",
            "match",
            "match: a GETADDR call that names another transport than its own opens "
            "nothing; trust: it opens the transport that it names",
            choices=("match", "trust"),
        ),
    )
    # Services that root starts bind reserved ports (bindresvport takes 512 to 1023).
    lowest_port = 512

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def frame(self, data: memoryview) -> int | None:
        """Length of one record."""
        return record_length(data, self.message_limit)

    def on_message(self, message: Message) -> Effects:
        """Remember a call; expect flows to what the reply to one announces."""
        record = message.payload
        if message.transport is TCP:
            record = join_record(record)
        cursor = Cursor(record)
        xid = cursor.u32()
        kind = cursor.u32()
        if kind != (_CALL if message.direction is ORIGINAL else _REPLY):
            raise Malformed(
                f"message type {kind} in {message.direction.value} direction"
            )
        if message.direction is ORIGINAL:
            self._remember(xid, cursor, message)
            return
        call = self._calls.get(xid)
        if call is None or call.expires <= message.now or not _succeeded(cursor):
            return
        endpoint = _announced(call, cursor, message)
        if endpoint is None:
            return
        if call.program == PORTMAPPER:
            raise ExpectationRefused("portmapper", "the portmapper announced itself")
        if call.answer not in (None, endpoint):
            raise ExpectationRefused(
                "second-answer", f"{endpoint} after {call.answer} for one call"
            )
        call.answer = endpoint
        yield from expect(
            endpoint,
            policy="service",
            transport=call.transport,
            permanent=message.options["mode"] == "service",
        )

    def describe(self, message: Message) -> dict[str, str]:
        """The call or the reply; what a reply announces is told by its call."""
        record = message.payload
        if message.transport is TCP:
            record = join_record(record)
        cursor = Cursor(record)
        xid, kind = cursor.u32(), cursor.u32()
        fields = {"xid": f"{xid:#010x}", "type": "call" if kind == _CALL else "reply"}
        if kind == _CALL:
            return fields | _describe_call(cursor)
        succeeded = _succeeded(cursor)
        fields["status"] = "success" if succeeded else "denied or failed"
        call = self._calls.get(xid)
        if call is None:
            fields["answers"] = "no call that could announce an endpoint"
        elif succeeded:
            endpoint = _announced(call, cursor, message)
            fields["announces"] = (
                "nothing: the program is not registered"
                if endpoint is None
                else f"program {call.program} at {call.transport} {endpoint}"
            )
        return fields

    def _remember(self, xid: int, cursor: Cursor, message: Message) -> None:
        call = _read_call(cursor, message)
        # A repeated call is the same again; it must not forget the answer.
        known = self._calls.pop(xid, None)
        if call is None:
            return
        if known is not None and known.program == call.program:
            call.answer = known.answer
        while len(self._calls) >= _PENDING_LIMIT:
            del self._calls[next(iter(self._calls))]
        self._calls[xid] = call


def _read_call(cursor: Cursor, message: Message) -> _Call | None:
    """The call after its xid and type; None where its reply will open nothing."""
    version = cursor.u32()
    if version != _RPC_VERSION:
        raise Malformed(f"RPC version {version}")
    program = cursor.u32()
    procedure = (cursor.u32(), cursor.u32())
    _skip_auth(cursor)
    _skip_auth(cursor)
    if program != PORTMAPPER:
        return None
    expires = message.now + _PENDING_SECONDS
    if procedure == _GETPORT:
        wanted, _, protocol, _ = (cursor.u32() for _ in range(4))
        if protocol not in (TCP, UDP):
            return None
        return _Call(wanted, Transport(protocol), None, expires)
    if procedure in _GETADDR:
        wanted, _ = cursor.u32(), cursor.u32()
        netid = read_string(cursor, _STRING_LIMIT)
        transport = _transport_of(netid, message)
        if transport is None:
            return None
        return _Call(wanted, transport, netid, expires)
    return None


def _describe_call(cursor: Cursor) -> dict[str, str]:
    cursor.skip(4)
    program, version, number = cursor.u32(), cursor.u32(), cursor.u32()
    _skip_auth(cursor)
    _skip_auth(cursor)
    names = _PROCEDURES.get(version, ()) if program == PORTMAPPER else ()
    fields = {
        "program": f"{program}, version {version}",
        "procedure": names[number] if number < len(names) else str(number),
    }
    if program != PORTMAPPER:
        return fields
    if (version, number) == _GETPORT:
        wanted, release, protocol = cursor.u32(), cursor.u32(), cursor.u32()
        fields["asks for"] = f"program {wanted}, version {release}"
        fields["protocol"] = str(protocol)
    elif (version, number) in _GETADDR:
        wanted, release = cursor.u32(), cursor.u32()
        fields["asks for"] = f"program {wanted}, version {release}"
        for name in ("netid", "address", "owner"):
            fields[name] = repr(read_string(cursor, _STRING_LIMIT))
    return fields


def _transport_of(netid: str, message: Message) -> Transport | None:
    """The transport of the service that a GETADDR call asks for, or None.

    RFC 1833 (section 3) has the server ignore the netid and answer for the transport of
    the call. Servers honour it, and clients leave it empty or let it agree.
    """
    if not netid:
        return message.transport
    transport, version = _NETIDS.get(netid, (None, 0))
    if transport is None or version != message.source.address.version:
        return None
    if transport is not message.transport and message.options["netid"] == "match":
        return None
    return transport


def _skip_auth(cursor: Cursor) -> None:
    """Pass over credentials or a verifier (RFC 5531, section 8.2)."""
    cursor.skip(4)
    read_opaque(cursor, _AUTH_LIMIT)


def _succeeded(cursor: Cursor) -> bool:
    """Whether the reply is accepted and successful; then its result comes next."""
    if cursor.u32() != _ACCEPTED:
        return False
    _skip_auth(cursor)
    return cursor.u32() == _SUCCESS


def _announced(call: _Call, cursor: Cursor, message: Message) -> Endpoint | None:
    """The endpoint in the result, or None where the service is not registered."""
    server = message.source.address
    if call.netid is None:
        # XDR carries 32 bits; Endpoint refuses what does not fit 16.
        port = cursor.u32()
        return Endpoint(server, port) if port else None
    text = read_string(cursor, _STRING_LIMIT)
    if not text:
        return None
    endpoint = parse_uaddr(text)
    ours = (server, message.original.destination.address)
    if endpoint.address.is_unspecified or endpoint.address in ours:
        return Endpoint(server, endpoint.port)
    return endpoint


def parse_uaddr(text: str) -> Endpoint:
    """The endpoint of a universal address, such as ``192.0.2.1.3.232`` (port 1000).

    RFC 5665, sections 5.2.3.3 and 5.2.3.4. Raises Malformed.
    """
    host, *octets = text.rsplit(".", 2)
    # int() would take signs, blanks, underscores and digits of other scripts.
    if len(octets) != 2 or not all(
        octet.isascii() and octet.isdigit() and int(octet) <= 0xFF for octet in octets
    ):
        raise Malformed(f"universal address {text!r}")
    high, low = map(int, octets)
    address: Address
    try:
        address = IPv6Address(host) if ":" in host else IPv4Address(host)
    except AddressValueError:
        raise Malformed(f"universal address {text!r}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Malformed(f"universal address {text!r} has a scope")
    return Endpoint(address, high * 256 + low)

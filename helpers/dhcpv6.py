# SPDX-License-Identifier: GPL-2.0-or-later
"""DHCPv6 (RFC 8415): what is sent to a group is answered by unicast.

Clients send from port 546 to ff02::1:2 (all relays and servers), port 547. Conntrack
matches the answer to no flow, since it comes from a server's or relay's own address:
link-local or global, and not always from port 547. It goes to the address and port
that the message came from (section 18.3.10), which for an address registration is the
address to be registered (RFC 9686). Several servers may answer, and each message opens
the port anew, so that retransmissions keep it open.

A relay sends from port 547 to ff05::1:3 (all servers), or from any port if it says so
by the option Relay Source Port (RFC 8357); a leasequery (RFC 5007) comes from 546 or
547. Their answers go back to the port that they came from. Whatever does not come from
port 546 is a relay's, and opens its port where option relay says that this host has
one: any process may send it, and have a port of its choice opened to everybody.

Unicast needs no help. A Reconfigure follows no message of the client and needs a static
rule. Messages that only servers send, and types that are not known, open nothing and
pass. Forwarded messages open nothing: their answers do not pass here.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from cthelper.core.api import (
    ANY,
    ORIGINAL,
    UDP,
    Cursor,
    Effects,
    ExpectationRefused,
    Helper,
    Hook,
    Malformed,
    Match,
    Message,
    Network,
    Option,
    OptionValue,
    Policy,
    Prefilter,
    expect,
)

_CLIENT_PORT: Final = 546
_SERVER_PORT: Final = 547
_GROUPS: Final = (IPv6Network("ff02::1:2"), IPv6Network("ff05::1:3"))

_RELAY_FORWARD: Final = 12
_RELAY_REPLY: Final = 13
_LEASEQUERY: Final = 14

# Options: RFC 8415, section 21.10, and RFC 8357.
_RELAY_MESSAGE: Final = 9
_RELAY_SOURCE_PORT: Final = 135
# Those of clients and relays have some twenty.
_OPTION_LIMIT: Final = 256

# IANA's registry of message types, from type 0 on.
_NAMES: Final = (
    *("reserved", "Solicit", "Advertise", "Request", "Confirm", "Renew", "Rebind"),
    *("Reply", "Release", "Decline", "Reconfigure", "Information-request"),
    *("Relay-forward", "Relay-reply", "Leasequery", "Leasequery-reply"),
    *("Leasequery-done", "Leasequery-data", "Reconfigure-request"),
    *("Reconfigure-reply", "DHCPv4-query", "DHCPv4-response", "Activeleasequery"),
    *("StartTLS", "Bndupd", "Bndreply", "Poolreq", "Poolresp", "Updreq", "Updreqall"),
    *("Upddone", "Connect", "Connectreply", "Disconnect", "State", "Contact"),
    *("Addr-reg-inform", "Addr-reg-reply"),
)

# Types that are answered, and the ports that they come from.
_SENT_FROM: Final = {
    **dict.fromkeys((1, 3, 4, 5, 6, 8, 9, 11, 20, 36), (_CLIENT_PORT,)),
    _RELAY_FORWARD: (_SERVER_PORT,),
    _LEASEQUERY: (_CLIENT_PORT, _SERVER_PORT),
}


def _ipv6_network(value: object) -> Network:
    if not isinstance(value, str):
        raise ValueError('must be an IPv6 network such as "fe80::/10"')
    try:
        return IPv6Network(value)
    except ValueError as error:
        raise ValueError(f"must be an IPv6 network: {error}") from None


_RELAY: Final = Option(
    "relay",
    False,
    "true: what a relay on this host sends opens the port that it comes from, 547 or "
    "one of its choice; false: no other port than 546 is opened, as any process could "
    "pretend to be a relay",
)
_STRICT_SPORT: Final = Option(
    "strict_sport",
    False,
    "true: answers must come from port 547; false: from any port, since some servers "
    "and relays use another",
)
_SERVERS: Final[Option[tuple[Network, ...]]] = Option(
    "servers",
    (),
    "networks that answers may come from, such as fe80::/10, not more than "
    "max_expected of the policy; empty: from anywhere",
    element=_ipv6_network,
)


class Dhcpv6(Helper):
    """DHCPv6 messages to a group, which servers answer by unicast."""

    name = "dhcpv6"
    transports = frozenset({UDP})
    ports = (_SERVER_PORT,)
    # Servers answer within a second; who gets no answer sends again, after up to two
    # minutes, which opens the port anew.
    policies = (Policy("answer", max_expected=8, timeout=30),)
    options = (_RELAY, _STRICT_SPORT, _SERVERS)
    hooks = frozenset({Hook.OUTPUT})
    nat = False
    destinations = _GROUPS
    lowest_port = _CLIENT_PORT

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Messages of the types that are answered."""
        return Prefilter(
            request=tuple((Match(0, 8, kind),) for kind in _SENT_FROM), reply=()
        )

    def on_message(self, message: Message) -> Effects:
        """Expect the answers to a message that clients or relays send to a group."""
        if message.direction is not ORIGINAL or not _to_group(message):
            return
        cursor = Cursor(message.payload)
        kind = _read_header(cursor)
        if kind not in _SENT_FROM:
            return
        codes = [code for code, _ in _read_options(cursor)]
        port = message.source.port
        any_port = kind == _RELAY_FORWARD and _RELAY_SOURCE_PORT in codes
        if port not in _SENT_FROM[kind] and not any_port:
            raise ExpectationRefused("source-port", f"{_NAMES[kind]} from port {port}")
        relayed = kind == _RELAY_FORWARD or port != _CLIENT_PORT
        if relayed and not _RELAY.of(message):
            raise ExpectationRefused(
                "relay", f"{_NAMES[kind]} from port {port}, and option relay is false"
            )
        for source in _SERVERS.of(message) or (ANY,):
            yield from expect(
                message.source,
                policy="answer",
                source=source,
                source_port=_SERVER_PORT if _STRICT_SPORT.of(message) else None,
                permanent=True,
            )

    def describe(self, message: Message) -> dict[str, str]:
        """Type and transaction of a message; of a relayed one what it carries."""
        cursor = Cursor(message.payload)
        kind = _read_header(cursor)
        fields = {"type": _name(kind)}
        if kind not in (_RELAY_FORWARD, _RELAY_REPLY):
            return fields | {"transaction": f"0x{message.payload[1:4].hex()}"}
        fields["hops"] = str(message.payload[1])
        fields["link"] = str(IPv6Address(message.payload[2:18]))
        fields["peer"] = str(IPv6Address(message.payload[18:34]))
        for code, data in _read_options(cursor):
            if code == _RELAY_MESSAGE and data:
                fields["carries"] = _name(data[0])
            elif code == _RELAY_SOURCE_PORT:
                fields["source port"] = "the relay's own choice"
        return fields


def _to_group(message: Message) -> bool:
    address = message.destination.address
    return any(address in group for group in _GROUPS)


def _name(kind: int) -> str:
    return f"{_NAMES[kind] if kind < len(_NAMES) else 'unknown'} ({kind})"


def _read_header(cursor: Cursor) -> int:
    """Pass over what is before the options; the message type, 0 to 255.

    RFC 8415, sections 8 and 9: a relay's header has a hop count and two addresses, all
    others a transaction id, or flags of the same size (RFC 7341). Raises Truncated.
    """
    kind = cursor.u8()
    cursor.skip(33 if kind in (_RELAY_FORWARD, _RELAY_REPLY) else 3)
    return kind


def _read_options(cursor: Cursor) -> Iterator[tuple[int, bytes]]:
    """Code and data of each option (RFC 8415, section 21.1).

    Raises Malformed, also where there are over 256.
    """
    count = 0
    while cursor.remaining:
        count += 1
        if count > _OPTION_LIMIT:
            raise Malformed(f"over {_OPTION_LIMIT} options")
        code, length = cursor.u16(), cursor.u16()
        yield code, cursor.take(length)

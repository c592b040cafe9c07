# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said to portmapper and rpcbind, and what they answer (RFC 1833).

Both are program 100000, portmapper in version 2, rpcbind in versions 3 and 4. Messages
are RPC calls and replies (RFC 5531, section 9) in XDR. Here they are read; what is to
be done about them is decided in `cthelper.helpers.sunrpc`.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from cthelper.core.api import (
    TCP,
    UDP,
    Address,
    Cursor,
    Endpoint,
    Malformed,
    Match,
    Matches,
    Transport,
)
from cthelper.helpers.xdr import (
    read_list,
    read_opaque,
    read_opaques,
    read_string,
    skip_opaque,
    string,
)

PORTMAPPER: Final = 100000

CALL: Final = 0
REPLY: Final = 1

NETIDS: Final = {"tcp": (TCP, 4), "udp": (UDP, 4), "tcp6": (TCP, 6), "udp6": (UDP, 6)}
"""Transport and IP version of a network identifier (RFC 5665, section 5.2.2)."""

# RFC 5531, section 9.
_RPC_VERSION: Final = 2
_ACCEPTED: Final = 0
_SUCCESS: Final = 0
# By number: RFC 5531, section 9, reject_stat and accept_stat.
_DENIED: Final = ("RPC_MISMATCH", "AUTH_ERROR")
_FAILED: Final = (
    *("SUCCESS", "PROG_UNAVAIL", "PROG_MISMATCH", "PROC_UNAVAIL"),
    *("GARBAGE_ARGS", "SYSTEM_ERR"),
)
_AUTH_LIMIT: Final = 400

LISTED_LIMIT: Final = 64
"""Entries of GETADDRLIST that are read: a server has one for each way to a program."""
DUMPED_LIMIT: Final = 256
"""Entries of DUMP that are read: each version of a program and way to it has one."""
# XDR's strings have no limit of their own; those of RFC 1833 are names and addresses.
_STRING_LIMIT: Final = 255

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

PROGRAMS: Final = {
    "portmapper": PORTMAPPER,
    "rstatd": 100001,
    "rusersd": 100002,
    "nfs": 100003,
    "ypserv": 100004,
    "mountd": 100005,
    "ypbind": 100007,
    "walld": 100008,
    "yppasswdd": 100009,
    "etherstatd": 100010,
    "rquotad": 100011,
    "sprayd": 100012,
    "rexd": 100017,
    "llockmgr": 100020,
    "nlockmgr": 100021,
    "statmon": 100023,
    "status": 100024,
    "bootparam": 100026,
    "ypupdated": 100028,
    "keyserv": 100029,
    "ypxfrd": 100069,
    "nfs_acl": 100227,
    "sadmind": 100232,
    "pcnfsd": 150001,
    "amd": 300019,
    "sgi_fam": 391002,
    "ugidd": 545580417,
    "fypxfrd": 600100069,
}
"""Numbers of programs by their names in rpc(5)."""

TRANSPORTS: Final[dict[int, Transport]] = {TCP: TCP, UDP: UDP}
"""The transports of services by their numbers in IP."""
_NETIDS: Final = {name.encode(): meaning for name, meaning in NETIDS.items()}

_PROGRAM_NAMES: Final = {number: name for name, number in PROGRAMS.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """What a call calls, after its xid and type."""

    program: int
    version: int
    number: int
    name: str = field(init=False, compare=False)
    """The procedure's name, such as ``GETADDR``; its number where it has none."""

    def __post_init__(self) -> None:
        names = _PROCEDURES.get(self.version, ()) if self.program == PORTMAPPER else ()
        name = names[self.number] if self.number < len(names) else str(self.number)
        object.__setattr__(self, "name", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """Arguments of GETPORT, items of DUMP in version 2; `protocol` is that of IP.

    `end` is where it ends in the record, after the port.
    """

    program: int
    version: int
    protocol: int
    port: int
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpcb:
    """Arguments of GETADDR and its kin, items of DUMP from version 3 on.

    `span` is where the address is in the record.
    """

    program: int
    version: int
    netid: str
    address: str
    owner: str
    span: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCall:
    """Arguments of CALLIT, BCAST and INDIRECT: what the server is to call itself.

    `size` is that of the arguments of the call that it makes, in bytes.
    """

    program: int
    version: int
    procedure: int
    size: int


Arguments = PortMapping | Rpcb | RemoteCall


# Not frozen, which would treble what it costs to make one for each entry of a list.
@dataclass(slots=True, kw_only=True)
class Service:
    """Where a result says that a program is. What it leaves open is None.

    `ip_version` is 4 or 6; a host that is None is the server's. `span` is where in the
    record it is said: a port, or a universal address with its length and padding.
    """

    program: int | None
    transport: Transport | None
    ip_version: int | None
    host: Address | None
    port: int
    span: tuple[int, int] = field(compare=False)

    def __init__(
        self,
        *,
        port: int,
        program: int | None = None,
        transport: Transport | None = None,
        ip_version: int | None = None,
        host: Address | None = None,
        span: tuple[int, int] = (0, 0),
    ) -> None:
        self.program = program
        self.transport = transport
        self.ip_version = ip_version
        self.host = host
        self.port = port
        self.span = span

    def emit(self, host: Address | None, port: int) -> bytes:
        """What says that it is there, in the form that was read."""
        if host is None:
            return port.to_bytes(4)
        return string(uaddr(Endpoint(host, port)))


def program_number(value: object) -> int:
    """The program that a number, or a name of rpc(5), means.

    Raises ValueError with what is allowed.
    """
    if isinstance(value, str) and value in PROGRAMS:
        return PROGRAMS[value]
    if type(value) is int and 0 <= value <= 0xFFFFFFFF:
        return value
    names = ", ".join(PROGRAMS)
    raise ValueError(f"must be a number from 0 to 4294967295, or one of {names}")


def program_text(number: int) -> str:
    """A program's number, with its name where it has one in rpc(5)."""
    name = _PROGRAM_NAMES.get(number)
    return str(number) if name is None else f"{number} ({name})"


def read_head(cursor: Cursor) -> tuple[int, int]:
    """Xid and type of a message: CALL, REPLY or what is neither. Raises Truncated."""
    xid, kind = cursor.u32s(2)
    return xid, kind


def read_call(cursor: Cursor) -> Call:
    """What is called, after `read_head`; the arguments come next. Raises Malformed."""
    version, *called = cursor.u32s(4)
    if version != _RPC_VERSION:
        raise Malformed(f"RPC version {version}")
    call = _called(*called)
    _skip_auth(cursor)
    _skip_auth(cursor)
    return call


# Clients are many and ask for the same few things: their flows share what stands for
# it, until it is answered.
_called = lru_cache(maxsize=512)(Call)


@lru_cache(maxsize=512)
def _port_mapping(
    program: int, version: int, protocol: int, port: int, end: int
) -> PortMapping:
    return PortMapping(
        program=program, version=version, protocol=protocol, port=port, end=end
    )


def call_matches(names: Collection[str]) -> Matches:
    """The calls of these procedures of the portmapper, in a datagram."""
    return tuple(
        (
            Match(32, 32, CALL),
            Match(96, 32, PORTMAPPER),
            Match(128, 32, version),
            Match(160, 32, number),
        )
        for version, known in _PROCEDURES.items()
        for number, name in enumerate(known)
        if name in names
    )


def read_success(cursor: Cursor) -> bool:
    """Whether a reply, after `read_head`, is accepted and successful.

    Its result comes next then. Raises Malformed.
    """
    if cursor.u32() != _ACCEPTED:
        return False
    _skip_auth(cursor)
    return cursor.u32() == _SUCCESS


def read_failure(cursor: Cursor) -> str | None:
    """How a reply, after `read_head`, is denied or failed; None: it succeeded.

    Its result comes next then. Raises Malformed.
    """
    if cursor.u32() != _ACCEPTED:
        return f"denied, {_named(cursor.u32(), _DENIED)}"
    _skip_auth(cursor)
    status = cursor.u32()
    return None if status == _SUCCESS else f"failed, {_named(status, _FAILED)}"


def _named(number: int, names: Sequence[str]) -> str:
    return names[number] if number < len(names) else str(number)


def read_arguments(call: Call, cursor: Cursor) -> Arguments | None:
    """The arguments of a call for a service; None: of DUMP, or of any other procedure.

    Raises Malformed.
    """
    match call.name:
        case "GETPORT":
            return _read_port_mapping(cursor)
        case "GETADDR" | "GETVERSADDR" | "GETADDRLIST":
            return _read_rpcb(cursor)
        case "CALLIT" | "BCAST" | "INDIRECT":
            return RemoteCall(
                program=cursor.u32(),
                version=cursor.u32(),
                procedure=cursor.u32(),
                size=len(_read_rest(cursor)),
            )
    return None


def read_services(call: Call, cursor: Cursor) -> Iterator[Service]:
    """The services over TCP and UDP that the result of `call` names, as they are read.

    Those that a list names without a universal address are left out, and of a long list
    so is what comes after the limit. Raises Malformed.
    """
    match call.name, call.version:
        case "GETPORT", _:
            yield from _at_port(cursor)
        case "GETADDR" | "GETVERSADDR", _:
            yield from _at_address(cursor)
        case "GETADDRLIST", _:
            yield from filter(None, read_list(cursor, _read_entry, LISTED_LIMIT))
        case "DUMP", 2:
            yield from filter(None, read_list(cursor, _read_mapped, DUMPED_LIMIT))
        case "DUMP", _:
            yield from filter(None, read_list(cursor, _read_registered, DUMPED_LIMIT))
        case "CALLIT" | "BCAST" | "INDIRECT", version:
            services = _at_port(cursor) if version == 2 else _at_address(cursor)
            _read_rest(cursor)
            yield from services
        case _:
            return


def parse_uaddr(text: str) -> Endpoint:
    """The endpoint of a universal address, such as ``192.0.2.1.3.232`` (port 1000).

    RFC 5665, sections 5.2.3.3 and 5.2.3.4. Raises Malformed.
    """
    rest, _, low = text.rpartition(".")
    host, _, high = rest.rpartition(".")
    try:
        return Endpoint(_host(host), _OCTETS[high] * 256 + _OCTETS[low])
    except (KeyError, AddressValueError):
        raise Malformed(f"universal address {text!r}") from None


# int() would take signs, blanks, underscores and digits of other scripts.
_OCTETS: Final = {
    f"{number:0{width}}": number for number in range(256) for width in (1, 2, 3)
}


@lru_cache(maxsize=1024)
def _host(text: str) -> Address:
    """Raises AddressValueError."""
    if ":" not in text:
        return IPv4Address(text)
    address = IPv6Address(text)
    if address.scope_id is not None:
        raise AddressValueError("it has a scope")
    return address


def _skip_auth(cursor: Cursor) -> None:
    """Pass over credentials or a verifier (RFC 5531, section 8.2)."""
    _, length = cursor.u32s(2)
    skip_opaque(cursor, length, _AUTH_LIMIT)


def uaddr(endpoint: Endpoint) -> str:
    """The universal address of an endpoint (RFC 5665, section 5.2.3)."""
    high, low = divmod(endpoint.port, 256)
    return f"{_text(endpoint.address)}.{high}.{low}"


# In a list it is the same again and again.
_text = lru_cache(maxsize=64)(str)


def _read_port_mapping(cursor: Cursor) -> PortMapping:
    return _port_mapping(*cursor.u32s(4), cursor.position)


def _read_rpcb(cursor: Cursor) -> Rpcb:
    program, version = cursor.u32(), cursor.u32()
    netid = read_string(cursor, _STRING_LIMIT)
    address, span = _read_address(cursor)
    return Rpcb(
        program=program,
        version=version,
        netid=netid,
        address=address,
        owner=read_string(cursor, _STRING_LIMIT),
        span=span,
    )


def _read_address(cursor: Cursor) -> tuple[str, tuple[int, int]]:
    """A universal address, and where it is."""
    start = cursor.position
    text = read_string(cursor, _STRING_LIMIT)
    return text, (start, cursor.position)


def _read_mapped(cursor: Cursor) -> Service | None:
    """One item of DUMP in version 2: program, version, protocol and port."""
    program, _, protocol, port = cursor.u32s(4)
    transport = TRANSPORTS.get(protocol)
    if transport is None or not 0 < port <= 0xFFFF:
        return None
    end = cursor.position
    return Service(program=program, transport=transport, port=port, span=(end - 4, end))


def _read_registered(cursor: Cursor) -> Service | None:
    """One item of DUMP from version 3 on: as `_read_rpcb` reads it."""
    program, _ = cursor.u32s(2)
    start = cursor.position
    netid, address, _owner = read_opaques(cursor, 3, _STRING_LIMIT)
    return _listed(program, netid, address, start + _size(netid))


def _read_entry(cursor: Cursor) -> Service | None:
    """One item of GETADDRLIST: address, netid, semantics, family and protocol."""
    start = cursor.position
    address, netid = read_opaques(cursor, 2, _STRING_LIMIT)
    cursor.skip(4)
    read_opaques(cursor, 2, _STRING_LIMIT)
    return _listed(None, netid, address, start)


def _size(text: bytes) -> int:
    """Of a text with its length and padding, in bytes."""
    return 4 + len(text) + -len(text) % 4


def _read_rest(cursor: Cursor) -> bytes:
    """Opaque data that only the message itself bounds."""
    return read_opaque(cursor, cursor.remaining)


def _at_port(cursor: Cursor) -> list[Service]:
    """The service at the port that a result begins with; 0: it is not registered."""
    start = cursor.position
    port = cursor.u32()
    # XDR carries 32 bits: 0x10050 must not become port 80.
    if port > 0xFFFF:
        raise Malformed(f"port {port} is over 65535")
    return [Service(port=port, span=(start, cursor.position))] if port else []


def _at_address(cursor: Cursor) -> list[Service]:
    """The service at the address that a result begins with; empty: not registered."""
    text, span = _read_address(cursor)
    if not text:
        return []
    endpoint = parse_uaddr(text)
    return [Service(host=endpoint.address, port=endpoint.port, span=span)]


def _listed(
    program: int | None, netid: bytes, address: bytes, start: int
) -> Service | None:
    """A service in a list, where it is one over TCP or UDP.

    `start` is where the address is in the record. A server tells what programs have
    registered, and does not check it: an address that is none is no reason to miss the
    others.
    """
    meaning = _NETIDS.get(netid)
    if meaning is None:
        return None
    try:
        endpoint = parse_uaddr(address.decode("ascii", "replace"))
    except Malformed:
        return None
    return Service(
        program=program,
        transport=meaning[0],
        ip_version=meaning[1],
        host=endpoint.address,
        port=endpoint.port,
        span=(start, start + _size(address)),
    )

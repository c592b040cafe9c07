# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of portmapper and rpcbind: calls, replies, lists, and addresses."""

from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.portmap import DUMP_Reply, Map_Entry

from cthelper.core.api import TCP, UDP, Address, Cursor, Endpoint, Malformed, Transport
from cthelper.helpers.rpcbind import (
    CALL,
    NETIDS,
    PORTMAPPER,
    PROGRAMS,
    REPLY,
    Arguments,
    Call,
    PortMapping,
    RemoteCall,
    Rpcb,
    Service,
    parse_uaddr,
    program_number,
    program_text,
    read_arguments,
    read_call,
    read_head,
    read_services,
    read_success,
)
from tests.helpers.test_sunrpc import auth, call, opaque, reply, u32, uaddr

LIMIT: Final = 0xFFFFFFFF
u32s = st.integers(0, LIMIT)
# NUL to DEL: what a string of RFC 1833 may hold.
strings = st.text(st.characters(max_codepoint=127), max_size=40)

GETPORT: Final = Call(PORTMAPPER, 2, 3)
RPCBIND: Final = [Call(PORTMAPPER, *each) for each in [(3, 3), (4, 3), (4, 9), (4, 11)]]
REMOTE: Final = [Call(PORTMAPPER, *each) for each in [(2, 5), (3, 5), (4, 5), (4, 10)]]
DUMPS: Final = [Call(PORTMAPPER, version, 4) for version in (2, 3, 4)]
ALL: Final = [GETPORT, *RPCBIND, *REMOTE, *DUMPS]


def services_in(called: Call, cursor: Cursor) -> list[Service]:
    """All services that a result names."""
    return list(read_services(called, cursor))


def text(value: str) -> bytes:
    return opaque(value.encode("ascii"))


def linked(items: list[bytes]) -> bytes:
    return b"".join(u32(1) + each for each in items) + u32(0)


def emit(arguments: Arguments) -> bytes:
    """The arguments as RFC 1833 writes them."""
    match arguments:
        case PortMapping(program=program, version=version):
            return u32(program, version, arguments.protocol, arguments.port)
        case Rpcb(program=program, version=version):
            words = [arguments.netid, arguments.address, arguments.owner]
            return u32(program, version) + b"".join(map(text, words))
        case RemoteCall(program=program, version=version):
            head = u32(program, version, arguments.procedure)
            return head + opaque(bytes(arguments.size))


# Calls and replies.


@pytest.mark.parametrize(
    ("version", "number", "name"),
    [
        (2, 0, "NULL"),
        (2, 3, "GETPORT"),
        (2, 5, "CALLIT"),
        (2, 6, "6"),
        (3, 3, "GETADDR"),
        (3, 8, "TADDR2UADDR"),
        (3, 9, "9"),
        (4, 5, "BCAST"),
        (4, 9, "GETVERSADDR"),
        (4, 10, "INDIRECT"),
        (4, 11, "GETADDRLIST"),
        (4, 12, "GETSTAT"),
        (4, 13, "13"),
        (5, 3, "3"),
    ],
)
def test_procedures_have_the_names_of_their_versions(
    version: int, number: int, name: str
) -> None:
    assert Call(PORTMAPPER, version, number).name == name
    assert Call(PORTMAPPER + 3, version, number).name == str(number)


@given(u32s, u32s, u32s, u32s, st.integers(0, 400), st.binary(max_size=8))
def test_call_is_read_up_to_its_arguments(
    xid: int, program: int, version: int, number: int, size: int, arguments: bytes
) -> None:
    wire = call(
        xid,
        (version, number),
        arguments,
        program=program,
        credentials=auth(size),
        verifier=auth(400 - size),
    )
    cursor = Cursor(wire)
    assert read_head(cursor) == (xid, CALL)
    assert read_call(cursor) == Call(program, version, number)
    assert cursor.take(len(arguments)) == arguments
    assert not cursor.remaining


@given(u32s, st.integers(0, 400), st.integers(0, 5), st.binary(max_size=8))
def test_reply_is_read_up_to_its_result(
    xid: int, size: int, status: int, result: bytes
) -> None:
    cursor = Cursor(reply(xid, result, verifier=auth(size), status=status))
    assert read_head(cursor) == (xid, REPLY)
    assert read_success(cursor) == (status == 0)
    assert cursor.take(len(result)) == result


# Arguments.

mappings = st.builds(PortMapping, program=u32s, version=u32s, protocol=u32s, port=u32s)
rpcbs = st.builds(
    Rpcb, program=u32s, version=u32s, netid=strings, address=strings, owner=strings
)
remote_calls = st.builds(
    RemoteCall, program=u32s, version=u32s, procedure=u32s, size=st.integers(0, 99)
)
CASES = st.one_of(
    st.tuples(st.just(GETPORT), mappings),
    st.tuples(st.sampled_from(RPCBIND), rpcbs),
    st.tuples(st.sampled_from(REMOTE), remote_calls),
)


@given(CASES, st.binary(max_size=8))
def test_arguments_come_back_as_they_were_written(
    case: tuple[Call, Arguments], tail: bytes
) -> None:
    called, arguments = case
    cursor = Cursor(emit(arguments) + tail)
    assert read_arguments(called, cursor) == arguments
    assert cursor.remaining == len(tail)


@given(CASES, st.data())
def test_arguments_that_end_early_are_malformed(
    case: tuple[Call, Arguments], data: st.DataObject
) -> None:
    called, arguments = case
    wire = emit(arguments)
    with pytest.raises(Malformed):
        read_arguments(called, Cursor(wire[: data.draw(st.integers(0, len(wire) - 1))]))


@pytest.mark.parametrize(
    "called",
    [*DUMPS, Call(PORTMAPPER, 2, 1), Call(PORTMAPPER, 4, 12), Call(100003, 2, 3)],
    ids=lambda each: each.name,
)
def test_other_calls_have_no_arguments_for_us(called: Call) -> None:
    assert read_arguments(called, Cursor(b"")) is None
    # What follows a call that is not DUMP's is not a result of ours either.
    if called not in DUMPS:
        assert services_in(called, Cursor(b"")) == []


# Results.


@given(st.integers(0, LIMIT))
def test_port_of_getport_is_16_bits_and_0_is_none(port: int) -> None:
    cursor = Cursor(u32(port))
    if port > 0xFFFF:
        with pytest.raises(Malformed, match=f"^port {port} is over 65535$"):
            services_in(GETPORT, cursor)
    else:
        found = [Service(port=port)] if port else []
        assert services_in(GETPORT, cursor) == found


@pytest.mark.parametrize("called", [*RPCBIND[:3], *REMOTE[1:]], ids=str)
def test_address_of_a_service_is_a_universal_one(called: Call) -> None:
    tail = opaque(b"result") if called in REMOTE else b""

    def found(address: str) -> list[Service]:
        return services_in(called, Cursor(text(address) + tail))

    assert found("") == []
    (service,) = found("192.0.2.1.8.1")
    assert (str(service.host), service.port) == ("192.0.2.1", 2049)
    assert service.program is service.transport is service.ip_version is None
    with pytest.raises(Malformed):
        found("192.0.2.1")


@pytest.mark.parametrize("called", REMOTE, ids=str)
@pytest.mark.parametrize("result", [b"", u32(9), opaque(b"abc")[:-1]], ids=repr)
def test_remote_call_whose_result_ends_early_is_malformed(
    called: Call, result: bytes
) -> None:
    place = u32(2049) if called.version == 2 else text("192.0.2.1.8.1")
    with pytest.raises(Malformed):
        services_in(called, Cursor(place + result))
    assert len(services_in(called, Cursor(place + opaque(b"abc")))) == 1


def entry(address: str, netid: str) -> bytes:
    """An item of GETADDRLIST."""
    protocol = netid.removesuffix("6")
    return text(address) + text(netid) + u32(1) + text("inet") + text(protocol) + b""


def item(called: Call, program: int, netid: str, address: str) -> bytes:
    """An item of the list that answers `called`."""
    if called.name == "GETADDRLIST":
        return entry(address, netid)
    rpcb = Rpcb(program=program, version=3, netid=netid, address=address, owner="me")
    return emit(rpcb)


LISTS: Final = [*DUMPS[1:], RPCBIND[3]]


@pytest.mark.parametrize("called", LISTS, ids=str)
@given(
    st.lists(
        st.tuples(
            u32s,
            st.sampled_from([*NETIDS]),
            st.ip_addresses(),
            st.integers(0, 0xFFFF),
        ),
        max_size=6,
    )
)
def test_list_of_addresses_comes_back_as_it_was_written(
    called: Call, services: list[tuple[int, str, Address, int]]
) -> None:
    wire = linked(
        [
            item(called, program, netid, uaddr(str(host), port))
            for program, netid, host, port in services
        ]
    )
    cursor = Cursor(wire)
    dump = called.name == "DUMP"
    assert services_in(called, cursor) == [
        Service(
            program=program if dump else None,
            transport=NETIDS[netid][0],
            ip_version=NETIDS[netid][1],
            host=host,
            port=port,
        )
        for program, netid, host, port in services
    ]
    assert not cursor.remaining


@pytest.mark.parametrize("called", LISTS, ids=str)
@pytest.mark.parametrize(
    ("netid", "address"),
    [
        ("local", "/run/rpcbind.sock"),
        ("sctp", "192.0.2.1.8.1"),
        ("", "192.0.2.1.8.1"),
        ("TCP", "192.0.2.1.8.1"),
        ("tcp", ""),
        ("tcp", "192.0.2.1"),
        ("tcp", "192.0.2.1.8.256"),
        ("udp6", "fe80::1%eth0.8.1"),
        ("tcp", "anything"),
    ],
)
def test_item_without_an_address_of_tcp_or_udp_is_passed_over(
    called: Call, netid: str, address: str
) -> None:
    wire = linked(
        [
            item(called, 100003, netid, address),
            item(called, 100003, "tcp", "192.0.2.1.8.1"),
        ]
    )
    (service,) = services_in(called, Cursor(wire))
    assert service.port == 2049


@given(
    st.lists(
        st.tuples(u32s, st.sampled_from([TCP, UDP]), st.integers(1, 0xFFFF)), max_size=6
    )
)
def test_dump_of_version_2_comes_back_as_it_was_written(
    services: list[tuple[int, Transport, int]],
) -> None:
    items = [u32(program, 3, transport, port) for program, transport, port in services]
    assert services_in(DUMPS[0], Cursor(linked(items))) == [
        Service(program=program, transport=transport, port=port)
        for program, transport, port in services
    ]


@pytest.mark.parametrize(
    ("protocol", "port"), [(132, 2049), (0, 2049), (6, 0), (17, 65536), (6, LIMIT)]
)
def test_mapping_without_a_port_of_tcp_or_udp_is_passed_over(
    protocol: int, port: int
) -> None:
    wire = linked([u32(100003, 3, protocol, port), u32(100003, 3, TCP, 2049)])
    (service,) = services_in(DUMPS[0], Cursor(wire))
    assert (service.transport, service.port) == (TCP, 2049)


@pytest.mark.parametrize("called", [DUMPS[0], *LISTS], ids=str)
def test_list_that_does_not_end_is_malformed(called: Call) -> None:
    if called.version == 2:
        items = u32(100003, 3, TCP, 2049)
    else:
        items = item(called, 100003, "tcp", "192.0.2.1.8.1")
    with pytest.raises(Malformed):
        services_in(called, Cursor((u32(1) + items) * 40))


@pytest.mark.parametrize(
    ("called", "limit"), [*((each, 256) for each in DUMPS), (LISTS[2], 64)], ids=str
)
def test_long_list_is_read_in_part(called: Call, limit: int) -> None:
    """Those of honest servers are shorter; and it need not end well."""
    if called.version == 2:
        items = [u32(100003, 3, TCP, 2000 + number) for number in range(300)]
    else:
        items = [
            item(called, 100003, "tcp", f"192.0.2.1.8.{number % 256}")
            for number in range(300)
        ]
    assert len(services_in(called, Cursor(linked(items)))) == limit
    assert len(services_in(called, Cursor(linked(items[:limit])[:-4]))) == limit


def test_entries_that_are_of_no_use_count_in_a_long_list() -> None:
    items = [u32(100003, 3, 1, 0)] * 256 + [u32(100003, 3, TCP, 2049)]
    assert services_in(DUMPS[0], Cursor(linked(items))) == []
    assert len(services_in(DUMPS[0], Cursor(linked(items[1:])))) == 1


@given(st.sampled_from(ALL), st.binary())
def test_any_bytes_give_arguments_and_services_or_malformed(
    called: Call, wire: bytes
) -> None:
    for read in (read_arguments, services_in):
        cursor = Cursor(wire)
        try:
            read(called, cursor)
        except Malformed:
            continue
        assert cursor.remaining >= 0


# Scapy's DUMP: it writes "another follows" after each item, not before it.


@given(
    st.lists(
        st.tuples(u32s, st.sampled_from([TCP, UDP]), st.integers(1, 0xFFFF)), max_size=6
    )
)
def test_dump_that_scapy_builds_is_read(
    services: list[tuple[int, Transport, int]],
) -> None:
    last = len(services) - 1
    built = DUMP_Reply(
        value_follows=int(bool(services)),
        mappings=[
            Map_Entry(
                prog=program,
                vers=3,
                prot=int(transport),
                port=port,
                value_follows=int(index < last),
            )
            for index, (program, transport, port) in enumerate(services)
        ],
    )
    wire = bytes(built)
    items = [u32(program, 3, transport, port) for program, transport, port in services]
    assert wire == linked(items)
    assert [each.port for each in services_in(DUMPS[0], Cursor(wire))] == [
        port for _, _, port in services
    ]
    again = DUMP_Reply(wire)
    assert [(each.prog, each.prot, each.port) for each in again.mappings] == services


# Programs.


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (100003, 100003),
        (0, 0),
        (LIMIT, LIMIT),
        ("portmapper", 100000),
        ("rstatd", 100001),
        ("nfs", 100003),
        ("ypserv", 100004),
        ("mountd", 100005),
        ("rquotad", 100011),
        ("nlockmgr", 100021),
        ("status", 100024),
        ("bootparam", 100026),
    ],
)
def test_program_is_a_number_or_a_name(value: object, number: int) -> None:
    assert program_number(value) == number


@pytest.mark.parametrize(
    "value", [-1, LIMIT + 1, True, 1.0, "100003", "NFS", "", None, ["nfs"]], ids=repr
)
def test_what_is_no_program_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^must be a number from 0 .* portmapper, "):
        program_number(value)


def test_program_is_shown_with_its_name() -> None:
    assert program_text(100003) == "100003 (nfs)"
    assert program_text(100006) == "100006"


def test_no_program_has_two_names() -> None:
    assert len(set(PROGRAMS.values())) == len(PROGRAMS)


# Universal addresses.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1.3.232", "192.0.2.1:1000"),
        ("0.0.0.0.255.255", "0.0.0.0:65535"),
        ("10.77.2.2.168.165", "10.77.2.2:43173"),
        ("192.0.2.1.0.0", "192.0.2.1:0"),
        ("::.0.111", "[::]:111"),
        ("fd77:2::2.168.165", "[fd77:2::2]:43173"),
        # Python 3.13 spells it otherwise than 3.11.
        ("::ffff:192.0.2.1.8.1", f"[{ip_address('::ffff:192.0.2.1')}]:2049"),
    ],
)
def test_universal_address_is_read(text: str, expected: str) -> None:
    assert str(parse_uaddr(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "1.2",
        "192.0.2.1",
        "192.0.2.1.1",
        "192.0.2.1.1.256",
        "192.0.2.1.256.1",
        "192.0.2.1.-1.1",
        "192.0.2.1.+1.1",
        "192.0.2.1.1_0.1",
        "192.0.2.1. 1.1",
        "192.0.2.1.1.1 ",
        "192.0.2.1.1.",
        "192.0.2.1..1",
        "192.0.2.1.\u0661.1",
        "192.0.2.1.\u00b2.1",
        "192.0.2.256.1.1",
        "192.0.2.01.1.1",
        "192.0.2.1/32.1.1",
        "192.0.2.1.1.1.1",
        "localhost.1.1",
        "1::2::3.1.1",
        "fe80::1%eth0.1.1",
        "[::1].1.1",
        "192.0.2.1:1.1",
    ],
)
def test_what_is_no_universal_address_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_uaddr(text)


@given(st.ip_addresses(), st.integers(0, 0xFFFF))
def test_universal_address_comes_back_as_it_was_written(
    host: Address, number: int
) -> None:
    assert parse_uaddr(uaddr(str(host), number)) == Endpoint(host, number)


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-f:.]+\.\d+\.\d+", fullmatch=True))
def test_any_text_is_an_endpoint_or_malformed(text: str) -> None:
    try:
        found = parse_uaddr(text)
    except Malformed:
        return
    host, high, low = text.rsplit(".", 2)
    assert found.port == int(high) * 256 + int(low)
    version = 6 if ":" in host else 4
    assert found.address.version == version

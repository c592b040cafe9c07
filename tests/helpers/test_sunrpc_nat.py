# SPDX-License-Identifier: GPL-2.0-or-later
"""SunRPC behind NAT: the client is told what it knows the server by."""

from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import TCP, UDP, Cursor, Transport
from cthelper.core.tuples import ORIGINAL, Translation, host_network
from cthelper.helpers.rpcbind import (
    PORTMAPPER,
    Call,
    read_head,
    read_services,
    read_success,
)
from cthelper.helpers.sunrpc import SunRpc
from cthelper.helpers.xdr import join_record, record_length
from tests.cases import cases
from tests.core.builders import endpoint
from tests.helpers.inspected import Inspected
from tests.helpers.test_sunrpc import (
    MOUNTD,
    PORT,
    address,
    call,
    getaddr,
    getport,
    opaque,
    port,
    record,
    reply,
    u32,
    uaddr,
)
from tests.helpers.translated import (
    CLIENT,
    NATS,
    PUBLIC,
    SERVER,
    known,
    servers,
    translated,
)

WILDCARD: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - stands in messages
BOTH = pytest.mark.parametrize("transport", [TCP, UDP], ids=str)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
NAT = pytest.mark.parametrize("nat", NATS)


def flow_of(
    transport: Transport,
    version: int = 4,
    nat: str = "dnat",
    *,
    taken: Collection[int] = (),
) -> Inspected:
    return Inspected(
        SunRpc, translated(SunRpc, version, nat, transport=transport), taken=taken
    )


def exchange(flow: Inspected, transport: Transport, asked: bytes, told: bytes) -> bytes:
    """One call and its reply, in records on TCP; the reply that the client gets."""
    if transport is UDP:
        flow.sent(asked)
        return flow.answered(told)
    flow.sent(record(asked))
    received = flow.answered(record(told))
    # The mark tells the length.
    assert record_length(memoryview(received), 1 << 16) == len(received)
    return join_record(received)


def services(message: bytes, procedure: tuple[int, int]) -> list[tuple[str, int]]:
    """Host and port of each service that a reply names; no host: the server's."""
    cursor = Cursor(message)
    read_head(cursor)
    assert read_success(cursor)
    found = list(read_services(Call(PORTMAPPER, *procedure), cursor))
    assert cursor.remaining == 0
    return [("" if each.host is None else str(each.host), each.port) for each in found]


@BOTH
@VERSIONS
@NAT
@pytest.mark.fault("rpc 8", "under NAT a port is written into the packet, never sent")
@pytest.mark.fault("rpc 11", "IPv6 is not served: NAT is for IPv4 only")
def test_client_is_told_the_address_that_it_knows(
    transport: Transport, version: int, nat: str
) -> None:
    flow = flow_of(transport, version, nat)
    netid = f"{transport}{'6' if version == 6 else ''}"
    answer = address(7, uaddr(SERVER[version]))
    received = exchange(flow, transport, getaddr(7, netid), answer)
    assert services(received, (4, 3)) == [(known(nat, version), PORT)]
    (expectation,) = flow.kernel.present
    assert expectation.source == host_network(ip_address(CLIENT[version]))
    assert expectation.destination == endpoint(known(nat, version), PORT)
    assert expectation.translation == Translation(ORIGINAL, PORT)
    assert expectation.transport is transport
    assert flow.refused == []


@BOTH
@NAT
@pytest.mark.parametrize("host", ["public", "wildcard"])
def test_address_that_says_nothing_else_stays(
    transport: Transport, nat: str, host: str
) -> None:
    flow = flow_of(transport, 4, nat)
    answer = address(7, uaddr(known(nat) if host == "public" else WILDCARD[4]))
    received = exchange(flow, transport, getaddr(7, str(transport)), answer)
    assert received == answer
    assert [each.destination.port for each in flow.kernel.present] == [PORT]


@BOTH
@NAT
def test_port_of_getport_stays_where_it_is_free(transport: Transport, nat: str) -> None:
    flow = flow_of(transport, 4, nat)
    answer = port(7)
    assert exchange(flow, transport, getport(7, protocol=transport), answer) == answer
    assert [each.destination.port for each in flow.kernel.present] == [PORT]


@BOTH
@cases(
    "asked, answered, procedure",
    {
        "GETPORT tcp": (getport(7, protocol=TCP), port(7), (2, 3)),
        "GETPORT udp": (getport(7, protocol=UDP), port(7), (2, 3)),
        "GETADDR": (getaddr(7, ""), address(7, uaddr(SERVER[4])), (4, 3)),
        "GETADDR, wildcard": (getaddr(7, ""), address(7, uaddr(WILDCARD[4])), (4, 3)),
    },
)
def test_port_that_is_taken_is_written_as_another(
    transport: Transport, asked: bytes, answered: bytes, procedure: tuple[int, int]
) -> None:
    flow = flow_of(transport, taken=[PORT, PORT + 1])
    received = exchange(flow, transport, asked, answered)
    ((_, told),) = services(received, procedure)
    assert told == PORT + 2
    (expectation,) = flow.kernel.present
    assert expectation.destination.port == PORT + 2
    assert expectation.translation == Translation(ORIGINAL, PORT)


@BOTH
def test_portmapper_that_announces_itself_does_not_leak_its_address(
    transport: Transport,
) -> None:
    # rpcinfo -p asks for it, and goes where it is told.
    flow = flow_of(transport)
    asked = getaddr(7, str(transport), program=PORTMAPPER)
    received = exchange(flow, transport, asked, address(7, uaddr(SERVER[4], 111)))
    assert services(received, (4, 3)) == [(PUBLIC[4], 111)]
    assert (flow.kernel.present, flow.refused) == ([], ["portmapper"])


@BOTH
def test_denied_program_does_not_leak_the_address(transport: Transport) -> None:
    entry = translated(SunRpc, transport=transport)
    flow = Inspected(SunRpc, entry, 'deny_programs = ["mountd"]')
    answer = address(7, uaddr(SERVER[4]))
    received = exchange(flow, transport, getaddr(7, str(transport)), answer)
    assert services(received, (4, 3)) == [(PUBLIC[4], PORT)]
    assert (flow.kernel.present, flow.refused) == ([], ["denied-program"])


def listed(*entries: tuple[str, str]) -> bytes:
    """The result of GETADDRLIST."""
    items = (
        opaque(text.encode())
        + opaque(netid.encode())
        + u32(2)
        + opaque(b"inet")
        + opaque(netid.encode())
        for text, netid in entries
    )
    return b"".join(u32(1) + item for item in items) + u32(0)


@BOTH
def test_every_address_of_a_list_is_rewritten(transport: Transport) -> None:
    flow = flow_of(transport, taken=[PORT])
    strings = b"".join(opaque(word) for word in (b"tcp", b"", b""))
    asked = call(7, (4, 11), u32(MOUNTD, 3) + strings)
    entries = [
        (uaddr(SERVER[4]), "tcp"),
        (uaddr(WILDCARD[4], 4000), "udp"),
        (uaddr("10.0.0.99", 4001), "udp"),
        (uaddr(SERVER[4], 4002), "udp"),
    ]
    received = exchange(flow, transport, asked, reply(7, listed(*entries)))
    assert services(received, (4, 11)) == [
        (PUBLIC[4], PORT + 1),
        (WILDCARD[4], 4000),
        # Another address of the server, of which nobody says what the client knows it
        # by: the port is open at the one that it knows.
        (PUBLIC[4], 4001),
        (PUBLIC[4], 4002),
    ]
    assert flow.refused == ["other-address"]


OTHER: Final = "10.0.0.99"


@BOTH
@NAT
def test_port_at_another_address_is_opened_at_the_one_that_the_client_knows(
    transport: Transport, nat: str
) -> None:
    # Another flow leads elsewhere from the announced port, where the server has a
    # public address: all get there.
    flow = flow_of(transport, 4, nat, taken=[] if nat == "snat" else [PORT])
    answer = address(7, uaddr(OTHER))
    received = exchange(flow, transport, getaddr(7, ""), answer)
    (expectation,) = flow.kernel.present
    told = PORT if nat == "snat" else PORT + 1
    assert expectation.destination == endpoint(known(nat), told)
    assert expectation.translation == Translation(ORIGINAL, PORT)
    # A server that is not translated is known by its other addresses, too.
    host = OTHER if nat == "snat" else PUBLIC[4]
    assert services(received, (4, 3)) == [(host, told)]
    assert flow.refused == ["other-address"]


@BOTH
def test_other_address_that_is_configured_is_told_as_the_client_knows_it(
    transport: Transport,
) -> None:
    outside = "203.0.113.99"
    flow = Inspected(
        SunRpc,
        translated(SunRpc, transport=transport),
        f'nat.outside = ["{OTHER} {outside}"]',
        f'guard.allow_hosts = ["{OTHER}/32"]',
    )
    answer = address(7, uaddr(OTHER))
    received = exchange(flow, transport, getaddr(7, ""), answer)
    assert services(received, (4, 3)) == [(outside, PORT)]
    assert [each.destination for each in flow.expectations] == [
        endpoint(outside, PORT),
        endpoint(PUBLIC[4], PORT),
    ]
    assert flow.refused == []


@BOTH
def test_other_address_of_which_nobody_knows_the_outside_says_so(
    transport: Transport,
) -> None:
    entry = translated(SunRpc, transport=transport)
    flow = Inspected(SunRpc, entry, f'guard.allow_hosts = ["{OTHER}/32"]')
    answer = address(7, uaddr(OTHER))
    received = exchange(flow, transport, getaddr(7, ""), answer)
    assert services(received, (4, 3)) == [(PUBLIC[4], PORT)]
    assert flow.refused == ["nat"]


def test_record_of_several_fragments_keeps_its_marks_right() -> None:
    flow = flow_of(TCP)
    flow.sent(record(getaddr(7, "tcp")))
    answer = address(7, uaddr(SERVER[4]))
    received = flow.answered(record(answer, 8, 24))
    assert record_length(memoryview(received), 1 << 16) == len(received)
    assert services(join_record(received), (4, 3)) == [(PUBLIC[4], PORT)]


def test_announcement_in_two_fragments_is_refused() -> None:
    flow = flow_of(TCP)
    flow.sent(record(getaddr(7, "tcp")))
    answer = record(address(7, uaddr(SERVER[4])), 34)
    assert flow.answered(answer) == answer
    assert flow.refused == ["fragmented"]
    assert flow.expectations == []


@pytest.mark.parametrize("server", ["10.200.20.20", "10.0.0.2"])
def test_answers_of_a_whole_segment_are_rewritten_all_or_none(server: str) -> None:
    entry = translated(SunRpc, transport=TCP, server=server)
    flow = Inspected(SunRpc, entry)
    flow.sent(b"".join(record(getaddr(xid, "tcp")) for xid in range(24)))
    answers = b"".join(
        record(address(xid, uaddr(server, 5000 + xid))) for xid in range(24)
    )
    received = flow.answered(answers)
    if len(server) < len(PUBLIC[4]):
        # Each would fit alone; the packet does not.
        assert received == answers
        assert flow.refused == ["rewrite-too-long"]
        assert flow.expectations == []
        return
    assert flow.refused == []
    assert len(flow.kernel.present) == 24
    size = len(answers) // 24
    for number in range(24):
        told = received[number * size + 4 : (number + 1) * size]
        assert services(told, (4, 3)) == [(PUBLIC[4], 5000 + number)]


@given(servers(), st.integers(4000, 60000), st.sampled_from([TCP, UDP]))
def test_what_the_client_reads_is_what_was_granted(
    behind: tuple[int, str, str], number: int, transport: Transport
) -> None:
    """Whatever the two addresses, and so however the length changes."""
    version, server, public = behind
    entry = translated(
        SunRpc, version, transport=transport, server=server, public=public
    )
    flow = Inspected(SunRpc, entry)
    answer = address(7, uaddr(server, number))
    received = exchange(flow, transport, getaddr(7, ""), answer)
    assert flow.refused == []
    assert services(received, (4, 3)) == [(public, number)]
    (expectation,) = flow.kernel.present
    assert expectation.destination == endpoint(public, number)
    # There and back.
    there, here = (opaque(uaddr(each, number).encode()) for each in (public, server))
    assert received.replace(there, here) == answer

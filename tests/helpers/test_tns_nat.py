# SPDX-License-Identifier: GPL-2.0-or-later
"""TNS behind NAT: the client is redirected to what it knows the server by."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.tuples import ORIGINAL, Translation
from cthelper.helpers.tns import Tns
from cthelper.helpers.tns_descriptor import parse_addresses
from tests.core.builders import endpoint
from tests.helpers.inspected import Inspected, entry_of
from tests.helpers.test_tns import (
    CONNECT_DATA,
    PORT,
    REFUSE,
    address,
    connect,
    data,
    deferred,
    forms,
    packet,
    redirect,
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

NODE: Final = "10.0.0.3"
NODE_OUTSIDE: Final = "203.0.113.83"
ALLOWED: Final = f'guard.allow_hosts = ["{NODE}"]'
OUTSIDE: Final = f'nat.outside = ["{NODE} {NODE_OUTSIDE}"]'


def followed(stream: bytes) -> list[tuple[str, int]]:
    """Where a client goes after a REDIRECT: it reads as many bytes as it is told of.

    The lengths of the packets must cover the stream.
    """
    text = b""
    length: int | None = None
    while stream:
        size, kind = int.from_bytes(stream[:2]), stream[4]
        body, stream = stream[8:size], stream[size:]
        assert size >= 8
        assert len(body) == size - 8
        if kind == 5:
            length, text = int.from_bytes(body[:2]), body[2:]
        elif kind == 6 and length is not None and (not length or len(text) < length):
            text += body[2:]
    assert length is not None
    whole = text[:length] if length else text
    assert not length or len(whole) == length
    found = parse_addresses(whole.partition(b"\0")[0])
    return [(str(each.host), each.port) for each in found]


def flow_of(
    *lines: str,
    version: int = 4,
    nat: str = "dnat",
    taken: Collection[int] = (),
    server: str | None = None,
    public: str | None = None,
) -> Inspected:
    entry = translated(Tns, version, nat, server=server, public=public)
    flow = Inspected(Tns, entry, *lines, taken=taken)
    flow.sent(connect())
    return flow


FORMS: Final = forms(address(SERVER[4]), CONNECT_DATA)
# Those that split the address itself between packets cannot be rewritten.
WHOLE: Final = [each for each in FORMS if "pieces" not in each and "partly" not in each]


@pytest.mark.parametrize("nat", NATS)
@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.fault("tns 9", "lengths and checksums are wrong where a text changes")
def test_client_goes_to_the_address_that_it_knows(form: str, nat: str) -> None:
    flow = flow_of(nat=nat)
    received = flow.answered(b"".join(FORMS[form]))
    assert followed(received) == [(known(nat), PORT)]
    (expectation,) = flow.kernel.present
    assert expectation.destination == endpoint(known(nat), PORT)
    assert expectation.translation == Translation(ORIGINAL, PORT)
    assert flow.refused == []


@pytest.mark.parametrize("bracketed", [False, True])
@pytest.mark.parametrize("form", ["inline", "DATA"])
def test_client_of_ipv6_goes_to_the_address_that_it_knows(
    form: str, bracketed: bool
) -> None:
    flow = flow_of(version=6)
    host = f"[{SERVER[6]}]" if bracketed else SERVER[6]
    answers = forms(address(host), CONNECT_DATA)[form]
    received = flow.answered(b"".join(answers))
    assert followed(received) == [(PUBLIC[6], PORT)]
    assert (f"[{PUBLIC[6]}]".encode() in received) is bracketed


@pytest.mark.parametrize("form", WHOLE)
def test_port_that_is_taken_is_written_as_another(form: str) -> None:
    flow = flow_of(taken=[PORT])
    received = flow.answered(b"".join(FORMS[form]))
    assert followed(received) == [(PUBLIC[4], PORT + 1)]
    assert flow.kernel.present[0].translation == Translation(ORIGINAL, PORT)


@pytest.mark.parametrize("form", [each for each in FORMS if each not in WHOLE])
def test_address_in_several_packets_is_refused_and_stays(form: str) -> None:
    flow = flow_of()
    stream = b"".join(FORMS[form])
    received = flow.answered(stream)
    if received == stream:
        assert flow.refused == ["fragmented"]
        assert flow.expectations == []
    else:
        # Only what lies whole in one of the packets had to change.
        assert followed(received) == [(PUBLIC[4], PORT)]


# Where REDIRECT and DATA come in segments of their own.


def test_shorter_text_is_filled_up_where_its_length_has_gone_on() -> None:
    inside, outside = "10.200.200.200", "203.0.113.8"
    flow = flow_of(server=inside, public=outside)
    received = flow.answered(*deferred(f"{address(inside)}\0{CONNECT_DATA}"))
    assert followed(received) == [(outside, PORT)]
    assert f"(HOST={outside})   (PORT=".encode() in received
    assert flow.refused == []


def test_text_of_the_same_length_needs_no_length() -> None:
    inside, outside = "10.200.20.20", "203.0.113.80"
    flow = flow_of(server=inside, public=outside)
    received = flow.answered(*deferred(f"{address(inside)}\0{CONNECT_DATA}"))
    assert followed(received) == [(outside, PORT)]


def test_longer_text_is_refused_where_its_length_has_gone_on() -> None:
    flow = flow_of()
    packets = deferred(f"{address(SERVER[4])}\0{CONNECT_DATA}")
    assert flow.answered(*packets) == b"".join(packets)
    assert flow.refused == ["rewrite-passed"]
    assert flow.kernel.present == []


@pytest.mark.parametrize("length", [0])
def test_longer_text_needs_no_length_where_there_is_none(length: int) -> None:
    flow = flow_of()
    packets = deferred(f"{address(SERVER[4])}\0{CONNECT_DATA}", length=length)
    assert followed(flow.answered(*packets)) == [(PUBLIC[4], PORT)]


@pytest.mark.parametrize("claimed", [0xFFFF, 0xFFFE])
def test_length_that_has_no_room_for_the_longer_text_refuses_it(claimed: int) -> None:
    flow = flow_of()
    stream = redirect(f"{address(SERVER[4])}\0{CONNECT_DATA}", length=claimed)
    assert flow.answered(stream) == stream
    assert flow.refused == ["length"]
    assert flow.expectations == []


def test_length_that_has_room_is_written() -> None:
    flow = flow_of()
    grown = len(PUBLIC[4]) - len(SERVER[4])
    text = f"{address(SERVER[4])}\0{CONNECT_DATA}"
    received = flow.answered(redirect(text, length=0xFFFF - grown))
    assert received[8:10] == b"\xff\xff"
    assert flow.refused == []


# A port alone is translated: clients go to 1521, and the listener is at 1522.


def port_forwarded(*lines: str) -> Inspected:
    plain = entry_of(Tns, (CLIENT[4], 650), SERVER[4])
    source = endpoint(SERVER[4], 1522)
    flow = Inspected(
        Tns, replace(plain, reply=replace(plain.reply, source=source)), *lines
    )
    flow.sent(connect())
    return flow


@pytest.mark.parametrize(("announced", "told"), [(1522, 1521), (PORT, PORT)])
def test_client_of_a_translated_port_goes_to_the_port_that_it_knows(
    announced: int, told: int
) -> None:
    flow = port_forwarded()
    received = flow.answered(redirect(address(SERVER[4], announced)))
    assert followed(received) == [(SERVER[4], told)]
    (expectation,) = flow.kernel.present
    assert expectation.destination == endpoint(SERVER[4], told)
    assert expectation.translation == Translation(ORIGINAL, announced)
    assert flow.refused == []


# Clients on the inside, of which nothing is translated.


@pytest.mark.parametrize("translated_port", [False, True])
def test_outside_address_is_not_told_to_clients_on_the_inside(
    translated_port: bool,
) -> None:
    lines = ALLOWED, OUTSIDE
    if translated_port:
        flow = port_forwarded(*lines)
    else:
        flow = Inspected(Tns, entry_of(Tns, (CLIENT[4], 650), SERVER[4]), *lines)
        flow.sent(connect())
    stream = redirect(address(NODE, 1521))
    assert flow.answered(stream) == stream
    (expectation,) = flow.expectations
    assert expectation.destination == endpoint(NODE, 1521)
    assert flow.refused == []


# Other nodes, and names.


def test_redirect_to_another_node_goes_to_its_outside_address() -> None:
    flow = flow_of(ALLOWED, OUTSIDE)
    received = flow.answered(redirect(address(NODE, 1521)))
    assert followed(received) == [(NODE_OUTSIDE, 1521)]
    (expectation,) = flow.expectations
    assert expectation.destination == endpoint(NODE_OUTSIDE, 1521)
    # The user's own rules translate it.
    assert expectation.translation is None


@pytest.mark.fault("tns 10", "a redirect to another node leads to the first one")
def test_redirect_to_a_node_without_an_outside_address_is_refused() -> None:
    flow = flow_of(ALLOWED)
    stream = redirect(address(NODE, 1521))
    assert flow.answered(stream) == stream
    assert flow.refused == ["nat"]


def test_each_of_several_addresses_is_rewritten() -> None:
    flow = flow_of(ALLOWED, OUTSIDE, taken=[PORT])
    text = "".join(
        [address(SERVER[4]), address(NODE, 1521), address(SERVER[4], PORT, "tcps")]
    )
    received = flow.answered(redirect(f"(ADDRESS_LIST={text})\0{CONNECT_DATA}"))
    assert followed(received) == [
        (PUBLIC[4], PORT + 1),
        (NODE_OUTSIDE, 1521),
        (PUBLIC[4], PORT + 1),
    ]


def test_host_name_stays_and_its_port_is_written() -> None:
    hosts = f'hosts = ["{SERVER[4]} db.example.net"]'
    flow = flow_of(hosts, taken=[PORT])
    received = flow.answered(redirect(address("db.example.net")))
    assert followed(received) == [("db.example.net", PORT + 1)]


def test_packets_before_and_after_are_left_alone() -> None:
    flow = flow_of()
    resend = packet(11)
    received = flow.answered(resend + redirect(address(SERVER[4])) + REFUSE)
    assert received.startswith(resend)
    assert received.endswith(REFUSE)


@given(servers(), st.integers(4000, 60000), st.booleans())
def test_what_the_client_reads_is_what_was_granted(
    behind: tuple[int, str, str], port: int, inline: bool
) -> None:
    """Whatever the two addresses, and so however the lengths change."""
    version, server, public = behind
    flow = flow_of(version=version, server=server, public=public)
    text = f"{address(server, port)}\0{CONNECT_DATA}"
    stream = redirect(text) if inline else b"".join(deferred(text))
    received = flow.answered(stream)
    assert flow.refused == []
    (expectation,) = flow.kernel.present
    assert followed(received) == [(public, port)]
    assert expectation.destination == endpoint(public, port)
    # There and back.
    back = flow_of(version=version, server=public, public=server)
    assert back.answered(received) == stream


def test_data_of_other_messages_is_not_taken_for_text() -> None:
    flow = flow_of()
    other = data("(ADDRESS=(PROTOCOL=tcp)(HOST=10.0.0.2)(PORT=5000))")
    assert flow.answered(other) == other

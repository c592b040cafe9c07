# SPDX-License-Identifier: GPL-2.0-or-later
"""What helpers read at most: of one message, of a flow that announces nothing.

Each bound lies far above what honest peers send, and what is below it is read.
"""

import struct

import pytest

from cthelper.core.api import Done, Effect, Malformed, Message
from cthelper.core.tuples import TCP, UDP
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.rpcbind import PORTMAPPER
from cthelper.helpers.sunrpc import SunRpc
from cthelper.helpers.tns import Tns
from cthelper.helpers.tns_descriptor import ADDRESS_LIMIT, parse_addresses
from cthelper.testing import Line, defaults, play
from tests.cases import cases
from tests.helpers import test_sunrpc as sunrpc
from tests.helpers import test_tns as tns
from tests.helpers.test_mdns import line as asked
from tests.helpers.test_mdns import question
from tests.helpers.test_sunrpc import call, getport, port, reply

GIVEN_UP = "nothing-announced"


def given_up(effects: list[Effect]) -> bool:
    """Whether the last effect gives the flow up, and nothing else does."""
    done = [each for each in effects if isinstance(each, Done)]
    assert [each.reason for each in done] in ([], [GIVEN_UP])
    return bool(done)


# TNS.


@pytest.mark.parametrize("more", [61, 62])
@cases("said", {"DATA": tns.data("x"), "NULL": tns.packet(7)})
def test_listener_has_64_packets_to_decide(said: bytes, more: int) -> None:
    flow = tns.line()
    messages = [flow.sent(tns.connect()), *[flow.sent(said)] * (more // 2)]
    messages += [flow.answered(said)] * (more - more // 2)
    helper = Tns()
    assert play(helper, messages) == []
    last = [flow.answered(tns.redirect(tns.TEXT))]
    assert play(helper, last) == [tns.to()]
    assert given_up(play(helper, [flow.sent(said)] * (63 - more)))


@pytest.mark.parametrize("groups", [170, 171])
def test_descriptor_has_at_most_512_parts(groups: int) -> None:
    text = b"(A=" + b"(B=(k=))" * groups + b")"
    if groups == 170:
        assert parse_addresses(text) == []
    else:
        with pytest.raises(Malformed, match="over 512 parts"):
            parse_addresses(text)


def test_long_list_of_addresses_is_no_long_descriptor() -> None:
    one = b"(ADDRESS=(PROTOCOL=tcp)(HOST=192.0.2.1)(PORT=1521)(SEND_BUF_SIZE=11784))"
    assert len(parse_addresses(b"(LIST=" + one * 50 + b")")) == ADDRESS_LIMIT


# SunRPC.


def over(transport: str = "tcp") -> Line:
    """A flow over TCP or UDP."""
    return sunrpc.line(TCP if transport == "tcp" else UDP)


def sent(
    flow: Line, payload: bytes, *, answers: bool = False, now: float = 0
) -> Message:
    if flow.original.transport is TCP:
        payload = sunrpc.record(payload)
    return flow.answered(payload, now) if answers else flow.sent(payload, now)


def test_replies_to_nothing_end_the_inspection() -> None:
    flow = over()
    helper = SunRpc()
    replies = [sent(flow, port(xid), answers=True) for xid in range(65)]
    assert play(helper, replies[:64]) == []
    assert given_up(play(helper, replies[64:]))


def test_calls_of_other_programs_end_the_inspection() -> None:
    flow = over()
    other = call(7, (3, 0), program=100003)
    assert play(SunRpc(), [sent(flow, other)] * 64) == []
    assert given_up(play(SunRpc(), [sent(flow, other)] * 65))


@pytest.mark.parametrize("burst", [1, 20, 120])
def test_calls_that_open_nothing_are_answered_for_ever(burst: int) -> None:
    flow = over()
    calls = [sent(flow, call(xid, (2, 0))) for xid in range(burst)]
    answers = [sent(flow, reply(xid, b""), answers=True) for xid in range(burst)]
    assert play(SunRpc(), (calls + answers) * 20) == []


def test_connection_on_which_a_client_asks_again_and_again_stays_inspected() -> None:
    flow = over()
    helper = SunRpc()
    for xid in range(1000):
        now = float(xid)
        messages = [
            sent(flow, getport(xid), now=now),
            sent(flow, port(xid), answers=True, now=now),
        ]
        assert len(play(helper, messages)) == 1


def test_datagrams_in_vain_may_be_anybodys() -> None:
    flow = over("udp")
    helper = SunRpc()
    assert play(helper, [sent(flow, getport(7))]) == []
    forged = [sent(flow, port(xid), answers=True) for xid in range(100, 400)]
    assert play(helper, forged) == []
    assert len(play(helper, [sent(flow, port(7), answers=True)])) == 1


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_calls_whose_time_is_over_are_forgotten(transport: str) -> None:
    flow = over(transport)
    helper = SunRpc()
    empty = helper.footprint()
    for xid in range(100):
        assert play(helper, [sent(flow, getport(xid), now=xid / 10)]) == []
    assert helper.footprint() > empty + 100 * 100
    # Of those that were sent by the 5th second a minute has passed.
    play(helper, [sent(flow, call(999, (2, 0)), now=65.0)])
    pending = helper._pending
    assert isinstance(pending, dict)
    assert list(pending) == list(range(51, 100))
    assert len(play(helper, [sent(flow, port(99), answers=True, now=65.0)])) == 1
    play(helper, [sent(flow, call(999, (2, 0)), now=1000.0)])
    assert helper._pending is None
    play(helper, [sent(flow, getport(7), now=1000.0)])
    assert play(helper, [sent(flow, port(8), answers=True, now=1061.0)]) == []
    assert helper._pending is None


def test_long_list_without_translation_is_read_until_enough_is_open() -> None:
    flow = Line.between(
        UDP,
        "192.0.2.1:1000",
        "198.51.100.7:111",
        defaults(SunRpc) | {"procedures": ("dump",)},
    )
    items = [struct.pack("!4I", 100003, 3, TCP, 2000 + each) for each in range(300)]
    listed = b"".join(sunrpc.u32(1) + each for each in items)
    helper = SunRpc()
    messages = [
        flow.sent(call(7, (2, 4), program=PORTMAPPER)),
        # It breaks off, but behind what counts.
        flow.answered(reply(7, listed[: 20 * 40 + 2])),
    ]
    assert len(play(helper, messages)) == 32


# To groups.


@pytest.mark.parametrize("size", [9000, 9001])
def test_mdns_messages_are_no_longer_than_they_may_be(size: int) -> None:
    head = struct.pack("!6H", 0, 0, 1, 0, 0, 0) + question()
    payload = head + bytes(size - len(head))
    if size == 9000:
        assert len(play(Mdns(), [asked().sent(payload)])) == 1
    else:
        with pytest.raises(Malformed, match="9001 bytes"):
            play(Mdns(), [asked().sent(payload)])


@pytest.mark.parametrize("count", [256, 257])
def test_dhcpv6_messages_have_at_most_256_options(count: int) -> None:
    flow = Line.between(
        UDP, "[fe80::1]:546", "[ff02::1:2]:547", defaults(Dhcpv6), forwarded=False
    )
    payload = b"\1abc" + b"\0\x08\0\0" * count
    if count == 256:
        assert len(play(Dhcpv6(), [flow.sent(payload)])) == 1
    else:
        with pytest.raises(Malformed, match="over 256 options"):
            play(Dhcpv6(), [flow.sent(payload)])

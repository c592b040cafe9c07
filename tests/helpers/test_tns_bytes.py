# SPDX-License-Identifier: GPL-2.0-or-later
"""TNS packets as bytes: what is malformed, options, segments, words."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    Direction,
    Expect,
    ExpectationRefused,
    Malformed,
    Oversized,
)
from cthelper.core.engine import Decision
from cthelper.core.errors import ConfigError
from cthelper.core.guard import DENIED_PORTS
from cthelper.core.outcome import Damaged, Finished, Refused
from cthelper.core.tuples import Conntrack, Expectation
from cthelper.helpers.tns import Tns
from cthelper.helpers.tns_descriptor import parse_addresses
from cthelper.testing import Line, any_segmentation, play
from tests.cases import cases
from tests.core.builders import (
    CLIENT,
    SERVER,
    SERVER6,
    conntrack,
    cut,
    flow_tuple,
    tcp,
)
from tests.helpers import tshark
from tests.helpers.given import damaged
from tests.helpers.inspected import configured, engine_with, entry_of
from tests.helpers.test_tns import (
    ACCEPT,
    CONNECT_DATA,
    CONTROL,
    FORMS,
    LONG_DATA,
    MARKER,
    NODE,
    NODE6,
    PORT,
    RAC,
    REFUSE,
    RESEND,
    TEXT,
    THIRD,
    TLS,
    address,
    answered,
    connect,
    conversation,
    data,
    deferred,
    forms,
    handles,
    hosts,
    line,
    packet,
    redirect,
    to,
)

# What is malformed


@handles("REDIRECT (5) of a client", "malformed")
def test_redirect_of_a_client_is_malformed() -> None:
    flow = line()
    with pytest.raises(Malformed):
        play(Tns(), [flow.sent(connect()), flow.sent(redirect(TEXT))])


@pytest.mark.parametrize("length", range(8))
def test_packet_that_is_shorter_than_its_header_is_malformed(length: int) -> None:
    helper = Tns()
    assert play(helper, [line().sent(connect())]) == []
    with pytest.raises(Malformed):
        helper.frame(memoryview(packet(6, length=length)))


@cases(
    "answers",
    {
        "no length": [packet(5)],
        "half a length": [packet(5, b"\0")],
        "no parenthesis": [redirect("HOST=192.0.2.1")],
        "blanks before NUL": [redirect(" \0" + address())],
        "nothing before NUL": [redirect("\0" + address())],
        "junk before": [redirect(f"x{address()}")],
        "junk after": [redirect(f"{address()}x")],
        "open parenthesis": [redirect(address()[:-1])],
        "port over 65535": [redirect(address(port=65536))],
        "port with a letter": [redirect(address(port="1521x"))],
        "octet over 255": [redirect(address("300.1.1.1"))],
        "length too short": [redirect(address(), length=3)],
        "length 0, no parenthesis": [redirect(), data("HOST")],
        "length 0, blanks, no parenthesis": [redirect(), data(" "), data("HOST")],
        "length 0, junk after": [redirect(), data(address() + "x")],
        "DATA without flags": [redirect(), packet(6)],
        "DATA with half its flags": [redirect(length=9), packet(6, b"\0")],
    },
)
def test_redirect_that_does_not_parse_is_malformed(answers: list[bytes]) -> None:
    with pytest.raises(Malformed):
        answered(*answers)


def test_blanks_before_the_text_do_not_matter() -> None:
    assert answered(redirect(f" \r\n{address()} ")) == [to()]


FILLED: Final = address() + f"(A={'x' * (4092 - len(address()))})"


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "DATA"])
@pytest.mark.parametrize("length", [None, 0, 65535], ids=["", "length 0", "65535"])
def test_text_of_4_kib_is_read_and_no_longer_one(
    length: int | None, inline: bool
) -> None:
    def answers(text: str) -> list[bytes]:
        size = len(text) if length is None else length
        if inline:
            return [redirect(text, length=size)]
        return [redirect(length=size), data(text[:3000]), data(text[3000:])]

    assert len(FILLED) == 4096
    tail = f"\0{CONNECT_DATA * 100}"
    assert answered(*answers(FILLED + tail)) == [to()]
    for longer in (f" {FILLED}", f"{FILLED} {tail}", "(" * 5000):
        with pytest.raises(Oversized):
            answered(*answers(longer))


# conntrackd's faults


@pytest.mark.fault("tns 1", "text that follows a REDIRECT in DATA is not looked at")
def test_text_in_data_after_a_redirect_of_ten_bytes_is_read() -> None:
    # As clusters send it: 10 bytes, flag 2, and the length of what follows.
    first, second = deferred(TEXT, flags=2)
    assert (len(first), first[5]) == (10, 2)
    assert int.from_bytes(first[8:]) == len(TEXT)
    assert answered(first, second) == [to()]


@pytest.mark.fault("tns 2", "after a length of 0 the flags of DATA end the search")
@pytest.mark.parametrize("flags", [0, 0x40, 0x2828, 0xFFFF])
def test_flags_of_data_are_no_part_of_the_text(flags: int) -> None:
    assert answered(redirect(), data(TEXT, flags=flags)) == [to()]


@pytest.mark.fault("tns 3", "keys in lower case, as SCAN listeners send, are not found")
def test_keys_in_lower_case_are_read() -> None:
    for form in (str.lower, str.upper, str.title):
        assert answered(*deferred(form(address()))) == [to()]


@pytest.mark.fault("tns 4", "the search goes beyond the payload, and pure ACKs end it")
def test_text_ends_with_the_packet_and_a_segment_without_bytes_is_none() -> None:
    first, second = deferred(address())
    packets = segments([connect()], [first, b"", second])
    assert texts(packets) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]
    # One that stops within its port, and goes on with what is another packet.
    half = redirect(address()[:-4])
    decisions = handle(segments([connect()], [half + b"21))"]))
    assert damage(decisions) == ["descriptor: b'(PORT=415'"]


@pytest.mark.fault(
    "tns 5", "names, IPv6 addresses and another order of keys are not understood"
)
def test_names_ipv6_and_any_order_are_read() -> None:
    text = f"(ADDRESS=(PORT={PORT})(HOST=rac1)(DEV=6)(PROTOCOL=tcp))"
    assert answered(redirect(text), flow=line(hosts=RAC)) == [to(NODE)]
    text = text.replace("rac1", SERVER6)
    assert answered(redirect(text), flow=line(6)) == [to(SERVER6)]


@pytest.mark.fault("tns 6", "one address of one packet in one segment is found")
def test_addresses_and_packets_may_be_several_and_segments_cut_anywhere() -> None:
    text = address(port=2000) + address(port=2001)
    answers = RESEND + b"".join(deferred(text))
    opened = [f"tcp {CLIENT} > {SERVER}:{port}" for port in (2000, 2001)]
    assert texts(segments([connect()], [answers])) == opened
    single = cut(answers, range(len(answers)))
    assert texts(segments(cut(connect(), range(99)), single)) == opened


@pytest.mark.fault("tns 7", "octets over 255 and ports over 65535 spill over")
@pytest.mark.parametrize(
    "text",
    [address("300.1.1.1"), address("198.51.100.258"), address(port=65537)],
    ids=["300.1.1.1", "258", "65537"],
)
@pytest.mark.parametrize("hostname", ["refuse", "same"])
def test_numbers_out_of_range_open_nothing(text: str, hostname: str) -> None:
    with pytest.raises(Malformed):
        answered(redirect(text), flow=line(hostname=hostname))


POISON: Final = "guard.allow_hosts = "


@pytest.mark.fault("tns 8", "a poisoned listener opens any host and port (TNS poison)")
@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        (THIRD, PORT, "third-party-address"),
        (CLIENT, PORT, "third-party-address"),
        ("127.0.0.1", PORT, "loopback-address"),
        ("0.0.0.0", PORT, "unspecified-address"),  # noqa: S104 - not a bind
        ("224.0.0.251", PORT, "multicast-address"),
        ("255.255.255.255", PORT, "broadcast-address"),
        (SERVER6, PORT, "third-party-address"),
        (f"::ffff:{SERVER}", PORT, "v4-mapped-address"),
        ("rac1", PORT, "unknown-host"),
        (SERVER, 0, "port-zero"),
        (SERVER, 1023, "low-port"),
        *((SERVER, port, "denied-port") for port in sorted(DENIED_PORTS)),
    ],
)
def test_redirect_elsewhere_is_refused(host: str, port: int, reason: str) -> None:
    decisions = handle(segments([connect()], deferred(address(host, port))))
    assert refused(decisions) == [reason]
    assert opened(decisions) == []
    assert all(each.packet is None for each in decisions)


def test_redirect_to_a_configured_host_is_allowed() -> None:
    packets = segments([connect()], deferred(address(NODE) + address(THIRD)))
    decisions = handle(packets, f'{POISON}["{NODE}/32"]')
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {NODE}:{PORT}"]
    assert refused(decisions) == ["third-party-address"]


def test_name_of_a_configured_host_is_no_way_around_the_guard() -> None:
    packets = segments([connect()], deferred(address("rac1")))
    named = f'hosts = ["{NODE} rac1"]'
    assert refused(handle(packets, named)) == ["third-party-address"]
    decisions = handle(packets, named, f'{POISON}["{NODE}/32"]')
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {NODE}:{PORT}"]


INSIDE: Final = "10.0.0.2"


def translated() -> Conntrack:
    """The client knows the server by an address that is not its own."""
    original = flow_tuple(TCP, (CLIENT, 40000), (SERVER, 1521))
    reply = flow_tuple(TCP, (INSIDE, 1521), (CLIENT, 40000))
    return conntrack(original, reply, helper="tns")


@pytest.mark.fault(
    "tns 10", "a redirect to another node is translated to the first server"
)
def test_redirect_to_another_node_behind_destination_nat_is_refused() -> None:
    packets = segments([connect()], deferred(address(NODE)))
    decisions = handle(packets, f'{POISON}["{NODE}/32"]', entry=translated())
    assert refused(decisions) == ["nat"]
    assert opened(decisions) == []


def test_masqueraded_client_is_let_through_under_its_own_address() -> None:
    original = flow_tuple(TCP, (CLIENT, 40000), (SERVER, 1521))
    reply = flow_tuple(TCP, (SERVER, 1521), ("203.0.113.1", 12345))
    entry = conntrack(original, reply, helper="tns")
    decisions = handle(segments([connect()], deferred(address())), entry=entry)
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]


@pytest.mark.fault("tns 11", "a server that was redirected to cannot redirect further")
def test_redirect_of_a_redirected_flow_is_followed_four_times() -> None:
    config = configured(Tns, "chained = true")
    assert config.tags_expected
    assert not configured(Tns).tags_expected
    ours = engine_with(config)
    entry, found = entry_of(Tns), []
    for port in range(2000, 2005):
        packets = segments([connect()], deferred(address(port=port)))
        decisions = [ours.handle(each, entry, way) for way, each in packets]
        found.append((list(map(str, opened(decisions))), refused(decisions)))
        assert {each.helper for each in opened(decisions)} <= {"tns"}
        master = entry.original
        next_ = flow_tuple(TCP, (CLIENT, 40000 + port), (SERVER, port))
        entry = replace(conntrack(next_, id_=port, helper="tns"), master=master)
    assert found == [
        *(([f"tcp {CLIENT} > {SERVER}:{port}"], []) for port in range(2000, 2004)),
        ([], ["redirect-chain"]),
    ]


@handles("any packet after ACCEPT or REFUSE", "is not read")
@pytest.mark.fault("tns 12", "packets after ACCEPT are still searched for addresses")
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "more"])
def test_nothing_is_read_after_accept(together: bool) -> None:
    # Lengths are of 32 bits then, and to read them as they were would be malformed.
    after = [LONG_DATA, *deferred(address())]
    answers = [ACCEPT + b"".join(after)] if together else [ACCEPT, *after]
    decisions = handle(segments([connect()], answers))
    assert opened(decisions) == []
    events = [event for each in decisions for event in each.events]
    assert events == [Finished("done")]


# Through the engine


def segments(
    sent: Iterable[bytes], answers: Iterable[bytes]
) -> list[tuple[Direction, bytes]]:
    """A handshake, then the pieces that the client sends, then the server's."""
    packets = [
        (ORIGINAL, tcp(b"", 99, flags="S")),
        (REPLY, tcp(b"", 4999, flags="SA", direction=REPLY)),
    ]
    for direction, first, pieces in ((ORIGINAL, 100, sent), (REPLY, 5000, answers)):
        for piece in pieces:
            packets.append((direction, tcp(piece, first, direction=direction)))
            first += len(piece)
    return packets


def handle(
    packets: Iterable[tuple[Direction, bytes]],
    *lines: str,
    entry: Conntrack | None = None,
) -> list[Decision]:
    """What becomes of the segments of one connection."""
    ours, entry = engine_with(configured(Tns, *lines)), entry or entry_of(Tns)
    decisions = []
    for direction, each in packets:
        decisions.append(ours.handle(each, entry, direction))
        if any(isinstance(event, Finished) for event in decisions[-1].events):
            break
    return decisions


def opened(decisions: Iterable[Decision]) -> list[Expectation]:
    return [one for each in decisions for one in each.expectations]


def texts(packets: Iterable[tuple[Direction, bytes]]) -> list[str]:
    """The expectations, where nothing goes wrong."""
    decisions = handle(packets)
    assert not [event for each in decisions for event in each.events]
    return list(map(str, opened(decisions)))


def refused(decisions: Iterable[Decision]) -> list[str]:
    events = [event for each in decisions for event in each.events]
    assert all(isinstance(event, Refused) for event in events)
    return [event.reason for event in events if isinstance(event, Refused)]


def damage(decisions: Iterable[Decision]) -> list[str]:
    events = [event for each in decisions for event in each.events]
    assert all(isinstance(event, Damaged) for event in events)
    return [event.reason for event in events if isinstance(event, Damaged)]


def test_expectation_is_made_with_the_segment_that_completes_the_text() -> None:
    pieces = cut(b"".join(deferred(address())), [9, 25])
    decisions = handle(segments([connect()], pieces))
    assert [len(each.expectations) for each in decisions] == [0, 0, 0, 0, 0, 1]
    ((expectation,),) = [each.expectations for each in decisions if each.expectations]
    assert (expectation.permanent, expectation.timeout) == (False, 60)


@pytest.mark.parametrize("direction", list(Direction), ids=lambda each: each.value)
def test_flow_that_is_not_tns_is_finished_without_noise(direction: Direction) -> None:
    sent, answers = ([TLS], []) if direction is ORIGINAL else ([], [b"220 ready\r\n"])
    decisions = handle(segments(sent, answers))
    assert [each.events for each in decisions] == [(), (), (Finished("done"),)]


def test_redirect_of_a_client_ends_the_reading_of_its_direction_alone() -> None:
    packets = segments([connect(), redirect(TEXT)], deferred(TEXT))
    decisions = handle(packets)
    assert damage(decisions) == ["REDIRECT in original direction"]
    assert list(map(str, opened(decisions))) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]


# Options


def test_options_are_read_from_the_configuration() -> None:
    config = configured(
        Tns,
        'hostname = "same"',
        f'hosts = ["{NODE} rac1  rac1.example.net", "{NODE6} rac1"]',
        "chained = true",
    )
    assert config.options == {
        "hostname": "same",
        "hosts": hosts(f"{NODE} rac1.example.net rac1", f"{NODE6} RAC1"),
        "chained": True,
    }


@pytest.mark.parametrize(
    "value",
    [
        '"192.0.2.11"',
        '""',
        '"rac1"',
        '"rac1 192.0.2.11"',
        '"192.0.2.11 192.0.2.12"',
        '"192.0.2.11 rac1 192.0.2.12"',
        '"192.0.2.300 rac1"',
        '"192.0.2.0/24 rac1"',
        '"fe80::1%eth0 rac1"',
        '"192.0.2.11 rac/1"',
        "11",
    ],
)
def test_line_that_is_none_is_a_configuration_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a line such as") as caught:
        configured(Tns, f"hosts = [{value}]")
    assert "\n" not in str(caught.value)


# Any segmentation, any bytes

# Small ones, for each is cut in all sizes.
SMALL: Final = "(ADDRESS=(PROTOCOL=tcp)(HOST=r)(PORT=4))"
SMALL_CONNECT: Final = packet(1, bytes(26))
SMALL_FORMS: Final = list(forms(SMALL, "(x").values())

conversations = st.lists(
    st.sampled_from([*SMALL_FORMS, [RESEND], [MARKER], [CONTROL], [data("x")]]),
    max_size=2,
).map(lambda parts: [each for part in parts for each in part])
ends = st.sampled_from(
    [
        [],
        [ACCEPT, LONG_DATA, redirect(SMALL)],
        [REFUSE],
        [redirect("x"), redirect(SMALL)],
        [redirect("(ADDRESS=(PROTOCOL=tcp)(HOST=s)(PORT=4))")],
        [packet(6, length=7), redirect(SMALL)],
    ]
)


def small() -> Line:
    return line(hosts=hosts(f"{SERVER} r"))


@given(conversations, ends, st.booleans())
def test_any_segmentation_gives_the_same_effects(
    answers: list[bytes], end: list[bytes], resent: bool
) -> None:
    flow = small()
    messages = [flow.sent(SMALL_CONNECT), flow.sent(data("(x"))]
    if resent:
        messages += [flow.answered(RESEND), *messages]
    messages += map(flow.answered, [*answers, *end])
    found = any_segmentation(Tns, messages)
    redirects = sum(each[4] == 5 for each in answers)
    assert found[:redirects] == [to(port=4)] * redirects


@given(st.permutations(range(6)), st.lists(st.integers(1, len(TEXT) + 19), max_size=5))
def test_any_order_of_the_servers_segments_gives_the_same_expectations(
    order: list[int], at: list[int]
) -> None:
    packets = segments([connect()], cut(b"".join(deferred(TEXT)), at))
    first, theirs = packets[:3], packets[3:]
    shuffled = [theirs[each] for each in order if each < len(theirs)]
    assert texts(first + shuffled) == [f"tcp {CLIENT} > {SERVER}:{PORT}"]


bodies = st.binary(max_size=20) | st.sampled_from(
    [b"", SMALL.encode(), SMALL.encode() + b"\0(x", b"\0\0" + SMALL.encode(), b"\0\0("]
)
packets_ = (
    st.builds(packet, st.integers(0, 15), bodies)
    | st.builds(redirect, bodies, length=st.none() | st.integers(0, 65535))
    | st.builds(data, bodies)
    | st.sampled_from([SMALL_CONNECT, ACCEPT, RESEND, TLS[:40]])
)


exchanges = st.lists(
    st.tuples(
        st.sampled_from(Direction),
        st.binary(max_size=20) | packets_ | damaged(packets_),
    ),
    max_size=5,
)


@given(exchanges, st.sampled_from(["refuse", "same"]))
@example([(ORIGINAL, connect()), (REPLY, redirect(TEXT))], "refuse")
def test_any_bytes_give_effects_malformed_or_refusals_and_nothing_else(
    exchanged: list[tuple[Direction, bytes]], hostname: str
) -> None:
    helper, flow = Tns(), line(hostname=hostname)
    for direction, body in exchanged:
        message = flow.message(direction, body)
        try:
            fields = helper.describe(message)
            effects = play(helper, [message])
        except (Malformed, ExpectationRefused):
            continue
        assert all(fields.values())
        if any(isinstance(each, Expect) for each in effects):
            assert direction is REPLY
            assert DONE not in effects


@given(exchanges)
def test_any_streams_are_the_same_in_any_segmentation(
    exchanged: list[tuple[Direction, bytes]],
) -> None:
    flow = small()
    messages = [flow.message(direction, body) for direction, body in exchanged]
    any_segmentation(Tns, messages)
    any_segmentation(Tns, [flow.sent(SMALL_CONNECT), *messages])


@given(st.sampled_from(SMALL_FORMS), st.binary(max_size=40))
def test_what_follows_a_redirect_does_not_change_it(
    form: list[bytes], junk: bytes
) -> None:
    flow = small()
    messages = [flow.sent(SMALL_CONNECT), flow.answered(b"".join(form) + junk)]
    assert any_segmentation(Tns, messages)[:1] == [to(port=4)]


# In words


@cases(
    "answers, fields",
    {
        "RESEND": ([RESEND], {"type": "RESEND (11)", "length": "8"}),
        "unknown": ([packet(99)], {"type": "unknown (99)", "length": "8"}),
        "ACCEPT": ([ACCEPT], {"type": "ACCEPT (2)", "length": "65"}),
        "MARKER": ([MARKER], {"type": "MARKER (12)", "length": "11"}),
        "MARKER within a redirect": (
            [redirect(), MARKER],
            {"type": "MARKER (12)", "length": "11"},
        ),
        "DATA": ([data("x")], {"type": "DATA (6)", "length": "11"}),
        "REDIRECT": (
            [redirect(TEXT)],
            {
                "type": "REDIRECT (5)",
                "length": str(10 + len(TEXT)),
                "redirect data": f"{len(TEXT)} of {len(TEXT)}",
                "redirects to": f"tcp {SERVER}:{PORT}",
            },
        ),
        "REDIRECT, DATA to follow": (
            [redirect(length=len(TEXT))],
            {
                "type": "REDIRECT (5)",
                "length": "10",
                "redirect data": f"0 of {len(TEXT)}",
                "redirects to": "what DATA will say",
            },
        ),
        "DATA of a REDIRECT": (
            deferred(address("rac1") + address(SERVER6, 2484, "tcps"), length=0),
            {
                "type": "DATA (6)",
                "length": "113",
                "redirect data": "103 of ?",
                "redirects to": f"tcp rac1:{PORT}, tcps [{SERVER6}]:2484",
            },
        ),
        "REDIRECT to another protocol": (
            [redirect("(ADDRESS=(PROTOCOL=ipc))")],
            {
                "type": "REDIRECT (5)",
                "length": "34",
                "redirect data": "24 of 24",
                "redirects to": "nothing over TCP",
            },
        ),
    },
)
def test_packet_of_a_server_is_described(
    answers: list[bytes], fields: dict[str, str]
) -> None:
    helper, flow = Tns(), line()
    *before, last = conversation(flow, *answers)
    play(helper, before)
    assert helper.describe(last) == fields


def test_packet_of_a_client_is_described() -> None:
    helper, flow = Tns(), line()
    first = flow.sent(connect())
    for _ in range(2):
        assert helper.describe(first) == {"type": "CONNECT (1)", "length": "122"}
        play(helper, [first])
    assert Tns().describe(flow.sent(TLS)) == {"type": "not TNS"}
    assert Tns().describe(flow.answered(REFUSE)) == {"type": "not TNS"}


@tshark.needed
def test_tshark_reads_the_same(tmp_path: Path) -> None:
    answers = [
        *(RESEND, MARKER, CONTROL, REFUSE, ACCEPT),
        *(each for form in FORMS.values() for each in form),
        redirect(address(SERVER6) + address("rac1", 2484, "tcps")),
    ]
    capture = tmp_path / "capture.pcap"
    # A flow for each packet, so that none depends on those before it.
    wrpcap(
        str(capture),
        [
            Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
            / IP(src=SERVER, dst=CLIENT)
            / ScapyTCP(sport=1521, dport=40000 + number, flags="PA")
            / each
            for number, each in enumerate(answers)
        ],
    )
    names = ("type", "length", "redirect_data_length", "redirect_data")
    read = tshark.fields(capture, [f"tns.{each}" for each in names])
    assert len(read) == len(answers)
    for answer, (kind, length, size, text) in zip(answers, read, strict=True):
        helper, flow = Tns(), line()
        play(helper, [flow.sent(connect())])
        ours = helper.describe(flow.answered(answer))
        assert ours["type"].endswith(f"({kind})")
        assert ours["length"] == length
        if size:
            # It shows a length of 0 as it is, and as much of the text as is there.
            assert ours["redirect data"].endswith(f" of {int(size) or '?'}")
        if size and ours["redirects to"] != "what DATA will say":
            found = ", ".join(map(str, parse_addresses(text.encode())))
            assert ours["redirects to"] == found

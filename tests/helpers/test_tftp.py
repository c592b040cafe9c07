# SPDX-License-Identifier: GPL-2.0-or-later
"""TFTP: which datagrams are requests, and whose port they open."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cthelper import nft
from cthelper.core.api import (
    UDP,
    Effect,
    Expect,
    ExpectationRefused,
    Malformed,
    Message,
)
from cthelper.core.config import parse
from cthelper.core.outcome import Refused
from cthelper.helpers.tftp import Tftp, parse_request
from cthelper.testing import Line, expectations, play
from tests.cases import cases
from tests.core.builders import endpoint, flow_tuple
from tests.helpers.captures import (
    PCAPS,
    PUBLIC,
    Found,
    broken,
    captures_of,
    manifest,
    refusals,
    related,
    replayed,
    told,
    unwatched,
)
from tests.helpers.given import damaged
from tests.helpers.inspected import Inspected, configured, entry_of
from tests.helpers.translated import MASQUERADED, NATS, SERVER, known, translated

CLIENT: Final = "192.0.2.1"
HOST: Final = "198.51.100.2"
ASKER: Final = 40000
RRQ: Final = b"\0\1f\0octet\0"


def request(
    *strings: bytes,
    opcode: int = 1,
    file: bytes = b"pxelinux.0",
    mode: bytes = b"octet",
) -> bytes:
    """A request, and the strings of its options."""
    return opcode.to_bytes(2) + b"".join(
        each + b"\0" for each in (file, mode, *strings)
    )


def line(
    port: int = ASKER,
    *,
    destination: str = HOST,
    client: str = CLIENT,
    group: bool = False,
) -> Line:
    return Line(flow_tuple(UDP, (client, port), (destination, 69)), group=group)


def effects_of(message: Message) -> list[Effect]:
    return play(Tftp(), [message])


def answer(port: int = ASKER, client: str = CLIENT) -> Expect:
    return Expect(endpoint(client, port), "transfer")


def handles(message: str, outcome: str, *values: object) -> Any:
    mark = pytest.mark.handles("tftp", message, outcome)
    return pytest.param(*values, id=message, marks=mark)


# What opens the port.


@pytest.mark.parametrize(
    "opcode",
    [
        handles("RRQ (1)", "server:any > port that asked, 30 s", 1),
        handles("WRQ (2)", "server:any > port that asked, 30 s", 2),
    ],
)
@cases(
    "strings",
    {
        "none": (),
        "options of curl": (b"tsize", b"0", b"blksize", b"512", b"timeout", b"6"),
        "window (RFC 7440)": (b"windowsize", b"16"),
        "multicast (RFC 2090)": (b"multicast", b""),
        "option that nobody knows": (b"x-\xff", b"\x01"),
    },
)
@pytest.mark.parametrize(
    "mode", [b"octet", b"netascii", b"mail", b"OCTET", b"NetASCII"]
)
def test_request_opens_the_port_that_asked(
    opcode: int, strings: tuple[bytes, ...], mode: bytes
) -> None:
    datagram = request(*strings, opcode=opcode, mode=mode)
    assert effects_of(line().sent(datagram)) == [answer()]
    six = line(client="2001:db8:1::1", destination="2001:db8:2::2")
    assert effects_of(six.sent(datagram)) == [answer(client="2001:db8:1::1")]


@pytest.mark.parametrize(
    "datagram",
    [
        handles("DATA (3)", "opens nothing", b"\0\3\0\1data"),
        handles("ACK (4)", "opens nothing", b"\0\4\0\0"),
        handles("ERROR (5)", "opens nothing", b"\0\5\0\1no such file\0"),
        handles("OACK (6)", "opens nothing", b"\0\6tsize\x0012\0"),
    ],
)
def test_transfer_opens_nothing(datagram: bytes) -> None:
    assert effects_of(line().sent(datagram)) == []
    assert effects_of(line().answered(datagram)) == []


def test_request_of_the_server_opens_nothing() -> None:
    assert effects_of(line().answered(RRQ)) == []


BROKEN: Final = {
    "nothing": b"",
    "half an opcode": b"\0",
    "opcode 0": b"\0\0f\0octet\0",
    "opcode 7": b"\0\7f\0octet\0",
    "opcode alone": b"\0\1",
    "no name": b"\0\1\0octet\0",
    "no mode": b"\0\1f\0",
    "empty mode": b"\0\1f\0\0",
    "mode that nobody knows": b"\0\1f\0binary\0",
    "mode without its end": b"\0\1f\0octet",
    "option without its end": RRQ + b"tsize\x000",
    "513 bytes": request(file=b"f" * 504),
}


@pytest.mark.handles("tftp", "request that is none", "malformed, opens nothing")
@cases("datagram", BROKEN)
def test_broken_request_is_malformed(datagram: bytes) -> None:
    with pytest.raises(Malformed):
        effects_of(line().sent(datagram))


def test_largest_request_is_read() -> None:
    datagram = request(file=b"f" * 503)
    assert len(datagram) == 512
    assert effects_of(line().sent(datagram)) == [answer()]


@pytest.mark.handles("tftp", "request to a group", "refused")
@pytest.mark.parametrize(
    ("destination", "group"),
    [("224.0.1.2", False), ("ff02::2", False), ("192.0.2.255", True)],
)
def test_request_to_a_group_is_refused(destination: str, group: bool) -> None:
    client = "fe80::1" if ":" in destination else CLIENT
    asked = line(destination=destination, client=client, group=group)
    with pytest.raises(ExpectationRefused, match="group") as refused:
        effects_of(asked.sent(RRQ))
    assert refused.value.reason == "group"


# What the engine makes of it.


@pytest.mark.handles("tftp", "request from a port below 1024", "refused")
@pytest.mark.parametrize(
    ("port", "reason"), [(53, "denied-port"), (1023, "low-port"), (3389, "denied-port")]
)
def test_request_from_a_port_of_a_service_is_refused(port: int, reason: str) -> None:
    flow = Inspected(Tftp, entry_of(Tftp, (CLIENT, port)))
    flow.sent(RRQ)
    assert flow.expectations == []
    assert [each.reason for each in flow.events if isinstance(each, Refused)] == [
        reason
    ]


def test_boot_roms_may_ask_from_port_1024() -> None:
    flow = Inspected(Tftp, entry_of(Tftp, (CLIENT, 1024)))
    flow.sent(RRQ)
    assert [str(each) for each in flow.expectations] == [f"udp {HOST} > {CLIENT}:1024"]


def test_each_request_of_a_flow_opens_and_the_flow_goes_on() -> None:
    flow = Inspected(Tftp, entry_of(Tftp))
    for each in (RRQ, request(opcode=2), RRQ, b"\0\4\0\1", b"\0\5\0\0\0", RRQ):
        assert flow.sent(each) == each
    assert len(flow.expectations) == 4
    assert len(set(map(str, flow.expectations))) == 1
    assert not any(each.permanent for each in flow.expectations)
    assert flow.events == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nat", NATS)
def test_behind_nat_the_port_is_that_of_the_flow(nat: str, version: int) -> None:
    entry = translated(Tftp, version, nat)
    client, seen_as = entry.original.source, entry.reply.destination
    entry = entry_of(
        Tftp,
        (str(client.address), ASKER),
        known(nat, version),
        seen_as=(str(seen_as.address), 61000),
        inside=SERVER[version],
    )
    flow = Inspected(Tftp, entry)
    assert flow.sent(RRQ) == RRQ
    (made,) = flow.expectations
    assert str(made.destination) == str(endpoint(str(seen_as.address), 61000))
    assert str(made.source).partition("/")[0] == SERVER[version]
    assert flow.refused == []
    if nat != "dnat":
        assert str(seen_as.address) == MASQUERADED[version]


# What the ruleset queues.


def test_requests_alone_are_queued() -> None:
    """Of a server that answers from port 69 the whole transfer is in the flow."""
    config = parse("", Path("test.toml"), {"tftp": Tftp})
    prefilter = configured(Tftp).prefilter
    assert prefilter.reply == ()
    assert prefilter.request is not None
    for datagram in (RRQ, request(opcode=2), b"\0\3\0\1x", b"\0\4\0\1", b"\0\6", b""):
        bits = int.from_bytes(datagram[:2])
        matched = any(
            bits == each.value
            for alternative in prefilter.request
            for each in alternative
        )
        assert matched is (datagram[:2] in (b"\0\1", b"\0\2"))
    assert "@ih,0,16" in nft.render(config)


# What people are shown.


@cases(
    "case",
    {
        "request": (
            request(b"blksize", b"1428", opcode=2),
            {
                "type": "WRQ",
                "file": "'pxelinux.0'",
                "mode": "octet",
                "options": "blksize 1428",
            },
        ),
        "plain": (RRQ, {"type": "RRQ", "file": "'f'", "mode": "octet"}),
        "acknowledgement": (b"\0\4\0\1", {"type": "ACK"}),
    },
)
def test_message_is_described(case: tuple[bytes, dict[str, str]]) -> None:
    datagram, fields = case
    assert Tftp().describe(line().sent(datagram)) == fields


# Any bytes.


@given(damaged(st.just(request(b"tsize", b"0"))) | st.binary(max_size=600))
@example(RRQ)
def test_any_bytes_are_read_or_malformed(datagram: bytes) -> None:
    with suppress(Malformed):
        found = parse_request(datagram)
        assert (found is not None) is (datagram[:2] in (b"\0\1", b"\0\2"))
        if found is not None:
            assert len(datagram) <= 512
            assert datagram.endswith(b"\0")
    with suppress(Malformed):
        Tftp().describe(line().sent(datagram))


@given(
    st.integers(1, 2),
    st.binary(min_size=1, max_size=80).filter(lambda file: b"\0" not in file),
    st.sampled_from([b"octet", b"netascii", b"mail"]),
)
def test_whatever_is_asked_for_is_read(opcode: int, file: bytes, mode: bytes) -> None:
    found = parse_request(request(opcode=opcode, file=file, mode=mode))
    name = file.decode("utf-8", "backslashreplace")
    assert found == (("RRQ", "WRQ")[opcode - 1], name, mode.decode())


# What real peers said: frames as tshark tells them.

RELATED: Final[dict[str, Found]] = {
    "tftp/tftp-atftp-client-rrq": [(2, "udp 10.77.2.2:43012 > 10.77.1.2:60671")],
    "tftp/tftp-curl-dnsmasq-singleport": [],
    "tftp/tftp-curl-rrq": [(2, "udp 10.77.2.2:57464 > 10.77.1.2:58896")],
    "tftp/tftp-hpa-client-rrq": [(2, "udp 10.77.2.2:59851 > 10.77.1.2:47546")],
    "tftp/tftp-hpa-onesocket-tftpdhpa": [
        (2, "udp 10.91.1.1:56203 > 10.91.1.2:34822"),
        (5, "udp 10.91.1.1:41893 > 10.91.1.2:34822"),
        (18, "udp 10.91.1.1:49233 > 10.91.1.2:34822"),
    ],
    "tftp/tftp-hpa6-onesocket-tftpdhpa": [
        (2, "udp [fd91::1]:54120 > [fd91::2]:40106"),
        (5, "udp [fd91::1]:39614 > [fd91::2]:40106"),
        (18, "udp [fd91::1]:39398 > [fd91::2]:40106"),
    ],
}


@pytest.mark.parametrize("name", RELATED)
def test_every_transfer_of_real_peers_is_let_in_and_nothing_else(name: str) -> None:
    on_link = manifest()[f"{name}.pcap"].get("on_link", [])
    found = replayed(PCAPS / f"{name}.pcap", on_link=on_link)
    assert expectations(found) == told(name)
    assert related(found) == RELATED[name]
    assert broken(found) == []
    assert refusals(found) == []
    assert unwatched(found) == 0


def test_every_capture_has_its_case() -> None:
    assert captures_of(RELATED) == sorted(RELATED)


# Frames of the requests whose answers are in the capture, and of what is malformed:
# two requests for a file without a name.
PUBLISHED: Final = {
    "ndpi-tftp.pcap": ([4, 104, 109], [1, 2]),
    "suri-output-eve-tftp-01.pcap": ([2], []),
    "suri-tftp-tx-handling-wrq.pcap": ([2], []),
}


@pytest.mark.skipif(not PUBLIC.exists(), reason="no captures beside the project")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_captures_are_read(name: str) -> None:
    found = replayed(PUBLIC / name)
    met, malformed = PUBLISHED[name]
    assert [frame for frame, _ in related(found)] == met
    assert [getattr(each, "frame", None) for each in broken(found)] == malformed

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the payload is, and putting in another; scapy is the second opinion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPOption_NOP, IPOption_RR
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import UDP as ScapyUDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    MIP6MH_Generic,
    PadN,
)
from scapy.layers.ipsec import AH, ESP
from scapy.packet import Packet, Raw

from cthelper.core.errors import Malformed, Truncated
from cthelper.core.packet import (
    COPIED,
    Segment,
    checksum,
    locate,
    replace_payload,
)
from cthelper.core.tuples import TCP, UDP, Transport
from tests.cases import cases
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6

PAYLOAD = b"announcement"
IPV4 = IP(src=CLIENT, dst=SERVER)
IPV6 = IPv6(src=CLIENT6, dst=SERVER6)
TCP_HEADER = ScapyTCP(sport=40000, dport=7000, seq=0xFFFFFFF0, flags="PA")
UDP_HEADER = ScapyUDP(sport=40000, dport=7000)
# scapy leaves the length, in units of 4 bytes less 2, to the author.
AUTHENTICATION = AH(nh=17, payloadlen=4, icv=bytes(12))
TCP_OPTIONS = TCP_HEADER.copy()
TCP_OPTIONS.options = [("MSS", 1460), ("NOP", None), ("WScale", 7)]
# A header of the kind that HIP and shim6 use too: length 1 is 16 bytes.
GENERIC = bytes.fromhex("11 01") + bytes(14)


def options(size: int) -> list[Packet]:
    """Options that make an options header of `size` bytes."""
    return [PadN(optdata=bytes(size - 4))]


def extended(protocol: int, header: bytes, rest: Packet) -> Packet:
    """An IPv6 packet with a header that scapy has no class for."""
    return IPv6(src=CLIENT6, dst=SERVER6, nh=protocol) / Raw(header + bytes(rest))


LOCATED: dict[str, tuple[Packet, int]] = {
    "IPv4": (IPV4 / UDP_HEADER, 20),
    "IPv4 with options": (
        IP(src=CLIENT, dst=SERVER, options=[IPOption_RR(), IPOption_NOP()])
        / UDP_HEADER,
        24,
    ),
    "IPv4 with the most options": (
        IP(src=CLIENT, dst=SERVER, options=[IPOption_NOP()] * 40) / UDP_HEADER,
        60,
    ),
    "IPv4 that must not be fragmented": (
        IP(src=CLIENT, dst=SERVER, flags="DF", id=7) / UDP_HEADER,
        20,
    ),
    "IPv4 with the evil bit": (
        IP(src=CLIENT, dst=SERVER, flags="evil") / UDP_HEADER,
        20,
    ),
    "IPv6": (IPV6 / UDP_HEADER, 40),
    "hop-by-hop": (IPV6 / IPv6ExtHdrHopByHop(options=options(8)) / UDP_HEADER, 48),
    "routing": (
        IPV6 / IPv6ExtHdrRouting(addresses=[SERVER6], segleft=0) / UDP_HEADER,
        64,
    ),
    "destination options": (
        IPV6 / IPv6ExtHdrDestOpt(options=options(24)) / UDP_HEADER,
        64,
    ),
    "mobility": (IPV6 / MIP6MH_Generic(nh=17, len=1, msg=bytes(10)) / UDP_HEADER, 56),
    "HIP": (extended(139, GENERIC, UDP_HEADER / PAYLOAD), 56),
    "shim6": (extended(140, GENERIC, UDP_HEADER / PAYLOAD), 56),
    "authentication": (IPV6 / AUTHENTICATION / UDP_HEADER, 64),
    "atomic fragment": (
        IPV6 / IPv6ExtHdrFragment(offset=0, m=0, id=9, res2=3) / UDP_HEADER,
        48,
    ),
    "all of them": (
        IPV6
        / IPv6ExtHdrHopByHop(options=options(8))
        / IPv6ExtHdrDestOpt(options=options(8))
        / IPv6ExtHdrRouting(addresses=[SERVER6], segleft=0)
        / IPv6ExtHdrFragment(nh=51)
        / AH(nh=60, payloadlen=4, icv=bytes(12))
        / IPv6ExtHdrDestOpt(options=options(8))
        / UDP_HEADER,
        120,
    ),
}


@pytest.mark.parametrize("name", LOCATED)
def test_udp_payload_is_located(name: str) -> None:
    packet, header = LOCATED[name]
    built = bytes(packet if name in ("HIP", "shim6") else packet / PAYLOAD)
    segment = locate(built)
    assert segment == Segment(UDP, header, header + 8, len(built))
    assert built[segment.start : segment.stop] == PAYLOAD


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("tcp", [TCP_HEADER, TCP_OPTIONS], ids=["plain", "options"])
def test_tcp_payload_is_located(ip: Packet, tcp: Packet) -> None:
    built = bytes(ip / tcp / PAYLOAD)
    header = len(bytes(ip))
    start = header + len(bytes(tcp))
    assert locate(built) == Segment(TCP, header, start, len(built), 0xFFFFFFF0)
    assert built[start:] == PAYLOAD


@pytest.mark.parametrize(
    ("flags", "syn"), [("S", True), ("SAEC", True), ("A", False), ("FPU", False)]
)
def test_syn_is_told_from_the_other_flags(flags: str, syn: bool) -> None:
    segment = locate(bytes(IPV4 / ScapyTCP(seq=5, flags=flags)))
    assert segment == Segment(TCP, 20, 40, 40, 5, syn)


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("layer", [TCP_HEADER, UDP_HEADER], ids=["TCP", "UDP"])
def test_padding_of_the_link_is_not_payload(ip: Packet, layer: Packet) -> None:
    built = bytes(ip / layer / b"x")
    segment = locate(built + bytes(17))
    assert segment is not None
    assert segment.stop == len(built)
    assert replace_payload(built + bytes(17), segment, b"x") == built


def test_bytes_after_the_datagram_are_not_payload() -> None:
    header = UDP_HEADER.copy()
    header.len = 8 + len(PAYLOAD)
    assert locate(bytes(IPV4 / header / (PAYLOAD + b"rest"))) == Segment(
        UDP, 20, 28, 28 + len(PAYLOAD)
    )


UNREADABLE: dict[str, Packet] = {
    "first fragment": IP(flags="MF") / UDP_HEADER / PAYLOAD,
    "middle fragment": IP(flags="MF", frag=3, proto=17) / PAYLOAD,
    "last fragment": IP(frag=0x1FFF, proto=17) / PAYLOAD,
    "IPv6 first fragment": IPV6 / IPv6ExtHdrFragment(m=1) / UDP_HEADER / PAYLOAD,
    "IPv6 middle fragment": IPV6 / IPv6ExtHdrFragment(m=1, offset=1, nh=17) / PAYLOAD,
    "IPv6 last fragment": IPV6 / IPv6ExtHdrFragment(offset=0x1000, nh=17) / PAYLOAD,
    "fragment behind options": IPV6
    / IPv6ExtHdrDestOpt(options=options(8))
    / IPv6ExtHdrFragment(m=1)
    / UDP_HEADER
    / PAYLOAD,
    "routing header that is not used up": IPV6
    / IPv6ExtHdrRouting(addresses=[SERVER6], segleft=1)
    / UDP_HEADER
    / PAYLOAD,
    "ICMP": IPV4 / ICMP() / PAYLOAD,
    "ESP": IPV4 / ESP(spi=1, seq=1, data=bytes(40)),
    "IPv6 ESP": IPV6 / ESP(spi=1, seq=1, data=bytes(40)),
    "IPv6 ESP behind options": IPV6
    / IPv6ExtHdrDestOpt(options=options(8))
    / ESP(spi=1, seq=1, data=bytes(40)),
    "IPv4 in IPv6": IPV6 / IPV4 / UDP_HEADER / PAYLOAD,
    "IPv4 without payload": IP(proto=59),
    "IPv6 no next header": IPv6(nh=59) / PAYLOAD,
    "IPv6 nothing but options": IPV6 / IPv6ExtHdrDestOpt(nh=59, options=options(8)),
    "jumbogram": IPv6(src=CLIENT6, dst=SERVER6, plen=0)
    / IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=0x10000 + 16)])
    / ScapyUDP(len=0, chksum=1)
    / bytes(0x10000),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_packet_without_a_whole_segment_has_no_payload(name: str) -> None:
    assert locate(bytes(UNREADABLE[name])) is None


def changed(packet: Packet, offset: int, value: bytes) -> bytes:
    built = bytes(packet)
    return built[:offset] + value + built[offset + len(value) :]


V4_UDP = IPV4 / UDP_HEADER / PAYLOAD
V6_UDP = IPV6 / UDP_HEADER / PAYLOAD
V4_TCP = IPV4 / TCP_HEADER / PAYLOAD


@cases(
    "packet",
    {
        "IP version 3": changed(V4_UDP, 0, b"\x35"),
        "IP version 5": changed(V4_UDP, 0, b"\x55"),
        "IPv4 header of 16 bytes": changed(V4_UDP, 0, b"\x44"),
        "IPv4 header over the packet": changed(V4_UDP, 0, b"\x4f"),
        "IPv4 length below its header": changed(V4_UDP, 2, b"\x00\x13"),
        "IPv4 length over the packet": changed(V4_UDP, 2, b"\x00\x29"),
        "IPv4 length within the UDP header": changed(V4_UDP, 2, b"\x00\x1b"),
        "IPv6 length within the UDP header": changed(V6_UDP, 4, b"\x00\x07"),
        "IPv6 length over the packet": changed(V6_UDP, 4, b"\x00\x15"),
        "UDP length below its header": changed(V4_UDP, 24, b"\x00\x07"),
        "UDP length 0": changed(V4_UDP, 24, b"\x00\x00"),
        "UDP length over the IPv4 packet": changed(V4_UDP, 24, b"\x00\x15"),
        "UDP length over the IPv6 packet": changed(V6_UDP, 44, b"\x00\x15"),
        "TCP header of 16 bytes": changed(V4_TCP, 32, b"\x40"),
        "TCP header over the packet": changed(V4_TCP, 32, b"\x90"),
        "IPv4 length within the TCP header": changed(V4_TCP, 2, b"\x00\x27"),
        "options over the packet": changed(
            IPV6 / IPv6ExtHdrDestOpt(options=options(8)), 41, b"\x01"
        ),
        "authentication over the packet": changed(
            IPV6 / AUTHENTICATION / UDP_HEADER, 41, b"\xff"
        ),
        "half an extension header": bytes(IPv6(src=CLIENT6, dst=SERVER6, nh=60, plen=7))
        + bytes(7),
    },
)
def test_contradicting_headers_are_malformed(packet: bytes) -> None:
    with pytest.raises(Malformed):
        locate(packet)


CUT = {
    "IPv4 UDP": V4_UDP,
    "IPv4 TCP": V4_TCP,
    "IPv6 UDP": V6_UDP,
    "IPv6 with extension headers": LOCATED["all of them"][0] / PAYLOAD,
}


@pytest.mark.parametrize("name", CUT)
def test_truncated_packet_is_malformed_wherever_it_is_cut(name: str) -> None:
    packet = bytes(CUT[name])
    for length in range(len(packet)):
        with pytest.raises(Malformed):
            locate(packet[:length])


@pytest.mark.parametrize("name", CUT)
def test_truncated_headers_are_truncated_though_the_length_fits(name: str) -> None:
    packet = bytearray(bytes(CUT[name]))
    segment = locate(bytes(packet))
    assert segment is not None
    # From the first byte behind the IP header on: an IPv6 payload of 0 is a jumbogram.
    ip_header = 20 if packet[0] >> 4 == 4 else 40
    for length in range(ip_header + 1, segment.start):
        if ip_header == 20:
            packet[2:4] = length.to_bytes(2)
        else:
            packet[4:6] = (length - ip_header).to_bytes(2)
        with pytest.raises(Truncated):
            locate(bytes(packet[:length]))


# A queue copies 65,531 bytes of a packet; these are as long as a packet can be.


@pytest.mark.parametrize("length", [COPIED + 1, 0xFFFF, 0xFFFF + 40])
@pytest.mark.parametrize("layer", [UDP_HEADER, TCP_HEADER], ids=["UDP", "TCP"])
@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_packet_of_which_the_queue_has_copied_a_part_is_not_malformed(
    ip: Packet, layer: Packet, length: int
) -> None:
    if ip is IPV4 and length > 0xFFFF:
        return
    headers = len(bytes(ip / layer))
    whole = bytes(ip / layer / bytes(length - headers))
    assert len(whole) == length
    found = locate(whole[:COPIED])
    if layer is UDP_HEADER:
        # A datagram is read whole or not at all.
        assert found is None
    else:
        header = len(bytes(ip))
        assert found == Segment(TCP, header, headers, COPIED, 0xFFFFFFF0)
    # What is cut for another reason is broken, as before.
    with pytest.raises(Malformed):
        locate(whole[: COPIED - 1])


def test_longest_packet_that_the_queue_copies_is_read_whole() -> None:
    whole = bytes(IPV4 / UDP_HEADER / bytes(COPIED - 28))
    assert locate(whole) == Segment(UDP, 20, 28, COPIED)


def test_headers_beyond_what_the_queue_has_copied_are_truncated() -> None:
    options_header = bytes([60, 255]) + bytes(2046)
    chain = options_header * 32
    last = bytes([6, 0]) + bytes(6)
    length = len(chain) + len(last) - 1
    packet = bytes(IPv6(src=CLIENT6, dst=SERVER6, nh=60, plen=0xFFFF))
    packet += chain[:length] + bytes(40)
    with pytest.raises(Truncated):
        locate(packet.ljust(COPIED, b"\0")[:COPIED])


HEADERS = st.sampled_from(
    [bytes(packet / PAYLOAD) for packet, _ in LOCATED.values()]
    + [bytes(packet) for name, packet in UNREADABLE.items() if name != "jumbogram"]
    + [bytes(V4_TCP), bytes(IPV6 / TCP_OPTIONS / PAYLOAD)]
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A packet of which some bytes are others."""
    packet = bytearray(draw(HEADERS))
    offsets = st.integers(0, len(packet) - 1)
    for offset, value in draw(
        st.lists(st.tuples(offsets, st.integers(0, 255)), max_size=6)
    ):
        packet[offset] = value
    return bytes(packet[: draw(st.integers(0, len(packet)))])


@given(st.binary(max_size=120) | damaged())
def test_any_bytes_give_a_segment_none_or_malformed(packet: bytes) -> None:
    try:
        segment = locate(packet)
    except Malformed:
        return
    if segment is not None:
        assert segment.header < segment.start <= segment.stop <= len(packet)


def with_scapys_checksums(packet: bytes) -> bytes:
    """The packet, its checksums as scapy computes them."""
    parsed: Packet = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    layer: Packet | None = parsed
    while layer:
        if "chksum" in layer.fields:
            del layer.chksum
        layer = layer.payload
    return bytes(parsed)


IP_HEADERS: dict[str, Packet] = {
    "IPv4": IPV4,
    "IPv4 with options": IP(src=CLIENT, dst=SERVER, options=[IPOption_NOP()] * 8),
    "IPv6": IPV6,
    "IPv6 with options": IPV6 / IPv6ExtHdrDestOpt(options=options(16)),
}
TRANSPORTS: dict[str, tuple[Transport, Packet]] = {
    "TCP": (TCP, TCP_HEADER),
    "TCP with options": (TCP, TCP_OPTIONS),
    "UDP": (UDP, UDP_HEADER),
}
PAYLOADS = {
    "empty": b"",
    "odd and shorter": b"short",
    "even and shorter": b"shor",
    "same length": PAYLOAD[::-1],
    "odd and longer": PAYLOAD + b"\xff",
    "even and longer": PAYLOAD * 2,
    "large": b"\xff" * 9001,
}


@pytest.mark.parametrize("ip", IP_HEADERS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_replaced_payload_has_right_lengths_and_checksums(
    ip: str, transport: str, payload: str
) -> None:
    kind, header = TRANSPORTS[transport]
    packet = bytes(IP_HEADERS[ip] / header / PAYLOAD)
    new = PAYLOADS[payload]
    segment = locate(packet)
    assert segment is not None
    result = replace_payload(packet, segment, new)
    assert result == bytes(IP_HEADERS[ip] / header / new)
    assert result == with_scapys_checksums(result)
    assert locate(result) == Segment(
        kind,
        segment.header,
        segment.start,
        segment.start + len(new),
        segment.sequence,
    )


@pytest.mark.parametrize(
    ("ip", "zero"), [(IPV4, True), (IPV6, False)], ids=["IPv4", "IPv6"]
)
def test_udp_without_a_checksum_stays_so_over_ipv4_alone(
    ip: Packet, zero: bool
) -> None:
    header = UDP_HEADER.copy()
    header.chksum = 0
    packet = bytes(ip / header / PAYLOAD)
    segment = locate(packet)
    assert segment is not None
    result = replace_payload(packet, segment, b"other")
    expected = ip / (header if zero else UDP_HEADER) / b"other"
    assert result == bytes(expected)


@pytest.mark.parametrize("ip", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_udp_checksum_of_zero_is_sent_as_ffff(ip: Packet) -> None:
    packet = bytes(ip / UDP_HEADER / PAYLOAD)
    segment = locate(packet)
    assert segment is not None
    # The checksum of a datagram, as its payload, brings the sum to zero.
    summed = replace_payload(packet, segment, bytes(2))
    place = segment.header + 6
    result = replace_payload(packet, segment, summed[place : place + 2])
    assert result[place : place + 2] == b"\xff\xff"


def test_tcp_checksum_of_zero_stays_zero() -> None:
    packet = bytes(IPV4 / TCP_HEADER / PAYLOAD)
    segment = locate(packet)
    assert segment is not None
    summed = replace_payload(packet, segment, bytes(2))
    result = replace_payload(packet, segment, summed[36:38])
    assert result[36:38] == b"\0\0"


@pytest.mark.parametrize(
    ("ip", "most"),
    [
        (IPV4, 0xFFFF - 28),
        (IPV6, 0xFFFF - 8),
        (IPV6 / IPv6ExtHdrDestOpt(options=options(8)), 0xFFFF - 16),
    ],
    ids=["IPv4", "IPv6", "IPv6 with options"],
)
def test_payload_that_fits_no_packet_is_a_value_error(ip: Packet, most: int) -> None:
    packet = bytes(ip / UDP_HEADER / PAYLOAD)
    segment = locate(packet)
    assert segment is not None
    largest = replace_payload(packet, segment, bytes(most))
    assert locate(largest) == Segment(UDP, segment.header, segment.start, len(largest))
    with pytest.raises(ValueError, match="bytes"):
        replace_payload(packet, segment, bytes(most + 1))


@given(st.binary(max_size=64), st.sampled_from(sorted(IP_HEADERS)))
def test_replacing_there_and_back_is_the_identity(payload: bytes, ip: str) -> None:
    packet = bytes(IP_HEADERS[ip] / UDP_HEADER / PAYLOAD)
    segment = locate(packet)
    assert segment is not None
    there = replace_payload(packet, segment, payload)
    other = locate(there)
    assert other is not None
    assert there[other.start : other.stop] == payload
    assert replace_payload(there, other, PAYLOAD) == packet


def classic_checksum(data: bytes) -> int:
    """RFC 1071, section 4.1."""
    total = 0
    for offset in range(0, len(data) - 1, 2):
        total += data[offset] << 8 | data[offset + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0\0", b"\xff\xff", b"\xff" * 4, b"\xff\xfe\0\x01", b"\x01"]
)
def test_checksum_of_sums_around_zero(data: bytes) -> None:
    assert checksum(data) == classic_checksum(data)


@given(st.binary(max_size=200))
def test_checksum_is_that_of_the_classic_loop(data: bytes) -> None:
    assert checksum(data) == classic_checksum(data)
    whole = data + bytes(len(data) % 2)
    assert checksum(whole + checksum(whole).to_bytes(2)) == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""No address is left of what was recorded, and replay finds the same."""

import random
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet

from cthelper.core.config import Config, parse
from cthelper.core.errors import Malformed
from cthelper.core.offline.anonymize import Anonymized, anonymize
from cthelper.core.offline.capture import Capture
from cthelper.core.packet import locate
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import Address
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6, cut, tcp, udp

ROOT: Final = Path(__file__).parents[3]
CAPTURES: Final = sorted((ROOT / "pcaps").rglob("*.pcap"))
BEGIN: Final = 1_700_000_000_000_000_000
PACKED: Final = ip_address(SERVER).packed
PACKED6: Final = ip_address(SERVER6).packed


def everything() -> Config:
    """All helpers that there are, of those that are off, too."""
    helpers = builtin_helpers()
    names = [name for name, helper in helpers.items() if not helper.template]
    text = "".join(f"[helpers.{name}]\nenabled = true\n" for name in names)
    return parse(text, Path("all.toml"), helpers)


CONFIG: Final = everything()


def hidden(*packets: bytes, seed: int = 0) -> Anonymized:
    said = [(BEGIN + number, data) for number, data in enumerate(packets)]
    found = anonymize(said, CONFIG, random.Random(seed))
    assert all(time >= BEGIN for time, _ in found.packets)
    return found


def payloads(found: Anonymized) -> list[bytes]:
    result = []
    for _, data in found.packets:
        segment = locate(data)
        assert segment is not None
        result.append(data[segment.start : segment.stop])
    return result


def addresses(data: bytes) -> tuple[Address, Address]:
    packet = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    return ip_address(packet.src), ip_address(packet.dst)


def is_right(data: bytes) -> bool:
    """Whether scapy would compute the same checksums."""
    packet: Packet = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    again = packet.copy()
    for layer, fields in (
        (IP, ("chksum", "len")),
        (TCP, ("chksum",)),
        (UDP, ("chksum",)),
    ):
        if layer in again and (layer is not UDP or packet[UDP].chksum):
            for field in fields:
                delattr(again[layer], field)
    return bytes(again) == data


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_capture_replays_the_same_and_shows_nobody(path: Path) -> None:
    with Capture(path, warn=lambda _: None) as capture:
        packets = [frame[start:] for _, _, frame, start in capture]
    found = hidden(*packets)
    assert found.alike
    assert found.blanked == 0
    kept = [each for each in packets if _is_read(each)]
    assert len(found.packets) == len(kept)
    shown = {each for data in kept for each in addresses(data)}
    hosts = [each for each in shown if not each.is_multicast and str(each) != "::"]
    hosts = [each for each in hosts if str(each) != "255.255.255.255"]
    content = b"\0".join(data for _, data in found.packets)
    for host in hosts:
        if not host.is_unspecified:
            assert host.packed not in content
            text = re.escape(str(host)).encode()
            assert not re.search(rb"(?<![\w:.])%b(?![\w:])" % text, content)
    for (_, data), before in zip(found.packets, kept, strict=True):
        assert is_right(data) or not is_right(before[: len(data)])


def _is_read(data: bytes) -> bool:
    try:
        return locate(data) is not None
    except Malformed:
        return False


@pytest.mark.parametrize(
    "text",
    [
        b"227 Entering Passive Mode (198,51,100,2,168,181)",
        b"PORT 198,51,100,2,7,8\r\n",
        b"198.51.100.2.168.181",
        b"http://198.51.100.2:80/",
        b"(HOST=198.51.100.2)(PORT=1521)",
        b"198.051.100.002 and 198.51.100.2",
        b"DCC CHAT chat 3325256706 4000",
        b"\x012\x03100\x0251\x03198\x07in-addr\x04arpa\0",
        b"EPRT |2|2001:db8:2::2|4000|",
        b"2001:DB8:2::2 [2001:0db8:0002:0:0:0:0:2]:80",
        b"2001:db8:2::2.8.1",
        b"::ffff:198.51.100.2",
        b"%b\x03ip6\x04arpa\0"
        % b"".join(b"\x01%c" % ord(each) for each in PACKED6.hex()[::-1]),
        b"behind other bytes " + PACKED + b"\0",
        PACKED6 + b"and" + PACKED6,
    ],
)
@pytest.mark.parametrize("over_tcp", [False, True], ids=["udp", "tcp, in pieces"])
def test_address_is_replaced_wherever_it_stands(text: bytes, over_tcp: bool) -> None:
    # In flows of both versions, so that all are known.
    known = [udp(b"x"), udp(b"x", version=6)]
    if over_tcp:
        pieces = cut(text, range(1, len(text), 3))
        starts = [sum(map(len, pieces[:index])) for index in range(len(pieces))]
        segments = list(zip(starts, pieces, strict=True))
        # As a network may bring them: the last first, and one twice.
        flow = [
            tcp(b"", 999, flags="S"),
            *(tcp(piece, 1000 + start) for start, piece in segments[::-1]),
            tcp(segments[0][1], 1000),
        ]
        found = hidden(*known, *flow)
        said = payloads(found)[3:]
        result = b"".join(said[:-1][::-1])
        assert said[-1] == said[-2]
    else:
        found = hidden(*known, udp(text))
        result = payloads(found)[-1]
    assert found.blanked == 0
    assert len(result) == len(text)
    assert result != text
    (one, two), (one6, two6) = (addresses(data) for _, data in found.packets[:2])
    assert str(one) != CLIENT
    assert str(one6) != CLIENT6
    for old, new in ((SERVER, two), (SERVER6, two6)):
        assert ip_address(old).packed not in result
        assert old.encode() not in result.lower()
        assert (old.encode() in text) is (str(new).encode() in result)
        assert (ip_address(old).packed in text) is (new.packed in result)


def test_times_names_and_other_texts_stay() -> None:
    text = b"12:34:56 aa:bb:cc:dd:ee:ff std::string 999.1.1.1 4000000000 1.2.3"
    assert payloads(hidden(udp(text)))[-1] == text


def test_options_of_routers_go_and_extensions_stay() -> None:
    head = IP(src=CLIENT, dst=SERVER, options=IPOption_RR(routers=["203.0.113.9"]))
    extended = IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrDestOpt()
    found = hidden(
        bytes(head / UDP(sport=1, dport=2) / b"one"),
        bytes(extended / UDP(sport=1, dport=2) / b"two"),
    )
    assert payloads(found) == [b"one", b"two"]
    (_, first), (_, second) = found.packets
    assert ip_address("203.0.113.9").packed not in first
    assert len(second) == len(extended / UDP() / b"two")
    assert is_right(first)
    assert is_right(second)


def test_segment_that_is_sent_again_with_other_bytes_is_replaced_alone() -> None:
    found = hidden(
        tcp(b"", 9, flags="S"), tcp(b"198.51.100.2", 10), tcp(b"198.51.100.9", 10)
    )
    _, first, second = payloads(found)
    assert first[:-1] == second[:-1]
    assert not first.startswith(b"198.51.100.")
    assert first[-1:] != second[-1:]


def test_what_shows_somebody_still_is_blanked() -> None:
    # Put together it is no address, and one of its parts is.
    found = hidden(tcp(b"", 9, flags="S"), tcp(b"1", 10), tcp(b"198.51.100.2", 11))
    assert found.blanked == 1
    assert payloads(found) == [b"", b"1", bytes(12)]
    assert is_right(found.packets[-1][1])


def test_what_is_neither_of_tcp_nor_of_udp_is_left_out() -> None:
    found = hidden(bytes(IP(src=CLIENT, dst=SERVER, proto=1) / b"12345678"), udp(b"x"))
    assert payloads(found) == [b"x"]


def test_of_nothing_nothing_is_left() -> None:
    assert hidden() == Anonymized([], 0, alike=True)


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.binary(max_size=60).map(udp),
            st.binary(max_size=60).map(lambda data: udp(data, version=6)),
            st.tuples(
                st.binary(max_size=12).map(lambda data: data + PACKED),
                st.integers(0, 2**32 - 1),
            ).map(lambda said: tcp(*said)),
            st.text("0123456789.,:af", max_size=60).map(
                lambda text: udp(text.encode())
            ),
        ),
        max_size=6,
    ),
    st.integers(),
)
def test_any_packets_show_nobody(packets: list[bytes], seed: int) -> None:
    found = hidden(*packets, seed=seed)
    assert len(found.packets) <= len(packets)
    shown = {each for data in packets if _is_read(data) for each in addresses(data)}
    for _, data in found.packets:
        assert is_right(data)
        for each in shown & {ip_address(CLIENT), ip_address(SERVER)}:
            assert each.packed not in data

# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP on either side of a gateway: a stream whose announcements change their length."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from cthelper.core import tuples
from cthelper.core.config import parse
from cthelper.core.offline.capture import Capture
from cthelper.core.offline.events import RefusedEvent
from cthelper.core.offline.nat import Side
from cthelper.core.offline.replay import Replay
from cthelper.core.registry import register
from cthelper.core.tuples import Endpoint, Tuple
from cthelper.helpers.ftp import Ftp
from tests.core.builders import cut, endpoint
from tests.core.offline.gateway import (
    DATA,
    GATEWAYS4,
    GATEWAYS6,
    Cell,
    Gateway,
    payload_of,
    play,
)

SIDES: Final = tuple(Side)


PCAPS: Final = Path(__file__).parents[3] / "pcaps"


FTP: Final = parse("", Path("test.toml"), register([Ftp]))
NUMBERS: Final = re.compile(rb"(\d+),(\d+),(\d+),(\d+),(\d+),(\d+)")


def written(command: str, end: Endpoint) -> bytes:
    """The line that names an endpoint."""
    address, port = end.address, end.port
    six = f"{address},{port >> 8},{port & 0xFF}".replace(".", ",")
    family = 1 if address.version == 4 else 2
    return {
        "PORT": f"PORT {six}\r\n",
        "PASV": f"227 Entering Passive Mode ({six}).\r\n",
        "EPRT": f"EPRT |{family}|{address}|{port}|\r\n",
        "EPSV": f"229 Entering Extended Passive Mode (|||{port}|)\r\n",
    }[command].encode()


def read(command: str, stream: bytes, sender: str) -> Endpoint:
    """The endpoint that the receiver of a stream takes out of it, the last one."""
    if command in ("PORT", "PASV"):
        *octets, high, low = NUMBERS.findall(stream)[-1]
        port = int(high) << 8 | int(low)
        return endpoint(".".join(each.decode() for each in octets), port)
    if command == "EPRT":
        (_, address, port) = re.findall(rb"EPRT \|(.)\|([^|]+)\|(\d+)\|", stream)[-1]
        return endpoint(address.decode(), int(port))
    return endpoint(sender, int(re.findall(rb"\(\|\|\|(\d+)\|\)", stream)[-1]))


@dataclass(frozen=True)
class Said:
    """A line, or several, of one side; cut at these offsets."""

    by: Side
    text: bytes
    at: frozenset[int] = frozenset()


def control_flow(gateway: Gateway, side: Side, talk: Sequence[Said]) -> list[bytes]:
    """The packets of a control flow as one side shows them."""
    ip = IP if ip_address(gateway.client).version == 4 else IPv6
    ends = {
        Side.CLIENT: (gateway.client_on(side), 40000),
        Side.SERVER: (gateway.server_on(side), 21),
    }
    sequence = {Side.CLIENT: 2**32 - 30, Side.SERVER: 900}

    def segment(by: Side, flags: str, payload: bytes = b"") -> bytes:
        to = Side.SERVER if by is Side.CLIENT else Side.CLIENT
        header: Packet = ip(src=ends[by][0], dst=ends[to][0]) / TCP(
            sport=ends[by][1],
            dport=ends[to][1],
            flags=flags,
            seq=sequence[by] % 2**32,
            ack=0 if flags == "S" else sequence[to] % 2**32,
        )
        sequence[by] += len(payload) + ("S" in flags)
        return bytes(header / payload)

    packets = [segment(Side.CLIENT, "S"), segment(Side.SERVER, "SA")]
    packets.append(segment(Side.CLIENT, "A"))
    for each in talk:
        packets += [segment(each.by, "PA", part) for part in cut(each.text, each.at)]
    return packets


def connecting(source: tuple[str, int], to: Endpoint) -> bytes:
    ip = IP if to.address.version == 4 else IPv6
    header = TCP(sport=source[1], dport=to.port, flags="S")
    return bytes(ip(src=source[0], dst=str(to.address)) / header)


COMMANDS: Final = [
    *(
        (each, gateway)
        for each in ("PORT", "PASV", "EPRT", "EPSV")
        for gateway in GATEWAYS4
    ),
    *((each, gateway) for each in ("EPRT", "EPSV") for gateway in GATEWAYS6),
]
offsets = st.frozensets(st.integers(1, 100), max_size=4)


@given(st.sampled_from(COMMANDS), st.integers(1024, 0xFFFF), st.data())
def test_receiver_of_an_announcement_opens_the_flow_that_is_expected(
    case: tuple[str, Gateway], port: int, data: st.DataObject
) -> None:
    """What the receiver reads is what the data flow meets, on either side."""
    command, gateway = case
    assume(port not in FTP.helpers["ftp"].guard.denied_ports)
    active = command in ("PORT", "EPRT")
    receiver = Side.SERVER if active else Side.CLIENT
    announcer = Side.CLIENT if active else Side.SERVER
    cell = Cell(gateway, opens=receiver, side=announcer)
    own = endpoint(cell.announcer, port)
    before = [Said(Side.SERVER, b"220 ready\r\n")]
    if not active:
        before.append(Said(Side.CLIENT, command.encode() + b"\r\n"))
    other = b"NOOP\r\n" if active else b"200 ok\r\n"
    text = other + written(command, own) + other
    at = data.draw(offsets)
    packets = control_flow(gateway, announcer, [*before, Said(announcer, text, at)])
    nat = gateway.nat(announcer)
    taken = active and cell.announcer != cell.told and data.draw(st.booleans())
    if taken:
        rival = replace(gateway, client=str(ip_address(gateway.client) + 1))
        line = written(command, endpoint(rival.client, port))
        said = [*before, Said(announcer, line)]
        packets = control_flow(rival, announcer, said) + packets
        nat = replace(nat, sources={**nat.sources, **rival.nat(announcer).sources})
    played = play(packets, nat, FTP)
    heard = b"".join(played.passed[-len(cut(text, at)) :])
    if played.reasons:
        # A part of what had to be rewritten was gone: nothing is expected.
        assert (played.reasons, len(played.made)) == (["rewrite-passed"], taken)
        assert heard == text
        return
    known = read(command, heard, cell.told)
    assert heard == text.replace(written(command, own), written(command, known))
    expectation = played.made[-1]
    assert known == expectation.destination
    assert (known != endpoint(cell.told, port)) == taken
    # As the announcer's side shows the flow, and then the receiver's.
    client = receiver is Side.CLIENT
    shown = (gateway.client_on if client else gateway.server_on)(announcer)
    original = Tuple(tuples.TCP, endpoint(cell.opener, 20), known)
    near = play([*packets, connecting((shown, 20), own)], nat, FTP)
    assert near.met == [original]
    talk = [*before, Said(announcer, heard, data.draw(offsets))]
    packets = control_flow(gateway, receiver, talk)
    opened = connecting((cell.opener, 20), known)
    far = play([*packets, opened], gateway.nat(receiver), FTP)
    assert (far.met, far.reasons) == ([original], [])
    assert far.passed == [*map(payload_of, packets), b""]


@given(st.sampled_from(COMMANDS), st.data())
def test_stream_is_one_whatever_is_late_and_sent_again(
    case: tuple[str, Gateway], data: st.DataObject
) -> None:
    """Each segment goes on alike each time, and names what is expected, or nothing."""
    command, gateway = case
    active = command in ("PORT", "EPRT")
    announcer = Side.CLIENT if active else Side.SERVER
    cell = Cell(gateway, Side.SERVER if active else Side.CLIENT, announcer)
    ports = (3000, 4000, 5000)
    # Each is used: an announcement that is not goes with the next one.
    use = b"RETR f\r\n"
    after = use if active else b""
    lines = [written(command, endpoint(cell.announcer, port)) + after for port in ports]
    at = data.draw(st.frozensets(st.integers(1, 150), max_size=6))
    before = [Said(Side.SERVER, b"220 ready\r\n")]
    if not active:
        asked = command.encode() + b"\r\n" + use
        before += [Said(Side.CLIENT, asked) for _ in ports]
    talk = [*before, Said(announcer, b"".join(lines), at)]
    packets = control_flow(gateway, announcer, talk)
    count = len(cut(b"".join(lines), at))
    packets, segments = packets[:-count], packets[-count:]
    # Those that are not in the drawn beginning come at its end, in order.
    number = st.sampled_from(range(count))
    order = data.draw(st.lists(number, max_size=12)) + list(range(count))
    arriving = [*packets, *(segments[each] for each in order)]
    played = play(arriving, gateway.nat(announcer), FTP)
    received: dict[int, bytes] = {}
    for each, payload in zip(order, played.passed[len(packets) :], strict=True):
        assert received.setdefault(each, payload) == payload
    assert set(played.reasons) <= {"rewrite-passed"}
    # A refusal is of all that a packet completes.
    assert (len(played.made) == len(ports)) == (not played.reasons)
    told = {each.destination.port for each in played.made}
    assert b"".join(received[each] for each in range(count)) == b"".join(
        written(command, endpoint(cell.told, port)) + after if port in told else line
        for port, line in zip(ports, lines, strict=True)
    )


def test_what_cannot_be_rewritten_is_not_expected() -> None:
    """The endpoint was passed in part when the rest came: what was placed goes."""
    gateway = GATEWAYS4[0]
    line = written("PORT", endpoint(gateway.client, DATA))
    greeting = Said(Side.SERVER, b"220 ready\r\n")
    talk = [greeting, Said(Side.CLIENT, line, frozenset({8}))]
    runner = Replay(FTP, nat=gateway.nat(Side.CLIENT), warn=pytest.fail)
    packets = control_flow(gateway, Side.CLIENT, talk)
    for number, packet in enumerate(packets):
        _, _, events = runner.step(number, 0.0, packet, 0)
    (refused,) = events
    assert isinstance(refused, RefusedEvent)
    assert refused.reason == "rewrite-passed"
    assert runner.table.live(0.0) == []


# Captures of real clients, as a gateway would have translated them


def translated(packet: bytes, addresses: dict[str, str]) -> bytes:
    """The packet with other addresses in its header; the model asks for no checksum."""
    at, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    ends = [packet[at : at + size], packet[at + size : at + 2 * size]]
    mapped = {
        ip_address(own).packed: ip_address(other).packed
        for own, other in addresses.items()
    }
    changed = b"".join(mapped.get(each, each) for each in ends)
    return packet[:at] + changed + packet[at + 2 * size :]


@pytest.mark.parametrize(
    ("name", "opens"),
    [
        ("ftp-curl-eprt4-pyftpdlib", Side.SERVER),
        ("ftp-curl-epsv4-pyftpdlib", Side.CLIENT),
        ("ftp-curl-epsv6-pyftpdlib", Side.CLIENT),
        ("ftp-curl-pasv-pyftpdlib", Side.CLIENT),
        ("ftp-curl-port-pyftpdlib", Side.SERVER),
        ("ftp-lftp-port-pyftpdlib", Side.SERVER),
    ],
)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", range(3), ids=["snat", "dnat", "both"])
def test_data_flow_of_a_real_client_is_related(
    name: str, opens: Side, side: Side, kind: int
) -> None:
    with Capture(PCAPS / "ftp" / f"{name}.pcap", warn=pytest.fail) as capture:
        frames = [data[start:] for _, _, data, start in capture]
    version = frames[0][0] >> 4
    gateway = replace(
        (GATEWAYS4 if version == 4 else GATEWAYS6)[kind],
        **({"client": "10.77.1.2"} if version == 4 else {"client": "fd77:1::2"}),
    )
    server = "10.77.2.2" if version == 4 else "fd77:2::2"
    known = server if gateway.server == gateway.server_known else gateway.server_known
    gateway = replace(gateway, server=server, server_known=known)
    addresses = {
        gateway.client: gateway.client_on(side),
        gateway.server: gateway.server_on(side),
    }
    packets = [translated(each, addresses) for each in frames]
    played = play(packets, gateway.nat(side), FTP)
    assert played.reasons == []
    cell = Cell(gateway, opens, side)
    (met,) = played.met
    assert str(met.source.address) == cell.opener
    assert str(met.destination.address) == cell.told
    # EPSV names no address, and what PASV names its client need not go by.
    plain = play(packets, None, FTP)
    passive = "epsv" in name or "pasv" in name
    named = not passive and cell.announcer != cell.announcer_shown
    assert bool(plain.met) == (not named)

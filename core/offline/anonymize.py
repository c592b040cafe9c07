# SPDX-License-Identifier: GPL-2.0-or-later
"""A recording in which nobody's address is left, and which replays as before.

Addresses are replaced (`Replacements`) in the headers of packets and in what these
carry, wherever one stands as bytes or as text: of IPv4 as 10.0.0.1 and 10,0,0,1, as one
number, and in a name under in-addr.arpa, of IPv6 as text and in a name under ip6.arpa.
As text all are found; as bytes, and as one number, those that headers show or that were
announced. They keep their length, so that this needs to know of no protocol. What a
flow over TCP says is put together first, since segments may divide an address.

What has one of these addresses still in the end is blanked, or left out.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from cthelper.core.config import Config
from cthelper.core.errors import Malformed
from cthelper.core.offline.events import ExpectationEvent, RefusedEvent, Summary
from cthelper.core.offline.replacements import Replacements, is_host, network
from cthelper.core.offline.replay import Replay
from cthelper.core.packet import Segment, locate, replace_payload
from cthelper.core.sequence import distance
from cthelper.core.tuples import TCP, Address

_NUMBER: Final = rb"(\d{1,3})"
_DOTTED: Final = re.compile(
    rb"(?<!\d)%b([.,])%b\2%b\2%b(?!\d)" % ((_NUMBER,) * 4), re.ASCII
)
# No MAC address, no time of day; an IPv4 address behind it would be a part of it.
_COLONS: Final = re.compile(
    rb"(?<![0-9A-Za-z:.])(?=[0-9A-Fa-f]*:[0-9A-Fa-f]*:)([0-9A-Fa-f:]{2,39})"
    rb"(?![0-9A-Za-z:])(?!(?:\.\d{1,3}){3})"
)
_DECIMAL: Final = re.compile(rb"(?<!\d)\d{8,10}(?!\d)", re.ASCII)
_LABEL: Final = rb"(?:\x01\d|\x02\d\d|\x03\d\d\d)"
_REVERSE4: Final = re.compile(
    rb"(%b)(%b)(%b)(%b)(?=\x07in-addr\x04arpa)" % ((_LABEL,) * 4), re.IGNORECASE
)
_REVERSE6: Final = re.compile(
    rb"((?:\x01[0-9a-f]){32})(?=\x03ip6\x04arpa)", re.IGNORECASE
)
_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_TCP_HEADER: Final = 20
_NO_OPERATION: Final = b"\x01"

Packet = tuple[int, bytes]
"""When it came, in nanoseconds since 1970, and the IP packet."""


@dataclass(frozen=True, slots=True)
class Anonymized:
    """The packets that are left, and of how many the payload was blanked.

    `alike` is whether helpers find as much in them as in what was recorded.
    """

    packets: list[Packet]
    blanked: int
    alike: bool


def anonymize(
    packets: Sequence[Packet], config: Config, draw: random.Random | None = None
) -> Anonymized:
    """The packets, with other addresses."""
    before, announced = _replayed(packets, config)
    result, blanked = _Work(packets, announced, draw or random.SystemRandom()).run()
    after, _ = _replayed(result, config)
    return Anonymized(result, blanked, before == after)


def _replayed(
    packets: Sequence[Packet], config: Config
) -> tuple[Summary, set[Address]]:
    """What helpers find in the packets, and the addresses that were announced."""
    begin = packets[0][0] if packets else 0
    announced: set[Address] = set()
    summary = Summary()
    frames = (
        (number, (time - begin) / 1e9, data, 0)
        for number, (time, data) in enumerate(packets, 1)
    )
    for event in Replay(config, warn=lambda _: None).run(frames):
        match event:
            case ExpectationEvent():
                announced.add(event.expectation.destination.address)
            case RefusedEvent() if event.wish is not None:
                announced.add(event.wish.endpoint.address)
            case Summary():
                summary = event
    return summary, {each for each in announced if is_host(each)}


class _Located(NamedTuple):
    """A packet of TCP or UDP, in its place among the recorded ones."""

    time: int
    data: bytes
    segment: Segment

    @property
    def payload(self) -> bytes:
        return self.data[self.segment.start : self.segment.stop]

    @property
    def addresses(self) -> tuple[Address, Address]:
        """Source and destination."""
        if self.data[0] >> 4 == 4:
            return IPv4Address(self.data[12:16]), IPv4Address(self.data[16:20])
        return IPv6Address(self.data[8:24]), IPv6Address(self.data[24:40])


class _Work:
    """One recording's addresses, and what takes their place."""

    def __init__(
        self, packets: Iterable[Packet], announced: set[Address], draw: random.Random
    ) -> None:
        self._packets = list(_located(packets))
        shown = {address for each in self._packets for address in each.addresses}
        self._known = {each for each in shown if is_host(each)} | announced
        # By a number of the packets' own: what each says, TCP's put together.
        self._said, self._places = _joined(self._packets)
        written = {each for said in self._said for each in _written(said)}
        self._originals = self._known | written
        self._replacements = Replacements(self._originals, draw)
        self._packed4 = _any_of(
            each.packed for each in self._known if each.version == 4
        )
        prefixes = {network(each) for each in self._known if each.version == 6}
        self._packed6 = re.compile(
            rb"(?:%b)[\0-\xff]{8}" % (b"|".join(map(re.escape, sorted(prefixes))))
            if prefixes
            else _NEVER
        )

    def run(self) -> tuple[list[Packet], int]:
        """The packets that are left, and how many of them were blanked."""
        said = [(each, self._replaced(each)) for each in self._said]
        result: list[Packet] = []
        blanked = 0
        for each, (which, at) in zip(self._packets, self._places, strict=True):
            payload = each.payload
            before, after = said[which]
            if before[at : at + len(payload)] == payload:
                payload = after[at : at + len(payload)]
            else:  # it was sent once more, and was something else then
                payload = self._replaced(payload)
            head = self._head(each)
            if head is None:
                continue
            if self._shows(payload):
                payload = bytes(len(payload))
                blanked += 1
            data = replace_payload(head, each.segment, payload)
            if not self._shows(data):
                result.append((each.time, data))
        return result, blanked

    def _head(self, packet: _Located) -> bytes | None:
        """The headers, with other addresses; None: there is no other one."""
        segment, data = packet.segment, packet.data
        replaced = [self._replacements.of(each) for each in packet.addresses]
        if None in replaced:
            return None
        ends = b"".join(each.packed for each in replaced if each is not None)
        if data[0] >> 4 == 4:
            # Routers write theirs into options.
            options = _NO_OPERATION * (segment.header - _IPV4_HEADER)
            network_header = data[: _IPV4_HEADER - len(ends)] + ends + options
        else:
            extensions = self._packed(data[_IPV6_HEADER : segment.header])
            network_header = data[: _IPV6_HEADER - len(ends)] + ends + extensions
        transport = data[segment.header : segment.start]
        fixed = _TCP_HEADER if segment.transport is TCP else len(transport)
        options = self._packed(transport[fixed:])
        return network_header + transport[:fixed] + options

    def _replaced(self, data: bytes) -> bytes:
        """The same, as long, with other addresses."""
        if not data:
            return data
        data = _DOTTED.sub(self._dotted, data)
        data = _REVERSE4.sub(self._reverse4, data)
        data = _REVERSE6.sub(self._reverse6, data)
        data = _COLONS.sub(self._colons, data)
        data = _DECIMAL.sub(self._decimal, data)
        return self._packed(data)

    def _packed(self, data: bytes) -> bytes:
        data = self._packed6.sub(self._bytes, data)
        return self._packed4.sub(self._bytes, data)

    def _shows(self, data: bytes) -> bool:
        """Whether one of the addresses is there, as bytes or as text."""
        if self._packed4.search(data) is not None:
            return True
        return any(each in self._originals for each in _written(data)) or any(
            IPv6Address(found[0]) in self._known
            for found in self._packed6.finditer(data)
        )

    def _other(self, address: Address) -> bytes:
        """The bytes that take its place; zeros where there is no other address."""
        other = self._replacements.of(address)
        return bytes(len(address.packed)) if other is None else other.packed

    def _bytes(self, found: re.Match[bytes]) -> bytes:
        return self._other(_unpacked(found[0]))

    def _dotted(self, found: re.Match[bytes]) -> bytes:
        address = _of_numbers(found)
        if address is None:
            return found[0]
        numbers = zip(self._other(address), found.group(1, 3, 4, 5), strict=True)
        return found[2].join(b"%0*d" % (len(text), each) for each, text in numbers)

    def _reverse4(self, found: re.Match[bytes]) -> bytes:
        address = _of_labels(found)
        if address is None:
            return found[0]
        labels = zip(self._other(address)[::-1], found.groups(), strict=True)
        return b"".join(
            b"%b%0*d" % (label[:1], len(label) - 1, each) for each, label in labels
        )

    def _reverse6(self, found: re.Match[bytes]) -> bytes:
        digits = self._other(_of_nibbles(found)).hex()[::-1]
        return b"".join(b"\x01%b" % each.encode() for each in digits)

    def _colons(self, found: re.Match[bytes]) -> bytes:
        address = _of_text(found)
        if address is None:
            return found[0]
        text = found[0].decode()
        other = IPv6Address(self._other(address)).exploded.split(":")
        left, double, right = text.partition("::")
        last = right.split(":") if right else []
        first = left.split(":") if left else []
        numbers = [*range(len(first)), *range(8 - len(last), 8)]
        groups = [
            other[number].lstrip("0").rjust(len(group), "0")
            for number, group in zip(numbers, first + last, strict=True)
        ]
        shown = ":".join(groups[: len(first)]) + double + ":".join(groups[len(first) :])
        return (shown.upper() if text.upper() == text else shown).encode()

    def _decimal(self, found: re.Match[bytes]) -> bytes:
        address = _of_decimal(found)
        if address is None or address not in self._known:
            return found[0]
        return b"%0*d" % (len(found[0]), int.from_bytes(self._other(address)))


_NEVER: Final = rb"(?!)"


def _located(packets: Iterable[Packet]) -> Iterator[_Located]:
    """Those of TCP and UDP that are whole; others might say anything."""
    for time, data in packets:
        try:
            segment = locate(data)
        except Malformed:
            continue
        if segment is not None and segment.stop <= len(data):
            yield _Located(time, data, segment)


def _joined(packets: Sequence[_Located]) -> tuple[list[bytes], list[tuple[int, int]]]:
    """What was said, each direction of a TCP flow as one as far as nothing is missing.

    And of each packet which of it is its own, and where that begins.
    """
    said: list[bytes] = []
    places = [(0, 0)] * len(packets)
    flows: dict[tuple[object, ...], list[int]] = defaultdict(list)
    begun: dict[tuple[object, ...], int] = defaultdict(int)
    for number, each in enumerate(packets):
        segment = each.segment
        if segment.transport is not TCP:
            places[number] = len(said), 0
            said.append(each.payload)
            continue
        ports = each.data[segment.header : segment.header + 4]
        flow = (*each.addresses, ports)
        begun[flow] += segment.syn
        flows[*flow, begun[flow]].append(number)
    for numbers in flows.values():
        start = packets[numbers[0]].segment.sequence
        offsets = {
            number: distance(start, _sequence(packets[number])) for number in numbers
        }
        run = bytearray()
        first = 0
        for number in sorted(numbers, key=offsets.__getitem__):
            offset, payload = offsets[number], packets[number].payload
            if not run or offset > first + len(run):
                said.append(bytes(run))
                run, first = bytearray(), offset
            places[number] = len(said), offset - first
            run += payload[first + len(run) - offset :]
        said.append(bytes(run))
    return said, places


def _sequence(packet: _Located) -> int:
    """The number of the first byte of what it says."""
    return packet.segment.sequence + packet.segment.syn


def _any_of(packed: Iterable[bytes]) -> re.Pattern[bytes]:
    """What finds any of these, by what they begin with."""
    tree: dict[bytes, set[bytes]] = defaultdict(set)
    for each in packed:
        tree[each[:-1]].add(each[-1:])
    branches = [
        re.escape(first) + b"[%b]" % b"".join(map(re.escape, sorted(last)))
        for first, last in sorted(tree.items())
    ]
    return re.compile(b"|".join(branches) or _NEVER)


def _written(data: bytes) -> Iterator[Address]:
    """The hosts' addresses that stand there as text."""
    for pattern, read in _READERS:
        for found in pattern.finditer(data):
            address = read(found)
            if address is not None and is_host(address):
                yield address


def _of_numbers(found: re.Match[bytes]) -> IPv4Address | None:
    numbers = [int(each) for each in found.group(1, 3, 4, 5)]
    return IPv4Address(bytes(numbers)) if max(numbers) < 256 else None


def _of_labels(found: re.Match[bytes]) -> IPv4Address | None:
    numbers = [int(each[1:]) for each in found.groups()[::-1]]
    return IPv4Address(bytes(numbers)) if max(numbers) < 256 else None


def _of_nibbles(found: re.Match[bytes]) -> IPv6Address:
    return IPv6Address(bytes.fromhex(found[1][1::2].decode()[::-1]))


def _of_text(found: re.Match[bytes]) -> IPv6Address | None:
    try:
        return IPv6Address(found[0].decode())
    except ValueError:
        return None


def _of_decimal(found: re.Match[bytes]) -> IPv4Address | None:
    number = int(found[0])
    return IPv4Address(number) if number < 1 << 32 else None


def _unpacked(packed: bytes) -> Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


_READERS: Final = (
    (_DOTTED, _of_numbers),
    (_REVERSE4, _of_labels),
    (_REVERSE6, _of_nibbles),
    (_COLONS, _of_text),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds of every decision, told without the code that makes it."""

import struct
from dataclasses import dataclass
from typing import Final

from cthelper.core.api import ORIGINAL, Direction, Hook
from cthelper.core.config import HelperConfig
from cthelper.core.tuples import Address, Conntrack, Expectation, Transport

_TCP: Final = 6
_UDP: Final = 17


@dataclass(frozen=True, slots=True)
class Announcement:
    """Who announced something, on which flow, and what is configured for its helper."""

    entry: Conntrack
    direction: Direction
    config: HelperConfig
    forwarded: bool
    depth: int

    def check(self, expectation: Expectation) -> None:
        """Raise AssertionError where it opens what it must not."""
        entry, config = self.entry, self.config
        rules = config.guard
        if self.direction is ORIGINAL:
            own, seen = entry.original.source, entry.reply.destination
        else:
            own, seen = entry.reply.source, entry.original.destination
        end = expectation.destination
        assert expectation.master == entry.original, expectation
        assert expectation.zone == entry.zone, expectation
        policy = config.policies[expectation.class_]
        assert expectation.policy == policy.name, expectation
        assert expectation.timeout == policy.timeout, expectation
        assert end.address.version == own.address.version, expectation
        assert config.helper.nat or not entry.translated, f"NAT: {expectation}"
        opener = not self.depth and Hook.PREROUTING not in config.hooks
        assert not (self.forwarded and opener), f"of another host: {expectation}"

        def allows(address: Address) -> bool:
            return any(address in network for network in rules.allow_hosts)

        def may_open(port: int) -> bool:
            return port >= rules.lowest_port and port not in rules.denied_ports

        if expectation.translation is not None:
            # It leads to the announcer, by the address that the other side knows.
            assert end.address == seen.address, f"third party: {expectation}"
            assert may_open(expectation.translation.port), f"port: {expectation}"
            assert may_open(end.port) or end == seen, f"port: {expectation}"
            _check_host(own.address, allowed=allows(own.address))
            return
        inside = [
            host for host, known in config.nat.outside.items() if known == end.address
        ]
        hosts = [end.address, *inside] if entry.translated else [end.address]
        assert any(host == own.address or allows(host) for host in hosts), (
            f"third party: {expectation}"
        )
        assert may_open(end.port), f"port: {expectation}"
        if not inside:
            _check_host(end.address, allowed=allows(end.address))


def _check_host(address: Address, *, allowed: bool) -> None:
    assert not address.is_multicast, f"multicast: {address}"
    assert not address.is_unspecified, f"unspecified: {address}"
    assert allowed or not address.is_loopback, f"loopback: {address}"
    assert str(address) != "255.255.255.255", "broadcast"
    mapped = address.version == 6 and int(address) >> 32 == 0xFFFF
    assert not mapped, f"v4-mapped: {address}"


def check_packet(sent: bytes, received: bytes) -> None:
    """A rewritten packet is whole, and what the headers say beside sizes is as it was.

    `received` is the packet that it takes the place of. Raises AssertionError.
    """
    if received[0] >> 4 == 4:
        header = (received[0] & 15) * 4
        assert sent[:2] + sent[4:10] + sent[12:header] == (
            received[:2] + received[4:10] + received[12:header]
        ), "a field of the IPv4 header has changed"
        assert int.from_bytes(sent[2:4]) == len(sent)
        assert word_sum(sent[:header]) == 0xFFFF, "checksum of the IPv4 header"
        protocol, addresses = sent[9], sent[12:20]
    else:
        assert sent[:4] + sent[6:40] == received[:4] + received[6:40], (
            "a field of the IPv6 header has changed"
        )
        assert int.from_bytes(sent[4:6]) + 40 == len(sent)
        protocol, header, addresses = sent[6], 40, sent[8:40]
        while protocol not in (_TCP, _UDP):
            size = 8 if protocol == 44 else (sent[header + 1] + 1) * 8
            if protocol == 51:
                size = (sent[header + 1] + 2) * 4
            protocol, header = sent[header], header + size
    _check_transport(sent[header:], received[header:], protocol, addresses)


def _check_transport(
    sent: bytes, received: bytes, protocol: int, addresses: bytes
) -> None:
    if protocol == _UDP:
        assert sent[:4] == received[:4], "a port has changed"
        assert int.from_bytes(sent[4:6]) == len(sent)
        if len(addresses) == 8 and received[6:8] == bytes(2):
            assert sent[6:8] == bytes(2)
            return
        assert sent[6:8] != bytes(2)
    else:
        options = (received[12] >> 4) * 4
        assert sent[:16] + sent[18:options] == received[:16] + received[18:options], (
            "a field of the TCP header has changed"
        )
    pseudo = addresses + len(sent).to_bytes(4) + protocol.to_bytes(4)
    assert word_sum(pseudo + sent) == 0xFFFF, "checksum"


def word_sum(data: bytes) -> int:
    """The sum of 16-bit words in ones' complement (RFC 1071), word by word."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def headers(
    transport: Transport,
    addresses: tuple[Address, Address],
    ports: tuple[int, int],
    behind_ports: bytes,
) -> bytes:
    """A packet with right lengths and checksums; `behind_ports` has zeros for the sum.

    It is what follows the ports: the rest of the transport's header, and the payload.
    """
    source, destination = addresses
    segment = bytearray(ports[0].to_bytes(2) + ports[1].to_bytes(2) + behind_ports)
    pseudo = (
        source.packed
        + destination.packed
        + len(segment).to_bytes(4)
        + int(transport).to_bytes(4)
    )
    at = 16 if transport == _TCP else 6
    segment[at : at + 2] = (
        word_sum(pseudo + bytes(segment)) ^ 0xFFFF or 0xFFFF
    ).to_bytes(2)
    if source.version == 6:
        return (
            b"\x60\0\0\0"
            + len(segment).to_bytes(2)
            + bytes([transport, 64])
            + source.packed
            + destination.packed
            + segment
        )
    length = (20 + len(segment)).to_bytes(2)
    header = bytearray(b"\x45\0" + length + b"\0\0\0\0\x40" + bytes([transport, 0, 0]))
    header += source.packed + destination.packed
    header[10:12] = (word_sum(bytes(header)) ^ 0xFFFF).to_bytes(2)
    return bytes(header + segment)

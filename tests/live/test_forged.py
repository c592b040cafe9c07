# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets of a flow that its ends have not sent, on a real kernel."""

import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from cthelper.core.tuples import Endpoint
from tests.live.daemon import Daemon, only
from tests.live.gateway import entries, entry_of
from tests.live.traffic import PORT, getport_call, getport_reply
from tests.live.world import (
    CLIENT,
    ETH,
    GATEWAY_LAN6,
    LAN,
    SERVER,
    Namespace,
    World,
    until,
)

pytestmark = pytest.mark.live

CONFIG = f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n"
SERVICE = 20048
TCP_REPAIR = 19
"""Of include/uapi/linux/tcp.h."""


def record(message: bytes) -> bytes:
    return struct.pack("!I", 0x80000000 | len(message)) + message


@dataclass
class Flow:
    """A connection to the portmapper, and who can forge its segments."""

    world: World
    listener: socket.socket
    client: socket.socket
    server: socket.socket

    def forge(self, namespace: Namespace, flags: str, payload: bytes = b"") -> None:
        """Send a segment whose numbers are anything, from one end's address."""
        here, there = self.client.getsockname(), (SERVER, PORT)
        if namespace is self.world.server:
            here, there = there, here
        header = TCP(sport=here[1], dport=there[1], flags=flags, seq=7, ack=9)
        packet = bytes(IP(src=here[0], dst=there[0]) / header / payload)
        with namespace.entered():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw:
            raw.sendto(packet, (there[0], 0))

    def exchange(self, sender: socket.socket, data: bytes) -> None:
        """Have one end send bytes, and the other one read them."""
        receiver = self.server if sender is self.client else self.client
        sender.sendall(data)
        assert receiver.recv(len(data), socket.MSG_WAITALL) == data


@contextmanager
def connected(world: World) -> Iterator[Flow]:
    with ExitStack() as stack:
        with world.server.entered():
            listener = stack.enter_context(socket.create_server((SERVER, PORT)))
        with world.client.entered():
            client = socket.create_connection((SERVER, PORT), 10)
        stack.enter_context(client)
        server, _ = listener.accept()
        stack.enter_context(server)
        server.settimeout(10)
        yield Flow(world, listener, client, server)


@pytest.mark.parametrize("flags", ["S", "SA", "A", "PA", "FA", "R", "RA"])
def test_forged_segments_do_not_end_the_inspection(
    world: World, daemon: Daemon, flags: str
) -> None:
    daemon.start(CONFIG)
    with connected(world) as flow:
        call, reply = record(getport_call(1, 6)), record(getport_reply(1, SERVICE))
        ends = (world.client, world.server)
        for end in ends:
            flow.forge(end, flags, b"" if "S" in flags else b"x" * 40)
        flow.exchange(flow.client, call[:20])
        for end in ends:
            flow.forge(end, flags)
        flow.exchange(flow.client, call[20:])
        for end in ends:
            flow.forge(end, flags)
        flow.exchange(flow.server, reply)
        event = daemon.await_event("expectation")
        assert str(SERVICE) in str(event["expects"])
        assert daemon.events("malformed") == []
        assert entry_of(world, flow.client).mark == 0


def test_connection_that_both_ends_begin_anew_on_one_entry_is_read(
    world: World, daemon: Daemon
) -> None:
    # Both ends forget the connection without a word, and the client's next one has its
    # port: the kernel's entry is the same.
    daemon.start(CONFIG)
    with connected(world) as flow:
        flow.exchange(flow.client, record(getport_call(1, 6)))
        port = flow.client.getsockname()[1]
        before = entry_of(world, flow.client).id
        _forget(flow)
        with world.client.entered():
            client = socket.create_connection((SERVER, PORT), 10, (CLIENT, port))
        server, _ = flow.listener.accept()
        server.settimeout(10)
        with client, server:
            assert entry_of(world, client).id == before
            anew = Flow(world, flow.listener, client, server)
            anew.exchange(client, record(getport_call(2, 6)))
            anew.exchange(server, record(getport_reply(2, SERVICE)))
            event = daemon.await_event("expectation")
            assert str(SERVICE) in str(event["expects"])


def unacknowledged(end: socket.socket) -> int:
    """How many bytes that it has sent the other end has not acknowledged."""
    (count,) = struct.unpack("=i", fcntl.ioctl(end, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def _forget(flow: Flow) -> None:
    """End both sockets without a segment."""
    ends = (flow.client, flow.server)
    # An acknowledgment that comes later would be answered with a RST.
    assert until(lambda: not any(map(unacknowledged, ends)), 10)
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        end.close()


# Datagrams

GROUP, MDNS = "ff02::fb", 5353
ASKING = only("mdns")


def question(*, unicast: bool) -> bytes:
    """A query for a name, which wants its answer by unicast or by multicast."""
    header = struct.pack("!6H", 0, 0, 1, 0, 0, 0)
    name = b"\4test\5local\0"
    return header + name + struct.pack("!HH", 12, 0x8001 if unicast else 1)


def asked(world: World) -> list[tuple[str, str | None]]:
    """Who asks the group, and the helper that reads it."""
    return [
        (str(each.original.source.address), each.helper)
        for each in entries(world)
        if each.original.destination == Endpoint(ip_address(GROUP), MDNS)
    ]


def test_query_with_our_own_address_that_came_from_the_link_opens_nothing(
    world: World, daemon: Daemon
) -> None:
    """Over IPv6 the kernel lets such a packet in (over IPv4 it does not)."""
    daemon.start(ASKING)
    with world.gateway.entered():
        asker = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        link = socket.if_nametoindex(LAN)
    with world.client.entered():
        forger = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with asker, forger:
        forger.bind((ETH, 0))
        asker.settimeout(10)
        membership = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("=I", link)
        for option, value in (
            (socket.IPV6_JOIN_GROUP, membership),
            (socket.IPV6_MULTICAST_LOOP, 0),
        ):
            asker.setsockopt(socket.IPPROTO_IPV6, option, value)
        asker.bind((GATEWAY_LAN6, MDNS))
        with world.gateway.entered():
            listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with listener:
            listener.settimeout(10)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
            listener.bind((GROUP, MDNS, 0, link))
            asker.sendto(question(unicast=False), (GROUP, MDNS, 0, link))
            # A packet that overtakes this one in the queue would have its own entry.
            assert until(lambda: asked(world) == [(GATEWAY_LAN6, "mdns")], 10)
            forged = question(unicast=True)
            datagram = UDP(sport=MDNS, dport=MDNS) / forged
            ip = IPv6(src=GATEWAY_LAN6, dst=GROUP, hlim=255)
            frame = Ether(dst="33:33:00:00:00:fb", src="02:00:00:00:00:99")
            forger.send(bytes(frame / ip / datagram))
            # It has passed the queue, in the flow of the first one.
            assert listener.recv(100) == forged
            assert asked(world) == [(GATEWAY_LAN6, "mdns")]
            assert daemon.events("expectation") == []
            asker.sendto(question(unicast=True), (GROUP, MDNS, 0, link))
            assert daemon.await_event("expectation")["helper"] == "mdns"

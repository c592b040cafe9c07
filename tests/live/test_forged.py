# SPDX-License-Identifier: GPL-2.0-or-later
"""Segments of a flow that its ends have not sent, on a real kernel."""

import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, TCP

from tests.live.daemon import Daemon, disabled
from tests.live.gateway import entry_of
from tests.live.traffic import PORT, getport_call, getport_reply
from tests.live.world import CLIENT, SERVER, Namespace, World, until

pytestmark = pytest.mark.live

CONFIG = (
    f"{disabled('dhcpv6', 'mdns', 'slp', 'tns')}"
    f"[helpers.sunrpc]\nports = [111, {PORT}]\n"
)
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Traffic of the tests' own: RPC over UDP to an echo server, and single packets."""

import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tests.live.daemon import Daemon
from tests.live.world import CLIENT, SERVER, Namespace, Transport, World

PORT = 7111
"""A port that no server of the world has, for sunrpc to be configured with."""

# The emulated machine must have time for other things than this traffic.
_PAUSE = 0.005


def null_call(xid: int) -> bytes:
    """A call of the portmapper's procedure 0, which announces nothing."""
    return struct.pack("!10I", xid, 0, 2, 100000, 2, 0, 0, 0, 0, 0)


def getport_call(xid: int, transport: int = 17) -> bytes:
    """A call of GETPORT for mountd."""
    head = struct.pack("!10I", xid, 0, 2, 100000, 2, 3, 0, 0, 0, 0)
    return head + struct.pack("!4I", 100005, 3, transport, 0)


def getport_reply(xid: int, port: int) -> bytes:
    """The reply to GETPORT."""
    return struct.pack("!7I", xid, 1, 0, 0, 0, 0, port)


class Background(ABC):
    """Traffic over one UDP socket of a namespace, in a thread of its own."""

    def __init__(self, namespace: Namespace, timeout: float) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(timeout)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        self._socket.close()

    def end(self) -> None:
        """Have no more of it from now on."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._step()

    @abstractmethod
    def _step(self) -> None:
        """One call or one answer."""


class Echo(Background):
    """A UDP server that answers GETPORT with `announce`, and all else with itself."""

    def __init__(
        self, namespace: Namespace, announce: int = 7999, port: int = PORT
    ) -> None:
        super().__init__(namespace, timeout=0.2)
        self._announce = announce
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((SERVER, port))

    def answer(self, data: bytes) -> bytes:
        """What it answers to a datagram."""
        if data[20:24] == b"\0\0\0\3":
            return getport_reply(int.from_bytes(data[:4]), self._announce)
        return data

    def _step(self) -> None:
        with suppress(TimeoutError):
            data, asker = self._socket.recvfrom(65535)
            self._socket.sendto(self.answer(data), asker)


class Pinger(Background):
    """Calls the echo server, one call at a time, until it is told to end.

    `lost` counts the calls without an answer within `patience` seconds: two emulated
    machines on a busy one delay packets, 8 s were seen, but only a lost one takes 40.
    `slowest` is the longest answer, in seconds. It calls from the address `source`,
    where that is given, and sends what `message` gives for a transaction's number: by
    default what the helper reads, so that each goes through the queue.
    """

    def __init__(
        self,
        namespace: Namespace,
        patience: float = 40.0,
        source: str = "",
        message: Callable[[int], bytes] = getport_call,
    ) -> None:
        super().__init__(namespace, timeout=patience)
        self.source = source
        self._message = message
        self._socket.bind((source, 0))
        self._socket.connect((SERVER, PORT))
        self._xid = 0
        self.answered = 0
        self.lost = 0
        self.slowest = 0.0

    def _step(self) -> None:
        self._xid += 1
        sent = time.monotonic()
        self._socket.send(self._message(self._xid))
        try:
            self._socket.recv(65535)
        except TimeoutError:
            self.lost += 1
        else:
            self.answered += 1
            self.slowest = max(self.slowest, time.monotonic() - sent)
        time.sleep(_PAUSE)


def knock(world: World, transport: Transport, port: int, address: str = SERVER) -> None:
    """Send one packet from a new port of the client to a port of the server."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    stream = transport == "tcp"
    with world.client.entered():
        knocker = socket.socket(
            kind, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        )
    with knocker:
        knocker.settimeout(0.3)
        with suppress(OSError):
            knocker.connect((address, port))
            if not stream:
                knocker.send(null_call(1))


def asker(world: World, source: str = CLIENT) -> socket.socket:
    """A new UDP socket of the client, connected to the echo server."""
    with world.client.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    flow.bind((source, 0))
    flow.connect((SERVER, PORT))
    flow.settimeout(10.0)
    return flow


def wait_for(pinger: Pinger, more: int) -> None:
    """Wait until so many more calls were answered."""
    wanted = pinger.answered + more
    deadline = time.monotonic() + 120
    while pinger.answered < wanted:
        assert time.monotonic() < deadline, "calls are not answered"
        time.sleep(0.02)


def call(flow: socket.socket) -> None:
    """Call the echo server once, and wait for its answer."""
    flow.send(null_call(1))
    assert flow.recv(100)


def getport(world: World, source: str = CLIENT) -> tuple[socket.socket, int]:
    """Ask the echo server for a port, over UDP from a new port of the client.

    The socket, whose flow is the master of the expectation, and the announced port.
    """
    flow = asker(world, source)
    flow.send(getport_call(1))
    return flow, int.from_bytes(flow.recv(100)[-4:])


def expected(world: World, daemon: Daemon, source: str = CLIENT) -> dict[str, Any]:
    """What the log says of an expectation that is made now for a client's address.

    The log must not be so busy that it leaves lines out.
    """
    flow, _ = getport(world, source)
    with flow:
        name = f"udp {source}:{flow.getsockname()[1]} > "
    (made,) = (
        each for each in daemon.events("expectation") if each["flow"].startswith(name)
    )
    return made

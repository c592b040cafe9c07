# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients of Oracle's listener: two real ones, and one of the tests' own.

The real ones show that what is sent is what clients understand; the own one follows
every form of a redirect, and sends as much data as a test wants.
"""

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.live.tns_listener import (
    CONTROL_PORT,
    REDIRECTED,
    Kind,
    encode_connect,
    receive,
    receive_packet,
)
from tests.live.world import Namespace

_SCRIPTS: Final = Path(__file__).parent / "oracle"
# script/setup has put both there.
_MODULE: Final = Path(sys.prefix) / "node/node_modules/oracledb"
_NODE: Final = Path(sys.prefix) / "node/bin/node"

Command = tuple[str, ...]

PYTHON: Final[Command] = (sys.executable, "-B", str(_SCRIPTS / "client.py"))
"""python-oracledb: connect data in a packet of their own, redirects in DATA only."""

NODE: Final[Command] = (str(_NODE), str(_SCRIPTS / "client.js"), str(_MODULE))
"""node-oracledb: connect data in CONNECT, redirects inline and in DATA."""

_START_SECONDS: Final = 60.0
_SECONDS: Final = 20.0

_HOST: Final = re.compile(r"\(HOST=([^)]*)\)")
_PORT: Final = re.compile(r"\(PORT=(\d+)\)")
_PACKET_SIZE: Final = 8192


class RealClient:
    """One of the real clients, in a process that connects as often as it is told."""

    def __init__(self, namespace: Namespace, command: Command) -> None:
        self._process = namespace.start(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def connect(self, connect_strings: Mapping[str, str]) -> dict[str, str]:
        """What the client says about each database; it connects to all at a time."""
        assert self._process.stdin
        assert self._process.stdout
        for name, connect_string in connect_strings.items():
            self._process.stdin.write(f"{name} {connect_string}\n")
        self._process.stdin.flush()
        said = {}
        with self._deadline():
            for _ in connect_strings:
                line = self._process.stdout.readline()
                assert line, "the client has ended, or did not answer in time"
                answer = json.loads(line)
                said[answer["name"]] = answer["error"]
        return said

    def close(self) -> None:
        """End the client."""
        self._process.kill()
        self._process.wait()

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """End the process where it takes too long, which ends its output."""
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class Session:
    """One connection: it has sent CONNECT, and `answer` is what came for it."""

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int,
        service: str,
        *,
        redirected: bool = False,
        separate: bool = False,
    ) -> None:
        text = f"(DESCRIPTION=(CONNECT_DATA=(SERVICE_NAME={service})))".encode()
        connect = encode_connect(
            text, flags=REDIRECTED if redirected else 0, separate=separate
        )
        self.stream = dial(namespace, address, port)
        try:
            self.stream.sendall(connect)
            self.answer = receive_packet(self.stream)
            while self.answer.kind == Kind.RESEND:
                self.stream.sendall(connect)
                self.answer = receive_packet(self.stream)
            self.target = self._target() if self.kind is Kind.REDIRECT else None
        except BaseException:
            self.stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stream.close()

    @property
    def kind(self) -> Kind:
        """What the answer is."""
        return Kind(self.answer.kind)

    def exchange(self, count: int) -> None:
        """Send so many DATA packets of an accepted session, and get them back."""
        head = struct.pack("!IBBHH", _PACKET_SIZE, Kind.DATA, 0, 0, 0)
        exchange(self.stream, (head + os.urandom(_PACKET_SIZE - len(head))) * count)

    def _target(self) -> tuple[str, int]:
        """Host and port of the redirect; its text may be in the next packet."""
        data = self.answer.body[2:] or receive_packet(self.stream).body[2:]
        address = data.partition(b"\0")[0].decode()
        host, port = _HOST.search(address), _PORT.search(address)
        assert host
        assert port
        return host[1], int(port[1])


def dial(
    namespace: Namespace, address: str, port: int, *, source: str = ""
) -> socket.socket:
    """A connection out of a namespace, from an address of its own if `source` says so.

    Raises TimeoutError where nobody answers.
    """
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.entered():
        stream = socket.socket(kind, socket.SOCK_STREAM)
    try:
        stream.settimeout(_SECONDS)
        if source:
            stream.bind((source, 0))
        stream.connect((address, port))
    except BaseException:
        stream.close()
        raise
    return stream


def exchange(stream: socket.socket, data: bytes) -> None:
    """Send data to a peer that sends them back meanwhile."""
    sender = threading.Thread(target=stream.sendall, args=(data,))
    sender.start()
    assert receive(stream, len(data)) == data
    sender.join()


def follow(
    namespace: Namespace,
    address: str,
    service: str,
    *,
    names: Mapping[str, str] | None = None,
    separate: bool = False,
) -> Session:
    """Connect as a client does, through redirects, to the end; `names` are for hosts.

    Raises TimeoutError where a connection is not let through.
    """
    session = Session(namespace, address, CONTROL_PORT, service, separate=separate)
    while session.target is not None:
        host, port = session.target
        with session:
            session = Session(
                namespace,
                (names or {}).get(host, host),
                port,
                service,
                redirected=True,
                separate=separate,
            )
    return session

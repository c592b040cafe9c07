# SPDX-License-Identifier: GPL-2.0-or-later
"""A network scanner that asks for a password whenever a page is to begin.

SANE's protocol has it, and its client follows. But saned never replies so to START,
whatever the backend: `auth_callback` of sane-backends 1.2.1 (frontend/saned.c) has a
branch for it (line 396), and returns before it (359) unless a device is being opened
(1880) or an option set (2036). So this stands in for saned.
"""

import hashlib
import itertools
import secrets
import socket
import struct
import threading
from contextlib import suppress
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Final, Self

from cthelper.helpers.sane_wire import Code
from tests.live.world import Namespace

PORT: Final = 6566
DEVICE: Final = "guarded"
USER, PASSWORD = "me", "secret"

# For so long saned waits for the data flow to come.
_SECONDS: Final = 4.0
_VERSION: Final = 0x01010003
_BIG_ENDIAN: Final = 0x4321
_GOOD, _END_OF_FILE, _DENIED = 0, 5, 11
_SIDE: Final = 8
_PAGE: Final = bytes(range(_SIDE * _SIDE))
# The only option is their number: its type is INT, of one word, to be read.
_OPTIONS: Final = (1, 0, "", "Number of options", "", 1, 0, 4, 4, 0)
_PARAMETERS: Final = (_GOOD, 0, 1, _SIDE, _SIDE, _SIDE, 8)


class Scanner(ThreadingTCPServer):
    """Listens at an address of a host; for data at ports from the first one on."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: Namespace, address: str, first: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.ports = itertools.count(first)
        self._host = host
        with host.entered():
            super().__init__((address, PORT), _Session)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()

    def listen(self) -> socket.socket:
        """Where the next data flow is to come to."""
        with self._host.entered():
            listener = socket.socket(self.address_family, socket.SOCK_STREAM)
        listener.settimeout(_SECONDS)
        listener.bind((self.server_address[0], next(self.ports)))
        listener.listen()
        return listener


class _Session(StreamRequestHandler):
    """What one client asks for, until it goes."""

    server: Scanner

    def handle(self) -> None:
        # It has gone, or it does not open the data flow.
        with suppress(EOFError, OSError):
            while (code := self._word()) != Code.EXIT:
                self._answer(Code(code))

    def _answer(self, code: Code) -> None:
        match code:
            case Code.INIT:
                self._word()
                self._string()
                self._say(_GOOD, _VERSION)
            case Code.OPEN:
                self._string()
                self._say(_GOOD, 0, "")
            case Code.CONTROL_OPTION:
                _, _, _, kind, size, count = (self._word() for _ in range(6))
                for _ in range(count):
                    self._word()
                self._say(_GOOD, 0, kind, size, 1, 1, "")
            case Code.START:
                self._word()
                self._start()
            case _:
                self._word()
                known = {
                    Code.GET_OPTION_DESCRIPTORS: _OPTIONS,
                    Code.GET_PARAMETERS: _PARAMETERS,
                }
                self._say(*known.get(code, (_GOOD,)))

    def _start(self) -> None:
        """Ask for the password, and where it is right send a page."""
        challenge = secrets.token_hex(8)
        self._say(_GOOD, 0, 0, f"{DEVICE}$MD5${challenge}")
        if self._word() != Code.AUTHORIZE:
            raise EOFError
        _, *said = (self._string() for _ in range(3))
        digest = hashlib.md5(f"{challenge}{PASSWORD}".encode(), usedforsecurity=False)
        self._say(_GOOD)
        if said != [USER, f"$MD5${digest.hexdigest()}"]:
            self._say(_DENIED, 0, _BIG_ENDIAN, "")
            return
        with self.server.listen() as listener:
            self._say(_GOOD, listener.getsockname()[1], _BIG_ENDIAN, "")
            data, _ = listener.accept()
        with data:
            data.sendall(struct.pack("!I", len(_PAGE)) + _PAGE)
            data.sendall(struct.pack("!IB", 0xFFFFFFFF, _END_OF_FILE))

    def _word(self) -> int:
        return int.from_bytes(self._read(4))

    def _string(self) -> str:
        return self._read(self._word()).rstrip(b"\0").decode()

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def _say(self, *fields: int | str) -> None:
        """Send a reply; a string has its NUL, and the empty one is none."""
        told = b""
        for each in fields:
            if isinstance(each, str):
                data = f"{each}\0".encode() if each else b""
                told += struct.pack("!I", len(data)) + data
            else:
                told += struct.pack("!I", each)
        self.wfile.write(told)

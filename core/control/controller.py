# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that answers at the control socket.

It reads no packet and holds none, so that whatever is asked, however slowly the answer
is read, costs traffic nothing. What the supervisor and the servers know it asks them
for, a little at a time; tables it reads from the kernel itself. It is confined as a
server is, and may accept connections beside.

Whoever may connect, by the socket's mode and group, may ask. Only root may change.
"""

import select
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Final, cast

from cthelper.core.control.commands import Commands, Refused
from cthelper.core.control.wire import (
    LONGEST_REQUEST,
    PROTOCOL,
    Unreadable,
    line,
    lines,
)
from cthelper.core.errors import CthelperError, NetlinkError
from cthelper.core.records import Record

# At a time; of who is not root so many.
_SESSIONS: Final = 32
_OTHERS: Final = 16
# A session that asks for nothing for so long, or does not read what it has asked for.
_IDLE_SECONDS: Final = 60.0
_SEND_SECONDS: Final = 10.0
# Of each session, so that all of them leave memory for tables.
_STACK: Final = 1 << 19
# struct ucred of socket.h: pid, uid, gid.
_CREDENTIALS: Final = struct.Struct("=iII")


class _Left(Exception):
    """Whoever asked has closed the connection."""


class Controller:
    """Serves the listening socket until the supervisor is gone.

    `gone` becomes readable when it is; `commands` is what can be asked for.
    """

    def __init__(
        self,
        listening: socket.socket,
        gone: int,
        commands: Commands,
        version: str,
    ) -> None:
        self._listening = listening
        self._gone = gone
        self._commands = commands
        self._version = version
        self._lock = threading.Lock()
        self._sessions = {True: 0, False: 0}

    def run(self) -> None:
        """Accept whoever connects."""
        threading.stack_size(_STACK)
        self._listening.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._listening, selectors.EVENT_READ)
            selector.register(self._gone, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is not self._listening:
                        return
                    with suppress(OSError):  # the other one has left, or no descriptor
                        self._accept(self._listening.accept()[0])

    def _accept(self, connection: socket.socket) -> None:
        data = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        _, user, _ = _CREDENTIALS.unpack(data)
        root = user == 0
        with self._lock:
            others = self._sessions[False]
            full = sum(self._sessions.values()) >= _SESSIONS or (
                not root and others >= _OTHERS
            )
            if not full:
                self._sessions[root] += 1
        connection.settimeout(_SEND_SECONDS)
        if full:
            with connection, suppress(OSError):
                connection.sendall(line(_error("busy", "too many sessions: try again")))
            return
        try:
            threading.Thread(
                target=self._session, args=(connection, root), daemon=True
            ).start()
        except RuntimeError:  # no more threads
            connection.close()
            with self._lock:
                self._sessions[root] -= 1

    def _session(self, connection: socket.socket, root: bool) -> None:
        try:
            with connection, suppress(OSError, _Left):
                self._serve(connection, root)
        finally:
            with self._lock:
                self._sessions[root] -= 1

    def _serve(self, connection: socket.socket, root: bool) -> None:
        def send(record: Record) -> None:
            connection.settimeout(_SEND_SECONDS)
            connection.sendall(line(record))
            connection.settimeout(_IDLE_SECONDS)

        send({"cthelper": self._version, "protocol": PROTOCOL})

        poll = select.poll()
        poll.register(connection, 0)  # POLLHUP and POLLERR are always told of

        def look() -> None:
            # Of who has gone something may be there to be read all the same.
            if poll.poll(0):
                raise _Left

        with connection.makefile("rb") as source:
            try:
                for request in lines(cast(BinaryIO, source), LONGEST_REQUEST):
                    send(self._answer(request, root, send, look))
            except Unreadable as error:
                send(_error("unreadable", str(error)))

    def _answer(
        self,
        request: Record,
        root: bool,
        send: Callable[[Record], None],
        look: Callable[[], None],
    ) -> Record:
        """Answer a request but for its last line, which is returned."""
        count = 0
        try:
            for record in self._commands.run(request, root=root):
                if record is None:
                    look()
                else:
                    send({"record": record})
                    count += 1
        except Refused as error:
            return _error(error.reason, str(error))
        except NetlinkError as error:
            return _error(error.reason, str(error))
        except CthelperError as error:
            return _error("failed", str(error))
        except MemoryError:
            return _error("too-much", "it does not fit into memory: narrow it")
        return {"done": {"records": count}}


def _error(reason: str, message: str) -> Record:
    return {"error": {"reason": reason, "message": message}}

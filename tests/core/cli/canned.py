# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon at a real socket that answers each command with bytes that are ready."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

GREETING: Final = b'{"cthelper":"9","protocol":1}\n'
DONE: Final = b'{"done":{}}\n'
STATUS: Final[dict[str, object]] = {
    **{"health": "ok", "problems": [], "supervisor": None},
    **{"servers": [], "queues": [], "tables": {}, "counters": {}},
}


def records(*found: object) -> bytes:
    """An answer."""
    return b"".join(json.dumps({"record": each}).encode() + b"\n" for each in found)


class Canned:
    """What is answered, by command; `go_on` is cleared to have all answers wait."""

    def __init__(self, path: Path, **answers: bytes) -> None:
        self.path = path
        self.answers = {
            "status": records(STATUS),
            **{"flows": b"", "events": b""},
            **answers,
        }
        self.go_on = threading.Event()
        self.go_on.set()
        self.asked: list[str] = []
        self._waiting = self.most_at_once = 0
        self._lock = threading.Lock()

    def serve(self, connection: socket.socket) -> None:
        """Answer who has connected."""
        with connection, connection.makefile("rb") as source, suppress(OSError):
            connection.sendall(GREETING)
            for line in source:
                command = json.loads(line)["command"]
                self.asked.append(command)
                self._wait()
                connection.sendall(self.answers[command] + DONE)

    def _wait(self) -> None:
        with self._lock:
            self._waiting += 1
            self.most_at_once = max(self.most_at_once, self._waiting)
        self.go_on.wait(60)
        # Before it is answered, as the next may be asked at once then.
        with self._lock:
            self._waiting -= 1


@contextmanager
def serving(canned: Canned) -> Iterator[None]:
    """Somebody answers there, until the end; then there is no socket."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(canned.path))
    listening.listen(8)
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:  # it is shut
                return
            threads.append(threading.Thread(target=canned.serve, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield
    finally:
        canned.path.unlink()
        listening.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listening.close()
        canned.go_on.set()
        for thread in threads:
            thread.join(60)

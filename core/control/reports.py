# SPDX-License-Identifier: GPL-2.0-or-later
"""What the controller asks the supervisor and the servers, and what they answer.

A question and an answer are one packet each of a socket pair. Whoever answers never
waits for who asks: an answer that finds no room is thrown away, and an answer that
comes late is known by its number. So a server's successor may take its end over.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from cthelper.core.records import Record

# Below what a socket pair takes by default (net.core.wmem_default).
_LONGEST: Final = 1 << 17

TOO_LONG: Final = "too long"
"""The key of an answer that was, in its place."""

Answer = Callable[[Record], Record]
"""Answers a question. Raises KeyError, TypeError, ValueError of one that is wrong."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The end of who asks and the end of who answers."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Reporter:
    """The end of who answers."""

    def __init__(self, end: socket.socket, answers: Mapping[str, Answer]) -> None:
        end.setblocking(False)
        self._socket = end
        self._answers = answers

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def serve(self) -> bool:
        """Answer one question, if one waits; whether the other end is still there."""
        try:
            data = self._socket.recv(_LONGEST)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        try:
            question = json.loads(data)
            answer = self._answers[question["ask"]](question)
            number = question["number"]
        except (KeyError, TypeError, ValueError):
            return True
        told = json.dumps({"number": number, **answer}).encode()
        if len(told) > _LONGEST:
            told = json.dumps({"number": number, TOO_LONG: True}).encode()
        with suppress(OSError):
            self._socket.send(told)
        return True


class Asker:
    """The end of who asks; threads take turns."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        # Above those of who has asked here before, and may still be answered.
        self._number = time.monotonic_ns()
        self._lock = threading.Lock()

    def ask(self, what: str, seconds: float, **details: object) -> Record | None:
        """The answer; None where none comes in time, or nobody is there."""
        until = time.monotonic() + seconds
        if not self._lock.acquire(timeout=seconds):
            return None
        try:
            self._number += 1
            question = {"ask": what, "number": self._number, **details}
            try:
                self._socket.send(json.dumps(question).encode())
                while True:
                    left = max(0.0, until - time.monotonic())
                    if not select.select([self._socket], [], [], left)[0]:
                        return None
                    data = self._socket.recv(_LONGEST)
                    if not data:
                        return None
                    answer = _read(data)
                    if answer.pop("number", None) == self._number:
                        return answer
            except OSError:
                return None
        finally:
            self._lock.release()


def _read(data: bytes) -> Record:
    try:
        answer = json.loads(data)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}

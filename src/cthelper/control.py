# SPDX-License-Identifier: GPL-2.0-or-later
"""A running daemon, from outside: what ``cthelper status`` and other commands use.

    from cthelper.control import Control

    with Control() as control:
        print(control.status()["health"])
        for flow in control.flows(helper="tns"):
            print(flow["flow"], flow["expectations"])

docs/control.md says what the records hold.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast

from cthelper.core.control.wire import (
    LONGEST_ANSWER,
    PROTOCOL,
    SOCKET,
    Unreadable,
    line,
    lines,
)
from cthelper.core.errors import CthelperError

__all__ = ["SOCKET", "Control", "ControlError", "NotRunning"]

# A daemon that is busy with nft answers some things late.
_SECONDS: Final = 30.0


class ControlError(CthelperError):
    """The daemon refuses a request, or its answer makes no sense.

    `reason` is a code, such as ``not-permitted``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotRunning(ControlError):
    """Nobody answers at the socket."""

    def __init__(self, message: str) -> None:
        super().__init__("not-running", message)


class Control:
    """A connection to the daemon at the socket `path`.

    Requests are made one after the other: read an answer to its end before the next, or
    open another connection. Nothing is waited for longer than `seconds`. Raises
    NotRunning, and ControlError.
    """

    def __init__(self, path: Path = SOCKET, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._file = cast(BinaryIO, self._socket.makefile("rb"))
        self._lines = lines(self._file, LONGEST_ANSWER)
        try:
            # Where many ask at once it waits for its turn, which a socket with a
            # timeout of Python's would not.
            timeval = struct.pack("@ll", *divmod(int(seconds * 1e6), 10**6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            self._socket.connect(str(path))
            self._socket.settimeout(seconds)
            greeting = self._next()
        except (FileNotFoundError, ConnectionRefusedError):
            self.close()
            raise NotRunning(
                f"{path}: no daemon answers: is `cthelper run` running?"
            ) from None
        except OSError as error:
            self.close()
            raise ControlError("unreachable", f"{path}: {error.strerror}") from None
        except ControlError:
            self.close()
            raise
        self.version = str(greeting.get("cthelper"))
        if greeting.get("protocol") != PROTOCOL:
            self.close()
            raise ControlError(
                "protocol",
                f"{path}: the daemon is cthelper {self.version}, which speaks another "
                "version of the protocol",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def status(self) -> dict[str, Any]:
        """How the daemon is; ``health`` is ``ok`` or ``degraded``."""
        (record,) = self.request("status")
        return cast(dict[str, Any], record)

    def flows(self, *, others: bool = False, **filter_: object) -> Iterator[Any]:
        """Control flows with what they have announced and what came of it.

        With `others` also all entries of conntrack that have no helper of the daemon's.
        The filter's keys are ``transport``, ``source``, ``destination``, ``sport``,
        ``dport``, ``helper``, ``state`` and ``zone``.
        """
        return self.request("flows", all=others, filter=filter_)

    def expectations(self, **filter_: object) -> Iterator[Any]:
        """Expectations that live in the kernel."""
        return self.request("expectations", filter=filter_)

    def events(
        self,
        *,
        since: float | None = None,
        follow: bool = True,
        events: Sequence[str] = (),
        **filter_: object,
    ) -> Iterator[Any]:
        """Decisions, from so many seconds ago on; with `follow` as they happen."""
        self._socket.settimeout(None if follow else self._seconds)
        return self.request(
            "events", since=since, follow=follow, events=list(events), filter=filter_
        )

    def flow_events(
        self, *, events: Sequence[str] = (), others: bool = False, **filter_: object
    ) -> Iterator[Any]:
        """Entries and expectations as they come and go, for ever.

        `events` are any of ``new``, ``update``, ``destroy``, ``expectation-new`` and
        ``expectation-destroy``. With `others` also those without a helper of the
        daemon's.
        """
        self._socket.settimeout(None)
        return self.request(
            "flow-events", all=others, events=list(events), filter=filter_
        )

    def stats(self, **filter_: object) -> Iterator[Any]:
        """Statistics: first those of each helper, then those of peers and services.

        Raises ControlError, ``no-statistics``, where they are off.
        """
        return self.request("stats", filter=filter_)

    def request(self, command: str, **details: object) -> Iterator[Any]:
        """The records of an answer. Raises ControlError where it is an error."""
        self._send({"command": command, **details})
        while "record" in (answer := self._next()):
            yield answer["record"]
        if "done" not in answer:
            raise ControlError("unreadable", "the daemon's answer makes no sense")

    def _send(self, request: dict[str, object]) -> None:
        try:
            self._socket.sendall(line(request))
        except OSError as error:
            raise ControlError("gone", f"the daemon is gone: {error}") from None

    def _next(self) -> dict[str, Any]:
        try:
            answer = next(self._lines, None)
        except TimeoutError:
            raise ControlError("late", "the daemon does not answer") from None
        except OSError as error:
            raise ControlError("gone", f"the daemon is gone: {error}") from None
        except Unreadable as error:
            raise ControlError("unreadable", f"the daemon's answer: {error}") from None
        if answer is None:
            raise ControlError("gone", "the daemon has closed the connection")
        refused = answer.get("error")
        if isinstance(refused, dict):
            raise ControlError(str(refused.get("reason")), str(refused.get("message")))
        return answer

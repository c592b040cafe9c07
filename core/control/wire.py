# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's protocol, one JSON object a line (docs/control.md).

The daemon greets with ``{"cthelper": VERSION, "protocol": 1}``. A request is
``{"command": NAME, ...}``; it is answered with a line ``{"record": {...}}`` for each
thing that was asked for, and then ``{"done": {...}}`` or ``{"error": {"reason": CODE,
"message": TEXT}}``. The next request may follow. A protocol with the same number only
gains keys and commands.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from cthelper.core.errors import CthelperError
from cthelper.core.records import Record

PROTOCOL: Final = 1
SOCKET: Final = Path("/run/cthelper/control.sock")
"""Where the daemon listens by default."""

LONGEST_REQUEST: Final = 1 << 14
"""Bytes of a request's line, with its end."""
LONGEST_ANSWER: Final = 1 << 20
"""Bytes of an answer's line, with its end."""


class Unreadable(CthelperError):
    """A line is no JSON object, or too long."""


def line(record: Record) -> bytes:
    """A record as it is sent."""
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def lines(source: BinaryIO, longest: int) -> Iterator[Record]:
    """The records that come, to the end. Raises Unreadable, and OSError."""
    while data := source.readline(longest):
        if not data.endswith(b"\n"):
            raise Unreadable("the line is cut off or too long")
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            raise Unreadable("the line is no JSON") from None
        if not isinstance(record, dict):
            raise Unreadable("the line is no JSON object")
        yield record

# SPDX-License-Identifier: GPL-2.0-or-later
"""The header and the question section of a DNS message (RFC 1035, section 4)."""

from dataclasses import dataclass
from typing import Final

from cthelper.core.api import Cursor, Malformed, Truncated

_LABEL_TYPE: Final = 0xC0
_NAME_LIMIT: Final = 255

_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_RCODE: Final = 0x000F


@dataclass(frozen=True, slots=True)
class Header:
    """RFC 1035, section 4.1.1; of the counts only that of the questions."""

    flags: int
    questions: int

    @property
    def is_standard_query(self) -> bool:
        """A query with operation code and response code 0."""
        return not self.flags & (_RESPONSE | _OPCODE | _RCODE)


def read_header(cursor: Cursor) -> Header:
    """The 12 bytes of the header. Raises Truncated."""
    cursor.skip(2)
    flags = cursor.u16()
    questions = cursor.u16()
    cursor.skip(6)
    return Header(flags, questions)


def read_question_classes(cursor: Cursor, count: int) -> list[int]:
    """Pass over so many questions; the class of each, 0 to 65535. Raises Malformed.

    A name (RFC 1035, section 4.1.4) may end in a compression pointer, which is not
    followed: nothing here needs the labels that it points to, and so it cannot lead in
    circles.
    """
    data, at = cursor.data, cursor.position
    classes = []
    try:
        for _ in range(count):
            start = at
            while length := data[at]:
                if length >= _LABEL_TYPE:
                    at += 1
                    break
                if length & _LABEL_TYPE:
                    raise Malformed(f"label of the reserved type {length:#04x}")
                at += length + 1
                if at - start >= _NAME_LIMIT:
                    raise Malformed(f"name over {_NAME_LIMIT} bytes")
            # What ends the name, and the type.
            at += 3
            classes.append(data[at] << 8 | data[at + 1])
            at += 2
    except IndexError:
        raise Truncated(f"a question ends after {len(data)} bytes") from None
    cursor.skip(at - cursor.position)
    return classes

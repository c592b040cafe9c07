# SPDX-License-Identifier: GPL-2.0-or-later
"""What SANE's requests and replies are made of (SANE standard 1.06, chapter 5).

All numbers are words of 32 bits, big-endian; a string is its length, with the NUL, or 0
where there is none, and its bytes. Nothing says how long a message is: one has to know
its fields to find its end.
"""

import enum
from dataclasses import dataclass
from typing import Final

from cthelper.core.api import Cursor, Malformed

WORD: Final = 4
"""Bytes of a word."""
_BYTE_ORDERS: Final = (0x1234, 0x4321)
START_REPLY: Final = 16
"""Bytes of START's reply before its resource."""
RESOURCE_LIMIT: Final = 1024
"""Bytes that a resource may have; saned's have some 40."""
# INIT of version 1, any minor number, with build 3 of the protocol: before it, the way
# of encoding was another one.
_INIT: Final = bytes([0, 0, 0, 0, 1])
_BUILD: Final = bytes([0, 3])
# Options of a scanner, or values to choose one from.
_ELEMENTS: Final = 4096
# Lengths and the like in one request or reply, which may be one packet, so that it is
# read in time. A scanner with 57 options has 800; few have more than twice as many.
_LENGTHS: Final = 2500


class Code(enum.IntEnum):
    """A request, its first word."""

    INIT = 0
    GET_DEVICES = 1
    OPEN = 2
    CLOSE = 3
    GET_OPTION_DESCRIPTORS = 4
    CONTROL_OPTION = 5
    GET_PARAMETERS = 6
    START = 7
    CANCEL = 8
    AUTHORIZE = 9
    EXIT = 10


@dataclass(frozen=True, slots=True)
class _Kind:
    """A word, and what it says of the fields after it.

    Either it counts elements, each a field (bytes or a kind), or it chooses the fields
    that come next, the last one first: with a word that `choices` lacks, `other`.
    """

    element: int = 0
    choices: dict[int, tuple[int, ...]] | None = None
    other: tuple[int, ...] | None = ()


# A field is a number: so many bytes that do not matter, or, below 0, a kind.
_STRING, _WORDS, _BUTTON, _STRINGS = -1, -2, -3, -4
_DEVICES, _DEVICE, _OPTIONS, _OPTION = -5, -6, -7, -8
_CONSTRAINT, _RANGE, _VALUE, _ACTION = -9, -10, -11, -12
_KINDS: Final = {
    _STRING: _Kind(element=1),
    _WORDS: _Kind(element=WORD),
    _BUTTON: _Kind(element=0),
    _STRINGS: _Kind(element=_STRING),
    # Devices, options and ranges come behind a word that is 0 unless there is none.
    _DEVICES: _Kind(element=_DEVICE),
    _DEVICE: _Kind(choices={0: (_STRING,) * 4}),
    _OPTIONS: _Kind(element=_OPTION),
    _OPTION: _Kind(choices={0: (_CONSTRAINT, 16, _STRING, _STRING, _STRING)}),
    _CONSTRAINT: _Kind(choices={1: (_RANGE,), 2: (_WORDS,), 3: (_STRINGS,)}),
    _RANGE: _Kind(choices={0: (12,)}),
    # By type: bool, int and fixed, strings, and button and group, which have no value.
    _VALUE: _Kind(
        choices={
            **dict.fromkeys((0, 1, 2), (_WORDS, 4)),
            3: (_STRING, 4),
            **dict.fromkeys((4, 5), (_BUTTON, 4)),
        },
        other=None,
    ),
    # A server that is to set a value itself (action 2) is sent none.
    _ACTION: _Kind(choices={2: ()}, other=(_VALUE,)),
}

REQUESTS: Final[dict[int, tuple[int, ...]]] = {
    Code.INIT: (4, _STRING),
    Code.GET_DEVICES: (),
    Code.OPEN: (_STRING,),
    Code.CLOSE: (4,),
    Code.GET_OPTION_DESCRIPTORS: (4,),
    Code.CONTROL_OPTION: (8, _ACTION),
    Code.GET_PARAMETERS: (4,),
    Code.START: (4,),
    Code.CANCEL: (4,),
    Code.AUTHORIZE: (_STRING, _STRING, _STRING),
}
"""The fields after a request's code, for `Walk`. EXIT has no reply and is not here."""
REPLIES: Final[dict[int, tuple[int, ...]]] = {
    Code.INIT: (8,),
    Code.GET_DEVICES: (4, _DEVICES),
    Code.OPEN: (8, _STRING),
    Code.CLOSE: (4,),
    Code.GET_OPTION_DESCRIPTORS: (_OPTIONS,),
    Code.CONTROL_OPTION: (8, _VALUE, _STRING),
    Code.GET_PARAMETERS: (28,),
    Code.CANCEL: (4,),
}
"""The fields of the replies to all but START and AUTHORIZE, by the request's code."""
MAY_AUTHORIZE: Final = (Code.OPEN, Code.CONTROL_OPTION, Code.START)
"""Requests whose replies end with a resource to authorize."""


class Walk:
    """Follows the fields of one request or reply, in pieces.

    `todo` holds those that are to come, the next one last; `last` is what the array
    counted that was met last.
    """

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.todo: list[int] = list(reversed(fields))
        self.last = 0
        self._begun = b""
        self._words = 0

    def read(self, data: bytes) -> int | None:
        """Go on with the bytes of a packet: how many follow the end; None: no end yet.

        Raises Malformed.
        """
        data = self._begun + data
        todo, size, words = self.todo, len(data), self._words
        at = 0
        while todo and at <= size:
            field = todo.pop()
            if field >= 0:
                at += field
                continue
            if size - at < WORD:
                todo.append(field)
                break
            word = int.from_bytes(data[at : at + WORD])
            at += WORD
            words += 1
            if words > _LENGTHS:
                raise Malformed(f"over {_LENGTHS} fields")
            kind = _KINDS[field]
            if kind.choices is not None:
                fields = kind.choices.get(word, kind.other)
                if fields is None:
                    raise Malformed(f"value of type {word}")
                todo += fields
                continue
            self.last = word
            if kind.element >= 0:
                at += kind.element * word
            elif word > _ELEMENTS:
                raise Malformed(f"array of {word} elements")
            else:
                todo += [kind.element] * word
        if at > size:
            todo.append(at - size)
        self._begun, self._words = data[at:], words
        return None if todo else size - at


def is_init(data: bytes) -> bool:
    """Whether a flow begins as SANE, of whose first bytes 8 are there."""
    return data.startswith(_INIT) and data[6:8] == _BUILD


def read_start(data: bytes) -> tuple[int | None, int]:
    """Port that START's reply announces, or None, and the length of its resource.

    Raises Malformed.
    """
    cursor = Cursor(data)
    status, port, order, resource = (cursor.u32() for _ in range(4))
    if status or resource:
        return None, resource
    if order not in _BYTE_ORDERS:
        raise Malformed(f"byte order {order:#06x}")
    return port, resource

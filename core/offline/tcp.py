# SPDX-License-Identifier: GPL-2.0-or-later
"""The states of a TCP flow as conntrack follows them (nf_conntrack_proto_tcp.c, 6.1).

Which segments are let through, which are invalid, which begin the flow anew. Windows
are not tracked: a segment of a capture counts as in its window.
"""

import enum
from collections.abc import Mapping
from typing import Final

_FIN, _SYN, _RST, _ACK, _URG = 0x01, 0x02, 0x04, 0x10, 0x20
# PSH, ECE and CWR are valid with anything (tcp_valid_flags).
_CHECKED: Final = 0x37
_VALID: Final = frozenset(
    {
        *(_SYN, _SYN | _URG, _SYN | _ACK),
        *(_RST, _RST | _ACK),
        *(_FIN | _ACK, _FIN | _ACK | _URG),
        *(_ACK, _ACK | _URG),
    }
)


class TcpState(enum.IntEnum):
    """TCP_CONNTRACK_*: where a flow stands."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


TCP_TIMEOUTS: Final[Mapping[int, float]] = {
    TcpState.SYN_SENT: 120.0,
    TcpState.SYN_RECV: 60.0,
    TcpState.ESTABLISHED: 432000.0,
    TcpState.FIN_WAIT: 120.0,
    TcpState.CLOSE_WAIT: 60.0,
    TcpState.LAST_ACK: 30.0,
    TcpState.TIME_WAIT: 120.0,
    TcpState.CLOSE: 10.0,
    TcpState.SYN_SENT2: 120.0,
}
"""Seconds: nf_conntrack_tcp_timeout_*."""


# What a segment is by its flags (get_conntrack_index), in the order of the rows below.
_IS_SYN: Final = 0
_IS_SYN_ACK: Final = 1
_IS_FIN: Final = 2
_IS_ACK: Final = 3
_IS_RST: Final = 4
_IS_NONE: Final = -1


class Verdict(enum.Enum):
    """What conntrack makes of a segment."""

    PASS = "pass"  # noqa: S105
    IGNORE = "ignore"
    """Let through, while the entry stays as it is."""
    INVALID = "invalid"
    REOPEN = "reopen"
    """The entry is to be deleted, and the segment begins another flow."""


_IGNORE, _INVALID = -1, -2
# Plain numbers compare faster than members.
ESTABLISHED: Final = int(TcpState.ESTABLISHED)
_NONE: Final = int(TcpState.NONE)
_SYN_SENT: Final = int(TcpState.SYN_SENT)
_SYN_SENT2: Final = int(TcpState.SYN_SENT2)
_SYN_RECV: Final = int(TcpState.SYN_RECV)
_FIN_WAIT: Final = int(TcpState.FIN_WAIT)
_LAST_ACK: Final = int(TcpState.LAST_ACK)
_TIME_WAIT: Final = int(TcpState.TIME_WAIT)
_LETTERS: Final = {
    "SS": TcpState.SYN_SENT,
    "SR": TcpState.SYN_RECV,
    "ES": TcpState.ESTABLISHED,
    "FW": TcpState.FIN_WAIT,
    "CW": TcpState.CLOSE_WAIT,
    "LA": TcpState.LAST_ACK,
    "TW": TcpState.TIME_WAIT,
    "CL": TcpState.CLOSE,
    "S2": TcpState.SYN_SENT2,
    "IG": _IGNORE,
    "IV": _INVALID,
}
# The next state by direction, kind of segment and state (tcp_conntracks). Columns:
# none, SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT,
# CLOSE, SYN_SENT2.
_ROWS: Final = (
    (
        "SS SS IG IG IG IG IG SS SS S2",
        "IV IV SR IV IV IV IV IV IV SR",
        "IV IV FW FW LA LA LA TW CL IV",
        "ES IV ES ES CW CW TW TW CL IV",
        "IV CL CL CL CL CL CL CL CL CL",
    ),
    (
        "IV S2 IV IV IV IV IV SS IV S2",
        "IV SR IG IG IG IG IG IG IG SR",
        "IV IV FW FW LA LA LA TW CL IV",
        "IV IG SR ES CW CW TW TW CL IG",
        "IV CL CL CL CL CL CL CL CL CL",
    ),
)
_NEXT: Final = [
    [[int(_LETTERS[word]) for word in row.split()] for row in rows] for rows in _ROWS
]


class Connection:
    """One flow's state, a TcpState as a number; `advance` takes its segments."""

    __slots__ = (
        "_challenged",
        "_close_begun",
        "_crossed",
        "_last",
        "_last_end",
        "_last_reply",
        "state",
    )

    def __init__(self) -> None:
        self.state = _NONE
        # Whether a FIN came first from one side (IP_CT_TCP_FLAG_CLOSE_INIT).
        self._close_begun = False
        # Whether the SYNs crossed (IP_CT_TCP_SIMULTANEOUS_OPEN).
        self._crossed = False
        # Whether an ACK may answer a SYN that came too late (IP_CT_EXP_CHALLENGE_ACK).
        self._challenged = False
        # Kind and direction of the segment before, and where an ignored one ended.
        self._last = _IS_NONE
        self._last_reply = False
        self._last_end = 0

    def advance(
        self, flags: int, end: int, acknowledged: int, *, reply: bool
    ) -> Verdict:
        """Take a segment (nf_conntrack_tcp_packet).

        By its flags, the sequence number behind its last byte and the one that it
        acknowledges.
        """
        kind = _KINDS[flags & _CHECKED]
        if kind == _IS_NONE:
            return Verdict.INVALID
        following = _NEXT[reply][kind][self.state]
        if following == _INVALID:
            return Verdict.INVALID
        if following == _SYN_SENT and self.state >= _TIME_WAIT:
            if self._close_begun or self._came_last(_IS_RST, reply=reply):
                return Verdict.REOPEN
            following = _IGNORE
        if following == _IGNORE:
            if not self._answers_ignored_syn(kind, acknowledged, reply=reply):
                return self._ignore(kind, end, reply=reply)
            # The two ends are in sync, and conntrack was not.
            self._close_begun = self._challenged = False
            following = _SYN_RECV
        elif following == _TIME_WAIT:
            if self._challenged and self._came_last(_IS_SYN, reply=not reply):
                self._challenged = False
                return Verdict.IGNORE
        elif following == _SYN_SENT2:
            self._crossed = True
        elif following == _SYN_RECV:
            if self._crossed and reply and kind == _IS_ACK:
                following = ESTABLISHED
        elif following == _FIN_WAIT and self.state != _FIN_WAIT:
            self._close_begun = True
        self._last, self._last_reply = kind, reply
        self.state = following
        return Verdict.PASS

    def _came_last(self, kind: int, *, reply: bool) -> bool:
        """Whether the segment before was one of this kind and direction."""
        return self._last == kind and self._last_reply is reply

    def _answers_ignored_syn(
        self, kind: int, acknowledged: int, *, reply: bool
    ) -> bool:
        return (
            kind == _IS_SYN_ACK
            and self._came_last(_IS_SYN, reply=not reply)
            and acknowledged == self._last_end
        )

    def _ignore(self, kind: int, end: int, *, reply: bool) -> Verdict:
        self._last, self._last_reply = kind, reply
        self._last_end = end
        if kind == _IS_SYN and not reply:
            self._crossed = False
            self._challenged = self.state == _LAST_ACK
        return Verdict.IGNORE


def is_syn(flags: int) -> bool:
    """Whether a segment is a SYN that acknowledges nothing."""
    return flags & (_SYN | _ACK | _RST) == _SYN


def is_reset(flags: int) -> bool:
    """Whether a segment is a RST."""
    return bool(flags & _RST)


def sequence_space(flags: int) -> int:
    """What the flags add to a segment's length (segment_seq_plus_len)."""
    return bool(flags & _SYN) + bool(flags & _FIN)


def _kind(flags: int) -> int:
    if flags not in _VALID:
        return _IS_NONE
    if flags & _RST:
        return _IS_RST
    if flags & _SYN:
        return _IS_SYN_ACK if flags & _ACK else _IS_SYN
    return _IS_FIN if flags & _FIN else _IS_ACK


_KINDS: Final = [_kind(flags) for flags in range(_CHECKED + 1)]

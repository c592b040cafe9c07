# SPDX-License-Identifier: GPL-2.0-or-later
"""Which segments of a TCP flow count: those that its two ends can have sent.

Anybody may forge a segment of a flow whose addresses and ports are known, and not know
its sequence numbers. The kernel calls most of these invalid, and they are not queued
(tcp_in_window in nf_conntrack_proto_tcp.c). It lets through any SYN after the handshake
and any answer before it, which the ends ignore or answer; and with
nf_conntrack_tcp_be_liberal all but a RST. None of them must change what is read.

Segments without a payload are not seen here, so the window that they open is not known.
A segment counts that goes on exactly where the direction stands, or that acknowledges
what the other end can have sent. Where the two ends agree on another handshake than the
one that was seen, as after both were started anew, the kernel follows, and so do we:
once a segment has the numbers of its SYN and of the SYN/ACK.
"""

import enum

from cthelper.core.errors import StreamLost
from cthelper.core.packet import Control
from cthelper.core.sequence import MODULUS
from cthelper.core.stream import Stream


class Standing(enum.Enum):
    """What becomes of a segment."""

    IGNORED = "ignored"
    READ = "read"
    ANEW = "anew"
    """It is read, and belongs to a connection that has begun anew."""


def judge(control: Control, own: Stream, peer: Stream, *, answered: bool) -> Standing:
    """Whether a segment counts in its direction's stream, which a SYN begins.

    `answered` is whether conntrack has seen both directions. Raises StreamLost where
    the connection's beginning was missed.
    """
    acknowledged = control.acknowledged
    if control.syn:
        return _synchronize((control.sequence + 1) % MODULUS, acknowledged, own, peer)
    # The text of a RST is not the stream's (RFC 9293, section 3.10.7.4), and neither is
    # what acknowledges nothing.
    if control.rst or acknowledged is None:
        return Standing.IGNORED
    if own.later == control.sequence and peer.later == acknowledged:
        own.begin(control.sequence)
        peer.begin(acknowledged)
        own.acknowledges = acknowledged
        return Standing.ANEW
    if own.begun and control.sequence == own.next:
        own.acknowledges = acknowledged
        return Standing.READ
    # Before an answer nothing can be said, and a first segment may be there to have the
    # flow given up before it has begun.
    if not answered:
        return Standing.IGNORED
    if not own.begun:
        if peer.begun and not peer.has_sent(acknowledged):
            return Standing.IGNORED
        raise StreamLost("mid-stream", "first segment seen is not a SYN")
    if not peer.begun or peer.may_acknowledge(acknowledged):
        own.acknowledges = acknowledged
        return Standing.READ
    return Standing.IGNORED


def _synchronize(
    start: int, acknowledged: int | None, own: Stream, peer: Stream
) -> Standing:
    """A SYN came; without `acknowledged` a connection's first segment."""
    # What cannot answer the other end may be forged: its bytes do not count, and an
    # answer takes its place. So does a second one, where the first was lost behind us.
    answers = not peer.begun
    if acknowledged is not None and peer.begun:
        if acknowledged == peer.later:
            own.later = start
            return Standing.IGNORED
        if not peer.may_acknowledge(acknowledged):
            return Standing.IGNORED
        answers = peer.has_sent(acknowledged)
    if not own.begun or (peer.begun and answers and own.empty):
        own.begin(start)
    elif start != own.first:
        if acknowledged is None:
            own.later = start
        return Standing.IGNORED
    return Standing.READ if answers else Standing.IGNORED

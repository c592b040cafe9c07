# SPDX-License-Identifier: GPL-2.0-or-later
"""IP fragments to whole packets, as conntrack's defragmentation has it (Linux 6.1).

IPv4: net/ipv4/ip_fragment.c; IPv6: net/ipv6/netfilter/nf_conntrack_reasm.c; both upon
net/ipv4/inet_fragment.c. What is dropped there never reaches a helper, so it is dropped
here: overlaps (RFC 5722; since Linux 4.20 for IPv4, too), packets over 65535 bytes,
fragments that contradict each other, and everything new while the queues are full.

The kernel keeps the fragments of different interfaces apart. A capture tells of one
interface at most, so here they meet; that a fragment was captured twice does no harm
while its packet is not complete.
"""

import struct
from bisect import bisect_left
from typing import Final
from weakref import WeakValueDictionary

from cthelper.core.packet import checksum

_IPV4_HEADER: Final = 20
_IPV4_DF: Final = 0x4000
_IPV4_MF: Final = 0x2000
_IPV4_OFFSET: Final = 0x1FFF

_IPV6_HEADER: Final = 40
_IPV6_NEXT_HEADER: Final = 6
_IPV6_FRAGMENT: Final = 44
_IPV6_AUTHENTICATION: Final = 51
_IPV6_NONE: Final = 59
# ipv6_ext_hdr() in net/ipv6/exthdr_core.c, without "none", which ends every walk.
_IPV6_EXTENSIONS: Final = frozenset({0, 43, 44, 51, 60})
_FRAGMENT_HEADER: Final = 8
# ipv6frag_thdr_truncated() in include/net/ipv6_frag.h: TCP, UDP, ICMPv6.
_TRANSPORT_HEADERS: Final = {6: 20, 17: 8, 58: 8}

_LONGEST: Final = 0xFFFF
# ipv4_frags_init_net(), and IPV6_FRAG_TIMEOUT and IPV6_FRAG_HIGH_THRESH in
# include/net/ipv6.h. IPv6 has its own memory: conntrack's queues are not the host's.
_IPV4_SECONDS: Final = 30
_IPV6_SECONDS: Final = 60
_HIGH_THRESHOLD: Final = 4 * 1024 * 1024
_MAX_DISTANCE: Final = 64
# What a fragment and a queue cost beside the bytes: SKB_TRUESIZE(0), struct ipq.
_FRAGMENT_COST: Final = 576
_QUEUE_COST: Final = 216

_ECN: Final = 0x03

_U16 = struct.Struct("!H")


def _congestion(seen: int) -> int | None:
    """What the fragments' ECN fields together make of the packet's; None: drop it.

    `seen` has bit n set where a fragment's field was n: 0 not capable, 1 and 2 capable,
    3 congested (ip_frag_ecn_table in inet_fragment.c, RFC 3168 section 5.3).
    """
    if seen & 1:
        return 0 if seen == 1 else None
    return 3 if seen & 8 and seen != 8 else 0


class _Source:
    """A sender of IPv4 fragments: how many came from it (struct inet_peer)."""

    __slots__ = ("__weakref__", "fragments")

    def __init__(self) -> None:
        self.fragments = 0


class _Queue:
    """The fragments of one packet so far (struct inet_frag_queue)."""

    __slots__ = (
        "cost",
        "deadline",
        "ecn",
        "head",
        "largest",
        "largest_df",
        "last",
        "length",
        "pieces",
        "received",
        "runs",
        "seen",
        "source",
    )

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.source: _Source | None = None
        self.seen = 0
        self.clear()

    def clear(self) -> None:
        """Forget all fragments."""
        self.cost = _QUEUE_COST
        # By offset; and what they cover, in order: [start, stop] of each run.
        self.pieces: dict[int, bytes] = {}
        self.runs: list[list[int]] = []
        self.head = b""
        self.last = False
        self.length = 0
        self.received = 0
        self.ecn = 0
        self.largest = 0
        self.largest_df = 0

    def end(self, stop: int, more: bool) -> bool:
        """Whether a fragment that ends at `stop` agrees with those before it."""
        if not more:
            if stop < self.length or (self.last and stop != self.length):
                return False
            self.last = True
            self.length = stop
        elif stop > self.length:
            if self.last:
                return False
            self.length = stop
        return True

    def insert(self, start: int, piece: bytes) -> bool | None:
        """True where it is new, False where it is there already, None: an overlap.

        inet_frag_queue_insert(): a run is what came in order at the end; a repetition
        within one is passed over, whatever its content.
        """
        stop = start + len(piece)
        runs = self.runs
        last = runs[-1][1] if runs else 0
        if last < stop:
            if start < last:
                return None
            if runs and start == last:
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
        else:
            at = bisect_left(runs, stop, key=_start)
            # Of the runs that begin before `stop` the last one only can hold it all.
            if at and start < runs[at - 1][1]:
                inside = runs[at - 1][0] <= start and stop <= runs[at - 1][1]
                return False if inside else None
            runs.insert(at, [start, stop])
        self.pieces[start] = piece
        self.received += len(piece)
        return True

    @property
    def complete(self) -> bool:
        """Whether first, last and all between are there."""
        return self.last and 0 in self.pieces and self.received == self.length

    def payload(self) -> bytes:
        """The pieces in order."""
        return b"".join(self.pieces[start] for start in sorted(self.pieces))


def _start(run: list[int]) -> int:
    return run[0]


class _Queues:
    """The queues of one address family, bounded in time and memory (struct fqdir).

    A queue lives for `seconds` from its first fragment on, however many follow, so the
    dict is in the order of the deadlines.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._queues: dict[bytes, _Queue] = {}
        self.memory = 0

    def find(self, now: float, key: bytes) -> _Queue | None:
        """The queue of `key`, new or not; None where there is no memory for more.

        inet_frag_find(): nothing is evicted for a new fragment, since that would let a
        flood push out what is nearly whole; the fragments of a flood expire.
        """
        self._expire(now)
        if self.memory > _HIGH_THRESHOLD:
            return None
        queue = self._queues.get(key)
        # The clock may have gone back between this queue and an older one.
        if queue is not None and queue.deadline <= now:
            self.kill(key)
            queue = None
        if queue is None:
            queue = self._queues[key] = _Queue(now + self._seconds)
            self.memory += queue.cost
        return queue

    def charge(self, queue: _Queue, size: int) -> None:
        """Count a fragment of `size` bytes that the queue keeps."""
        cost = size + _FRAGMENT_COST
        queue.cost += cost
        self.memory += cost

    def restart(self, now: float, key: bytes) -> None:
        """Empty the queue of `key` and give it its full time again."""
        queue = self._queues.pop(key)
        self.memory -= queue.cost
        queue.clear()
        queue.deadline = now + self._seconds
        self._queues[key] = queue
        self.memory += queue.cost

    def kill(self, key: bytes) -> None:
        """Drop a queue and what is in it."""
        self.memory -= self._queues.pop(key).cost

    def _expire(self, now: float) -> None:
        while self._queues:
            key = next(iter(self._queues))
            if self._queues[key].deadline > now:
                return
            self.kill(key)


class Reassembler:
    """Collects fragments until their packet is whole."""

    def __init__(self) -> None:
        self._ipv4 = _Queues(_IPV4_SECONDS)
        self._ipv6 = _Queues(_IPV6_SECONDS)
        self._sources: WeakValueDictionary[bytes, _Source] = WeakValueDictionary()

    def feed(self, now: float, packet: bytes) -> bytes | None:
        """The whole packet, where this fragment was the last that it lacked.

        `now` is in seconds, of any clock. None where more is to come, or where the
        kernel would drop the fragment. A packet that is no fragment comes back as it
        is. Padding of the link layer may follow the fragment; it is left out.
        """
        version = packet[0] >> 4 if packet else 0
        if version == 4 and len(packet) >= _IPV4_HEADER:
            return self._feed_ipv4(now, packet)
        if version == 6 and len(packet) >= _IPV6_HEADER:
            return self._feed_ipv6(now, packet)
        return None

    def _feed_ipv4(self, now: float, packet: bytes) -> bytes | None:
        header = (packet[0] & 0x0F) * 4
        (length,) = _U16.unpack_from(packet, 2)
        if not _IPV4_HEADER <= header <= length <= len(packet):
            return None
        (field,) = _U16.unpack_from(packet, 6)
        if not field & (_IPV4_MF | _IPV4_OFFSET):
            return packet
        key = packet[12:20] + packet[4:6] + packet[9:10]
        queue = self._ipv4.find(now, key)
        if queue is None:
            return None
        if self._too_far(queue, packet[12:16]):
            self._ipv4.restart(now, key)
        # ip_frag_queue()
        more = bool(field & _IPV4_MF)
        start = (field & _IPV4_OFFSET) * 8
        stop = start + length - header
        if more:
            stop &= ~7
        if not queue.end(stop, more) or stop == start:
            self._ipv4.kill(key)
            return None
        size = stop - start
        new = queue.insert(start, packet[header : header + size])
        if new is None:
            self._ipv4.kill(key)
        if not new:
            return None
        self._ipv4.charge(queue, length)
        queue.ecn |= 1 << (packet[1] & _ECN)
        queue.largest = max(queue.largest, header + size)
        if field & _IPV4_DF:
            queue.largest_df = max(queue.largest_df, header + size)
        if start == 0:
            queue.head = packet[:header]
        if not queue.complete:
            return None
        self._ipv4.kill(key)
        return _join_ipv4(queue)

    def _too_far(self, queue: _Queue, address: bytes) -> bool:
        """Whether the sender has sent so much since that its numbers may have wrapped.

        ip_frag_too_far(); net.ipv4.ipfrag_max_dist.
        """
        source = queue.source
        if source is None:
            source = self._sources.get(address)
            if source is None:
                source = self._sources[address] = _Source()
            queue.source = source
        source.fragments += 1
        distance = source.fragments - queue.seen
        queue.seen = source.fragments
        return bool(queue.pieces) and distance > _MAX_DISTANCE

    def _feed_ipv6(self, now: float, packet: bytes) -> bytes | None:
        # nf_ct_frag6_gather()
        (length,) = _U16.unpack_from(packet, 4)
        stop = _IPV6_HEADER + length
        if stop > len(packet):
            return None
        # A jumbogram (its length is 0) has no fragment header.
        found = _find_fragment_header(packet, stop) if length else None
        if found is None:
            return packet
        previous, header = found
        start = header + _FRAGMENT_HEADER
        if start > stop or _lacks_transport_header(packet, header, stop):
            return None
        key = packet[8:40] + packet[header + 4 : header + 8]
        queue = self._ipv6.find(now, key)
        if queue is None:
            return None
        # nf_ct_frag6_queue()
        (field,) = _U16.unpack_from(packet, header + 2)
        more = bool(field & 1)
        offset = field & ~7
        end = offset + stop - start
        if end > _LONGEST:
            return None
        if more and end % 8:
            self._ipv6.kill(key)
            return None
        # Other than for IPv4, these do not take the queue with them.
        if not queue.end(end, more) or end == offset:
            return None
        new = queue.insert(offset, packet[start:stop])
        if new is None:
            self._ipv6.kill(key)
        if not new:
            return None
        self._ipv6.charge(queue, stop)
        queue.ecn |= 1 << (packet[1] >> 4 & _ECN)
        if offset == 0:
            # Its next header moves to the header before the fragment header.
            head = bytearray(packet[:header])
            head[previous] = packet[header]
            queue.head = bytes(head)
        if not queue.complete:
            return None
        self._ipv6.kill(key)
        return _join_ipv6(queue)


def _join_ipv4(queue: _Queue) -> bytes | None:
    """ip_frag_reasm()."""
    congestion = _congestion(queue.ecn)
    length = len(queue.head) + queue.length
    if congestion is None or length > _LONGEST:
        return None
    head = bytearray(queue.head)
    head[1] |= congestion
    _U16.pack_into(head, 2, length)
    # Only a fragment that was the largest says that the packet must not be fragmented.
    whole = queue.largest_df == queue.largest
    _U16.pack_into(head, 6, _IPV4_DF if whole else 0)
    _U16.pack_into(head, 10, 0)
    _U16.pack_into(head, 10, checksum(bytes(head)))
    return bytes(head) + queue.payload()


def _join_ipv6(queue: _Queue) -> bytes | None:
    """nf_ct_frag6_reasm()."""
    congestion = _congestion(queue.ecn)
    length = len(queue.head) - _IPV6_HEADER + queue.length
    if congestion is None or length > _LONGEST:
        return None
    head = bytearray(queue.head)
    head[1] |= congestion << 4
    _U16.pack_into(head, 4, length)
    return bytes(head) + queue.payload()


def _find_fragment_header(packet: bytes, stop: int) -> tuple[int, int] | None:
    """Offsets of the next header field before the fragment header, and of that header.

    find_prev_fhdr().
    """
    kind, previous, at = packet[_IPV6_NEXT_HEADER], _IPV6_NEXT_HEADER, _IPV6_HEADER
    while kind != _IPV6_FRAGMENT:
        if kind not in _IPV6_EXTENSIONS or at + 2 > stop:
            return None
        kind, previous, at = packet[at], at, at + _extension_size(packet, kind, at)
    return (previous, at) if at <= stop else None


def _extension_size(packet: bytes, kind: int, at: int) -> int:
    if kind == _IPV6_FRAGMENT:
        return _FRAGMENT_HEADER
    if kind == _IPV6_AUTHENTICATION:
        return (packet[at + 1] + 2) * 4
    return (packet[at + 1] + 1) * 8


def _lacks_transport_header(packet: bytes, at: int, stop: int) -> bool:
    """Whether a first fragment ends within its headers (RFC 8200, section 4.5).

    ipv6frag_thdr_truncated() and ipv6_skip_exthdr(). An extension header that is cut
    counts as not lacking there, so it does here.
    """
    kind = _IPV6_FRAGMENT
    while kind in _IPV6_EXTENSIONS:
        if at + (4 if kind == _IPV6_FRAGMENT else 2) > stop:
            return False
        if kind == _IPV6_FRAGMENT and _U16.unpack_from(packet, at + 2)[0] & ~7:
            return False
        kind, at = packet[at], at + _extension_size(packet, kind, at)
    return kind != _IPV6_NONE and at + _TRANSPORT_HEADERS.get(kind, 1) > stop

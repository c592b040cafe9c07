# SPDX-License-Identifier: GPL-2.0-or-later
"""A model of the kernel's table of flows, with its expectations. No I/O.

It does for a capture what conntrack does for a gateway: which flow a packet belongs
to, in which direction and state, whether it met an expectation, when flows and
expectations end. The rules are those of Linux 6.1 (the file is named at each); a test
holds the model against a real kernel with random packets and expectations.

A capture shows one side of NAT. `Nat` says what the other side showed; flows are found
by what the capture shows of them, and their tuples are the kernel's.

Not modelled: the choice of ports by NAT, zones, TCP's windows and the shorter timeouts
of unanswered data (tcp_in_window), ICMP, and a helper named for the expected flow,
which Linux 6.1 attaches only where the expectation rode in a verdict.
"""

import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cthelper.core.config import HelperConfig
from cthelper.core.errors import Malformed
from cthelper.core.offline.blocks import Batch
from cthelper.core.offline.entries import Entry, Expected, Timeouts
from cthelper.core.offline.expectations import Expectations, Outcome
from cthelper.core.offline.fragments import Reassembler
from cthelper.core.offline.history import History
from cthelper.core.offline.nat import Nat, Tuples
from cthelper.core.offline.tcp import (
    ESTABLISHED,
    Connection,
    TcpState,
    Verdict,
    is_reset,
    is_syn,
    sequence_space,
)
from cthelper.core.packet import COPIED, Segment, locate
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Direction,
    Expectation,
    Transport,
    Tuple,
)

# What is read at once of a packet without options or extension headers: its length,
# the fragment's place (of IPv4), the protocol, addresses and ports, and TCP's data
# offset and flags. Shorter packets take the slow way.
_PLAIN4: Final = 0x45
_FRAGMENT4: Final = 0x3FFF
_READ4: Final = struct.Struct("!2xHxxHxB2x12s8xBB")
_READ6: Final = struct.Struct("!4xHBx36s8xBB")
_SHORT4: Final = 34
_SHORT6: Final = 54
_HEADER4: Final = 20
_HEADER6: Final = 40
_TCP_HEADER: Final = 20
_UDP_HEADER: Final = 8
_UDP_LENGTH: Final = 4
# TCP's sequence number, and what it acknowledges.
_NUMBERS: Final = struct.Struct("!4xII")
_FLAGS: Final = 13
# What conntrack reads of the transports' headers.
_HEADERS: Final = {TCP: 14, UDP: 8}
# RST, SYN, FIN and ACK; of these only ACK: nothing changes in an established flow.
_STATE_FLAGS: Final = 0x17
_ACK: Final = 0x10
_SYN: Final = 0x02

# New flows between two sweeps, at least.
_SWEEP: Final = 4096


class State(enum.Enum):
    """What nft's ``ct state`` says of a packet."""

    NEW = "new"
    ESTABLISHED = "established"
    RELATED = "related"
    INVALID = "invalid"


@dataclass(slots=True)
class Seen:
    """What conntrack says of a packet; `packet` is the whole IP packet.

    `entry` is None for an invalid packet that belongs to no flow. `met` is the
    expectation that this packet met, `created` whether it began the flow. `missed` is
    the helper that the flow would have, had it not begun in mid-stream with a segment
    of its server's. `segment` is what `locate` finds in `packet`, or None where that
    was not found out.
    """

    entry: Entry | None
    direction: Direction
    packet: bytes
    state: State
    met: Expected | None
    created: bool
    missed: HelperConfig | None
    segment: Segment | None

    def __init__(
        self,
        entry: Entry | None,
        direction: Direction,
        packet: bytes,
        state: State,
        met: Expected | None = None,
        created: bool = False,
        missed: HelperConfig | None = None,
    ) -> None:
        self.entry = entry
        self.direction = direction
        self.packet = packet
        self.state = state
        self.met = met
        self.created = created
        self.missed = missed
        self.segment = None


class Table:
    """Flows and expectations.

    `helpers` are attached to new flows as the ruleset does it: the first one that tags
    a flow stays (nft_ct_helper_obj_eval in nft_ct.c). `nat` is what was translated
    where the packets were seen. `on_destroy` is told of each flow that ends, `on_miss`
    of each that begins to where others were expected, with those, and `history` of all
    that becomes of expectations. `expect_max` bounds the expectations
    (nf_conntrack_expect_max). `hands_down` is what Linux 6.12.95 does: an expected flow
    has its master's helper (`Kernel` in core/daemon/probe.py).

    `now` is the time of the last packet that was looked at in a batch, in seconds; it
    never goes back.
    """

    def __init__(
        self,
        helpers: Mapping[str, HelperConfig],
        *,
        nat: Nat | None = None,
        timeouts: Timeouts | None = None,
        expect_max: int = 4096,
        on_destroy: Callable[[Entry], None] | None = None,
        on_miss: Callable[[Tuple, list[Expectation]], None] | None = None,
        history: History | None = None,
        hands_down: bool = False,
    ) -> None:
        self._hands_down = hands_down
        self.now = 0.0
        self.packets = 0
        self.flows = 0
        self._timeouts = timeouts or Timeouts()
        self._established = self._timeouts.tcp[TcpState.ESTABLISHED]
        self._on_destroy = on_destroy
        # By their keys in either direction.
        self._udp: dict[bytes, Entry] = {}
        self._tcp: dict[bytes, Entry] = {}
        self._nat = nat
        # Behind NAT, by their original tuples.
        self._originals: dict[Tuple, Entry] = {}
        self._history = history
        self._on_miss = on_miss
        self._expected = Expectations(
            nat, expect_max, self._destroy, None if history is None else history.ended
        )
        self._fragments = Reassembler()
        self._until_sweep = _SWEEP
        self._tags: dict[tuple[Transport, bytes], list[HelperConfig]] = {}
        for config in helpers.values():
            for transport in config.helper.transports:
                for port in config.ports:
                    tags = self._tags.setdefault((transport, port.to_bytes(2)), [])
                    tags.append(config)

    def pass_over(self, batch: Batch, due: float) -> Seen | None:
        """Take packets of a batch up to one that somebody wants to know of.

        That is None at the batch's end, and before a packet that comes at the time
        `due` or later. Nobody wants to know of what a helper can do nothing about:
        neither TCP nor UDP, an incomplete packet, an invalid one, a flow that has no
        helper and misses none. Others are to be confirmed by the caller.

        What most packets are is decided by a look into a dictionary, before anything is
        made for them. The answers are those of `track` for each packet.
        """
        data, places = batch.data, batch.places
        at, end = batch.at, len(places)
        read4, read6 = _READ4.unpack_from, _READ6.unpack_from
        tcp, udp = self._tcp, self._udp
        established = self._established
        now = self.now
        quiet = 0
        seen: Seen | None = None
        length: int
        fragment: int
        protocol: int
        key: bytes
        offset: int
        flags: int
        while at < end and seen is None:
            number, time, _, start, stop = places[at]
            if time > now:
                if time >= due:
                    break
                now = time
            at += 1
            size = stop - start
            header = 0
            # A longer one may not have been copied whole.
            if _SHORT4 <= size < COPIED:
                if data[start] == _PLAIN4:
                    length, fragment, protocol, key, offset, flags = read4(data, start)
                    if not fragment & _FRAGMENT4:
                        header = _HEADER4
                        length -= _HEADER4
                elif size >= _SHORT6 and data[start] >> 4 == 6:
                    length, protocol, key, offset, flags = read6(data, start)
                    header = _HEADER6
            # As `locate` has it, where `length` is that of what follows the IP header.
            if header and protocol == TCP:
                offset = offset >> 2 & 0x3C
                if _TCP_HEADER <= offset <= length:
                    entry = tcp.get(key)
                    if (
                        entry is not None
                        and entry.quiet
                        and flags & _STATE_FLAGS == _ACK
                        and now < entry.expires
                    ):
                        entry.expires = now + established
                        quiet += 1
                        continue
                    self.now = now
                    self.packets += 1
                    seen = self._see_tcp(
                        number, data, start, stop, header, offset, length, key, flags
                    )
                    continue
            elif header and protocol == UDP:
                place = start + header + _UDP_LENGTH
                offset = data[place] << 8 | data[place + 1]
                if _UDP_HEADER <= offset <= length:
                    entry = udp.get(key)
                    if entry is not None and entry.quiet and now < entry.expires:
                        entry.renew_udp(self._timeouts, now, reply=key != entry.key)
                        quiet += 1
                        continue
                    self.now = now
                    self.packets += 1
                    seen = self._wanted(
                        self._track_udp(number, now, data[start:stop], key)
                    )
                    if seen is not None and header + length <= size:
                        behind = header + _UDP_HEADER
                        seen.segment = Segment(UDP, header, behind, header + offset)
                    continue
            self.now = now
            seen = self._wanted(self.track(number, now, data[start:stop], 0))
        self.now = now
        self.packets += quiet
        batch.at = at
        return seen

    def look_at_each(self, batch: Batch, due: float) -> Seen | None:
        """As `pass_over`, but up to any packet of which `track` says something."""
        while batch.at < len(batch.places):
            number, time, _, start, stop = batch.places[batch.at]
            if time > self.now:
                if time >= due:
                    break
                self.now = time
            batch.at += 1
            seen = self.track(number, self.now, batch.data[start:stop], 0)
            if seen is not None:
                return seen
        return None

    def _see_tcp(
        self,
        number: int,
        data: bytes,
        start: int,
        stop: int,
        header: int,
        size: int,
        length: int,
        key: bytes,
        flags: int,
    ) -> Seen | None:
        """Take a segment that is not of a quiet flow, as far as somebody wants to know.

        Its TCP header begins `header` bytes behind `start`, and has `size` bytes of the
        segment's `length`.
        """
        now = self.now
        sequence: int
        acknowledged: int
        sequence, acknowledged = _NUMBERS.unpack_from(data, start + header)
        end = sequence + length - size + sequence_space(flags) & 0xFFFFFFFF
        entry = self._find(self._tcp, key, now)
        if entry is not None and entry.helper is None:
            reply = key != entry.key
            verdict = self._advance(now, entry, flags, end, acknowledged, reply=reply)
            if verdict is not Verdict.REOPEN:
                return None
            entry = None
        packet = data[start:stop]
        if entry is None:
            found = self._begin_tcp(number, now, packet, key, flags, end, acknowledged)
        else:
            found = self._track_tcp(number, now, packet, key, flags, end, acknowledged)
        seen = self._wanted(found)
        if seen is not None and start + header + length <= stop:
            seen.segment = Segment(
                TCP,
                header,
                header + size,
                header + length,
                sequence,
                bool(flags & _SYN),
            )
        return seen

    def _wanted(self, seen: Seen | None) -> Seen | None:
        """It, if somebody wants to know of it; else its flow is confirmed."""
        if seen is None or seen.entry is None or seen.state is State.INVALID:
            return None
        if seen.entry.helper or seen.met or seen.missed:
            return seen
        self.confirm(seen.entry)
        return None

    def track(self, number: int, now: float, data: bytes, start: int) -> Seen | None:
        """What conntrack says of any TCP or UDP packet, invalid ones included.

        The caller confirms its entry when it lets the packet go on. None where there is
        no such packet: another protocol, a fragment that completes nothing, headers
        that contradict each other. A packet that the capture has cut counts as whole:
        the gateway saw all of it.
        """
        packet = data[start:]
        segment = _locate(packet)
        if segment is None:
            whole = self._fragments.feed(now, packet)
            segment = None if whole is None else _locate(whole)
            if whole is None or segment is None:
                return None
            packet = whole
        self.packets += 1
        at = segment.header
        ends = packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]
        key = ends + packet[at : at + 4]
        if segment.transport is UDP:
            return self._track_udp(number, now, packet, key)
        flags = packet[at + _FLAGS]
        end = segment.sequence + segment.stop - segment.start + sequence_space(flags)
        acknowledged = int.from_bytes(packet[at + 8 : at + 12])
        return self._track_tcp(
            number, now, packet, key, flags, end & 0xFFFFFFFF, acknowledged
        )

    def _track_udp(self, number: int, now: float, packet: bytes, key: bytes) -> Seen:
        entry = self._find(self._udp, key, now)
        if entry is None:
            entry, met = self._begin(number, now, UDP, key, None)
            entry.renew_udp(self._timeouts, now, reply=False)
            return Seen(entry, ORIGINAL, packet, _state(entry), met, created=True)
        reply = key != entry.key
        state = State.ESTABLISHED if reply else _state(entry)
        entry.renew_udp(self._timeouts, now, reply=reply)
        return Seen(entry, REPLY if reply else ORIGINAL, packet, state)

    def _track_tcp(
        self,
        number: int,
        now: float,
        packet: bytes,
        key: bytes,
        flags: int,
        end: int,
        acknowledged: int,
    ) -> Seen:
        entry = self._find(self._tcp, key, now)
        if entry is not None:
            reply = key != entry.key
            state = State.ESTABLISHED if reply else _state(entry)
            verdict = self._advance(now, entry, flags, end, acknowledged, reply=reply)
            if verdict is not Verdict.REOPEN:
                if verdict is Verdict.INVALID:
                    state = State.INVALID
                return Seen(entry, REPLY if reply else ORIGINAL, packet, state)
        return self._begin_tcp(number, now, packet, key, flags, end, acknowledged)

    def _begin_tcp(
        self,
        number: int,
        now: float,
        packet: bytes,
        key: bytes,
        flags: int,
        end: int,
        acknowledged: int,
    ) -> Seen:
        connection = Connection()
        verdict = connection.advance(flags, end, acknowledged, reply=False)
        if verdict is Verdict.INVALID:
            # The expectation is looked for before the segment is judged.
            self._expected.meet(now, TCP, key)
            return Seen(None, ORIGINAL, packet, State.INVALID)
        entry, met = self._begin(number, now, TCP, key, connection)
        entry.renew_tcp(self._timeouts, now)
        missed = None
        if not is_syn(flags) and met is None and entry.helper is None:
            missed = self._tagging(entry, REPLY)
        return Seen(
            entry, ORIGINAL, packet, _state(entry), met, created=True, missed=missed
        )

    def _advance(
        self,
        now: float,
        entry: Entry,
        flags: int,
        end: int,
        acknowledged: int,
        *,
        reply: bool,
    ) -> Verdict:
        """Take a segment of a known flow; the entry is gone where it reopens that."""
        connection = entry.tcp
        assert connection is not None  # noqa: S101 - it is in the table of TCP
        verdict = connection.advance(flags, end, acknowledged, reply=reply)
        if verdict is Verdict.INVALID:
            return verdict
        if verdict is Verdict.REOPEN:
            self._destroy(entry)
            return verdict
        if verdict is Verdict.PASS:
            if not entry.seen_reply and is_reset(flags):
                # A refused connection is forgotten at once.
                self._destroy(entry)
            elif entry.seen_reply or not is_syn(flags):
                # A repeated SYN does not renew what nobody has answered.
                entry.renew_tcp(self._timeouts, now)
        if reply:
            entry.seen_reply = True
        entry.quiet = (
            entry.helper is None
            and entry.assured
            and verdict is Verdict.PASS
            and connection.state == ESTABLISHED
        )
        return verdict

    def _find(self, flows: dict[bytes, Entry], key: bytes, now: float) -> Entry | None:
        entry = flows.get(key)
        if entry is not None and entry.expires <= now:
            self._destroy(entry)
            return None
        return entry

    def _begin(
        self,
        number: int,
        now: float,
        transport: Transport,
        key: bytes,
        connection: Connection | None,
    ) -> tuple[Entry, Expected | None]:
        """A new flow, which is not in the table yet (init_conntrack)."""
        self.flows += 1
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._sweep(now)
        entry = Entry(self.flows, number, transport, key, now, connection)
        met = self._expected.meet(now, transport, key)
        if self._nat is not None:
            entry.translate(_translated(self._nat, entry, met))
        if met is None and self._on_miss is not None:
            missed = self._expected.near(entry)
            if missed:
                self._on_miss(entry.original, missed)
        if met is not None:
            entry.master = met.master
            config = met.master.helper
            if config is not None and (
                self._hands_down
                or (config.tags_expected and transport in config.helper.transports)
            ):
                entry.helper = config
        else:
            # Only a packet that is "new" to the ruleset is tagged, no related one.
            entry.helper = self._tagging(entry, ORIGINAL)
        entry.quiet = entry.helper is None and transport is UDP
        return entry, met

    def _tagging(self, entry: Entry, direction: Direction) -> HelperConfig | None:
        """The helper that the ruleset attaches to a flow that begins like this."""
        key = entry.key if direction is ORIGINAL else entry.reply_key
        for config in self._tags.get((entry.transport, key[-2:]), ()):
            # Most flows never need their tuples.
            if config.tags(entry.original if direction is ORIGINAL else entry.reply):
                return config
        return None

    def confirm(self, entry: Entry) -> None:
        """The first packet has gone on: the flow enters the table.

        __nf_conntrack_confirm in nf_conntrack_core.c. Later calls change nothing.
        """
        if entry.confirmed or entry.gone:
            return
        entry.confirmed = True
        flows = self._udp if entry.transport is UDP else self._tcp
        flows[entry.reply_key] = entry
        flows[entry.key] = entry
        if self._nat is not None:
            self._originals[entry.original] = entry

    def keep(self, now: float, entry: Entry, seconds: float) -> None:
        """Set what is left of an entry's life (ctnetlink_change_timeout).

        One that is not confirmed stays as it is.
        """
        if entry.confirmed:
            entry.expires = now + seconds

    @staticmethod
    def leave(entry: Entry) -> None:
        """Have a flow no longer inspected."""
        entry.helper = None
        entry.quiet = entry.transport is UDP

    def find(self, original: Tuple) -> Entry | None:
        """The entry with this original tuple."""
        if self._nat is not None:
            return self._originals.get(original)
        flows = self._udp if original.transport is UDP else self._tcp
        key = (
            original.source.address.packed
            + original.destination.address.packed
            + original.source.port.to_bytes(2)
            + original.destination.port.to_bytes(2)
        )
        entry = flows.get(key)
        return None if entry is None or key != entry.key else entry

    # Expectations

    def expect(
        self, now: float, master: Entry, expectation: Expectation, frame: int
    ) -> tuple[Outcome, Expected | None]:
        """Put in an expectation of `master`, as `Expectations.put` has it."""
        return self._expected.put(now, master, expectation, frame)

    def replace(
        self,
        now: float,
        old: Sequence[Expected],
        master: Entry,
        new: Expectation,
        frame: int,
    ) -> Outcome:
        """Put in an expectation in place of others, the first of which it goes on as.

        It counts as made when that was made; in `frame` where there is none.
        """
        for each in old:
            self._expected.replace(each)
        first = min((each.frame for each in old), default=frame)
        outcome, expected = self._expected.put(now, master, new, first)
        if self._history is not None and expected is not None:
            self._history.replaced(old, expected)
        return outcome

    def covering(self, now: float, expectation: Expectation) -> Expected | None:
        """The expectation in the table that covers this one."""
        return self._expected.covering(now, expectation)

    def towards(self, now: float, expectation: Expectation) -> list[Expected]:
        """The expectations in the table that lead to the same destination."""
        return self._expected.towards(now, expectation)

    def withdraw(self, expectation: Expectation) -> None:
        """Take out an expectation of its master, if both are there."""
        master = self.find(expectation.master)
        if master is not None:
            self._expected.withdraw(master, expectation)

    def live(self, now: float) -> list[Expected]:
        """The expectations in the table."""
        return self._expected.live(now)

    # Ends

    def _destroy(self, entry: Entry) -> None:
        """Take a flow out, and its expectations with it (nf_ct_remove_expectations)."""
        self._expected.forget(entry)
        if entry.gone:
            return
        entry.gone = True
        flows = self._udp if entry.transport is UDP else self._tcp
        for key in (entry.key, entry.reply_key):
            if flows.get(key) is entry:
                del flows[key]
        if self._nat is not None and self._originals.get(entry.original) is entry:
            del self._originals[entry.original]
        if self._on_destroy is not None:
            self._on_destroy(entry)

    def _sweep(self, now: float) -> None:
        """Forget what has ended, as often as the table may have doubled."""
        for flows in (self._udp, self._tcp):
            for key, entry in list(flows.items()):
                if key == entry.key and entry.expires <= now:
                    self._destroy(entry)
        self._expected.live(now)
        self._until_sweep = max(_SWEEP, len(self._udp) + len(self._tcp))


def _locate(packet: bytes) -> Segment | None:
    """The segment in a packet; its header is there where the capture has cut it."""
    try:
        return locate(packet)
    except Malformed:
        pass
    wanted = _length(packet)
    if wanted <= len(packet):
        return None
    try:
        segment = locate(packet.ljust(wanted, b"\0"))
    except Malformed:
        return None
    if segment is None or segment.header + _HEADERS[segment.transport] > len(packet):
        return None
    return segment


def _length(packet: bytes) -> int:
    """What the IP header says, or 0."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4])
    if len(packet) >= 40 and packet[0] >> 4 == 6:
        return 40 + int.from_bytes(packet[4:6])
    return 0


def _state(entry: Entry) -> State:
    """Of a packet in the original direction (resolve_normal_ct)."""
    if entry.seen_reply:
        return State.ESTABLISHED
    return State.NEW if entry.master is None else State.RELATED


def _translated(nat: Nat, entry: Entry, met: Expected | None) -> Tuples:
    """The tuples of a flow of which the capture shows the entry's."""
    seen = entry.shown(ORIGINAL)
    if met is None:
        return nat.begin(seen)
    return nat.follow(seen, met.expectation, met.master.tuples)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A model of the kernel's table of flows and of its table of expectations. No I/O.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cthelper.core.config import HelperConfig
from cthelper.core.errors import Malformed
from cthelper.core.offline.fragments import Reassembler
from cthelper.core.offline.nat import Nat, Tuples
from cthelper.core.offline.tcp import (
    TCP_TIMEOUTS,
    Connection,
    TcpState,
    Verdict,
    is_reset,
    is_syn,
    sequence_space,
)
from cthelper.core.packet import Segment, locate
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Conntrack,
    Direction,
    Endpoint,
    Expectation,
    Status,
    Transport,
    Tuple,
)

# The first bytes of a packet up to TCP's flags: shorter ones take the slow way.
_SHORT4: Final = 34
_SHORT6: Final = 54
_PLAIN4: Final = 0x45
_FLAGS: Final = 13
# What conntrack reads of the transports' headers.
_HEADERS: Final = {TCP: 14, UDP: 8}
# RST, SYN, FIN and ACK; of these only ACK: nothing changes in an established flow.
_STATE_FLAGS: Final = 0x17
_ACK: Final = 0x10

_ESTABLISHED: Final = int(TcpState.ESTABLISHED)
# Members of a Flag are slow to combine: all that a flow may have, by its properties
# confirmed, seen_reply, expected and tagged.
_STATUS: Final = tuple(
    Status(
        confirmed * Status.CONFIRMED
        | seen * Status.SEEN_REPLY
        | expected * Status.EXPECTED
        | tagged * Status.HELPER
    )
    for confirmed in (0, 1)
    for seen in (0, 1)
    for expected in (0, 1)
    for tagged in (0, 1)
)

# A UDP flow is a stream after this many seconds (nf_conntrack_udp_packet).
_STREAM_SECONDS: Final = 2.0
# New flows between two sweeps, at least.
_SWEEP: Final = 4096


class State(enum.Enum):
    """What nft's ``ct state`` says of a packet."""

    NEW = "new"
    ESTABLISHED = "established"
    RELATED = "related"
    INVALID = "invalid"


class Outcome(enum.Enum):
    """What becomes of an expectation. Refusals are the reason codes of the log."""

    CREATED = "created"
    REFRESHED = "refreshed"
    CLASH = "kernel-ebusy"
    FULL = "kernel-emfile"
    ALREADY = "kernel-ealready"
    INVALID = "kernel-einval"
    NO_MASTER = "kernel-enoent"
    NO_HELPER = "kernel-enotsup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds: nf_conntrack_udp_timeout, ..._udp_timeout_stream, TCP's by its states.

    The defaults are the kernel's (nf_conntrack_proto_udp.c, nf_conntrack_proto_tcp.c).
    """

    udp: float = 30.0
    udp_stream: float = 120.0
    tcp: Mapping[int, float] = field(default_factory=lambda: TCP_TIMEOUTS)
    tcp_unacknowledged: float = 300.0


class Entry:
    """A flow. `frame` is the number of its first packet, `expires` a time.

    `helper` is what is attached to it now, `master` the flow that expected it.
    """

    __slots__ = (
        "_tuples",
        "confirmed",
        "expectations",
        "expires",
        "frame",
        "gone",
        "helper",
        "id",
        "key",
        "master",
        "quiet",
        "reply_key",
        "seen_reply",
        "stream_at",
        "tcp",
        "transport",
    )

    def __init__(
        self, id_: int, frame: int, transport: Transport, key: bytes, now: float
    ) -> None:
        self.id = id_
        self.frame = frame
        self.transport = transport
        self.key = key
        self.reply_key = _turned(key)
        self._tuples: Tuples | None = None
        self.helper: HelperConfig | None = None
        self.master: Entry | None = None
        # Newest first, as the kernel's list (nf_ct_expect_insert).
        self.expectations: list[Expected] = []
        self.confirmed = False
        self.gone = False
        self.seen_reply = False
        # Whether its next packet changes nothing but the timeout, and nobody wants to
        # know: no helper, and for TCP established.
        self.quiet = False
        self.expires = now
        self.stream_at = now + _STREAM_SECONDS
        self.tcp = Connection() if transport is TCP else None

    @property
    def original(self) -> Tuple:
        """The tuple of its first packet, before translation."""
        return self.tuples.original

    @property
    def reply(self) -> Tuple:
        """The tuple of the answers, before translation."""
        return self.tuples.reply

    @property
    def tuples(self) -> Tuples:
        """Both; those that the capture shows, unless `translate` has said others."""
        # Most flows never need them.
        if self._tuples is None:
            self._tuples = Tuples(self.shown(ORIGINAL), self.shown(REPLY), here=True)
        return self._tuples

    def translate(self, tuples: Tuples) -> None:
        """Behind NAT the flow has these."""
        self._tuples = tuples

    def shown(self, direction: Direction) -> Tuple:
        """The tuple of a packet in this direction as the capture shows it."""
        key = self.key if direction is ORIGINAL else self.reply_key
        return _tuple(self.transport, key)

    def conntrack(self, now: float) -> Conntrack:
        """The entry as the kernel would report it at the time `now`."""
        tagged, expected = self.helper is not None, self.master is not None
        status = _STATUS[
            self.confirmed << 3 | self.seen_reply << 2 | expected << 1 | tagged
        ]
        return Conntrack(
            id=self.id,
            original=self.original,
            reply=self.reply,
            status=status,
            helper=None if self.helper is None else self.helper.helper.name,
            timeout=max(0, int(self.expires - now)),
            master=None if self.master is None else self.master.original,
        )


class Expected:
    """An expectation in the table, made in `frame`; `helper` is its master's.

    `key` is its destination, and `shown` that of a packet that meets it, as the capture
    shows it.
    """

    __slots__ = (
        "class_",
        "expectation",
        "expires",
        "frame",
        "helper",
        "key",
        "mask",
        "master",
        "port",
        "port_mask",
        "shown",
        "source",
    )

    def __init__(
        self, expectation: Expectation, master: Entry, frame: int, helper: str
    ) -> None:
        self.expectation = expectation
        self.master = master
        self.frame = frame
        self.helper = helper
        self.expires = 0.0
        # The class goes to the kernel beside a helper's name only.
        self.class_ = 0 if expectation.helper is None else expectation.class_
        self.key = _destination_key(expectation.transport, expectation.destination)
        self.shown = self.key
        network = expectation.source
        self.source = 0 if network is None else int(network.network_address)
        self.mask = 0 if network is None else int(network.netmask)
        self.port = expectation.source_port or 0
        self.port_mask = 0 if expectation.source_port is None else 0xFFFF

    def takes(self, source: int, port: int) -> bool:
        """Whether it covers a source, its destination being equal."""
        return source & self.mask == self.source and port & self.port_mask == self.port

    def equals(self, other: "Expected") -> bool:
        """Same destination, source and masks (expect_matches)."""
        return (self.source, self.mask, self.port, self.port_mask) == (
            other.source,
            other.mask,
            other.port,
            other.port_mask,
        )

    def clashes(self, other: "Expected") -> bool:
        """Whether one packet could meet both (expect_clash)."""
        mask = self.mask & other.mask
        ports = self.port_mask & other.port_mask
        return (
            self.source & mask == other.source & mask
            and self.port & ports == other.port & ports
        )


@dataclass(slots=True)
class Seen:
    """What conntrack says of a packet; `packet` is the whole IP packet.

    `entry` is None for an invalid packet that belongs to no flow. `met` is the
    expectation that this packet met, `created` whether it began the flow.
    """

    entry: Entry | None
    direction: Direction
    packet: bytes
    state: State
    met: Expected | None = None
    created: bool = False


class Table:
    """Flows and expectations.

    `helpers` are attached to new flows as the ruleset does it: the first one that tags
    a flow stays (nft_ct_helper_obj_eval in nft_ct.c). `nat` is what was translated
    where the packets were seen. `on_destroy` is told of each flow that ends.
    `expect_max` bounds the expectations (nf_conntrack_expect_max).
    """

    def __init__(
        self,
        helpers: Mapping[str, HelperConfig],
        *,
        nat: Nat | None = None,
        timeouts: Timeouts | None = None,
        expect_max: int = 4096,
        on_destroy: Callable[[Entry], None] | None = None,
    ) -> None:
        self.packets = 0
        self.flows = 0
        self._timeouts = timeouts or Timeouts()
        self._established = self._timeouts.tcp[TcpState.ESTABLISHED]
        self._expect_max = expect_max
        self._on_destroy = on_destroy
        self._udp: dict[bytes, tuple[Entry, bool]] = {}
        self._tcp: dict[bytes, tuple[Entry, bool]] = {}
        self._nat = nat
        # Behind NAT, by their original tuples.
        self._originals: dict[Tuple, Entry] = {}
        # By their destinations, and by what the capture shows of those.
        self._expected: dict[bytes, list[Expected]] = {}
        self._shown = self._expected if nat is None else {}
        self._expectations = 0
        self._fragments = Reassembler()
        self._until_sweep = _SWEEP
        self._tags: dict[tuple[Transport, bytes], list[HelperConfig]] = {}
        for config in helpers.values():
            for transport in config.helper.transports:
                for port in config.ports:
                    tags = self._tags.setdefault((transport, port.to_bytes(2)), [])
                    tags.append(config)

    def see(self, number: int, now: float, data: bytes, start: int) -> Seen | None:
        """What conntrack says of a packet that somebody wants to know of.

        `number` is its frame's, `now` never goes back. None where there is nothing for
        a helper to do: neither TCP nor UDP, an incomplete packet, an invalid one, a
        flow without a helper. Others are to be confirmed by the caller. This is the
        fast path: what most packets are is decided by a look into a dictionary.
        """
        size = len(data) - start
        if size >= _SHORT4 and data[start] == _PLAIN4:
            header = start + 20
            protocol = data[start + 9]
            if not data[start + 6] & 0x3F and not data[start + 7]:
                key = data[start + 12 : start + 24]
            else:
                key = b""
        elif size >= _SHORT6 and data[start] >> 4 == 6:
            header = start + 40
            protocol = data[start + 6]
            key = data[start + 8 : start + 44]
        else:
            key = b""
            header = protocol = 0
        if protocol == 6:
            found = self._tcp.get(key)
            if found is not None:
                entry = found[0]
                if (
                    entry.quiet
                    and data[header + _FLAGS] & _STATE_FLAGS == _ACK
                    and now < entry.expires
                ):
                    entry.expires = now + self._established
                    self.packets += 1
                    return None
        elif protocol == 17:
            found = self._udp.get(key)
            if found is not None:
                entry, reply = found
                if entry.quiet and now < entry.expires:
                    self._refresh_udp(entry, now, reply=reply)
                    self.packets += 1
                    return None
        seen = self.track(number, now, data, start)
        if seen is None or seen.entry is None or seen.state is State.INVALID:
            return None
        if seen.entry.helper is not None or seen.met is not None:
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
        found = self._find(self._udp, key, now)
        if found is None:
            entry, met = self._begin(number, now, UDP, key)
            entry.expires = now + self._timeouts.udp
            return Seen(entry, ORIGINAL, packet, _state(entry), met, created=True)
        entry, reply = found
        state = State.ESTABLISHED if reply else _state(entry)
        self._refresh_udp(entry, now, reply=reply)
        return Seen(entry, REPLY if reply else ORIGINAL, packet, state)

    def _refresh_udp(self, entry: Entry, now: float, *, reply: bool) -> None:
        """nf_conntrack_udp_packet, and nf_conntrack_in for the first answer."""
        if entry.seen_reply and now > entry.stream_at:
            entry.expires = now + self._timeouts.udp_stream
        else:
            entry.expires = now + self._timeouts.udp
        if reply:
            entry.seen_reply = True

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
        found = self._find(self._tcp, key, now)
        if found is not None:
            entry, reply = found
            assert entry.tcp is not None  # noqa: S101 - it is in the table of TCP
            verdict = entry.tcp.advance(flags, end, acknowledged, reply=reply)
            if verdict is not Verdict.REOPEN:
                return self._known_tcp(now, packet, entry, flags, verdict, reply=reply)
            self._destroy(entry)
        connection = Connection()
        verdict = connection.advance(flags, end, acknowledged, reply=False)
        if verdict is Verdict.INVALID:
            # The expectation is looked for before the segment is judged.
            if self._expectations:
                self._meet(now, TCP, key)
            return Seen(None, ORIGINAL, packet, State.INVALID)
        entry, met = self._begin(number, now, TCP, key)
        entry.tcp = connection
        entry.expires = now + self._tcp_seconds(entry)
        return Seen(entry, ORIGINAL, packet, _state(entry), met, created=True)

    def _known_tcp(
        self,
        now: float,
        packet: bytes,
        entry: Entry,
        flags: int,
        verdict: Verdict,
        *,
        reply: bool,
    ) -> Seen:
        direction = REPLY if reply else ORIGINAL
        if verdict is Verdict.INVALID:
            return Seen(entry, direction, packet, State.INVALID)
        state = State.ESTABLISHED if reply else _state(entry)
        if verdict is Verdict.PASS:
            if not entry.seen_reply and is_reset(flags):
                # A refused connection is forgotten at once.
                self._destroy(entry)
            elif entry.seen_reply or not is_syn(flags):
                # A repeated SYN does not renew what nobody has answered.
                entry.expires = now + self._tcp_seconds(entry)
        if reply:
            entry.seen_reply = True
        assert entry.tcp is not None  # noqa: S101 - it is in the table of TCP
        entry.quiet = (
            entry.helper is None
            and entry.seen_reply
            and verdict is Verdict.PASS
            and entry.tcp.state == _ESTABLISHED
        )
        return Seen(entry, direction, packet, state)

    def _tcp_seconds(self, entry: Entry) -> float:
        assert entry.tcp is not None  # noqa: S101 - the callers are TCP's
        seconds = self._timeouts.tcp[entry.tcp.state]
        if entry.tcp.state == _ESTABLISHED and not entry.seen_reply:
            # Picked up in mid-stream: no long life before an answer.
            return min(seconds, self._timeouts.tcp_unacknowledged)
        return seconds

    def _find(
        self, flows: dict[bytes, tuple[Entry, bool]], key: bytes, now: float
    ) -> tuple[Entry, bool] | None:
        found = flows.get(key)
        if found is not None and found[0].expires <= now:
            self._destroy(found[0])
            return None
        return found

    def _begin(
        self, number: int, now: float, transport: Transport, key: bytes
    ) -> tuple[Entry, Expected | None]:
        """A new flow, which is not in the table yet (init_conntrack)."""
        self.flows += 1
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._sweep(now)
        entry = Entry(self.flows, number, transport, key, now)
        met = self._meet(now, transport, key) if self._expectations else None
        if self._nat is not None:
            entry.translate(_translated(self._nat, entry, met))
        if met is not None:
            entry.master = met.master
            config = met.master.helper
            if (
                config is not None
                and config.tags_expected
                and transport in config.helper.transports
            ):
                entry.helper = config
        else:
            # Only a packet that is "new" to the ruleset is tagged, no related one.
            for config in self._tags.get((transport, key[-2:]), ()):
                if config.tags(entry.original):
                    entry.helper = config
                    break
        entry.quiet = entry.helper is None and transport is UDP
        return entry, met

    def confirm(self, entry: Entry) -> None:
        """The first packet has gone on: the flow enters the table.

        __nf_conntrack_confirm in nf_conntrack_core.c. Later calls change nothing.
        """
        if entry.confirmed or entry.gone:
            return
        entry.confirmed = True
        flows = self._udp if entry.transport is UDP else self._tcp
        flows[entry.reply_key] = entry, True
        flows[entry.key] = entry, False
        if self._nat is not None:
            self._originals[entry.original] = entry

    def keep(self, now: float, entry: Entry, seconds: float) -> None:
        """Set what is left of an entry's life (ctnetlink_change_timeout).

        One that is not confirmed stays as it is.
        """
        if entry.confirmed:
            entry.expires = now + seconds

    def detach(self, entry: Entry) -> bool:
        """Take the helper off a flow, and its expectations with it; whether it can be.

        An expected flow keeps what it has (ctnetlink_change_helper).
        """
        if entry.master is not None:
            return False
        self.leave(entry)
        for expected in list(entry.expectations):
            self._remove(expected)
        return True

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
        found = flows.get(
            original.source.address.packed
            + original.destination.address.packed
            + original.source.port.to_bytes(2)
            + original.destination.port.to_bytes(2)
        )
        return None if found is None or found[1] else found[0]

    # Expectations

    def expect(
        self, now: float, master: Entry, expectation: Expectation, frame: int
    ) -> tuple[Outcome, Expected | None]:
        """Put in an expectation of `master`; where it is there, the one in the table.

        For a confirmed master as ctnetlink does it on EXP_NEW (ctnetlink_new_expect in
        nf_conntrack_netlink.c): one that covers the same, whoever's, is refreshed. For
        another as in a verdict (ctnetlink_glue_attach_expect).
        """
        name = "" if master.helper is None else master.helper.helper.name
        wanted = Expected(expectation, master, frame, name)
        if self._nat is not None:
            end = self._nat.shown(expectation, master.tuples)
            wanted.shown = _destination_key(expectation.transport, end)
        rivals = self._expected.get(wanted.key, [])
        self._expire(now, rivals)
        if master.confirmed:
            # Found before anybody asks for the master.
            for rival in rivals:
                if rival.takes(wanted.source, wanted.port):
                    rival.expires = now + expectation.timeout
                    return Outcome.REFRESHED, rival
            if master.expires <= now:
                self._destroy(master)
        if master.gone:
            return Outcome.NO_MASTER, None
        if master.helper is None:
            return Outcome.NO_HELPER, None
        if wanted.class_ >= len(master.helper.policies):
            return Outcome.INVALID, None
        # __nf_ct_expect_check in nf_conntrack_expect.c.
        for rival in list(rivals):
            if rival.master is master and rival.equals(wanted):
                if rival.class_ != wanted.class_:
                    return Outcome.ALREADY, None
                self._remove(rival)
                break
            if rival.clashes(wanted):
                return Outcome.CLASH, None
        policy = master.helper.policies[wanted.class_]
        alike = [
            each
            for each in master.expectations
            if each.expires > now and each.class_ == wanted.class_
        ]
        if len(alike) >= policy.max_expected:
            self._remove(alike[-1])
        if self._expectations >= self._expect_max:
            self.live(now)
            if self._expectations >= self._expect_max:
                return Outcome.FULL, None
        wanted.expires = now + policy.timeout
        master.expectations.insert(0, wanted)
        self._expected.setdefault(wanted.key, []).insert(0, wanted)
        if self._nat is not None:
            self._shown.setdefault(wanted.shown, []).insert(0, wanted)
        self._expectations += 1
        return Outcome.CREATED, wanted

    def withdraw(self, expectation: Expectation) -> None:
        """Take out an expectation of its master, if it is there.

        Another master's that covers the same stays.
        """
        master = self.find(expectation.master)
        if master is None:
            return
        wanted = Expected(expectation, master, 0, "")
        for expected in list(master.expectations):
            if expected.key == wanted.key and expected.equals(wanted):
                self._remove(expected)

    def live(self, now: float) -> list[Expected]:
        """The expectations in the table."""
        for each in list(self._expected.values()):
            self._expire(now, each)
        return [each for found in self._expected.values() for each in found]

    def _meet(self, now: float, transport: Transport, key: bytes) -> Expected | None:
        """The expectation that a first packet meets (nf_ct_find_expectation).

        One that is for one flow is used up.
        """
        size = (len(key) - 4) // 2
        destination = bytes((transport,)) + key[size : 2 * size] + key[-2:]
        candidates = self._shown.get(destination)
        if candidates is None:
            return None
        self._expire(now, candidates)
        source, port = int.from_bytes(key[:size]), int.from_bytes(key[-4:-2])
        if self._nat is not None:
            source = int(self._nat.opener(_tuple(transport, key).source.address))
        for expected in candidates:
            if expected.takes(source, port):
                # Only the first is looked at, whatever comes of it.
                if not expected.master.confirmed:
                    return None
                if not expected.expectation.permanent:
                    self._remove(expected)
                return expected
        return None

    def _expire(self, now: float, candidates: list[Expected]) -> None:
        for expected in list(candidates):
            if expected.master.gone:
                # With another one of its expectations, just now.
                continue
            if expected.expires <= now:
                self._remove(expected)
            elif expected.master.confirmed and expected.master.expires <= now:
                self._destroy(expected.master)

    def _remove(self, expected: Expected) -> None:
        expected.master.expectations.remove(expected)
        _drop(self._expected, expected.key, expected)
        if self._nat is not None:
            _drop(self._shown, expected.shown, expected)
        self._expectations -= 1

    # Ends

    def _destroy(self, entry: Entry) -> None:
        """Take a flow out, and its expectations with it (nf_ct_remove_expectations)."""
        for expected in list(entry.expectations):
            self._remove(expected)
        if entry.gone:
            return
        entry.gone = True
        flows = self._udp if entry.transport is UDP else self._tcp
        for key in (entry.key, entry.reply_key):
            found = flows.get(key)
            if found is not None and found[0] is entry:
                del flows[key]
        if self._nat is not None and self._originals.get(entry.original) is entry:
            del self._originals[entry.original]
        if self._on_destroy is not None:
            self._on_destroy(entry)

    def _sweep(self, now: float) -> None:
        """Forget what has ended, as often as the table may have doubled."""
        for flows in (self._udp, self._tcp):
            for entry, reply in list(flows.values()):
                if not reply and entry.expires <= now:
                    self._destroy(entry)
        self.live(now)
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


def _turned(key: bytes) -> bytes:
    """The key of the other direction: addresses and ports change places."""
    size = (len(key) - 4) // 2
    return key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2]


def _tuple(transport: Transport, key: bytes) -> Tuple:
    size = (len(key) - 4) // 2
    kind = IPv4Address if size == 4 else IPv6Address
    return Tuple(
        transport,
        Endpoint(kind(key[:size]), int.from_bytes(key[-4:-2])),
        Endpoint(kind(key[size : 2 * size]), int.from_bytes(key[-2:])),
    )


def _destination_key(transport: Transport, end: Endpoint) -> bytes:
    return bytes((transport,)) + end.address.packed + end.port.to_bytes(2)


def _drop(index: dict[bytes, list[Expected]], key: bytes, expected: Expected) -> None:
    found = index[key]
    found.remove(expected)
    if not found:
        del index[key]


def _translated(nat: Nat, entry: Entry, met: Expected | None) -> Tuples:
    """The tuples of a flow of which the capture shows the entry's."""
    seen = entry.shown(ORIGINAL)
    if met is None:
        return nat.begin(seen)
    return nat.follow(seen, met.expectation, met.master.tuples)

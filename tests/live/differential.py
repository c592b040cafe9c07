# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of packets and expectations, given to the model and to the kernel.

A sequence has hosts of its own, few of them, so that its flows and expectations meet.
What is in it comes from its seed alone. All sequences of a batch take turns in rounds
and share the waits between these, in which entries and expectations expire.

Windows of TCP are not modelled. All segments therefore have the same few sequence
numbers, and the kernel takes those that are out of their window
(nf_conntrack_tcp_be_liberal).

No comparison hangs on a moment: an operation that may find something at its very end
is left out, and counted. An entry ends on time, for whoever finds it asks
(nf_ct_is_expired); a timer ends an expectation, which may be late. What an expired
master expects stays until the master is collected; `gc_worker` takes its time with
that, `TunLab.collect` does not.
"""

import errno
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Final

from cthelper.core.api import Effects, Helper, Message
from cthelper.core.config import HelperConfig
from cthelper.core.daemon.probe import Kernel
from cthelper.core.offline.conntrack import State, Table
from cthelper.core.offline.entries import STREAM_SECONDS, Entry, Expected, Timeouts
from cthelper.core.offline.expectations import Outcome
from cthelper.core.offline.kernel import ERRNO
from cthelper.core.offline.tcp import TCP_TIMEOUTS, TcpState
from cthelper.core.packet import checksum
from cthelper.core.tuples import (
    TCP,
    UDP,
    Endpoint,
    Expectation,
    Network,
    Status,
    Transport,
    Tuple,
)
from tests.live.tun_lab import HELPERS, Held, Listed, TunLab

# Seconds of waiting before each round.
_WAITS: Final = (0.0, 1.3, 2.7, 0.0, 3.3, 2.4)
# Seconds before and after the end of an entry in which nothing is decided, and after
# that of an expectation (timers of seconds are rounded up to 256 ms, see
# kernel/time/timer.c).
_NEAR: Final = 0.1
_LATE: Final = 0.45
# CLOCK_MONOTONIC_COARSE goes by the same ticks as the kernel's jiffies, which stand
# still while the processor that counts them does not get its turn on a busy host.
_COARSE: Final = 6
_COMPARED: Final = Status.EXPECTED | Status.SEEN_REPLY

# Without a helper: the last one.
_CONTROL_PORTS: Final = (*(7300,) * 5, *(7301,) * 4, 7302)
_PORTS: Final = (5001, 5002)
_DATA_PORTS: Final = (6000, 6001, 7300)
_SECONDS: Final = (2, 5, 20)
# What a daemon asks for a flow that expects something.
_LONG: Final = 60

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_SCRIPTS: Final = (
    ">S <SA >A >A <A >FA <FA >A",
    ">S <SA >A <FA >A >FA <A",
    ">S <SA >A >FA <A <FA >A",
    ">S <SA >A >R",
    ">S <SA >A <RA",
    ">S <R",
    ">S <S >SA <A >A",
    ">A <A >A <FA",
)
_OTHERS: Final = (
    ">S",
    "<S",
    "<SA",
    ">SA",
    ">A",
    "<A",
    ">FA",
    "<FA",
    ">R",
    "<RA",
    ">FS",
)
_LETTERS: Final = {"F": _FIN, "S": _SYN, "R": _RST, "A": _ACK}

TIMEOUTS: Final = Timeouts(
    udp=7.0,
    udp_stream=9.0,
    tcp={
        TcpState.SYN_SENT: 8.0,
        TcpState.SYN_RECV: 6.0,
        TcpState.ESTABLISHED: 20.0,
        TcpState.FIN_WAIT: 3.0,
        TcpState.CLOSE_WAIT: 5.0,
        TcpState.LAST_ACK: 2.0,
        TcpState.TIME_WAIT: 6.0,
        TcpState.CLOSE: 2.0,
        # The kernel's, which cannot be set.
        TcpState.SYN_SENT2: TCP_TIMEOUTS[TcpState.SYN_SENT2],
    },
)
"""So short that some masters end within a sequence, and so long that others do not."""


@dataclass(frozen=True, slots=True)
class Send:
    """A packet passes; `what` says its flags."""

    tuple: Tuple
    what: str
    packet: bytes

    def __str__(self) -> str:
        return f"{self.tuple} {self.what}"


@dataclass(frozen=True, slots=True)
class Expect:
    """A helper expects something."""

    expectation: Expectation

    def __str__(self) -> str:
        wanted = self.expectation
        return (
            f"expect {wanted} for {wanted.timeout} s, class {wanted.class_}, helper "
            f"{wanted.helper}, permanent {wanted.permanent}, master {wanted.master}"
        )


@dataclass(frozen=True, slots=True)
class Keep:
    """An entry's timeout is set; with 0 seconds it is deleted."""

    flow: Tuple
    seconds: int

    def __str__(self) -> str:
        if self.seconds:
            return f"keep {self.flow} for {self.seconds} s"
        return f"delete {self.flow}"


Operation = Send | Expect | Keep


class _Author:
    """Writes the operations of one sequence, whose hosts are those of `slot`."""

    def __init__(self, seed: int, slot: int) -> None:
        self._rng = random.Random(seed)
        if self._rng.random() < 0.3:
            self._prefixes = f"fd0a::{slot:x}:", f"fd0b::{slot:x}:"
        else:
            self._prefixes = f"10.1.{slot}.", f"10.129.{slot}."
        self._hosts = tuple(
            tuple(ip_address(f"{prefix}{host}") for host in range(1, 5))
            for prefix in self._prefixes
        )
        self._flows: list[Tuple] = []
        self._masters: list[Tuple] = []
        # A master that has just begun.
        self._young: Tuple | None = None
        # What comes next on a connection.
        self._scripts: dict[Tuple, list[str]] = {}
        self._wanted: list[Expectation] = []

    def rounds(self) -> Iterator[list[Operation]]:
        """The operations of each round."""
        for number in range(len(_WAITS)):
            operations: list[Operation] = [self._master()] if number == 0 else []
            count = self._rng.randrange(2, 7)
            operations += [self._one() for _ in range(count)]
            yield operations

    def _one(self) -> Operation:
        rng = self._rng
        if self._young is not None:
            flow, self._young = self._young, None
            if rng.random() < 0.7:
                return Keep(flow, _LONG)
        match rng.choices(range(7), (8, 24, 28, 32, 5, 2, 1))[0]:
            case 0:
                return self._master()
            case 1:
                return self._more(rng.choice(self._flows))
            case 2:
                self._wanted.append(self._expectation())
                return Expect(self._wanted[-1])
            case 3 if self._wanted:
                return self._met(rng.choice(self._wanted[-4:]))
            case 4:
                return Keep(self._any(), rng.choice(_SECONDS))
            case 5:
                return Keep(self._any(), 0)
            case _:
                return self._begin(*self._ends(_DATA_PORTS))

    def _any(self) -> Tuple:
        """A flow, by one of its tuples."""
        rng = self._rng
        flow = rng.choice(self._masters if rng.random() < 0.6 else self._flows)
        return _turned(flow) if rng.random() < 0.2 else flow

    def _ends(self, ports: tuple[int, ...]) -> tuple[Endpoint, Endpoint]:
        """A source and a destination on the two sides of the gateway."""
        rng = self._rng
        ours, theirs = self._hosts if rng.random() < 0.6 else self._hosts[::-1]
        return (
            Endpoint(rng.choice(ours), rng.choice(_PORTS)),
            Endpoint(rng.choice(theirs[:2]), rng.choice(ports)),
        )

    def _master(self) -> Send:
        sent = self._begin(*self._ends(_CONTROL_PORTS))
        self._masters.append(sent.tuple)
        self._young = sent.tuple
        return sent

    def _met(self, wanted: Expectation) -> Send:
        """A packet that may meet an expectation."""
        rng = self._rng
        own, other = self._hosts
        hosts = other if wanted.destination.address in own else own
        inside = [each for each in hosts if wanted.source and each in wanted.source]
        port = wanted.source_port
        if port is None or rng.random() < 0.15:
            port = rng.choice(_PORTS)
        address = rng.choice(inside if inside and rng.random() < 0.85 else hosts)
        transport = wanted.transport
        return self._begin(Endpoint(address, port), wanted.destination, transport)

    def _begin(
        self, source: Endpoint, to: Endpoint, transport: Transport | None = None
    ) -> Send:
        transport = transport or self._rng.choice((TCP, UDP))
        return self._more(Tuple(transport, source, to))

    def _more(self, flow: Tuple) -> Send:
        """A packet of a flow, perhaps its first, in either direction."""
        rng = self._rng
        if flow not in self._flows:
            self._flows.append(flow)
            word = ">"
            if flow.transport is TCP:
                self._scripts[flow] = rng.choice(_SCRIPTS).split()
        else:
            word = rng.choice("><<")
        if flow.transport is TCP:
            script = self._scripts[flow]
            if not script:
                script[:] = rng.choice(_SCRIPTS).split()
            word = rng.choice(_OTHERS) if rng.random() < 0.12 else script.pop(0)
        sent = _turned(flow) if word[0] == "<" else flow
        return Send(sent, word[1:], self._packet(sent, word[1:]))

    def _packet(self, sent: Tuple, letters: str) -> bytes:
        ports = struct.pack("!HH", sent.source.port, sent.destination.port)
        if sent.transport is UDP:
            return _wrapped(sent, ports + struct.pack("!HH", 12, 0) + b"data")
        flags = sum(_LETTERS[letter] for letter in letters)
        first = 1000
        if flags & _SYN:
            # The answer to the one does not answer the other.
            first = self._rng.choice((999, 999, 899))
        acknowledged = 1000 if flags & _ACK else 0
        rest = struct.pack("!IIBBHHH", first, acknowledged, 0x50, flags, 65535, 0, 0)
        return _wrapped(sent, ports + rest)

    def _expectation(self) -> Expectation:
        rng = self._rng
        # A few ends again and again, so that expectations meet each other.
        if self._wanted and rng.random() < 0.4:
            before = rng.choice(self._wanted)
            again = replace(before, timeout=rng.choice(_SECONDS))
            if rng.random() < 0.5:
                again = replace(again, master=rng.choice(self._masters))
            if rng.random() < 0.3:
                again = replace(again, source=self._source(before.destination))
            if rng.random() < 0.3:
                again = replace(again, source_port=rng.choice((None, *_PORTS)))
            return again
        _, destination = self._ends(_DATA_PORTS)
        helper = rng.choice((None, *HELPERS))
        class_ = rng.randrange(len(HELPERS[helper or min(HELPERS)][1]))
        return Expectation(
            master=rng.choice(self._masters if rng.random() < 0.9 else self._flows),
            transport=rng.choice((TCP, UDP)),
            source=self._source(destination),
            source_port=rng.choice((None, None, *_PORTS)),
            destination=destination,
            policy=None,
            timeout=rng.choice(_SECONDS),
            class_=class_,
            permanent=rng.random() < 0.3,
            helper=helper,
        )

    def _source(self, destination: Endpoint) -> Network | None:
        """Some of the hosts on the other side, or all the world."""
        rng = self._rng
        own, other = self._hosts
        hosts = other if destination.address in own else own
        if rng.random() < 0.25:
            return None
        address = rng.choice(hosts)
        prefix = address.max_prefixlen - rng.choice((0, 0, 1, 2, 8))
        return ip_network((address, prefix), strict=False)


def _turned(flow: Tuple) -> Tuple:
    return Tuple(flow.transport, flow.destination, flow.source)


def _wrapped(sent: Tuple, payload: bytes) -> bytes:
    source, destination = sent.source.address, sent.destination.address
    addresses = source.packed + destination.packed
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(payload), sent.transport, 64)
        return head + addresses + payload
    size = 20 + len(payload)
    first = struct.pack("!BBHHHBB", 0x45, 0, size, 0, 0x4000, 64, sent.transport)
    value = checksum(first + bytes(2) + addresses)
    return first + value.to_bytes(2) + addresses + payload


class _Silent(Helper):
    """A helper for the ruleset alone."""

    transports = frozenset({TCP, UDP})

    def on_message(self, message: Message) -> Effects:
        """Nothing."""
        yield from ()


def _configs() -> dict[str, HelperConfig]:
    return {
        name: HelperConfig(
            helper=type("Silent", (_Silent,), {"name": name}),
            queue=0,
            ports=(port,),
            policies=policies,
            options={},
        )
        for name, (port, policies) in HELPERS.items()
    }


def configure(lab: TunLab) -> None:
    """Give the kernel TIMEOUTS, and have it look at no checksum and no window."""
    lab.set("udp_timeout", int(TIMEOUTS.udp))
    lab.set("udp_timeout_stream", int(TIMEOUTS.udp_stream))
    for state, seconds in TIMEOUTS.tcp.items():
        if state != TcpState.SYN_SENT2:
            lab.set(f"tcp_timeout_{TcpState(state).name.lower()}", int(seconds))
    lab.set("checksum", 0)
    lab.set("tcp_be_liberal", 1)
    lab.set("tcp_ignore_invalid_rst", 1)


class _Sequence:
    def __init__(
        self, seed: int, slot: int, configs: dict[str, HelperConfig], kernel: Kernel
    ) -> None:
        self.seed = seed
        self.slot = slot
        self.table = Table(configs, timeouts=TIMEOUTS, hands_down=kernel.hands_down)
        self.rounds = _Author(seed, slot).rounds()
        # By either of their tuples.
        self.entries: dict[Tuple, Entry] = {}
        self.expected: list[Expected] = []
        self.number = 0
        self.history: list[tuple[float, object, str]] = []
        self.usable = True

    def entry(self, flow: Tuple, now: float) -> Entry | None:
        """The entry that has this tuple now, in either direction."""
        found = self.entries.get(flow)
        if found is None or found.gone or found.expires <= now:
            return None
        return found

    def ends(self, operation: Operation | None) -> Iterator[tuple[float, float]]:
        """When ends what an operation may find, or all, and how late that may be."""
        to: tuple[Transport, Endpoint] | None = None
        match operation:
            case Send():
                flows = [operation.tuple]
                to = operation.tuple.transport, operation.tuple.destination
            case Expect():
                wanted = operation.expectation
                flows = [wanted.master]
                to = wanted.transport, wanted.destination
            case Keep():
                flows = [operation.flow]
            case None:
                flows = list(self.entries)
        masters = [self.entries[each] for each in flows if each in self.entries]
        for entry in masters:
            yield entry.expires, _NEAR
            if isinstance(operation, Send) and entry.transport is UDP:
                yield entry.began + STREAM_SECONDS, _NEAR
        self.expected = [
            each for each in self.expected if each in each.master.expectations
        ]
        for expected in self.expected:
            end = expected.expectation.transport, expected.expectation.destination
            if operation is None or end == to or expected.master in masters:
                yield expected.expires, _LATE
                yield expected.master.expires, _NEAR

    def transcript(self) -> str:
        """What has happened."""
        lines = [f"  {now:.3f} {what}: {result}" for now, what, result in self.history]
        return "\n".join([f"seed {self.seed}:", *lines])


@dataclass(slots=True)
class Report:
    """What became of a batch; transcripts of what differed, by seed."""

    sequences: int = 0
    operations: int = 0
    left_out: int = 0
    cut_short: int = 0
    packets: dict[State, int] = field(default_factory=dict)
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    compared: int = 0
    differences: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Sum up."""
        self.sequences += other.sequences
        self.operations += other.operations
        self.left_out += other.left_out
        self.cut_short += other.cut_short
        self.compared += other.compared
        self.differences |= other.differences
        for state, count in other.packets.items():
            self.packets[state] = self.packets.get(state, 0) + count
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count

    def __str__(self) -> str:
        packets = ", ".join(f"{n} {state.value}" for state, n in self.packets.items())
        outcomes = ", ".join(f"{n} {each.value}" for each, n in self.outcomes.items())
        return (
            f"{self.sequences} sequences ({self.cut_short} cut short) of "
            f"{self.operations} operations ({self.left_out} left out, too near to an "
            f"end); packets: {packets}; expectations: {outcomes}; tables compared "
            f"{self.compared} times; differences: {len(self.differences)}"
        )


class Batch:
    """Sequences that run side by side, round by round, and share their waits."""

    def __init__(self, lab: TunLab, seeds: list[int], kernel: Kernel) -> None:
        self._lab = lab
        configs = _configs()
        self._sequences = [
            _Sequence(seed, slot, configs, kernel) for slot, seed in enumerate(seeds)
        ]
        self._collected = 0.0
        self.report = Report(sequences=len(seeds))

    def run(self) -> Report:
        """Run all; compare each operation, and the tables after each round."""
        self._lab.flush()
        for wait in _WAITS:
            time.sleep(wait)
            for each in self._sequences:
                for operation in next(each.rounds):
                    if each.usable:
                        self._step(each, operation)
            self._compare()
        self.report.cut_short = sum(not each.usable for each in self._sequences)
        return self.report

    def _step(self, sequence: _Sequence, operation: Operation) -> None:
        ends = list(sequence.ends(operation))
        now = _now()
        if any(self._collected - _NEAR < end < now for end, _ in ends):
            self._lab.collect()
            self._collected, now = now, _now()
        if any(end - _NEAR < now < end + late for end, late in ends):
            self.report.left_out += 1
            return
        match operation:
            case Send():
                kernel, model = self._send(sequence, operation, now)
            case Expect():
                kernel, model = self._expect(sequence, operation.expectation, now)
            case Keep():
                kernel, model = self._keep(sequence, operation, now)
        self.report.operations += 1
        result = kernel if kernel == model else f"{kernel}, in the model {model}"
        sequence.history.append((now, operation, result))
        if _now() - now > _NEAR / 2:
            # When was it?
            sequence.usable = False
        elif kernel != model:
            self._differ(sequence)

    def _differ(self, sequence: _Sequence) -> None:
        self.report.differences[sequence.seed] = sequence.transcript()
        sequence.usable = False

    def _send(self, sequence: _Sequence, sent: Send, now: float) -> tuple[str, str]:
        left = sent.tuple.source.address.packed[:2] in (b"\x0a\x01", b"\xfd\x0a")
        state = self._lab.send(sent.packet, from_left=left)
        sequence.number += 1
        seen = sequence.table.track(sequence.number, now, sent.packet, 0)
        assert seen is not None
        entry = seen.entry
        if entry is not None:
            sequence.table.confirm(entry)
            sequence.entries[entry.original] = sequence.entries[entry.reply] = entry
        if state is None:
            return "dropped", seen.state.value
        self.report.packets[state] = self.report.packets.get(state, 0) + 1
        return state.value, seen.state.value

    def _expect(
        self, sequence: _Sequence, wanted: Expectation, now: float
    ) -> tuple[str, str]:
        master = sequence.entries.get(wanted.master)
        if master is None:
            return "no master", "no master"
        error = self._lab.expect(wanted)
        outcome, expected = sequence.table.expect(now, master, wanted, 0)
        if expected is not None and expected not in sequence.expected:
            sequence.expected.append(expected)
        count = self.report.outcomes
        count[outcome] = count.get(outcome, 0) + 1
        return _error(error), _error(ERRNO.get(outcome, 0))

    def _keep(self, sequence: _Sequence, kept: Keep, now: float) -> tuple[str, str]:
        if kept.seconds:
            error = self._lab.keep(kept.flow, kept.seconds)
        else:
            error = self._lab.delete(kept.flow)
        entry = sequence.entry(kept.flow, now)
        if entry is None:
            return _error(error), _error(errno.ENOENT)
        sequence.table.keep(now, entry, kept.seconds)
        if not kept.seconds:
            # It is no end that comes near.
            entry.expires = 0.0
        return _error(error), _error(0)

    def _compare(self) -> None:
        begin = _now()
        entries: dict[int, dict[Tuple, Listed]] = {}
        for entry in self._lab.entries():
            entries.setdefault(_slot(entry.original), {})[entry.original] = entry
        held: dict[int, dict[Held, int]] = {}
        for each in self._lab.expectations():
            of_slot = held.setdefault(_slot(each.master), {})
            of_slot[replace(each, timeout=0)] = each.timeout
        end = _now()
        self._collected = begin
        for sequence in self._sequences:
            if not sequence.usable or any(
                begin - late < moment < end + _NEAR
                for moment, late in sequence.ends(None)
            ):
                continue
            self.report.compared += 1
            theirs = entries.get(sequence.slot, {})
            kernel, model = _entries(sequence, theirs, begin, end)
            if kernel == model:
                kernel, model = _expectations(
                    sequence, held.get(sequence.slot, {}), begin, end
                )
            if kernel != model:
                alone = [f"{each} in the kernel" for each in kernel - model]
                alone += [f"{each} in the model" for each in model - kernel]
                sequence.history.append((begin, "tables", "; ".join(alone)))
                self._differ(sequence)


def _now() -> float:
    """The kernel's time, as conntrack reads it."""
    return time.clock_gettime(_COARSE)


def _error(code: int) -> str:
    return errno.errorcode.get(code, "done")


def _slot(flow: Tuple) -> int:
    packed = flow.source.address.packed
    return packed[2] if len(packed) == 4 else int.from_bytes(packed[12:14])


def _seconds(moment: float, theirs: int | None, begin: float, end: float) -> int:
    """What the kernel said is left, if it may be; it gives whole seconds."""
    low, high = int(moment - end - _NEAR), int(moment - begin + _NEAR)
    return theirs if theirs is not None and low <= theirs <= high else low


def _entries(
    sequence: _Sequence, theirs: dict[Tuple, Listed], begin: float, end: float
) -> tuple[set[str], set[str]]:
    """What the kernel's table and the model's hold for a sequence."""
    model = set()
    for entry in set(sequence.entries.values()):
        if not entry.gone and entry.expires > begin:
            listed = theirs.get(entry.original)
            left = None if listed is None else listed.timeout
            read = entry.conntrack(begin)
            wanted = replace(read, timeout=_seconds(entry.expires, left, begin, end))
            model.add(
                _line(
                    Listed(
                        wanted.original,
                        wanted.status,
                        wanted.helper,
                        wanted.master,
                        wanted.timeout,
                    )
                )
            )
    return {_line(each) for each in theirs.values()}, model


def _line(listed: Listed) -> str:
    status = listed.status & _COMPARED
    return (
        f"{listed.original} {status!r} helper {listed.helper} master {listed.master} "
        f"ends in {listed.timeout} s"
    )


def _expectations(
    sequence: _Sequence, theirs: dict[Held, int], begin: float, end: float
) -> tuple[set[str], set[str]]:
    """What the two tables of expectations hold for a sequence."""
    model = set()
    for expected in sequence.table.live(begin):
        held = _as_held(expected)
        left = _seconds(expected.expires, theirs.get(held), begin, end)
        model.add(f"{replace(held, timeout=left)}")
    kernel = {f"{replace(held, timeout=left)}" for held, left in theirs.items()}
    return kernel, model


def _as_held(expected: Expected) -> Held:
    wanted = expected.expectation
    nowhere = type(wanted.destination.address)(0)
    network = wanted.source
    source = nowhere if network is None else network.network_address
    port = wanted.source_port
    return Held(
        master=expected.master.original,
        tuple=Tuple(wanted.transport, Endpoint(source, port or 0), wanted.destination),
        mask=nowhere if network is None else network.netmask,
        port_mask=0 if port is None else 0xFFFF,
        permanent=wanted.permanent,
        class_=expected.class_,
        timeout=0,
    )

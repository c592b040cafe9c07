# SPDX-License-Identifier: GPL-2.0-or-later
"""Ordinary transactions, one step at a time, for `bench.instructions` to count.

Of the engine alone, and of a whole server: its queue, with the backend in C, and its
ctnetlink are Unix sockets whose other ends are here. Nothing is random, and the clocks
go on by a microsecond each time that they are asked. Configuration is the default one.
"""

import io
import itertools
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from types import SimpleNamespace
from typing import Final
from unittest.mock import patch

from cthelper.core.config import Config, parse
from cthelper.core.control.reports import pair
from cthelper.core.daemon import server
from cthelper.core.daemon.channel import Channel
from cthelper.core.daemon.expectation_table import ExpectationTable
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import UNKNOWN
from cthelper.core.daemon.progress import Progress
from cthelper.core.daemon.server import Server
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.netlink import encoding
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from cthelper.core.quarantine import Quarantine
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import (
    ORIGINAL,
    REPLY,
    UDP,
    Address,
    Conntrack,
    Direction,
    Network,
    Status,
    Tuple,
)
from tests.attacks import wire

Step = Callable[[], object]

BATCH: Final = 64
"""As many packets as a queue gives out at a time."""

_CLIENT, _CLIENT6, _SERVER = "10.77.1.2", "fe80::2", "10.77.2.2"
_CLIENTS: Final = int(IPv4Address("10.128.0.0"))
_PORT, _ANNOUNCED = 10_000, 20_000
_NOWHERE: Final = Path("/nowhere")
_SECONDS: Final = 1000.0
_TICK: Final = 1e-6

_NEW: Final = Status.CONFIRMED | Status.HELPER
_ANSWERED: Final = _NEW | Status.SEEN_REPLY
_ASSURED: Final = _ANSWERED | Status.ASSURED

# include/uapi/linux/netfilter/nfnetlink_queue.h and nfnetlink_conntrack.h
_QUEUED: Final = 3 << 8
_PACKET_HEADER, _INPUT, _OUTPUT, _PAYLOAD, _CT, _CT_INFO = 1, 5, 6, 10, 11, 12
_REPLIES, _STATUS, _HELP, _TIMEOUT, _ID = 0x8002, 3, 0x8005, 7, 12
_NESTED: Final = 0x8000
_IS_REPLY: Final = 3
_IPV4, _POSTROUTING = 0x0800, 4
_RECEIVE: Final = 1 << 17
_SOL_NETLINK: Final = 270
_ACKNOWLEDGEMENT: Final = struct.Struct("=IHHIIi16x")


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of transaction. `prepare` has as many steps ready as it is asked for.

    Each step is `size` transactions. What is patched and opened for them is undone with
    the stack.
    """

    name: str
    prepare: Callable[[ExitStack, int], Sequence[Step]]
    size: int = 1


def _clock() -> Callable[[], float]:
    # A function in C, as those that it stands for are.
    return itertools.count(_SECONDS, _TICK).__next__


def _config() -> Config:
    return parse('daemon.backend = "native"\n', Path("bench"), builtin_helpers())


def _on_link(address: Address) -> tuple[Network, ...]:
    if address.version == 6:
        return (IPv6Network("fe80::/10"),)
    return (IPv4Network("10.77.0.0/16"),)


def _entry(
    original: Tuple, helper: str, number: int = 1, status: Status = _ASSURED
) -> Conntrack:
    return Conntrack(
        id=number,
        original=original,
        reply=wire.turned(original),
        status=status,
        helper=helper,
        timeout=120,
    )


def _asks(number: int = 0, client: str = _CLIENT) -> Tuple:
    """A flow over UDP to the portmapper."""
    return wire.flow(UDP, (client, _PORT + number), (_SERVER, 111))


# The engine

_Packet = tuple[bytes, Conntrack, Direction]


def _rpc(
    ask: Callable[[int], bytes], answer: Callable[[int], bytes]
) -> Iterator[Sequence[_Packet]]:
    """Calls of one flow over UDP, each with its answer."""
    way = _asks()
    entry = _entry(way, "sunrpc")
    for number in itertools.count():
        yield (
            (wire.datagram(way, ask(number)), entry, ORIGINAL),
            (wire.datagram(wire.turned(way), answer(number)), entry, REPLY),
        )


def _getport_reply(number: int) -> bytes:
    # Each is another announcement: what is expected already costs more.
    return wire.reply(number, wire.xdr(_ANNOUNCED + number))


def _null_call(number: int) -> bytes:
    return wire.call(number, 2, 0)


def _redirects() -> Iterator[Sequence[_Packet]]:
    """TNS sessions: handshake, CONNECT and REDIRECT, which ends them."""
    for number in itertools.count():
        connection = wire.Connection((_CLIENT, _PORT + number), (_SERVER, 1521))
        begun, answered, assured = (
            _entry(connection.way, "tns", number + 1, status)
            for status in (Status.HELPER, _ANSWERED, _ASSURED)
        )
        syn, syn_ack, _ = connection.opened()
        (connect,) = connection.sent(wire.CONNECT)
        text = wire.address_of(_SERVER, _ANNOUNCED + number)
        (redirect,) = connection.answered(wire.redirect(text))
        yield (
            (syn, begun, ORIGINAL),
            (syn_ack, answered, REPLY),
            (connect, assured, ORIGINAL),
            (redirect, assured, REPLY),
        )


def _commands() -> Iterator[Sequence[_Packet]]:
    """Commands of one session of FTP that announce nothing, each with its reply."""
    connection = wire.Connection((_CLIENT, _PORT), (_SERVER, 21))
    entry = _entry(connection.way, "ftp", status=_ASSURED)
    syn, syn_ack, _ = connection.opened()
    (greeting,) = connection.answered(b"220 ready\r\n")
    yield (syn, entry, ORIGINAL), (syn_ack, entry, REPLY), (greeting, entry, REPLY)
    while True:
        (command,) = connection.sent(b"SIZE a/file/that/is/there\r\n")
        (reply,) = connection.answered(b"213 1048576\r\n")
        yield (command, entry, ORIGINAL), (reply, entry, REPLY)


def _asked(
    helper: str, source: tuple[str, int], group: tuple[str, int], payload: bytes
) -> Iterator[Sequence[_Packet]]:
    """A message of this host to a group, again and again."""
    way = wire.flow(UDP, source, group)
    entry = _entry(way, helper, status=_NEW)
    return itertools.repeat(((wire.datagram(way, payload), entry, ORIGINAL),))


def _handle(engine: Engine, packets: Sequence[_Packet], *, forwarded: bool) -> object:
    """The decision on the last packet."""
    decision: object = None
    for packet, entry, direction in packets:
        decision = engine.handle(packet, entry, direction, forwarded=forwarded)
    return decision


def _in_engine(
    name: str, transactions: Iterator[Sequence[_Packet]], *, forwarded: bool = False
) -> Case:
    def prepare(_stack: ExitStack, count: int) -> Sequence[Step]:
        config, clock = _config(), _clock()
        engine = Engine(
            config.helpers,
            guard=Guard(config.limits),
            on_link=_on_link,
            clock=clock,
            flow_limit=config.daemon.flow_limit,
            budget=config.budget,
            timer=clock,
        )
        return [
            partial(_handle, engine, packets, forwarded=forwarded)
            for packets in itertools.islice(transactions, count)
        ]

    return Case(f"engine: {name}", prepare)


# The server


def _u32(kind: int, value: int) -> bytes:
    return encoding.attribute(kind, value.to_bytes(4))


def _ct(entry: Conntrack) -> bytes:
    """The attributes of NFQA_CT."""
    reply = encoding.entry_key(entry.reply, 0)
    return (
        encoding.entry_key(entry.original, 0)
        + encoding.attribute(_REPLIES, reply[4:])
        + _u32(_ID, entry.id)
        + _u32(_STATUS, entry.status)
        + _u32(_TIMEOUT, entry.timeout)
        + encoding.attribute(
            _HELP, encoding.attribute(1, (entry.helper or "").encode() + b"\0")
        )
    )


class _Source:
    """Events and links, of which there is nothing to tell."""

    overruns = 0

    def __init__(self, stack: ExitStack) -> None:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end = stack.enter_context(end)

    def fileno(self) -> int:
        return self._end.fileno()

    def update(self) -> None:
        """Nothing has changed."""

    def is_local(self, _address: Address) -> bool:
        return False

    def on_link(self, address: Address) -> tuple[Network, ...]:
        return _on_link(address)


class _Daemon:
    """A server, and the kernel that it speaks with."""

    def __init__(self, stack: ExitStack) -> None:
        config, clock = _config(), _clock()
        (number,) = config.queues_of(0)
        queue, self._queue = _pair(stack)
        theirs, self._ctnetlink = _pair(stack)
        netlink = NetlinkSocket(NETLINK_ROUTE)
        netlink.close()
        netlink._socket = theirs
        for module, name, value in (
            (server, "time", SimpleNamespace(monotonic=clock, perf_counter=clock)),
            (server, "Ctnetlink", lambda: Ctnetlink(netlink)),
            # Whether this kernel has such a table must not matter.
            (server, "ExpectationTable", partial(ExpectationTable, most=_NOWHERE)),
            (server, "Log", partial(Log, output=io.StringIO())),
            (server, "Links", lambda: _Source(stack)),
            (server, "Events", lambda: _Source(stack)),
            (server, "open_list", lambda: None),
            (server, "waker_pair", lambda: _pair(stack)),
        ):
            stack.enter_context(patch.object(module, name, value))
        channel, other = Channel.pair()
        asking, reports = pair()
        for end in (channel, other, asking, reports):
            stack.callback(end.close)
        self._server = Server(
            0,
            config,
            [SimpleNamespace(number=number, socket=queue)],  # type: ignore[list-item]
            lambda _: config,
            channel,
            UNKNOWN,
            Progress(),
            Quarantine(clock),
            [reports],
        )
        self._id = 0
        self._sequence = 0

    def message(
        self, way: Tuple, payload: bytes, entry: Conntrack, direction: Direction
    ) -> bytes:
        """A datagram as the queue gives it out next."""
        self._id += 1
        body = (
            encoding.attribute(
                _PACKET_HEADER, struct.pack("!IHB", self._id, _IPV4, _POSTROUTING)
            )
            + _u32(_INPUT, 2)
            + _u32(_OUTPUT, 3)
            + encoding.attribute(_NESTED | _CT, _ct(entry))
            + _u32(_CT_INFO, 0 if direction is ORIGINAL else _IS_REPLY)
            + encoding.attribute(_PAYLOAD, wire.datagram(way, payload))
        )
        return struct.pack("=IHHII4x", 20 + len(body), _QUEUED, 0, 0, 0) + body

    def turn(self, messages: Sequence[bytes], expectations: int = 0) -> bytes:
        """Have the server answer packets, which announce so much; its verdicts."""
        for each in messages:
            self._queue.send(each)
        for _ in range(expectations):
            self._acknowledge()
        self._server._turn()
        for _ in range(expectations):
            self._ctnetlink.recv(_RECEIVE)
        return self._queue.recv(_RECEIVE)

    def passed(self, messages: Sequence[bytes]) -> bytes:
        """The verdicts for packets that are to pass in C, without a turn for any."""
        for each in messages:
            self._queue.send(each)
        for queue in self._server._queues.values():
            self._server._inspection.serve(queue)
        return self._queue.recv(_RECEIVE)

    def _acknowledge(self) -> None:
        """The kernel will have done what it is asked next."""
        self._sequence += 1
        size = _ACKNOWLEDGEMENT.size
        self._ctnetlink.send(_ACKNOWLEDGEMENT.pack(size, 2, 0, self._sequence, 0, 0))


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """The server's end, and the kernel's, at which nothing is waited for."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in ends:
        stack.enter_context(each)
    ends[1].setblocking(False)
    return ends


def _transact(
    daemon: _Daemon, calls: Sequence[bytes], replies: Sequence[bytes]
) -> bytes:
    """Calls, and then the replies to them, each of which announces something."""
    return daemon.turn(calls) + daemon.turn(replies, len(replies))


def _call(daemon: _Daemon, entry: Conntrack, number: int) -> bytes:
    return daemon.message(entry.original, wire.getport(number), entry, ORIGINAL)


def _reply(daemon: _Daemon, entry: Conntrack, number: int) -> bytes:
    return daemon.message(entry.reply, _getport_reply(number), entry, REPLY)


def _getports(
    flow: Callable[[int], tuple[Conntrack, Conntrack]], size: int
) -> Callable[[ExitStack, int], Sequence[Step]]:
    """GETPORT, so many at a time: `flow` gives a call's entry, and its reply's."""

    def prepare(stack: ExitStack, count: int) -> Sequence[Step]:
        daemon = _Daemon(stack)
        steps = []
        for first in range(0, count * size, size):
            numbers = range(first, first + size)
            calls = [_call(daemon, flow(each)[0], each) for each in numbers]
            replies = [_reply(daemon, flow(each)[1], each) for each in numbers]
            steps.append(partial(_transact, daemon, calls, replies))
        return steps

    return prepare


def _known(_number: int) -> tuple[Conntrack, Conntrack]:
    entry = _entry(_asks(), "sunrpc")
    return entry, entry


def _new(number: int) -> tuple[Conntrack, Conntrack]:
    # Some flows of each client: more than a minute's worth would be refused.
    host, port = divmod(number, 8)
    way = _asks(port, str(IPv4Address(_CLIENTS + host)))
    return (
        _entry(way, "sunrpc", number + 1, Status.HELPER),
        _entry(way, "sunrpc", number + 1, _ANSWERED),
    )


def _null_replies(stack: ExitStack, count: int) -> Sequence[Step]:
    """Replies to calls that the kernel has passed: their flow has asked nothing."""
    daemon = _Daemon(stack)
    entry = _entry(_asks(), "sunrpc")
    return [
        partial(
            daemon.passed,
            [
                daemon.message(entry.reply, wire.reply(1), entry, REPLY)
                for _ in range(BATCH)
            ],
        )
        for _ in range(count)
    ]


def _on_server(
    name: str, flow: Callable[[int], tuple[Conntrack, Conntrack]]
) -> list[Case]:
    return [
        Case(f"server: GETPORT, {name}, {size} at a time", _getports(flow, size), size)
        for size in (BATCH, 1)
    ]


CASES: Final = (
    _in_engine("sunrpc, GETPORT", _rpc(wire.getport, _getport_reply), forwarded=True),
    _in_engine("sunrpc, NULL", _rpc(_null_call, wire.reply), forwarded=True),
    _in_engine("ftp, SIZE", _commands(), forwarded=True),
    _in_engine("tns, session with a redirect", _redirects(), forwarded=True),
    _in_engine(
        "mdns, query",
        _asked("mdns", (_CLIENT, 5353), (wire.MDNS_GROUP, 5353), wire.mdns_query()),
    ),
    _in_engine(
        "slp, request",
        _asked("slp", (_CLIENT, _PORT), (wire.SLP_GROUP, 427), wire.slp_request()),
    ),
    _in_engine(
        "dhcpv6, Solicit",
        _asked("dhcpv6", (_CLIENT6, 546), (wire.DHCPV6_GROUP, 547), wire.dhcpv6()),
    ),
    *_on_server("known flow", _known),
    *_on_server("new flows", _new),
    Case(f"server: NULL, the reply, {BATCH} at a time", _null_replies, BATCH),
)
"""All of them."""

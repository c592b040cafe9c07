# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine's kernel does where kernels differ: it is asked, not assumed.

The questions are a few packets between sockets of a network namespace of their own,
which ends with the process that asks them, and one registered helper. The table of
helpers is for all namespaces; the name there is NAME.
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from cthelper import nft
from cthelper.core.api import Policy
from cthelper.core.daemon.capabilities import Capability, hand_on
from cthelper.core.daemon.ruleset import ASKED_WITH, unregister
from cthelper.core.errors import CthelperError, RulesetError
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable, Registration
from cthelper.core.netlink.socket import NETLINK_NETFILTER
from cthelper.core.packet import locate, replace_payload
from cthelper.core.queue.binding import somebody_queues
from cthelper.core.queue.messages import bind, decode, length, parameters, verdict
from cthelper.core.queue.protocol import Action, QueuedPacket, Verdict
from cthelper.core.tuples import (
    UDP,
    Endpoint,
    Expectation,
    Transport,
    Tuple,
)

NAME: Final = ASKED_WITH

GLUE: Final = "NETFILTER_NETLINK_GLUE_CT"
NOT_GLUED: Final = "queued packets do not carry their conntrack entry"
GLUE_MENDED: Final = f"boot a kernel with CONFIG_{GLUE}=y"
"""The option that puts entries into messages; what is said where it is missing."""

_SECONDS: Final = 10.0
_PATIENCE: Final = 3.0
_SETTLED: Final = 0.05
# A packet over lo is there once it is sent, unless the kernel has put it off.
_OWED: Final = 1.0
_BEFORE: Final = (Policy("first", 3, 30), Policy("second", 5, 60))
_AFTER: Final = (Policy("first", 4, 31), Policy("second", 6, 61))
_LONG: Final = 3000
_LARGEST: Final = 1 << 17

_HOST: Final = "127.0.0.1"
_PORT, _TRANSLATED, _EXPECTED = 1, 2, 3
# Nobody's here, and of no matter there.
_QUEUE: Final = 65535
_TABLE: Final = f"""
table inet probe {{
    ct helper {NAME}-udp {{ type "{NAME}" protocol udp; l3proto ip; }}
    ct helper {NAME}-tcp {{ type "{NAME}" protocol tcp; l3proto ip; }}
    chain tag {{
        type filter hook output priority -150; policy accept;
        udp dport {_PORT} ct helper set "{NAME}-udp"
        tcp dport {_PORT} ct helper set "{NAME}-tcp"
    }}
    chain queueing {{
        type filter hook postrouting priority 300; policy accept;
        # Not what ICMP says of them.
        meta l4proto {{ tcp, udp }} ct status & 0x2000 != 0 queue num {_QUEUE}
    }}
}}
"""
_NAT: Final = f"""
table inet probe {{
    chain translate {{
        type nat hook output priority -100; policy accept;
        tcp dport {_PORT} redirect to :{_TRANSLATED}
    }}
}}
"""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_INTERFACE: Final = struct.Struct("16sh")
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class CannotAsk(CthelperError):
    """The kernel was not asked; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What a kernel does; without an argument what is taken for granted of any.

    - `carries_entries`: a queued packet comes with its conntrack entry.
    - `confirms`: a packet that repeats its hook (NF_REPEAT) comes back with its flow
      confirmed.
    - `renews`: an expectation that is asked for again lives as long as is asked for.
    - `takes_class`: an expectation that names no helper is of the policy that is asked
      for, not of the first.
    - `keeps_limits`: when a registered helper is changed each of its policies gets its
      own limits, not the first one's.
    - `hands_down`: a flow that was expected has its master's helper, unasked.
    - `adjusts_twice`: TCP's sequence numbers on a translated flow are adjusted when a
      verdict comes and once more at the end of the hook.
    """

    carries_entries: bool = True
    confirms: bool = True
    renews: bool = True
    takes_class: bool = True
    keeps_limits: bool = False
    hands_down: bool = False
    adjusts_twice: bool = True


UNKNOWN: Final = Kernel()
"""What to go by where the kernel cannot be asked: as most do, and carefully where that
costs little. Where one hands helpers down `tns` and `slp` do not go on with what they
expected then."""


def ask(*, keep: bool = False) -> Kernel:
    """Ask the kernel. Raises CannotAsk; the helper NAME is unregistered again.

    With `keep` it stays, for who unregisters others later. It stays, too, where it was
    there before, or somebody serves a queue, since the kernel drops all packets that
    wait in queues of any namespace when a helper is unregistered (nf_ct_iterate_destroy
    in nf_conntrack_core.c): the end of ``cthelper run`` and ``cthelper ruleset remove``
    take it.
    """
    try:
        with _alone(), closing(HelperTable()) as table:
            keep = keep or bool(asked_with(table)) or somebody_queues()
            keeps_limits = _register(table)
            try:
                answers = _asked_in_a_process()
            finally:
                if not keep:
                    # What cannot go now goes as if it had been kept.
                    with suppress(CthelperError):
                        unregister(table, _registrations(_AFTER))
    except (CthelperError, OSError) as error:
        raise CannotAsk(f"the kernel cannot be asked what it does: {error}") from None
    return Kernel(keeps_limits=keeps_limits, **answers)


def asked_with(table: HelperTable) -> list[Registration]:
    """What the kernel is asked with, where it is registered. Raises NetlinkError."""
    return [each for each in table.list() if each.name == NAME]


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for other processes of this namespace that ask.

    Not for ever, as anybody may take the name: two at once may at worst each take the
    other's limits for those that the kernel has mixed up.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        for _ in range(int(_PATIENCE / _SETTLED)):
            try:
                # An abstract name: it goes with the process, however that ends.
                name.bind(f"\0{NAME}")
                break
            except OSError:
                select.select([], [], [], _SETTLED)
        yield


def _registrations(policies: tuple[Policy, ...]) -> list[Registration]:
    return [
        Registration(
            name=NAME,
            family=socket.AF_INET,
            transport=transport,
            queue=_QUEUE,
            policies=policies,
        )
        for transport in Transport
    ]


def _register(table: HelperTable) -> bool:
    """Register the helper, and change it; whether each policy has its own limits."""
    for policies in (_BEFORE, _AFTER):
        for registration in _registrations(policies):
            table.put(registration)
    return all(each.policies == _AFTER for each in asked_with(table))


def _asked_in_a_process() -> dict[str, bool]:
    """Ask in a namespace that ends with the process: the fields of Kernel, by name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Nothing of the parent's is to be done at this process's end.
        try:
            os.close(reader)
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            try:
                told: object = _answers()
            except (CthelperError, OSError) as error:
                told = str(error)
            os.write(writer, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        try:
            ready = select.select([pipe], [], [], _SECONDS)[0]
            told = json.loads((pipe.read() if ready else b"") or '"no answer"')
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if not isinstance(told, dict):
        raise CannotAsk(str(told))
    return told


def _answers() -> dict[str, bool]:
    _unshare()
    _bring_up("lo")
    with closing(_Asker()) as asker:
        if not asker.carries_entries:
            return {"carries_entries": False}
        try:
            nft.load(_TABLE + _NAT)
            translates = True
        except RulesetError:
            nft.load(_TABLE)
            translates = False
        answers = asker.about_expectations()
        # Without NAT nothing is rewritten over TCP; in a user namespace Linux 7.2 does
        # not deliver what was. Then it is taken for granted.
        if translates:
            with suppress(OSError, CannotAsk):
                answers["adjusts_twice"] = asker.about_rewriting()
    # Its objects name the helper as long as they are there.
    nft.load("delete table inet probe\n")
    return answers


def _unshare() -> None:
    """Have a network namespace of its own; under systemd with a user namespace."""
    if _LIBC.unshare(_CLONE_NEWNET) == 0:
        return
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
        # As this user is root nowhere.
        try:
            hand_on(Capability.CAP_NET_ADMIN)
        except OSError as error:
            raise OSError(
                error.errno, f"nft cannot be run there: {error.strerror}"
            ) from None
        return
    number = ctypes.get_errno()
    raise OSError(number, f"no network namespace can be made: {os.strerror(number)}")


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = interface.encode()
        _, flags = _INTERFACE.unpack(
            fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _INTERFACE.pack(name, 0))
        )
        request = _INTERFACE.pack(name, flags | _IFF_UP)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


class _Asker:
    """Sends packets over lo and answers the queue that they come to."""

    def __init__(self) -> None:
        self._ctnetlink = Ctnetlink()
        self._queue = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER
        )
        self._queue.bind((0, 0))
        self._queue.setblocking(False)
        self._queue.send(
            bind(_QUEUE) + length(_QUEUE, 64) + parameters(_QUEUE, fail_open=True)
        )
        self._queue.recv(_LARGEST)  # the acknowledgement of the first
        # An error: the kernel has nothing that puts entries into messages.
        self.carries_entries = not self._readable(0.0)

    def close(self) -> None:
        self._queue.close()
        self._ctnetlink.close()

    def _readable(self, seconds: float) -> bool:
        return bool(select.select([self._queue], [], [], seconds)[0])

    def _next(self) -> QueuedPacket:
        """The next packet in the queue, which is on its way."""
        if not self._readable(_OWED):
            raise CannotAsk("its packets are not queued")
        return decode(self._queue.recv(_LARGEST))

    def _answer(self, packet: QueuedPacket, **how: Any) -> None:
        self._queue.send(verdict(_QUEUE, Verdict(packet.id, **how)))

    def _pass(self, data: bytes) -> QueuedPacket:
        """Accept packets up to the one with this payload, which is not answered."""
        while not (packet := self._next()).payload.endswith(data):
            self._answer(packet)
        return packet

    def about_expectations(self) -> dict[str, bool]:
        answers: dict[str, bool] = {}
        with _bound(socket.SOCK_DGRAM) as client:
            client.connect((_HOST, _PORT))
            client.send(b"first")
            first = self._next()
            answers["carries_entries"] = first.conntrack is not None
            self._answer(first, action=Action.REPEAT)
            again = self._next()
            entry = again.conntrack
            answers["confirms"] = entry is not None and entry.confirmed
            self._answer(again)
            master = _tuple(UDP, client.getsockname()[1], _PORT)
            expected = Expectation(
                master=master,
                transport=UDP,
                source=None,
                source_port=None,
                destination=Endpoint(ip_address(_HOST), _EXPECTED),
                policy=None,
                timeout=_AFTER[1].timeout,
                class_=1,
            )
            self._ctnetlink.expect(expected)
            answers["takes_class"] = self._ctnetlink.covering(expected).class_ == 1
            self._ctnetlink.renew(expected, _LONG)
            left = self._ctnetlink.covering(expected).timeout
            answers["renews"] = _LONG - _SECONDS <= left <= _LONG
        with _bound(socket.SOCK_DGRAM) as other:
            other.connect((_HOST, _EXPECTED))
            other.send(b"expected")
            met = self._ctnetlink.get(_tuple(UDP, other.getsockname()[1], _EXPECTED))
            answers["hands_down"] = met.helper is not None
        return answers

    def about_rewriting(self) -> bool:
        """Whether TCP's sequence numbers are adjusted twice.

        After a segment that was made longer the next one is off by as much, once too
        often, and the receiver does not take it.
        """
        with _bound(socket.SOCK_STREAM, _TRANSLATED) as listener:
            listener.listen()
            listener.setblocking(False)
            with _bound(socket.SOCK_STREAM) as client:
                # An acknowledgement that is adjusted twice is none: "two" would wait
                # until "one" is sent again, a fifth of a second.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setblocking(False)
                client.connect_ex((_HOST, _PORT))
                for _ in ("SYN", "SYN and ACK", "ACK"):
                    self._answer(self._next())
                server, _ = listener.accept()
                with server:
                    server.setblocking(False)
                    client.send(b"one")
                    one = self._pass(b"one")
                    self._answer(one, payload=_longer(one.payload))
                    client.send(b"two")
                    self._answer(self._pass(b"two"))
                    received = server.recv(100)
        return not received.endswith(b"two")


def _longer(packet: bytes) -> bytes:
    """A segment with a longer payload."""
    segment = locate(packet)
    assert segment is not None  # noqa: S101 - it was sent here
    payload = packet[segment.start : segment.stop]
    return replace_payload(packet, segment, payload + b"-longer")


def _bound(kind: int, port: int = 0) -> socket.socket:
    end = socket.socket(socket.AF_INET, kind)
    # What waits to be acknowledged would keep the namespace for minutes.
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.bind((_HOST, port))
    return end


def _tuple(transport: Transport, source: int, destination: int) -> Tuple:
    host = ip_address(_HOST)
    return Tuple(transport, Endpoint(host, source), Endpoint(host, destination))

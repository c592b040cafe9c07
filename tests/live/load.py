# SPDX-License-Identifier: GPL-2.0-or-later
"""Honest traffic through the gateway while something goes wrong there, and an account
of it: each packet must arrive, and arrive once.

Numbered calls of GETPORT over UDP, some at a time, from old flows and from new ones;
sessions of TNS that are redirected; and data of a session that is no longer inspected.
What the two ends count is held against counters of their kernels (nft).
"""

import json
import select
import selectors
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from cthelper.core.netlink.socket import SO_RCVBUFFORCE
from tests.live.tns_client import Session, follow
from tests.live.tns_listener import (
    CONTROL_PORT,
    Accept,
    Answer,
    Listener,
    Redirect,
    Refuse,
)
from tests.live.traffic import PORT, getport_call, getport_reply
from tests.live.world import CLIENT, ETH, SERVER, Namespace, World, until

SOURCES: Final = (CLIENT, *(f"10.77.1.{host}" for host in range(41, 46)))
"""The client's addresses that calls come from: each worker has some of them."""

ANNOUNCED: Final = 7999
"""The port that calls are answered with unless they ask for another one."""

# A session that is redirected and accepted, the same refused, for a real client that
# could not log in, and one that is accepted at once.
REDIRECTED: Final = Redirect(41600)
_ANSWERS: Final[dict[int, dict[str, Answer]]] = {
    CONTROL_PORT: {"load": REDIRECTED, "refused": REDIRECTED, "bulk": Accept()},
    REDIRECTED.port: {"load": Accept(), "refused": Refuse()},
}

# What an emulated machine has time for, together with the daemon.
_EVERY: Final = 0.25
# A flow makes calls for so long; then another one does.
_FLOW_SECONDS: Final = 2.0
_KEPT_FLOWS: Final = 20
_BUFFER: Final = 8 << 20
# Two emulated machines on a busy one delay packets, 8 s were seen.
_PATIENCE: Final = 20.0
# Longer than a session waits for each of its answers.
_TURN_SECONDS: Final = 90.0
_SESSION_PAUSE: Final = 0.2
_BULK_PAUSE: Final = 0.05

# What each end has sent and received, counted by its kernel.
_COUNTERS: Final = f"""
table inet load {{
	counter calls {{ }}
	counter answers {{ }}
	chain output {{
		type filter hook output priority filter;
		udp dport {PORT} counter name "calls"
		udp sport {PORT} counter name "answers"
	}}
	chain input {{
		type filter hook input priority filter;
		udp dport {PORT} counter name "calls"
		udp sport {PORT} counter name "answers"
	}}
}}
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """A session that did not come about, or had wrong data, and when."""

    began: float
    ended: float
    error: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the traffic since it was begun to be counted."""

    calls: int
    lost: int
    """Calls and answers that have not arrived."""

    doubled: int
    """Calls and answers that have arrived more than once, each time but the first."""

    slowest: float
    """Seconds until the last answer to come in was there."""

    sessions: int
    failed: tuple[str, ...]
    """What became of the sessions that failed."""

    bulk: int
    """Bytes that have gone to the server and back."""

    stalled: float
    """The longest time that these stood still, in seconds."""


class Calls:
    """Calls GETPORT from many flows without waiting for answers, and answers them.

    A call's number is its transaction's. Both ends note which have come.
    """

    def __init__(self, world: World) -> None:
        self.fresh = True
        """Whether new flows come up. False: only those that were there before."""

        self._world = world
        self._lock = threading.Lock()
        self._number = 0
        self._first = 1
        self._sent: dict[int, float] = {}
        self._arrived: Counter[int] = Counter()
        self._answered: Counter[int] = Counter()
        self._slowest = 0.0
        self._ended = threading.Event()
        self._paused = threading.Event()
        self._resting = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._flows: list[list[socket.socket]] = []
        self._threads = [
            threading.Thread(target=self._call),
            threading.Thread(target=self._answer),
        ]
        self._server = udp(world.server, SERVER, PORT)

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for each in self._threads:
            each.join()
        for flows in self._flows:
            for flow in flows:
                flow.close()
        self._selector.close()
        self._server.close()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No call is begun meanwhile."""
        self._paused.set()
        self._resting.wait()
        try:
            yield
        finally:
            self._resting.clear()
            self._paused.clear()

    def mark(self) -> None:
        """Account for what is sent from now on."""
        with self._lock:
            self._first = self._number + 1
            self._slowest = 0.0

    def probe(self, source: str, port: int) -> bool:
        """Call from a flow of its own, and have this port announced.

        Whether an answer has come; it may still do so.
        """
        with udp(self._world.client, source) as flow:
            flow.connect((SERVER, PORT))
            self._send(flow, port)
            ready, _, _ = select.select([flow], [], [], _PATIENCE)
            if ready:
                self._take(flow)
            return bool(ready)

    def flood(self, count: int) -> None:
        """So many calls as fast as can be, from flows that are there."""
        with self.paused():
            flows = self._flows[-1]
            for index in range(count):
                self._send(flows[index % len(flows)], ANNOUNCED)

    def account(self) -> tuple[int, int, int, float]:
        """Of calls since `mark`: how many, lost ones and doubled ones, the slowest.

        They must have come to rest, for which `settle` waits.
        """
        with self._lock:
            numbers = [each for each in self._sent if each >= self._first]
            lost = doubled = 0
            for each in numbers:
                arrived, answered = self._arrived[each], self._answered[each]
                lost += (not arrived) + (not answered and arrived > 0)
                doubled += max(0, arrived - 1) + max(0, answered - arrived)
            return len(numbers), lost, doubled, self._slowest

    def lost_at(self) -> list[float]:
        """When the calls since `mark` were sent that have no answer yet."""
        with self._lock:
            return [
                sent
                for each, sent in self._sent.items()
                if each >= self._first and not self._answered[each]
            ]

    def settle(self) -> None:
        """Wait until all calls are answered, or are lost; for `paused`."""
        deadline = time.monotonic() + _PATIENCE
        while self.lost_at() and time.monotonic() < deadline:
            time.sleep(0.05)

    def totals(self) -> tuple[int, int, int, int]:
        """Calls sent and arrived, answers sent and arrived, from the beginning on."""
        with self._lock:
            arrived = self._arrived.total()
            return len(self._sent), arrived, arrived, self._answered.total()

    def _call(self) -> None:
        due = renewal = time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            if self._paused.is_set():
                self._resting.set()
            elif now >= due:
                if now >= renewal and (self.fresh or not self._flows):
                    self._renew()
                    renewal = now + _FLOW_SECONDS
                for flow in self._flows[-1]:
                    self._send(flow, ANNOUNCED)
                due = now + _EVERY
            wait = 0.02 if self._paused.is_set() else due - time.monotonic()
            for key, _ in self._selector.select(max(0.001, wait)):
                assert isinstance(key.fileobj, socket.socket)
                self._take(key.fileobj)

    def _renew(self) -> None:
        """New flows, one of each source; the oldest ones are forgotten."""
        flows = [udp(self._world.client, each) for each in SOURCES]
        for flow in flows:
            flow.connect((SERVER, PORT))
            self._selector.register(flow, selectors.EVENT_READ)
        self._flows.append(flows)
        if len(self._flows) > _KEPT_FLOWS:
            for flow in self._flows.pop(0):
                self._selector.unregister(flow)
                flow.close()

    def _send(self, flow: socket.socket, port: int) -> None:
        with self._lock:
            self._number += 1
            number = self._number
            self._sent[number] = time.monotonic()
        # The port of a call is not used (RFC 1833, 3.1): the answer's is to be this.
        flow.send(getport_call(number)[:-4] + struct.pack("!I", port))

    def _take(self, flow: socket.socket) -> None:
        with suppress(OSError):  # such as an ICMP error
            number = int.from_bytes(flow.recv(100)[:4])
            with self._lock:
                self._answered[number] += 1
                if number >= self._first:
                    took = time.monotonic() - self._sent[number]
                    self._slowest = max(self._slowest, took)

    def _answer(self) -> None:
        self._server.settimeout(0.2)
        while not self._ended.is_set():
            with suppress(TimeoutError):
                data, asker = self._server.recvfrom(1000)
                number = int.from_bytes(data[:4])
                with self._lock:
                    self._arrived[number] += 1
                reply = getport_reply(number, int.from_bytes(data[-4:]))
                self._server.sendto(reply, asker)


class _Endless(ABC):
    """A client that goes on in a thread of its own."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    @abstractmethod
    def turns(self) -> int:
        """How often it has done what it does, or failed."""

    def await_turn(self) -> None:
        """Wait until what is under way has come to an end, good or bad."""
        before = self.turns
        if not until(lambda: self.turns > before, _TURN_SECONDS):
            raise AssertionError(f"{type(self).__name__}: stands still")

    @abstractmethod
    def _run(self) -> None:
        """Go on until it has `_ended`."""


class Sessions(_Endless):
    """Connects to the listener, follows its redirect and exchanges data; and again."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.done = 0
        self.failed: list[Failure] = []

    @property
    def turns(self) -> int:
        """Sessions, good and bad."""
        return self.done + len(self.failed)

    def _run(self) -> None:
        while not self._ended.wait(_SESSION_PAUSE):
            began = time.monotonic()
            try:
                with follow(self._world.client, SERVER, "load") as session:
                    session.exchange(1)
            except (OSError, EOFError, AssertionError) as error:
                failure = Failure(began, time.monotonic(), repr(error))
                self.failed.append(failure)
            else:
                self.done += 1


class Bulk(_Endless):
    """A session that was accepted long ago, whose data go to the server and back."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.bytes = 0
        self.stalled = 0.0
        self.failed: list[Failure] = []

    @property
    def turns(self) -> int:
        """What has been exchanged, and sessions that were lost."""
        return self.bytes + len(self.failed)

    def _run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                with Session(
                    self._world.client, SERVER, CONTROL_PORT, "bulk"
                ) as session:
                    while not self._ended.wait(_BULK_PAUSE):
                        began = time.monotonic()
                        session.exchange(2)
                        self.stalled = max(self.stalled, time.monotonic() - began)
                        self.bytes += 2 * 8192
            except (OSError, EOFError, AssertionError) as error:
                what = f"bulk: {error!r}"
                self.failed.append(Failure(began, time.monotonic(), what))


class Load:
    """All of the traffic; a context manager that starts and ends it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.calls = Calls(world)
        self.sessions = Sessions(world)
        self.bulk = Bulk(world)
        self._stack = ExitStack()
        self._before = (0, 0, 0, 0)
        self._done = self._failed = self._bytes = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for source in SOURCES[1:]:
                address = f"{source}/24 dev {ETH}"
                self._world.client.tell(f"ip address replace {address}")
                stack.callback(self._world.client.tell, f"ip address del {address}")
            for end in (self._world.client, self._world.server):
                end.run("nft", "-f", "-", input=_COUNTERS, check=True)
                stack.callback(end.run, "nft", "delete", "table", "inet", "load")
            stack.enter_context(Listener(self._world.server, _ANSWERS))
            for each in (self.calls, self.sessions, self.bulk):
                stack.enter_context(each)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def mark(self) -> None:
        """Account for what happens from now on."""
        self.calls.mark()
        self._done, self._failed = self.sessions.done, len(self._failures())
        self._bytes = self.bulk.bytes
        self.bulk.stalled = 0.0

    def tally(self) -> Tally:
        """What has become of all since `mark`; no more calls are made meanwhile.

        Raises AssertionError where kernels have counted otherwise than the ends have.
        """
        with self.calls.paused():
            self.calls.settle()
            calls, lost, doubled, slowest = self.calls.account()
            assert self._counted() == self.calls.totals()
        for each in (self.sessions, self.bulk):
            each.await_turn()
        return Tally(
            calls,
            lost,
            doubled,
            slowest,
            self.sessions.done - self._done,
            tuple(self._failures()[self._failed :]),
            self.bulk.bytes - self._bytes,
            self.bulk.stalled,
        )

    def _failures(self) -> list[str]:
        return [each.error for each in self.sessions.failed + self.bulk.failed]

    def _counted(self) -> tuple[int, int, int, int]:
        """As `Calls.totals`, by what the kernels of both ends say."""
        client, server = _counters(self._world.client), _counters(self._world.server)
        return (
            client["calls"],
            server["calls"],
            server["answers"],
            client["answers"],
        )


def _counters(namespace: Namespace) -> dict[str, int]:
    text = namespace.run(
        *("nft", "-j", "list", "counters", "table", "inet", "load"), check=True
    ).stdout
    return {
        each["counter"]["name"]: int(each["counter"]["packets"])
        for each in json.loads(text)["nftables"]
        if "counter" in each
    }


def udp(namespace: Namespace, address: str, port: int = 0) -> socket.socket:
    """A UDP socket of a namespace that does not lose what comes to it."""
    with namespace.entered():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
        opened.bind((address, port))
    except BaseException:
        opened.close()
        raise
    return opened

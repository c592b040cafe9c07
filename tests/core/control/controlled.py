# SPDX-License-Identifier: GPL-2.0-or-later
"""A controller at a real socket, with processes and a kernel that are made up."""

import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, cast

from cthelper.core.control.collecting import Collector
from cthelper.core.control.commands import Commands
from cthelper.core.control.controller import Controller
from cthelper.core.control.following import SUPERVISOR
from cthelper.core.control.health import Fill
from cthelper.core.control.recent import Recent
from cthelper.core.control.reports import Asker
from cthelper.core.control.statistics import Statistics
from cthelper.core.errors import NetlinkError, NotFound
from cthelper.core.netlink.listing import Listed
from cthelper.core.netlink.monitor import Happened
from cthelper.core.queue.binding import BoundQueue
from cthelper.core.records import Record
from cthelper.core.tuples import Conntrack, Expectation, Kind, Tuple


class Process:
    """Answers as a server does, or the supervisor."""

    def __init__(self, state: Record) -> None:
        self.state: Record | None = state
        self.recent = Recent()
        self.flows: list[list[object]] = []
        self.asked: list[str] = []

    def ask(self, what: str, _seconds: float, **details: object) -> Record | None:
        """As `Asker` does."""
        self.asked.append(what)
        if self.state is None:
            return None
        if what == "state":
            return self.state
        if what == "events":
            return self.recent.answer(details)
        at, most = cast(int, details["at"]), cast(int, details["most"])
        return {"flows": self.flows[at : at + most]}


class Kernel:
    """The tables, as `Ctnetlink` has them."""

    def __init__(self) -> None:
        self.table: list[Listed] = []
        self.expected: list[Expectation] = []

    def close(self) -> None:
        pass

    def listed(self) -> Iterator[Listed]:
        return iter(list(self.table))

    def expectations(self) -> list[Expectation]:
        return list(self.expected)

    def get(self, original: Tuple, zone: int = 0) -> Conntrack:
        for each in self.table:
            if (each.entry.original, each.entry.zone) == (original, zone):
                return each.entry
        raise NotFound.of(2, f"get conntrack entry {original}")

    def delete(self, original: Tuple, zone: int = 0) -> None:
        entry = self.get(original, zone)
        self.table = [each for each in self.table if each.entry is not entry]

    def expect(self, expectation: Expectation) -> None:
        expectation.timeout, expectation.helper = 30, "line"
        self.expected.append(expectation)

    def covering(self, expectation: Expectation) -> Expectation:
        return expectation

    def delete_expectation(self, expectation: Expectation) -> None:
        self.expected.remove(expectation)


class Told:
    """A monitor that tells of these events, and then fails."""

    def __init__(self, *batches: list[Happened]) -> None:
        self._batches = batches
        self.asked: list[Kind] = []

    def opened(self, kinds: Iterable[Kind], **_options: object) -> "Told":
        """As `Monitor` is made."""
        self.asked = list(kinds)
        self.overruns = 0
        self._left = list(self._batches)
        return self

    def read(self, _seconds: float) -> Iterator[Happened]:
        """Those that come next; the last ones are lost."""
        if self._left:
            found = self._left.pop(0)
            return iter([each for each in found if each.kind in self.asked])
        if self.overruns:
            raise NetlinkError.of(errno.EIO, "read events")
        self.overruns = 2
        return iter(())

    def close(self) -> None:
        pass


class World:
    """A supervisor, a server and a kernel, and who answers for them at `path`."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.kernel = Kernel()
        self.queues: dict[int, BoundQueue] = {}
        self.supervisor = Process(
            {
                **{"version": "1", "code": "compiled", "backend": "native"},
                **{"kernel": "6.1", "pid": 1, "since": 0.0, "counters": {"started": 1}},
                "workers": [{"worker": 0, "pid": 2, "serving": True}],
                "helpers": {"line": {"policies": ["data"]}},
                **{"queues": [], "closed_queues": []},
                **{"ruleset": True, "reload": None, "events_error": None},
            }
        )
        self.server = Process(
            {
                **{"pid": 2, "counters": {"expectation": 2}},
                "flows": {"used": 1, "most": 100},
                "memory": {"used": 1000, "most": 1 << 20},
                **{"expectations": 3, "quarantined": []},
            }
        )
        self.commands = Commands(
            cast(dict[int, Asker], {SUPERVISOR: self.supervisor, 0: self.server}),
            ctnetlink=lambda: cast(Any, self.kernel),
            queues=lambda: self.queues,
            expectations=lambda: Fill(1, 4096),
            entries=lambda: Fill(2, 65536),
            clock=clock,
        )

    def collect(self, statistics: Statistics) -> None:
        """Have these statistics be the daemon's."""
        collector = Collector()
        collector._statistics = statistics
        self.commands._collector = collector

    def run(self, command: str, *, root: bool = True, **details: object) -> list[Any]:
        """What a request is answered with."""
        request: Record = {"command": command, **details}
        return list(self.commands.run(request, root=root))


@contextmanager
def controller(world: World) -> Iterator[None]:
    """Somebody answers there."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(world.path))
    listening.listen(8)
    life, gone = socket.socketpair()
    thread = Thread(
        target=Controller(listening, gone.fileno(), world.commands, "9").run
    )
    thread.start()
    try:
        yield
    finally:
        life.close()
        thread.join()
        listening.close()
        gone.close()

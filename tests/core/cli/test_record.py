# SPDX-License-Identifier: GPL-2.0-or-later
"""`cthelper record`: which packets, where to, and until when. No kernel is asked."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from cthelper.core.cli import record
from cthelper.core.cli.record import shown
from cthelper.core.errors import Busy, NotPermitted
from cthelper.core.netlink import nflog
from cthelper.core.netlink.nflog import Logged
from cthelper.core.tuples import ORIGINAL, REPLY, UDP, Conntrack, Direction, Tuple
from cthelper.nft import recording
from tests.cases import cases
from tests.core.builders import CLIENT, SERVER, conntrack, flow_tuple, udp
from tests.core.cli.runner import Runner
from tests.core.offline.capture_files import packets

PREROUTING, INPUT, OUTPUT, POSTROUTING = 0, 1, 3, 4
KNOWN = "203.0.113.1"
BEGIN = 1_700_000_000_000_000_000


def flow(source: str, destination: str) -> Tuple:
    return flow_tuple(UDP, (source, 1), (destination, 2))


MASTER = flow(CLIENT, SERVER)
# As a gateway has them that masquerades its clients.
CONTROL = conntrack(MASTER, flow(SERVER, KNOWN))
OPENED_BY_CLIENT = replace(CONTROL, master=MASTER)
OPENED_BY_SERVER = replace(
    conntrack(flow(SERVER, KNOWN), flow(CLIENT, SERVER)), master=MASTER
)
AS_IT_IS = replace(conntrack(flow(SERVER, CLIENT)), master=MASTER)


def logged(
    entry: Conntrack | None = None,
    hook: int = PREROUTING,
    direction: Direction = ORIGINAL,
    payload: bytes = b"said",
    time: int | None = None,
) -> Logged:
    return Logged(
        number=0,
        hook=hook,
        time=time,
        direction=direction,
        conntrack=entry,
        packet=udp(payload),
    )


@cases(
    "entry,request_enters",
    {
        "control flow": (CONTROL, True),
        "expected, of the client": (OPENED_BY_CLIENT, True),
        "expected, of the server": (OPENED_BY_SERVER, False),
        "expected, of the server, without NAT": (AS_IT_IS, True),
    },
)
def test_what_is_shown_is_the_clients_side(
    entry: Conntrack, request_enters: bool
) -> None:
    for hook in (PREROUTING, OUTPUT):
        assert shown(logged(entry, hook, ORIGINAL)) is request_enters
        assert shown(logged(entry, hook, REPLY)) is not request_enters
    for hook in (INPUT, POSTROUTING):
        assert shown(logged(entry, hook, ORIGINAL)) is not request_enters
        assert shown(logged(entry, hook, REPLY)) is request_enters


def test_what_has_no_flow_is_shown() -> None:
    assert shown(logged(None, INPUT))


class Log:
    """A group, with what was logged to it."""

    busy: int = 0
    waiting: list[Logged]
    missing = 0

    def __init__(self, group: int) -> None:
        if group < 25460 + self.busy:
            kind = Busy if group % 2 else NotPermitted
            raise kind.of(16 if group % 2 else 1, "bind")
        self.group = group
        self._readable, self._other = os.pipe()
        os.set_blocking(self._readable, False)
        if self.waiting:
            os.write(self._other, b"x")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._readable)
        os.close(self._other)

    def fileno(self) -> int:
        return self._readable

    def packets(self) -> Iterator[Logged]:
        with suppress(BlockingIOError):
            os.read(self._readable, 1)
        while self.waiting:
            yield self.waiting.pop(0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was done to tables; recording is for one second, where nothing ends it."""
    done: list[str] = []
    monkeypatch.setattr(record, "holds", lambda _: True)
    monkeypatch.setattr(nflog, "PacketLog", Log)
    monkeypatch.setattr(recording, "groups", lambda: [])
    monkeypatch.setattr(
        recording, "begin", lambda group, helper: done.append(f"{helper.name} {group}")
    )
    monkeypatch.setattr(recording, "end", lambda group: done.append(f"end {group}"))
    monkeypatch.setattr(recording, "remove", lambda group: done.append(f"no {group}"))
    monkeypatch.setattr(Log, "waiting", [], raising=False)
    monkeypatch.setattr(Log, "busy", 0)
    monkeypatch.chdir(tmp_path)
    return done


def test_packets_go_to_a_new_file_of_roots_own(
    told: list[str], run: Runner, empty: str, tmp_path: Path
) -> None:
    Log.waiting += [
        logged(time=BEGIN),
        logged(hook=POSTROUTING, entry=CONTROL),
        logged(direction=REPLY, hook=POSTROUTING, entry=CONTROL, payload=b"answer"),
    ]
    done = run("record", "sunrpc", "--config", empty, "--seconds", "1")
    assert done.code == 0, done.errors
    assert done.errors.endswith("cthelper: 2 packets in sunrpc.pcapng\n")
    file = tmp_path / "sunrpc.pcapng"
    assert file.stat().st_mode & 0o777 == 0o600
    assert packets(file.read_bytes()) == [udp(b"said"), udp(b"answer")]
    assert told == ["sunrpc 25460", "end 25460", "no 25460"]
    again = run("record", "sunrpc", "--config", empty)
    assert (again.code, again.errors) == (1, "cthelper: sunrpc.pcapng: File exists\n")
    assert len(told) == 3


def test_size_ends_it(told: list[str], run: Runner, empty: str, tmp_path: Path) -> None:
    Log.waiting += [logged(payload=bytes(1400))] * 2000
    done = run("record", "sunrpc", "--config", empty, "--megabytes", "1")
    assert done.code == 0
    assert 1_000_000 <= (tmp_path / "sunrpc.pcapng").stat().st_size < 1_002_000
    assert told[1:] == ["end 25460", "no 25460"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_and_the_table_goes(
    told: list[str], run: Runner, empty: str, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    Log.waiting.append(logged())
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), number))
    timer.start()
    done = run("record", "sunrpc", "--config", empty)
    timer.join()
    assert done.code == 0
    assert done.errors.endswith("cthelper: 1 packets in sunrpc.pcapng\n")
    assert told == ["sunrpc 25460", "end 25460", "no 25460"]
    assert signal.getsignal(number) is before


def test_two_have_a_group_each_and_what_was_left_goes(
    told: list[str], run: Runner, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Log, "busy", 2)
    # Two are others'; 25462 will be its own.
    monkeypatch.setattr(recording, "groups", lambda: [25460, 25461, 25462, 25465])
    done = run("record", "sunrpc", "--config", empty, "--seconds", "0")
    assert done.code == 0
    assert told == ["end 25465", "no 25465", "sunrpc 25462", "end 25462", "no 25462"]


def test_where_all_groups_are_taken_it_says_so(
    told: list[str],
    run: Runner,
    empty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Log, "busy", 100)
    done = run("record", "sunrpc", "--config", empty)
    assert done.code == 1
    assert done.errors.startswith("cthelper: bind: ")
    # Nothing is left of it.
    assert told == []
    assert not (tmp_path / "sunrpc.pcapng").exists()


def test_what_is_missing_is_told(
    told: list[str], run: Runner, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Log, "missing", 5)
    Log.waiting.append(logged())
    done = run("record", "sunrpc", "--config", empty, "--seconds", "1")
    assert "1 packets, 5 more were lost in " in done.errors


def test_addresses_are_replaced(
    told: list[str], run: Runner, empty: str, tmp_path: Path
) -> None:
    Log.waiting += [logged(), logged(payload=b"")]
    words = ("record", "sunrpc", "--config", empty, "--seconds", "1", "--anonymize")
    done = run(*words, "-w", "other.pcapng")
    assert done.code == 0
    assert done.errors.endswith(
        "cthelper: 2 packets; left out 0, blanked 0: other.pcapng\n"
    )
    found = packets((tmp_path / "other.pcapng").read_bytes())
    assert [len(each) for each in found] == [len(udp(b"said")), len(udp(b""))]
    assert udp(b"said")[12:20] not in found[0]


@cases(
    "words,says",
    {
        "no helper": (["nosuch"], "no helper nosuch is enabled: there are "),
        "size": (["sunrpc", "--megabytes", "0"], "0 is no number from 1 to 4096"),
        "time": (["sunrpc", "--seconds", "x"], "x is no time such as 30"),
    },
)
def test_wrong_usage(
    told: list[str], run: Runner, empty: str, words: list[str], says: str
) -> None:
    done = run("record", *words, "--config", empty)
    assert done.code == 2
    assert says in done.errors
    assert told == []


def test_only_root_may(
    told: list[str], run: Runner, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "holds", lambda _: False)
    done = run("record", "sunrpc", "--config", empty)
    assert done.code == 1
    assert "needs CAP_NET_ADMIN" in done.errors

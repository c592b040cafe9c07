# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracles of fuzzing find what they are there to find, and the log counts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Direction,
    Effects,
    Endpoint,
    Expect,
    Helper,
    Message,
    Policy,
    Rewrite,
    Transport,
    Tuple,
    expect,
)
from cthelper.core.config import HelperConfig, parse
from cthelper.core.grants import How, Placed
from cthelper.core.registry import register
from cthelper.core.tuples import Conntrack, Expectation, Status, Translation
from cthelper.core.window import Standing
from tests.fuzz import blind, cost, log, network, page, retransmission
from tests.fuzz.__main__ import Result, merge, run_until
from tests.fuzz.cost import Stopwatch, in_time, kept
from tests.fuzz.forgery import forgery
from tests.fuzz.network import HEAD, Kernel, Networks
from tests.fuzz.oracle import Announcement, check_packet, headers
from tests.fuzz.parsers import apply
from tests.fuzz.script import Script, Step
from tests.fuzz.settings import mutated_text
from tests.fuzz.targets import TARGETS

CLIENT, SERVER = ip_address("192.0.2.1"), ip_address("198.51.100.2")
SHOWN = ip_address("203.0.113.77")


# The engine behind NAT.


class Opens(Helper):
    """OPEN: two digits for a port from 5000 on. It is expected, and written."""

    name = "opens"
    transports = frozenset({UDP})
    ports = (7000,)
    policies = (Policy("data", max_expected=8),)

    def on_message(self, message: Message) -> Effects:
        if message.payload[:4] == b"OPEN":
            port = 5000 + message.payload[4]
            grant = yield from expect(
                Endpoint(message.source.address, port), policy="data"
            )
            yield Rewrite((4, 5), str(grant.endpoint.port).encode())


class Faults(Opens):
    """Has a bug."""

    def on_message(self, message: Message) -> Effects:
        if message.payload[50]:
            yield from super().on_message(message)


class Keeps(Opens):
    """Keeps a hundred bytes for each that comes."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []

    def on_message(self, message: Message) -> Effects:
        self._kept.append(message.payload * 100)
        yield from super().on_message(message)


class Slow(Opens):
    """Takes its time."""

    def on_message(self, message: Message) -> Effects:
        sum(range(10_000_000))
        yield from super().on_message(message)


def networks(helper: type[Helper]) -> Networks:
    return Networks(((helper, UDP),), ())


def packets(*payloads: bytes, nat: int = 8, flags: int = 8) -> bytes:
    head = (
        bytes([flags, 1, *[nat] * 4])
        + CLIENT.packed.ljust(16, b"\0")
        + SERVER.packed.ljust(16, b"\0")
        + (40000).to_bytes(2)
        + (7000).to_bytes(2)
    )
    assert len(head) == HEAD
    return Script(head, tuple(Step(0, each) for each in payloads)).write()


@pytest.mark.parametrize("nat", [0, 8, 16, 24, 8 | 128])
def test_engine_that_does_right_is_not_found(nat: int) -> None:
    networks(Opens)(packets(b"OPEN1", b"OPEN2", b"x", b"OPEN1", nat=nat))


@pytest.mark.parametrize(
    ("helper", "text"),
    [(Faults, "fault: IndexError"), (Keeps, "bytes are kept of")],
)
def test_helper_that_does_wrong_is_found(helper: type[Helper], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        networks(helper)(packets(b"OPEN1" + bytes(45), b"x" * 2000))


def test_packet_that_takes_long_is_found() -> None:
    data = packets(b"OPEN1")
    with pytest.raises(AssertionError, match=r"a packet took \d+\.\d ms"):
        in_time(lambda: networks(Slow)(data))


def test_what_took_long_once_is_not_found() -> None:
    watch = cost.WATCH
    times = iter([cost.SECONDS * 2, 0.0])

    def run() -> None:
        watch.longest = next(times)

    in_time(run)


def test_what_is_placed_and_not_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: Kernel, placed: Sequence[Placed]) -> None:
        """Does not take back."""

    class Withdraws(Opens):
        """Asks, and then cannot rewrite what it announced."""

        def on_message(self, message: Message) -> Effects:
            yield from super().on_message(message)
            yield Rewrite((0, 1), bytes(2000))

    monkeypatch.setattr(Kernel, "withdraw", forget)
    with pytest.raises(AssertionError, match="neither told nor back"):
        networks(Withdraws)(packets(b"OPEN1", b"OPEN2", b"OPEN3"))


def test_kernel_takes_back_only_what_it_placed() -> None:
    kernel = Kernel(0)
    with pytest.raises(AssertionError, match="was not placed"):
        kernel.withdraw([Placed(expectation(), How.CREATED, 1)])


@pytest.mark.parametrize(
    ("lies", "packet"),
    [
        (b"", b"abcdef"),
        (b"\x00\xff", b"\xffbcdef"),
        (b"\xff\x02", b"abcd"),
        (b"\xfe\x02", b"abcdef\0\0"),
        (b"\x01!\x02?", b"a!?def"),
        (b"\xff\xff", b"a"),
    ],
)
def test_headers_lie_as_the_script_says(lies: bytes, packet: bytes) -> None:
    assert network._lie(b"abcdef", lies) == packet


# What may be opened.


def entry(known: Address = CLIENT) -> Conntrack:
    ours, theirs = Endpoint(CLIENT, 40000), Endpoint(SERVER, 7000)
    return Conntrack(
        id=1,
        original=Tuple(UDP, ours, theirs),
        reply=Tuple(UDP, theirs, Endpoint(known, 40000)),
        status=Status.CONFIRMED,
        helper="opens",
    )


def config(text: str = "") -> HelperConfig:
    settings = f"[helpers.opens]\n{text}"
    return parse(settings, Path("settings"), register([Opens])).helpers["opens"]


def expectation(
    address: str = "192.0.2.1", port: int = 5000, **changes: object
) -> Expectation:
    plain = Expectation(
        master=entry().original,
        transport=UDP,
        source=None,
        source_port=None,
        destination=Endpoint(ip_address(address), port),
        policy="data",
        timeout=300,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def announcement(text: str = "", direction: Direction = ORIGINAL) -> Announcement:
    return Announcement(entry(), direction, config(text), False, 0)


@pytest.mark.parametrize(
    ("announced", "text", "direction"),
    [
        (expectation(), "", ORIGINAL),
        (expectation("198.51.100.2"), "", REPLY),
        (expectation("10.0.0.1"), 'guard.allow_hosts = ["10.0.0.0/8"]', ORIGINAL),
        (expectation("127.0.0.1"), 'guard.allow_hosts = ["127.0.0.0/8"]', ORIGINAL),
        (
            expectation(port=80),
            "guard.lowest_port = 1\nguard.denied_ports = []",
            ORIGINAL,
        ),
    ],
)
def test_what_may_be_opened_is_not_found(
    announced: Expectation, text: str, direction: Direction
) -> None:
    announcement(text, direction).check(announced)


ALL = 'guard.allow_hosts = ["0.0.0.0/0", "::/0"]'


@pytest.mark.parametrize(
    ("announced", "text", "why"),
    [
        (expectation("198.51.100.2"), "", "third party"),
        (expectation("10.0.0.1"), "", "third party"),
        (expectation(port=80), "", "port"),
        (expectation(port=3389), "", "port"),
        (expectation("224.0.0.1"), ALL, "multicast"),
        (expectation("0.0.0.0"), ALL, "unspecified"),  # noqa: S104
        (expectation("255.255.255.255"), ALL, "broadcast"),
        (expectation(zone=1), "", "192.0.2.1:5000"),
        (expectation(timeout=1), "", "192.0.2.1:5000"),
        (expectation(policy="other"), "", "192.0.2.1:5000"),
        (expectation("2001:db8::1"), ALL, "2001:db8::1"),
    ],
)
def test_what_must_not_be_opened_is_found(
    announced: Expectation, text: str, why: str
) -> None:
    with pytest.raises(AssertionError, match=why):
        announcement(text).check(announced)


@pytest.mark.parametrize(
    ("announced", "found"),
    [
        (expectation(str(SHOWN), translation=Translation(REPLY, 5000)), False),
        (expectation(str(SHOWN), translation=Translation(REPLY, 80)), True),
        (expectation(translation=Translation(REPLY, 5000)), True),
        (expectation(str(SHOWN), 80, translation=Translation(REPLY, 5000)), True),
        (expectation(str(SHOWN)), True),
    ],
)
def test_what_is_translated_leads_to_the_announcer(
    announced: Expectation, found: bool
) -> None:
    translated = entry(SHOWN)
    check = Announcement(translated, ORIGINAL, config(), False, 0).check
    if not found:
        check(announced)
        return
    with pytest.raises(AssertionError):
        check(announced)


# Packets that were rewritten.


def built(payload: bytes, transport: Transport = UDP) -> bytes:
    behind = (8 + len(payload)).to_bytes(2) + b"\0\0" + payload
    if transport is TCP:
        behind = bytes(8) + b"\x50\x18\0\0\0\0\0\0" + payload
    return headers(transport, (CLIENT, SERVER), (40000, 7000), behind)


@pytest.mark.parametrize("transport", [TCP, UDP])
def test_packet_that_is_whole_is_not_found(transport: Transport) -> None:
    check_packet(built(b"longer", transport), built(b"short", transport))


@pytest.mark.parametrize("transport", [TCP, UDP])
def test_any_other_byte_of_the_headers_is_found(transport: Transport) -> None:
    received, sent = built(b"short", transport), built(b"longer", transport)
    # Two that are wrong may make up for each other; one may not.
    for at in range(len(sent)):
        wrong = bytearray(sent)
        wrong[at] ^= 0x10
        with pytest.raises(AssertionError):
            check_packet(bytes(wrong), received)


def test_rewrites_that_overlap_are_found() -> None:
    assert apply(b"abcdef", [Rewrite((4, 5), b"!"), Rewrite((0, 2), b"")]) == b"cd!f"
    with pytest.raises(AssertionError, match="overlap"):
        apply(b"abcdef", [Rewrite((0, 3), b"!"), Rewrite((2, 4), b"")])


# A stream that is rewritten.


def test_bytes_that_become_others_when_they_come_again_are_found() -> None:
    forms = {0: b"0000"}
    retransmission._compare(0, 8, b"r.0000.\n", forms)
    with pytest.raises(AssertionError, match="message 0 is b'' and was b'0000'"):
        retransmission._compare(0, 8, b"r..\n", forms)
    with pytest.raises(AssertionError, match="message 1"):
        retransmission._compare(8, 16, b"r.1111.\n", forms)
    with pytest.raises(AssertionError, match="more than was sent"):
        retransmission._compare(16, 18, b"k.x", forms)


# Somebody who sends in the name of another.


@pytest.mark.interpreted
def test_forged_bytes_that_are_read_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes([0, 0, 0, 9]) + bytes(8) + bytes([2, 0x18, 5]) + b"\x55" * 8
    forgery(data)
    monkeypatch.setattr("cthelper.core.reader.judge", lambda *_, **__: Standing.READ)
    monkeypatch.setattr("cthelper.core.stream.distance", lambda start, other: 0)
    with pytest.raises(AssertionError, match="!!!!!' was read"):
        forgery(data)


@pytest.mark.interpreted
def test_forged_end_of_inspection_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes([0, 2, 0x18, 5]) + b"\x55" * 8
    monkeypatch.setattr("cthelper.core.stream._PASSED_OVER", 0)
    monkeypatch.setattr("cthelper.core.reader.judge", lambda *_, **__: Standing.READ)
    with pytest.raises(AssertionError, match=r"gap|overlap|was read"):
        forgery(data)


# Time and memory.


def test_longest_time_is_kept() -> None:
    watch = Stopwatch()
    assert watch.measure(lambda: sum(range(100_000))) > 0
    longest = watch.longest
    watch.measure(lambda: None)
    assert watch.longest == longest > 0
    watch.restart()
    assert watch.longest == 0


def test_all_that_is_reached_is_counted_once() -> None:
    data = bytes(1000)
    assert kept([[data, data]]) - kept([[data]]) < 100
    assert kept([[data]]) - kept([[data]], [data]) >= 1000
    assert kept([Expect, network]) == 0


# Inputs.


@pytest.mark.parametrize("seed", range(60))
def test_mutated_text_keeps_the_limit(seed: int) -> None:
    text = b"[daemon]\nqueue = 1\n"

    def mutate(data: bytes, limit: int) -> bytes:
        return data + b"!"

    assert len(mutated_text(text, 30, seed, mutate=mutate)) <= 30


@pytest.mark.parametrize("seed", range(60))
def test_blind_mutation_keeps_the_limit(seed: int) -> None:
    assert len(blind._mutate(Random(seed), b"abcdef", 8)) <= 8


def test_what_was_run_last_is_found(tmp_path: Path) -> None:
    path = tmp_path / "current"
    with blind._Current(path, 10) as current:
        current.write(b"first one")
        current.write(b"last")
        assert blind.found(path) == b"last"
    assert not path.exists()


# The log.


def line(target: str = "packet", executions: int = 10, commit: str = "abc") -> log.Line:
    return log.Line(target, commit, "script/fuzz --executions 9", executions, 2, 1)


def test_runs_of_one_kind_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for each in (line(), line("stream"), line(executions=5), line(commit="def")):
        log.add(each, path)
    lines = log.read(path)
    assert [(each.target, each.commit, each.executions) for each in lines] == [
        ("packet", "abc", 15),
        ("packet", "def", 10),
        ("stream", "abc", 10),
    ]
    assert (lines[0].seconds, lines[0].crashes, lines[0].rate) == (4, 2, 3)
    assert log.totals(lines) == {"packet": 25, "stream": 10}


def test_no_log_has_no_lines(tmp_path: Path) -> None:
    assert log.read(tmp_path / "log") == []


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of its own."""
    path = tmp_path / "log"
    monkeypatch.setattr(log, "LOG", path)
    return path


def fuzzes(status: int = 0) -> Callable[..., Result]:
    """What runs as often as it is told, but 1000 times at most."""

    def fuzz(name: str, folder: Path, *options: str) -> Result:
        asked = int(options[0].removeprefix("-runs="))
        runs = min(1000, asked)
        output = b"Done %d runs in 1 second(s)\n" % runs
        if status:
            output = b"#7\tNEW cov: 1\n#9\tpulse cov: 1\nTraceback\n"
        return Result(name, status, output, ())

    return fuzz


def test_targets_run_in_turn_until_each_has_its_part(
    counted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzz.__main__.fuzz", fuzzes())
    names = ["packet", "stream", "tns"]
    assert run_until(5000, names, tmp_path) == 0
    totals = log.totals(log.read())
    parts = {name: TARGETS[name].part for name in names}
    assert totals == {
        name: 5000 * part // sum(parts.values()) for name, part in parts.items()
    }
    # It is done, and runs nothing again.
    monkeypatch.setattr("tests.fuzz.__main__.fuzz", fuzzes(status=77))
    assert run_until(5000, names, tmp_path) == 0


def test_commit_is_unknown_where_git_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert log.commit() == "unknown"


def test_target_that_fails_is_counted_and_runs_no_more(
    counted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tests.fuzz.__main__.fuzz", fuzzes(status=77))
    assert run_until(5000, ["packet"], tmp_path) == 1
    (counted_line,) = log.read()
    assert (counted_line.executions, counted_line.crashes) == (9, 1)
    assert "packet: FAILED, exit code 77" in capsys.readouterr().out


def test_slowest_input_is_told(tmp_path: Path) -> None:
    output = b"Done 1200 runs in 3 second(s)\n"
    result = Result("packet", 0, output, (), (0.0123, tmp_path / "slowest"))
    assert "slowest: 12.3 ms" in result.report()
    assert f"script/fuzz --replay packet {tmp_path / 'slowest'}" in result.report()


def test_every_target_is_on_the_page() -> None:
    assert set(page.ABOUT) == set(TARGETS)


def test_merging_needs_the_fuzzer_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it keeps of what was there and was reached, and is small, is the corpus."""
    corpus = tmp_path / "corpus"
    for module in ("__main__", "targets"):
        monkeypatch.setattr(f"tests.fuzz.{module}.CORPUS", corpus)
    (corpus / "dns").mkdir(parents=True)
    (corpus / "dns" / "old.bin").write_bytes(b"old")
    reached = tmp_path / "work" / "reached"
    reached.mkdir(parents=True)
    for number in (3000, 300, 30):
        (reached / str(number)).write_bytes(bytes(number))

    class Run:
        returncode = 0
        stdout = b""

    def engine(name: str, *arguments: str, **named: object) -> Run:
        assert arguments[0] == "-merge=1"
        for path in Path(arguments[2]).iterdir():
            (Path(arguments[1]) / path.name).write_bytes(path.read_bytes())
        return Run()

    monkeypatch.setattr("tests.fuzz.__main__._engine", engine)
    assert merge("dns", tmp_path / "work") == "dns: 3 inputs"
    kept_now = sorted(path.stat().st_size for path in (corpus / "dns").iterdir())
    assert kept_now == [3, 30, 300]

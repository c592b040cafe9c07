# SPDX-License-Identifier: GPL-2.0-or-later
"""What fuzzing begins with and what it has found, without the fuzzer.

And that the targets find what they are there to find.
"""

from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    TCP,
    UDP,
    Effects,
    Endpoint,
    Helper,
    Malformed,
    Message,
    Policy,
    Transport,
    Tuple,
    expect,
)
from tests.fuzz.__main__ import Result, main
from tests.fuzz.conversation import EFFECT_LIMIT, HEAD, Conversations, head
from tests.fuzz.script import STEP_LIMIT, Script, Step, mutated
from tests.fuzz.targets import CORPUS, FINDINGS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target_runs_over_its_seeds(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert seeds
    for seed in seeds:
        target.run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_target_runs_over_pieces_of_its_seeds(name: str) -> None:
    random = Random(name)
    target = TARGETS[name]
    for seed in random.choices(list(target.seeds()), k=20):
        cut = random.randrange(len(seed) + 1)
        target.run(seed[:cut])
        target.run(seed[:cut] + random.randbytes(3) + seed[cut:])


@pytest.mark.parametrize("name", TARGETS)
def test_target_runs_over_its_corpus(name: str) -> None:
    for data in TARGETS[name].corpus():
        TARGETS[name].run(data)


def test_corpus_is_small_and_belongs_to_targets() -> None:
    kept = {path for path in CORPUS.rglob("*") if path.is_file()}
    assert kept == {path for name in TARGETS for path in (CORPUS / name).glob("*.bin")}
    assert sum(path.stat().st_size for path in kept) <= 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_is_mended(name: str) -> None:
    for path in TARGETS[name].findings():
        TARGETS[name].run(path.read_bytes())


def test_every_finding_belongs_to_a_target() -> None:
    kept = {path for path in FINDINGS.rglob("*") if path.is_file()}
    assert kept == {path for each in TARGETS.values() for path in each.findings()}


# Scripts.

scripts = st.builds(
    Script,
    st.binary(min_size=4, max_size=4),
    st.lists(
        st.builds(Step, st.integers(0, 255), st.binary()), max_size=STEP_LIMIT
    ).map(tuple),
)


@given(scripts)
def test_script_is_read_as_it_was_written(script: Script) -> None:
    assert Script.read(script.write(), 4) == script


@given(st.binary(max_size=300))
def test_any_bytes_are_a_script(data: bytes) -> None:
    script = Script.read(data, 4)
    assert len(script.head) == 4
    assert Script.read(script.write(), 4) == script


@given(scripts, st.integers(0, 1 << 32), st.integers(0, 100))
def test_a_mutated_script_keeps_the_limit(
    script: Script, seed: int, limit: int
) -> None:
    def mutate(data: bytes, largest: int) -> bytes:
        return (data[::-1] + b"!")[:largest]

    data = script.write()
    assert len(mutated(data, limit, seed, head=4, mutate=mutate)) <= limit


# Conversations.


class Honest(Helper):
    """Messages of two bytes, which lead to one expectation each."""

    name = "honest"
    transports = frozenset({TCP, UDP})
    ports = (7000,)
    policies = (Policy("data", max_expected=255),)

    def frame(self, data: memoryview) -> int | None:
        return 2 if len(data) >= 2 else None

    def on_message(self, message: Message) -> Effects:
        if message.payload[:1] == b"\xff":
            raise Malformed("no such message")
        yield from expect(Endpoint(message.source.address, 5000), policy="data")


class Raises(Honest):
    """Has a bug."""

    def on_message(self, message: Message) -> Effects:
        port = message.payload[7]
        yield from expect(Endpoint(message.source.address, port), policy="data")


class Floods(Honest):
    """One message leads to more than anybody can use."""

    def on_message(self, message: Message) -> Effects:
        for _ in range(EFFECT_LIMIT + 1):
            yield from super().on_message(message)


class Hasty(Honest):
    """Takes a segment for a message."""

    def frame(self, data: memoryview) -> int | None:
        return len(data)


class Describes(Honest):
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self._asked = 0

    def describe(self, message: Message) -> Mapping[str, str]:
        self._asked += 1
        return {}

    def on_message(self, message: Message) -> Effects:
        port = 5000 + self._asked
        yield from expect(Endpoint(message.source.address, port), policy="data")


class DescribesBadly(Honest):
    """Has a bug in what only replay calls."""

    def describe(self, message: Message) -> Mapping[str, str]:
        return {"first": str(message.payload[7])}


def conversation(transport: Transport) -> bytes:
    ends = (ip_address("192.0.2.1"), 40000), (ip_address("198.51.100.2"), 7000)
    flow = Tuple(transport, Endpoint(*ends[0]), Endpoint(*ends[1]))
    steps = (Step(0, b"abcdef"), Step(1, b"gh"), Step(8, b"\xff?"), Step(8, b"ij"))
    return Script(head(flow), steps).write()


@pytest.mark.parametrize("transport", [TCP, UDP])
def test_helper_that_keeps_its_contract_is_not_found(transport: Transport) -> None:
    Conversations(Honest, transport, "none")(conversation(transport))


def faults() -> Iterator[tuple[type[Helper], Transport, str]]:
    for transport in (TCP, UDP):
        yield Raises, transport, "IndexError"
        yield Floods, transport, "more than 256 effects"
        yield Describes, transport, "in pieces"
        yield DescribesBadly, transport, "IndexError"
    yield Hasty, TCP, "in pieces"


@pytest.mark.parametrize(("helper", "transport", "text"), list(faults()))
def test_helper_that_breaks_its_contract_is_found(
    helper: type[Helper], transport: Transport, text: str
) -> None:
    with pytest.raises(AssertionError, match=text):
        Conversations(helper, transport, "none")(conversation(transport))


def test_settings_are_chosen_by_the_head() -> None:
    data = bytearray(conversation(UDP))
    data[1] = 1
    target = Conversations(
        *(Honest, UDP, "none"), ("", "[helpers.honest]\nno_such_key = 1\n")
    )
    with pytest.raises(Exception, match="no_such_key"):
        target(bytes(data))


@given(st.binary(max_size=HEAD + 40))
def test_any_bytes_are_a_conversation(data: bytes) -> None:
    for transport in (TCP, UDP):
        Conversations(Honest, transport, "none")(data)


# The command.


def test_a_finding_is_shown_with_the_command_that_replays_it(tmp_path: Path) -> None:
    finding = tmp_path / "crash-1"
    finding.write_bytes(b"\x01\xff")
    report = Result("packet", 77, b"Traceback: KeyError\n", (finding,)).report()
    assert "KeyError" in report
    assert "bytes: 01ff" in report
    assert f"script/fuzz --replay packet {finding}" in report


def test_a_run_without_a_finding_is_a_line() -> None:
    output = b"#9 DONE\nDone 1200 runs in 3 second(s)\n"
    assert Result("packet", 0, output, ()).report() == (
        "packet: 1200 runs, 400 a second"
    )


def test_a_target_that_did_not_run_is_a_failure() -> None:
    report = Result("packet", 1, b"ModuleNotFoundError: atheris\n", ()).report()
    assert "ModuleNotFoundError" in report
    assert "packet: FAILED, exit code 1" in report


def test_replay_raises_what_was_found(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"")
    assert main(["--replay", "packet", str(good)]) == 0


@pytest.mark.parametrize("arguments", [["nonsense"], ["--replay", "nonsense", "x"]])
def test_an_unknown_target_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="usage: script/fuzz"):
        main(arguments)

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper replay -``: standard input, as it comes."""

import gzip
import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import pytest

from cthelper.core.offline.capture import STDIN
from cthelper.core.offline.corpus import find_captures
from tests.core.cli.process import COMMAND, ROOT, interrupt, started
from tests.core.cli.runner import Runner
from tests.core.offline.capture_files import enhanced, interface, section

SHOWMOUNT: Final = ROOT / "pcaps/sunrpc/rpc-showmount-e.pcap"
HEADER: Final = 24


def records(content: bytes) -> list[bytes]:
    """The records of a pcap file of this machine's byte order, the header before."""
    cut = [content[:HEADER]]
    at = HEADER
    while at < len(content):
        size = 16 + int.from_bytes(content[at + 8 : at + 12], "little")
        cut.append(content[at : at + size])
        at += size
    return cut


def in_blocks(parts: list[bytes]) -> bytes:
    """The same frames in pcapng."""
    blocks = [section(), interface()]
    for part in parts[1:]:
        seconds, fraction = (
            int.from_bytes(part[at : at + 4], "little") for at in (0, 4)
        )
        blocks.append(enhanced(part[16:], seconds * 1_000_000 + fraction))
    return b"".join(blocks)


PARTS: Final = records(SHOWMOUNT.read_bytes())


@pytest.fixture
def arguments(empty: str) -> list[str]:
    return ["replay", "--config", empty, "--json"]


def said(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The next record."""
    assert process.stdout is not None
    record: dict[str, Any] = json.loads(process.stdout.readline())
    return record


def entry(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


def give(process: "subprocess.Popen[bytes]", data: bytes) -> None:
    entry(process).write(data)
    entry(process).flush()


@pytest.fixture
def live(arguments: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    with started(*arguments, "-", stdin=subprocess.PIPE) as process:
        yield process


def finish(process: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
    entry(process).close()
    assert process.stderr is not None
    errors = process.stderr.read()
    return process.wait(60), errors


def test_event_is_told_as_soon_as_its_frame_came(
    live: "subprocess.Popen[bytes]",
) -> None:
    give(live, b"".join(PARTS[: 1 + 6]))
    first = said(live)
    assert (first["event"], first["capture"], first["frame"]) == ("expectation", "-", 6)
    give(live, b"".join(PARTS[1 + 6 : 1 + 9]))
    assert said(live)["event"] == "related"
    give(live, b"".join(PARTS[1 + 9 :]))
    entry(live).close()
    assert said(live)["packets"] == 20
    assert finish(live) == (0, b"")


@pytest.mark.parametrize("blocks", [False, True], ids=["pcap", "pcapng"])
def test_writer_may_be_slow(live: "subprocess.Popen[bytes]", blocks: bool) -> None:
    content = in_blocks(PARTS[:7]) if blocks else b"".join(PARTS[:7])
    for at in range(len(content)):
        give(live, content[at : at + 1])
    assert said(live)["frame"] == 6
    entry(live).close()
    assert said(live)["event"] == "summary"
    assert finish(live) == (0, b"")


@pytest.mark.parametrize("sent", [(), (signal.SIGINT,)], ids=["end", "Ctrl-C"])
@pytest.mark.parametrize("frames", [1, 6, 20])
def test_end_gives_the_summary_so_far(
    live: "subprocess.Popen[bytes]", sent: tuple[signal.Signals, ...], frames: int
) -> None:
    give(live, b"".join(PARTS[: 1 + frames]))
    if frames >= 6:
        assert said(live)["event"] == "expectation"
    if sent and frames >= 6:
        interrupt(live)
    entry(live).close()
    if frames == 20:
        assert said(live)["event"] == "related"
    assert said(live)["packets"] == frames
    code = 130 if sent and frames >= 6 else 0
    assert finish(live) == (code, b"")


def test_ctrl_c_while_nothing_comes(live: "subprocess.Popen[bytes]") -> None:
    # Half a record is no damage here.
    give(live, b"".join(PARTS[:7]) + PARTS[7][:20])
    said(live)
    interrupt(live)
    assert said(live)["packets"] == 6
    assert live.wait(60) == 130
    assert finish(live) == (130, b"")


def test_ctrl_c_before_anything_came(arguments: list[str]) -> None:
    with started(
        *arguments[:-1], "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"-\n"
        interrupt(process)
        assert process.wait(60) == 130
        assert process.stdout.read().splitlines()[-1].startswith(b"0 packets, ")
        assert finish(process) == (130, b"")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_standard_input_is_read_as_a_file_is(
    packed: bool, arguments: list[str], run: Runner
) -> None:
    content = SHOWMOUNT.read_bytes()
    with started(*arguments, "-", stdin=subprocess.PIPE) as process:
        output, errors = process.communicate(
            gzip.compress(content) if packed else content, timeout=60
        )
    expected = run(*arguments, str(SHOWMOUNT)).output
    assert output.decode() == expected.replace(str(SHOWMOUNT), "-")
    assert (process.returncode, errors) == (0, b"")


def test_standard_input_may_be_a_file(arguments: list[str]) -> None:
    with SHOWMOUNT.open("rb") as file, started(*arguments, "-", stdin=file) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors, output.count(b"\n")) == (0, b"", 3)


def test_one_frame_of_standard_input_is_explained(empty: str) -> None:
    with started(
        *("replay", "--config", empty, "--explain", "6", "-"), stdin=subprocess.PIPE
    ) as process:
        output, errors = process.communicate(SHOWMOUNT.read_bytes(), timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert output.startswith(b"frame 6 of -, at 0.000480 s\n")


@pytest.mark.parametrize("option", [("--jobs", "2"), ("--executor", "a:b")])
def test_standard_input_is_not_for_other_processes(
    option: tuple[str, str], run: Runner, arguments: list[str]
) -> None:
    done = run(*arguments, *option, "-")
    assert (done.code, done.output) == (2, "")
    assert done.errors == (
        "cthelper: -: only this process has the standard input, so neither --jobs nor "
        "--executor goes with it\n"
    )


def test_terminal_is_no_capture(arguments: list[str]) -> None:
    ours, theirs = pty.openpty()
    try:
        with started(*arguments, "-", stdin=theirs) as process:
            output, errors = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, output, errors) == (
        1,
        b"",
        b"cthelper: -: standard input is a terminal, not a capture\n",
    )


def test_closed_standard_input_is_an_error_of_one_line(arguments: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *COMMAND, *arguments, "-"],
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"cthelper: -: standard input is closed\n"


def test_reader_that_goes_away_ends_it(live: "subprocess.Popen[bytes]") -> None:
    assert live.stdout is not None
    live.stdout.close()
    give(live, b"".join(PARTS))
    assert live.wait(60) == 1
    assert live.stderr is not None
    assert live.stderr.read() == b""


def test_file_of_that_name_has_a_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "-"
    file.touch()
    for name in ("./-", "*", str(file)):
        assert find_captures([name]) == [file]
    assert find_captures(["-", "./-", "-"]) == [STDIN, file]

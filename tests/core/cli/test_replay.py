# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper replay``: its output, its options and its errors."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from tests.core.cli.runner import Result, Runner

ROOT: Final = Path(__file__).parents[3]
PCAPS: Final = ROOT / "pcaps"
SHOWMOUNT: Final = "pcaps/sunrpc/rpc-showmount-e.pcap"
MOUNTD: Final = "pcaps/sunrpc/rpc-rpcinfo-T-tcp-mountd.pcap"
DUMP: Final = "pcaps/sunrpc/rpc-rpcinfo-p-v2dump-tcp.pcap"
ONE_SHOT: Final = "pcaps/mdns/mdns-dig-legacy-unicast.pcap"


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def replay(run: Runner, empty: str) -> Runner:
    """Run the command with all of the configuration at its default."""

    class Replay(Runner):
        def __init__(self) -> None:
            pass

        def __call__(self, *arguments: str) -> Any:
            return run("replay", "--config", empty, *arguments)

    return Replay()


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# Output


def test_records_are_what_the_design_promises(replay: Runner) -> None:
    done = replay("--json", MOUNTD)
    assert (done.code, done.errors) == (0, "")
    expectation, related, summary = done.output.splitlines()
    assert expectation.startswith(
        '{"event":"expectation","capture":"pcaps/sunrpc/rpc-rpcinfo-T-tcp-mountd.pcap",'
        '"frame":6,"time":'
    )
    assert expectation.endswith(
        '"helper":"sunrpc","policy":"service","flow":{"transport":"tcp",'
        '"source":"10.77.1.2:654","destination":"10.77.2.2:111"},"direction":"reply",'
        '"expects":{"transport":"tcp","source":"10.77.1.2","source_port":null,'
        '"destination":"10.77.2.2:43173"},"permanent":true,"timeout":300,"how":"created",'
        '"flows":null}'
    )
    assert related.endswith(
        '"expectation_frame":6,"helper":"sunrpc","flow":{"transport":"tcp",'
        '"source":"10.77.1.2:656","destination":"10.77.2.2:43173"}}'
    )
    assert records(related)[0]["frame"] == 11
    assert summary == (
        f'{{"event":"summary","capture":"{MOUNTD}","packets":20,"flows":2,'
        '"expectations":1,"related":1,"refused":0,"malformed":0,"finished":0}'
    )


def test_table_has_a_line_for_each_event(replay: Runner) -> None:
    done = replay(SHOWMOUNT, DUMP)
    assert (done.code, done.errors) == (0, "")
    first, second = done.output.split("\n\n")
    assert [line.split(maxsplit=4)[0] for line in first.splitlines()] == [
        SHOWMOUNT,
        "frame",
        "6",
        "9",
        "20",
    ]
    assert (
        "sunrpc           tcp 10.77.1.2 > 10.77.2.2:43173 (service, permanent, 300 s)"
        in first
    )
    assert "tcp 10.77.1.2:721 > 10.77.2.2:43173, announced in frame 6" in first
    assert "refused      sunrpc           portmapper: the portmapper" in second
    assert second.splitlines()[-1].endswith("1 refused, 0 malformed, 0 finished")


def test_guess_of_what_was_on_link_is_told_once(replay: Runner) -> None:
    done = replay("--json", ONE_SHOT)
    assert done.errors == (
        f"cthelper: {ONE_SHOT}: nothing says what was on-link with 10.77.2.1: "
        "10.77.2.0/24 is taken; --network CIDR says it\n"
    )
    (expectation, *_) = records(done.output)
    assert expectation["expects"]["source"] == "10.77.2.0/24"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("10.77.0.0/16", ("expectation", "10.77.0.0/16")),
        ("192.0.2.0/24", ("refused", None)),
    ],
)
def test_network_says_what_was_on_link(
    replay: Runner, network: str, expected: tuple[str, str | None]
) -> None:
    done = replay("--json", "--network", network, ONE_SHOT)
    assert done.errors == ""
    first = records(done.output)[0]
    assert (first["event"], first["expects"]["source"]) == expected
    assert first.get("reason") in (None, "off-link")


def test_query_of_another_host_counts_as_forwarded(replay: Runner) -> None:
    done = replay("--json", "--host", "192.0.2.1", ONE_SHOT)
    assert records(done.output)[0]["reason"] == "forwarded"
    done = replay("--json", "--host", "10.77.2.1", ONE_SHOT)
    assert records(done.output)[0]["event"] == "expectation"


@pytest.mark.parametrize(
    ("options", "flow", "expects"),
    [
        (
            ("--dnat", "10.77.1.1=10.77.2.2", "--side", "server"),
            ("10.77.1.2:654", "10.77.1.1:111"),
            ("10.77.1.2", "10.77.1.1:43173"),
        ),
        (
            ("--snat", "192.0.2.7=10.77.1.2", "--side", "server"),
            ("192.0.2.7:654", "10.77.2.2:111"),
            ("192.0.2.7", "10.77.2.2:43173"),
        ),
        (
            ("--snat", "10.77.1.2=192.0.2.7", "--dnat", "10.77.2.2=192.0.2.8"),
            ("10.77.1.2:654", "10.77.2.2:111"),
            ("10.77.1.2", "10.77.2.2:43173"),
        ),
        (
            (
                *("--snat", "10.0.0.1=10.0.0.2", "--snat", "192.0.2.7=10.77.1.2"),
                *("--dnat", "10.77.1.1=10.77.2.2", "--side", "server"),
            ),
            ("192.0.2.7:654", "10.77.1.1:111"),
            ("192.0.2.7", "10.77.1.1:43173"),
        ),
    ],
)
def test_translation_is_told_by_options(
    replay: Runner,
    options: tuple[str, ...],
    flow: tuple[str, str],
    expects: tuple[str, str],
) -> None:
    expectation, related, _ = records(replay("--json", *options, MOUNTD).output)
    assert (expectation["flow"]["source"], expectation["flow"]["destination"]) == flow
    found = expectation["expects"]
    assert (found["source"], found["destination"]) == expects
    assert related["flow"]["destination"] == expects[1]


def test_translation_travels_to_other_processes(replay: Runner) -> None:
    options = ("--json", "--dnat", "10.77.1.1=10.77.2.2", "--side", "server", MOUNTD)
    alone, several = replay(*options), replay("--jobs", "2", *options)
    assert (several.code, several.output) == (0, alone.output)


def test_configuration_decides_what_is_tagged(run: Runner, tmp_path: Path) -> None:
    config = tmp_path / "cthelper.toml"
    config.write_text("[helpers.sunrpc]\nports = [112]\n")
    done = run("replay", "--json", "--config", str(config), SHOWMOUNT)
    (summary,) = records(done.output)
    assert (summary["flows"], summary["expectations"]) == (2, 0)


# Several captures


def test_folder_and_pattern_mean_their_captures(replay: Runner, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.pcap", "below/a.pcapng", "c.txt"):
        shutil.copy(SHOWMOUNT, tmp_path / name)
    done = replay("--json", str(tmp_path), str(tmp_path / "*.txt"))
    assert [
        each["capture"] for each in records(done.output) if each["event"] == "summary"
    ] == [str(tmp_path / name) for name in ("b.pcap", "below/a.pcapng", "c.txt")]


def test_jobs_give_the_same_output_in_the_same_order(replay: Runner) -> None:
    alone = replay("--json", "pcaps/sunrpc")
    several = replay("--json", "--jobs", "2", "pcaps/sunrpc")
    assert (several.code, several.output) == (0, alone.output)
    assert len(alone.output.splitlines()) > 40


@pytest.mark.cluster
def test_corpus_runs_on_dask(replay: Runner, empty: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "replay.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(from dask.*?)```", page, re.DOTALL)
    (tmp_path / "cluster.py").write_text(block)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cthelper", "replay", "--json"),
            *("--config", empty, "--executor", "cluster:executor", "pcaps/sunrpc"),
        ],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": "/root"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == replay("--json", "pcaps/sunrpc").output


# Differences


def test_diff_of_the_same_replay_is_empty(replay: Runner, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(replay("--json", SHOWMOUNT, DUMP).output)
    done = replay("--diff", str(old), SHOWMOUNT, DUMP)
    assert (done.code, done.output, done.errors) == (0, "", "")


def test_diff_shows_what_has_gone_and_come(
    replay: Runner, run: Runner, tmp_path: Path
) -> None:
    old, config = tmp_path / "old.json", tmp_path / "cthelper.toml"
    old.write_text(replay("--json", SHOWMOUNT).output)
    config.write_text('[helpers.sunrpc]\nmode = "oneshot"\n')
    done = run("replay", "--config", str(config), "--diff", str(old), SHOWMOUNT)
    assert done.code == 1
    gone, come = done.output.splitlines()
    assert gone[:2] == "- "
    assert come[:2] == "+ "
    any_number = {"permanent": True, "flows": None}
    assert json.loads(gone[2:]) == json.loads(come[2:]) | any_number


@pytest.mark.parametrize("text", ["no JSON\n", "[]\n", '{"a": 1}\n', "\xff"])
def test_file_that_is_no_replay_is_refused(
    replay: Runner, tmp_path: Path, text: str
) -> None:
    old = tmp_path / "old.json"
    old.write_bytes(text.encode("latin-1"))
    done = replay("--diff", str(old), SHOWMOUNT)
    assert done.code == 1
    assert done.errors == (
        f"cthelper: {old}:1: not a line of `cthelper replay --json`\n"
    )


# Explanations


@pytest.mark.parametrize(
    ("capture", "frame", "steps"),
    [
        (
            MOUNTD,
            6,
            [
                "reply direction of the flow that frame 1 began",
                "helper sunrpc is attached to the flow",
                "announces: program 100005 at tcp 10.77.2.2:43173",
                "asks for any number of flows from peer to 10.77.2.2:43173 over tcp",
                "expects tcp 10.77.1.2 > 10.77.2.2:43173 for 300 s",
                "frame 11 met an expectation: tcp 10.77.1.2:656",
            ],
        ),
        (
            MOUNTD,
            11,
            ["it begins the flow", "helper sunrpc made in frame 6", "only new ones"],
        ),
        (MOUNTD, 4, ["procedure: GETADDR", "asks for nothing"]),
        (MOUNTD, 2, ["no bytes of a message"]),
        (DUMP, 6, ["refused    portmapper: the portmapper announced itself"]),
    ],
)
def test_frame_is_explained(
    replay: Runner, capture: str, frame: int, steps: list[str]
) -> None:
    done = replay("--explain", str(frame), capture)
    assert (done.code, done.errors) == (0, "")
    position = 0
    for step in steps:
        position = done.output.index(step, position)


def test_translated_frame_is_explained(replay: Runner) -> None:
    options = ("--dnat", "10.77.1.1=10.77.2.2", "--side", "server")
    done = replay(*options, "--explain", "6", MOUNTD)
    assert (done.code, done.errors) == (0, "")
    position = 0
    for step in [
        "packet     tcp 10.77.2.2:111 > 10.77.1.2:654",
        "conntrack  established, reply direction",
        "translated: tcp 10.77.1.2:654 > 10.77.1.1:111, "
        "replies tcp 10.77.2.2:111 > 10.77.1.2:654",
        "announces: program 100005 at tcp 10.77.2.2:43173",
        "rewrites bytes",
        "10.77.1.1.168.165",
        "kernel     expects tcp 10.77.1.2 > 10.77.1.1:43173 for 300 s, "
        "translated to the announcer's port 43173",
        "frame 11 met an expectation: tcp 10.77.1.2:656 > 10.77.1.1:43173",
    ]:
        position = done.output.index(step, position)


def test_frame_that_is_not_there_is_an_error(replay: Runner) -> None:
    done = replay("--explain", "21", SHOWMOUNT)
    assert (done.code, done.output) == (1, "")
    assert done.errors == (
        f"cthelper: {SHOWMOUNT}: there is no frame 21: the capture has 20\n"
    )


# Errors


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("nowhere.pcap",), "nowhere.pcap: no capture there"),
        (("tests/golden",), "tests/golden: no capture there"),
        (("--explain", "1", "pcaps"), "--explain takes one capture"),
        (
            ("--explain", "1", "--html", "x.html", SHOWMOUNT),
            "--explain and --html exclude each other",
        ),
        (
            ("--jobs", "2", "--executor", "a:b", SHOWMOUNT),
            "--jobs and --executor exclude each other",
        ),
        (("--executor", "a", SHOWMOUNT), "--executor a: must be MODULE:NAME"),
        (
            ("--side", "client", SHOWMOUNT),
            "--side says nothing without --snat or --dnat",
        ),
        (
            ("--snat", "fd00::1=fd00::2", "--snat", "fd00::1=fd00::3", SHOWMOUNT),
            "--snat fd00::1 is fd00::2 or fd00::3, not both",
        ),
        (
            (
                *("--snat", "10.0.0.1=10.0.0.9", "--snat", "10.0.0.2=10.0.0.9"),
                *("--side", "server", SHOWMOUNT),
            ),
            "10.0.0.1 and 10.0.0.2 cannot be told apart on the server's side, which "
            "shows both as 10.0.0.9",
        ),
        (
            ("--snat", "10.0.0.1=10.0.0.2", "--dnat", "10.0.0.1=10.0.0.3", SHOWMOUNT),
            "10.0.0.1 cannot mean a host on either side of the translation in a "
            "capture of the client's side",
        ),
        (
            ("--executor", "nowhere:b", SHOWMOUNT),
            "--executor nowhere:b: No module named 'nowhere'",
        ),
        (
            ("--executor", "builtins:list", SHOWMOUNT),
            "--executor builtins:list: gives a list, which is no "
            "concurrent.futures.Executor",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    replay: Runner, arguments: tuple[str, ...], error: str
) -> None:
    done = replay(*arguments)
    assert (done.code, done.output, done.errors) == (2, "", f"cthelper: {error}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--network", "10.0.0.1/8"),
        ("--host", "somewhere"),
        ("--snat", "10.0.0.1"),
        ("--snat", "10.0.0.1=10.0.0.2=10.0.0.3"),
        ("--dnat", "10.0.0.1=fd00::1"),
        ("--dnat", "fe80::1%lan=fd00::1"),
        ("--snat", "10.0.0.1=10.0.0.2", "--side", "middle"),
        ("--jobs", "0"),
        ("--jobs", "many"),
        ("--explain", "0"),
        ("--json", "--explain", "1"),
    ],
)
def test_wrong_option_is_refused(replay: Runner, arguments: tuple[str, ...]) -> None:
    done = replay(*arguments, SHOWMOUNT)
    assert (done.code, done.output) == (2, "")
    assert "error: argument" in done.errors


def test_capture_that_cannot_be_read_fails_and_the_others_do_not(
    replay: Runner, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.pcap"
    wrong.write_text("nothing of the kind")
    done = replay("--json", str(wrong), SHOWMOUNT)
    assert done.code == 1
    assert done.errors.startswith(f"cthelper: {wrong}")
    assert done.errors.count("\n") == 1
    assert records(done.output)[-1]["capture"] == SHOWMOUNT


def test_truncated_capture_is_used_as_far_as_it_goes(
    replay: Runner, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(Path(SHOWMOUNT).read_bytes()[:-10])
    done = replay("--json", str(cut))
    assert done.code == 0
    assert done.errors.count("\n") == 1
    assert records(done.output)[-1]["related"] == 1
    cut.write_bytes(gzip.compress(Path(SHOWMOUNT).read_bytes())[:-10])
    assert replay("--json", str(cut)).code == 0


def test_no_other_package_is_needed(empty: str) -> None:
    script = (
        "import sys; sys.modules['scapy'] = None\n"
        "from cthelper.core.cli import main\n"
        f"sys.exit(main(['replay', '--config', {empty!r}, {SHOWMOUNT!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_reader_that_goes_away_ends_the_command_in_silence(empty: str) -> None:
    command = (
        f"{sys.executable} -m cthelper replay --config {empty} --json "
        f"--network 10.77.2.0/24 pcaps/sunrpc | head -1"
    )
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


def test_reader_that_goes_away_ends_the_workers_too(empty: str) -> None:
    # All captures many times over: what nobody reads is not replayed.
    command = (
        f"{sys.executable} -m cthelper replay --config {empty} --json "
        f"--jobs 2 --network 10.77.2.0/24 pcaps | head -1"
    )
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


# Several captures


def test_several_captures_have_a_total(replay: Runner, tmp_path: Path) -> None:
    done = replay(SHOWMOUNT, MOUNTD, DUMP)
    assert done.output.splitlines()[-1] == (
        "total of 3 captures: 60 packets, 6 flows, 2 expectations, 2 related, "
        "1 refused, 0 malformed, 0 finished"
    )
    assert "total" not in replay(SHOWMOUNT).output
    assert "total" not in replay("--json", SHOWMOUNT, MOUNTD).output
    # What could not be read is none of them.
    wrong = tmp_path / "wrong.pcap"
    wrong.touch()
    assert "total" not in replay(SHOWMOUNT, str(wrong)).output


def test_only_events_leaves_out_captures_without_any(
    replay: Runner, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    silent = "pcaps/mdns/mdns-dig-unicast-direct.pcap"
    done = replay(
        "--only-events", "--html", str(page), silent, SHOWMOUNT, silent[:-4] + "*"
    )
    only = replay(SHOWMOUNT).output
    assert done.output.startswith(only)
    assert done.output.removeprefix(only).startswith("total of 2 captures: ")
    assert done.output.count("\n") == only.count("\n") + 1
    assert silent not in page.read_text()
    assert SHOWMOUNT in page.read_text()
    lines = replay("--only-events", "--json", silent, SHOWMOUNT).output
    assert lines == replay("--json", SHOWMOUNT).output
    assert replay("--only-events", silent).output == ""
    # What went wrong is looked for on the page.
    wrong = tmp_path / "wrong.pcap"
    wrong.touch()
    replay("--only-events", "--html", str(page), silent, str(wrong))
    assert silent not in page.read_text()
    assert str(wrong) in page.read_text()


@pytest.mark.parametrize("other", [("--diff", "old.json"), ("--explain", "1")])
def test_only_events_and_what_has_no_captures_exclude_each_other(
    other: tuple[str, str], replay: Runner
) -> None:
    done = replay("--only-events", *other, SHOWMOUNT)
    assert (done.code, done.output) == (2, "")
    assert "exclude each other" in done.errors


# Times


def test_utc_is_the_time_as_the_daemons_log_has_it(replay: Runner) -> None:
    (row,) = [
        line
        for line in replay("--utc", SHOWMOUNT).output.splitlines()
        if "expectation " in line
    ]
    found = records(replay("--json", SHOWMOUNT).output)[0]
    assert list(found)[2:5] == ["frame", "time", "utc"]
    then = datetime.fromisoformat(found["utc"])
    assert then.utcoffset() == timedelta(0)
    assert row.split()[1] == found["utc"] == then.isoformat(timespec="microseconds")
    # tshark's word for frame 6: seconds since 1970.
    assert then.timestamp() == pytest.approx(1795330962.247412, abs=1e-6)
    shown = replay("--utc", "--explain", "6", SHOWMOUNT).output.splitlines()[0]
    assert shown == f"frame 6 of {SHOWMOUNT}, at {found['utc']}"


def test_diff_takes_records_with_and_without_utc(
    replay: Runner, tmp_path: Path
) -> None:
    now = replay("--json", SHOWMOUNT).output
    old = tmp_path / "old.json"
    for text in (now, re.sub(r'"utc":"[^"]*",', "", now)):
        old.write_text(text)
        assert replay("--diff", str(old), SHOWMOUNT) == Result(0, "", "")


# The page's file


def test_page_that_cannot_be_written_is_told_before_captures_are_read(
    replay: Runner, tmp_path: Path
) -> None:
    file = tmp_path / "none" / "page.html"
    done = replay("--html", str(file), SHOWMOUNT)
    assert done == Result(
        1, "", f"cthelper: {file}: cannot be written: No such file or directory\n"
    )

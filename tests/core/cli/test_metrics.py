# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper metrics``: printed, served and written, with a daemon and without."""

import os
import re
import signal
import stat
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.cli import main
from cthelper.core.cli import metrics as metrics_module
from cthelper.core.cli.metrics import Daemon, endpoint
from cthelper.core.errors import pip_install
from cthelper.core.records import Record
from tests.core.cli.process import started
from tests.core.control.controlled import World, controller


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "socket")
    with controller(world):
        yield world


def scrape(port: int, accepted: str = "") -> str:
    client = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("GET", "/metrics", headers={"Accept": accepted})
        answer = client.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        client.close()


def test_exposition_is_printed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", "--socket", str(world.path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "# TYPE cthelper_up gauge\ncthelper_up 1.0\n" in out
    expectation = '{event="expectation",reason="",worker="0"} 2.0\n'
    assert f"cthelper_events_total{expectation}" in out
    assert out.endswith("# EOF\n")


def test_daemon_that_does_not_run_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["metrics", "--socket", str(tmp_path / "none")]) == 0
    out, err = capsys.readouterr()
    assert re.findall("^[^#].*", out, re.MULTILINE) == ["cthelper_up 0.0"]
    assert err == (
        f"cthelper: warning: {tmp_path}/none: no daemon answers: is `cthelper run` "
        "running?\n"
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--every", "5"), "--every is for --textfile"),
        (("--textfile", "a.prom", "--every", "0"), "--every 0 is too often"),
        (("--textfile", "a.txt"), "a.txt: node_exporter reads names that end in .prom"),
        (("--anywhere",), "--anywhere is for --listen"),
        (("--listen", "0.0.0.0:9747"), "0.0.0.0 is no loopback address: anybody who "),
        (("--listen", "[2001:db8::1]:9"), "2001:db8::1 is no loopback address: any"),
    ],
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], error: str
) -> None:
    assert main(["metrics", *words]) == 2
    assert capsys.readouterr().err.startswith(f"cthelper: {error}")


def test_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["metrics"]) == 1
    out, err = capsys.readouterr()
    how = pip_install("prometheus_client")
    assert (out, err) == (
        "",
        f"cthelper: prometheus_client is not installed: {how}\n",
    )


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("127.0.0.1:9747", "127.0.0.1", 9747),
        ("[::1]:0", "::1", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),  # noqa: S104 - what is read, not used
    ],
)
def test_address_and_port_are_read(text: str, address: str, port: int) -> None:
    assert endpoint(text) == (ip_address(address), port)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:1"),
        *("[127.0.0.1]:1", "[::1]", "localhost:1", "127.0.0.1:-1", "127.0.0.1:²"),
    ],
)
def test_what_is_no_address_and_port_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no address and port such as"):
        endpoint(text)


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"\[?[0-9a-f:.]+\]?:[0-9]{0,6}", fullmatch=True),
        st.tuples(st.ip_addresses(), st.integers(0, 65535)).map(
            lambda each: f"{each[0]}:{each[1]}"
        ),
    )
)
def test_any_text_is_an_address_and_port_or_refused(text: str) -> None:
    try:
        address, port = endpoint(text)
    except ArgumentTypeError:
        return
    host = f"[{address}]" if address.version == 6 else str(address)
    assert endpoint(f"{host}:{port}") == (address, port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_it_is_told_to_end(world: World, number: signal.Signals) -> None:
    words = ("metrics", "--socket", str(world.path), "--listen", "127.0.0.1:0")
    with started(*words) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.fullmatch(
            r"cthelper: metrics at http://127\.0\.0\.1:(\d+)/metrics\n", line
        )
        assert found
        port = int(found[1])
        assert "cthelper_worker_flows" in scrape(port)
        assert "# EOF" in scrape(port, "application/openmetrics-text")
        # It goes on without the daemon, and says once why, whatever is scraped.
        state = world.supervisor.state
        world.path.rename(world.path.with_name("away"))
        for _ in range(3):
            assert "cthelper_up 0.0\n" in scrape(port)
        world.path.with_name("away").rename(world.path)
        assert state is not None
        assert "cthelper_up 1.0\n" in scrape(port)
        process.send_signal(number)
        assert process.wait(30) == (0 if number is signal.SIGTERM else 130)
        rest = process.stderr.read().decode()
        assert rest.count("\n") == 1
        assert "no daemon answers" in rest


def test_serves_at_a_unix_socket_and_takes_it_along(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "metrics"
    with started(
        "metrics", "--socket", str(world.path), "--unix", str(path)
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().decode() == f"cthelper: metrics at {path}\n"
        process.terminate()
        assert process.wait(30) == 0
    assert not path.exists()


def test_scrapes_share_what_is_asked_once_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, running, most = 0, 0, 0
    ask = world.supervisor.ask

    def slow(what: str, seconds: float, **details: object) -> Record | None:
        nonlocal asked, running, most
        asked, running = asked + 1, running + 1
        most = max(most, running)
        time.sleep(0.2)
        running -= 1
        return ask(what, seconds, **details)

    monkeypatch.setattr(world.supervisor, "ask", slow)
    daemon = Daemon(world.path)
    threads = [Thread(target=daemon.status) for _ in range(40)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 1
    assert 1 <= asked <= 4
    before = asked
    daemon.status()
    assert asked == before + 1


def test_daemon_that_is_late_is_waited_for_no_longer_than_a_scrape_may_take(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(metrics_module, "_ASK_SECONDS", 0.2)
    ask = world.supervisor.ask

    def late(what: str, seconds: float, **details: object) -> Record | None:
        time.sleep(1)
        return ask(what, seconds, **details)

    monkeypatch.setattr(world.supervisor, "ask", late)
    begun = time.monotonic()
    text, _ = Daemon(world.path).expose(openmetrics=True)
    assert time.monotonic() - begun < 0.9
    assert b"cthelper_up 0.0\n" in text
    assert "the daemon does not answer" in capsys.readouterr().err


def test_file_is_whole_and_for_all_to_read(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    file = folder / "cthelper.prom"
    words = ["metrics", "--socket", str(world.path), "--textfile", str(file)]
    mask = os.umask(0o077)
    try:
        assert main(words) == 0
    finally:
        os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    text = file.read_text()
    assert "# TYPE cthelper_events_total counter\n" in text
    assert "# EOF" not in text
    assert list(folder.iterdir()) == [file]
    assert main([*words[:-1], str(tmp_path / "none" / "a.prom")]) == 1
    err = capsys.readouterr().err
    assert err == f"cthelper: {tmp_path}/none/a.prom: No such file or directory\n"
    # What is in the way stays, and nothing lies about.
    (folder / "b.prom").mkdir()
    assert main([*words[:-1], str(folder / "b.prom")]) == 1
    assert sorted(each.name for each in folder.iterdir()) == ["b.prom", file.name]


def test_file_is_written_again_and_again(world: World, tmp_path: Path) -> None:
    file = tmp_path / "a.prom"
    words = ("metrics", "--socket", str(world.path), "--textfile", str(file))
    with started(*words, "--every", "1") as process:

        def await_text(text: str) -> None:
            until = time.monotonic() + 30
            while not (file.is_file() and text in file.read_text()):
                assert time.monotonic() < until
                time.sleep(0.05)

        await_text("cthelper_ruleset_in_place 1.0\n")
        state = world.supervisor.state
        assert state is not None
        state["ruleset"] = False
        await_text("cthelper_ruleset_in_place 0.0\n")
        # What stands in its way for a while ends nothing.
        file.unlink()
        file.mkdir()
        assert process.stderr is not None
        assert b"warning: " in process.stderr.readline()
        file.rmdir()
        await_text("cthelper_ruleset_in_place 0.0\n")
        process.terminate()
        assert process.wait(30) == 0

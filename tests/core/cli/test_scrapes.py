# SPDX-License-Identifier: GPL-2.0-or-later
"""The server of metrics: what it answers, and what it does not put up with."""

import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import pytest

from cthelper.core.cli import scrapes as scrapes_module
from cthelper.core.cli.scrapes import Scrapes, scrapes
from cthelper.core.errors import CthelperError
from cthelper.core.tuples import Address

HERE = ip_address("127.0.0.1"), 0


def expose(*, openmetrics: bool) -> tuple[bytes, str]:
    return b"text\n", f"kind of {openmetrics}"


@contextmanager
def serving(
    where: "tuple[Address, int] | Path" = HERE, make: Any = expose
) -> Iterator[Scrapes]:
    with scrapes(where, make) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def connect(server: Scrapes) -> socket.socket:
    connection = socket.socket(server.address_family)
    connection.settimeout(20)
    connection.connect(server.socket.getsockname())
    return connection


def ask(server: Scrapes, request: bytes) -> bytes:
    """All that is answered."""
    with connect(server) as connection:
        connection.sendall(request)
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
        return answer


@pytest.mark.parametrize(
    ("accepted", "openmetrics"),
    [
        ("", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text;version=1.0.0,text/plain", True),
        ("application/openmetrics-text; version=x", True),
    ],
)
def test_page_is_in_the_format_that_is_accepted(
    accepted: str, openmetrics: bool
) -> None:
    with serving() as server:
        port = int(server.where.rpartition(":")[2].partition("/")[0])
        assert server.where == f"http://127.0.0.1:{port}/metrics"
        client = HTTPConnection("127.0.0.1", port, timeout=20)
        client.request("GET", "/metrics?x", headers={"Accept": accepted})
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (200, b"text\n")
        assert answer.headers["Content-Type"] == f"kind of {openmetrics}"
        client.close()


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.0\r\n\r\n", 501),
        (b"GET /metrics HTTP/9.0\r\n\r\n", 505),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b"\r\n\r\n", 414),
    ],
)
def test_other_requests_are_refused(request_: bytes, code: int) -> None:
    with serving() as server:
        answer = ask(server, request_)
        assert f" {code} ".encode() in answer or f"code: {code}".encode() in answer
        assert b"200 OK" in ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")


def test_listens_at_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving((ip_address("::1"), 0)) as server:
        assert server.where.startswith("http://[::1]:")
        assert b"200 OK" in ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")


def test_who_says_nothing_takes_one_of_few_places_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scrapes_module, "_SECONDS", 1.0)
    with serving() as server, ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(8)]
        refused = ask(server, b"")
        assert refused.startswith(b"HTTP/1.0 503 ")
        # Each is cut off, whatever it does.
        for each in silent:
            each.send(b"G")
            assert each.recv(100) == b""
        assert b"200 OK" in ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")


def test_slow_reader_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapes_module, "_SECONDS", 10.0)
    big = b"x" * (1 << 24)
    with serving(make=lambda *, openmetrics: (big, "kind")) as server:
        with connect(server) as slow:
            slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            whole = ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")
            assert whole.endswith(big)
        assert ask(server, b"GET /metrics HTTP/1.0\r\n\r\n").endswith(big)


def test_bug_is_told_and_ends_one_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*, openmetrics: bool) -> tuple[bytes, str]:
        raise KeyError("a bug")

    with serving(make=fail) as server:
        assert ask(server, b"GET /metrics HTTP/1.0\r\n\r\n") == b""
        assert ask(server, b"GET / HTTP/1.0\r\n\r\n") != b""
    assert "a bug" in capsys.readouterr().err


def test_path_is_for_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path) as server:
        assert server.where == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert b"200 OK" in ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")
        with pytest.raises(CthelperError, match=r"socket: Address already in use$"):
            scrapes(path, expose).__enter__()
        assert b"200 OK" in ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert not path.exists()


def test_path_that_one_that_was_killed_has_left_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(path) as server:
        assert b"200 OK" in ask(server, b"GET /metrics HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("file", "Address already in use"),
        ("none/socket", "No such file or directory"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
)
def test_path_that_cannot_be_is_an_error(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CthelperError, match=f"{name}: {error}$"):
        scrapes(tmp_path / name, expose).__enter__()
    assert (tmp_path / "file").read_text() == "mine"


def test_port_that_is_taken_is_an_error() -> None:
    with serving() as server:
        port = server.socket.getsockname()[1]
        with pytest.raises(CthelperError, match=f"^127.0.0.1 port {port}: Address al"):
            scrapes((HERE[0], port), expose).__enter__()


def test_scrapes_are_answered_at_once() -> None:
    together, all_in = Barrier(4), Event()

    def meet(*, openmetrics: bool) -> tuple[bytes, str]:
        together.wait(20)
        all_in.set()
        return b"text\n", "kind"

    with serving(make=meet) as server:
        threads = [
            Thread(target=ask, args=(server, b"GET /metrics HTTP/1.0\r\n\r\n"))
            for _ in range(4)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert all_in.is_set()

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper new``: the plugin that it writes works as it stands."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.offline.capture import Capture
from cthelper.core.registry import find_helpers
from tests.core.cli.runner import Runner

ROOT: Final = Path(__file__).parents[3]
TRANSPORTS: Final = ["tcp", "udp"]


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder of the plugin."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_files_are_those_of_a_package(run: Runner, tmp_path: Path) -> None:
    result = run("new", "demo")
    assert (result.code, result.errors) == (0, "")
    assert "cd demo && pytest\n" in result.output
    files = [each for each in (tmp_path / "demo").rglob("*") if each.is_file()]
    assert sorted(str(each.relative_to(tmp_path / "demo")) for each in files) == [
        "README.md",
        "captures/demo.pcap",
        "pyproject.toml",
        "src/cthelper_demo.py",
        "tests/test_demo.py",
    ]
    assert not [each for each in files if b"$" in each.read_bytes()]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_its_test_passes_as_it_stands(
    run: Runner, tmp_path: Path, transport: str
) -> None:
    assert run("new", "a-b_9", "--transport", transport, "--port", "65535").code == 0
    done = python(tmp_path / "a-b_9", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_is_typed_and_in_form(run: Runner, tmp_path: Path, transport: str) -> None:
    folder = tmp_path / "demo"
    assert run("new", "demo", "--transport", transport).code == 0
    settings = str(ROOT / "pyproject.toml")
    for arguments in (
        ("mypy",),
        ("ruff", "format", "--check", "--no-cache", "--config", settings, "."),
        # The author chooses the licence, and so no file begins with one.
        ("ruff", "check", "--no-cache", "--ignore=S101", "--config", settings, "."),
    ):
        done = python(folder, "-m", *arguments)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_is_a_drop_in_file_and_an_entry_point(
    run: Runner, tmp_path: Path, transport: str
) -> None:
    assert run("new", "x-1", "--transport", transport, "--port", "7").code == 0
    file = tmp_path / "x-1" / "src" / "cthelper_x_1.py"
    helper = find_helpers(None, [file])["x-1"].helper
    assert helper.ports == (7,)
    assert {str(each) for each in helper.transports} == {transport}
    project = tomllib.loads((tmp_path / "x-1" / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["name"] == "cthelper-x-1"
    assert project["project"]["entry-points"]["cthelper.helpers"] == {
        "x-1": f"cthelper_x_1:{helper.__name__}"
    }
    assert project["tool"]["setuptools"]["py-modules"] == ["cthelper_x_1"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_it_runs_over_its_capture(
    run: Runner, tmp_path: Path, empty: str, transport: str
) -> None:
    assert run("new", "demo", "--transport", transport).code == 0
    plugin = ("--plugin", "demo/src/cthelper_demo.py")
    result = run("replay", "--config", empty, *plugin, "demo/captures")
    assert (result.code, result.errors) == (0, "")
    assert "1 expectations, 1 related, 0 refused, 0 malformed" in result.output


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_capture_is_sound(run: Runner, tmp_path: Path, transport: str) -> None:
    assert run("new", "demo", "--transport", transport).code == 0
    warnings: list[str] = []
    with Capture(Path("demo/captures/demo.pcap"), warn=warnings.append) as capture:
        frames = list(capture)
    assert warnings == []
    assert [number for number, *_ in frames] == list(range(1, len(frames) + 1))
    assert {start for *_, start in frames} == {14}


def test_folder_is_made_where_it_is_told(run: Runner, tmp_path: Path) -> None:
    result = run("new", "demo", "--folder", "deep/inside")
    assert (result.code, result.errors) == (0, "")
    assert (tmp_path / "deep/inside/src/cthelper_demo.py").exists()
    assert "cd deep/inside && pytest\n" in result.output


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_left_alone(run: Runner, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "demo"
    path.mkdir() if kind == "folder" else path.write_text("mine")
    result = run("new", "demo")
    assert (result.code, result.output) == (1, "")
    assert result.errors == "cthelper: demo is there already: name another --folder\n"
    assert (
        list(path.iterdir()) == [] if kind == "folder" else path.read_text() == "mine"
    )


def test_folder_that_cannot_be_made_is_1_and_one_line(
    run: Runner, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = run("new", "demo", "--folder", "file/demo")
    assert (result.code, result.output) == (1, "")
    assert result.errors == "cthelper: file/demo: Not a directory\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("Demo",), "argument NAME: 'Demo' must be 1 to 15 characters of a-z"),
        (("demo-",), "argument NAME: 'demo-' must be 1 to 15 characters of a-z"),
        (("9p",), "argument NAME: '9p' must be"),
        (("a234567890123456",), "argument NAME: 'a234567890123456' must be"),
        (("../x",), "argument NAME: '../x' must be"),
        (("x", "--port", "0"), "argument --port: '0' must be a port from 1 to 65535"),
        (("x", "--port", "65536"), "argument --port: '65536' must be a port from"),
        (("x", "--port", "http"), "argument --port: 'http' must be a port from"),
        (("x", "--transport", "sctp"), "argument --transport: invalid choice: 'sctp'"),
        (("mdns",), "mdns is a helper that cthelper has"),
        (("x", "--port", "111"), "tcp 111 is the port of sunrpc"),
        (
            ("x", "--port", "5353", "--transport", "udp"),
            "udp 5353 is the port of mdns",
        ),
    ],
)
def test_wrong_usage_is_2(
    run: Runner, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    result = run("new", *arguments)
    assert (result.code, result.output) == (2, "")
    assert complaint in result.errors.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_lack_of_scapy_is_1_and_one_line(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['scapy'] = None\n"
        "from cthelper.core.cli import main\n"
        "sys.exit(main(['new', 'demo']))\n"
    )
    done = python(tmp_path, "-c", program)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"cthelper: scapy is not installed: {sys.executable} -m pip install scapy\n"
    )
    assert list(tmp_path.iterdir()) == []

# SPDX-License-Identifier: GPL-2.0-or-later
"""Events at the end of a file: opened anew, with a full disk, and what is no file."""

import json
import os
import resource
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.control.event_file import EventFile
from cthelper.core.errors import CthelperError


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def event(name: str) -> dict[str, object]:
    return {"time": "t", "event": name}


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process's becomes longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_is_opened_anew_when_it_was_moved(tmp_path: Path) -> None:
    path, old = tmp_path / "events.json", tmp_path / "events.json.1"
    file = EventFile(path)
    file.write([event("one")])
    path.rename(old)
    file.write([event("two")])
    file.reopen()
    file.write([event("three"), event("four")])
    assert read(old) == [event("one"), event("two")]
    assert read(path) == [event("three"), event("four")]
    assert stat.S_IMODE(path.stat().st_mode) & ~0o640 == 0
    # Where that cannot be, what is open goes on.
    path.rename(old)
    path.mkdir()
    file.reopen()
    file.write([event("five")])
    assert read(old) == [event("three"), event("four"), event("five")]


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "events.json"
    file = EventFile(path, 3)
    with room(0):
        file.write([event("one")])
        file.write([event("two")])
    assert file.unwritten == 5
    file.write([event("three")])
    assert file.unwritten == 0
    assert read(path) == [
        {"time": "t", "event": "events-unwritten", "count": 5},
        event("three"),
    ]


@given(sizes=st.lists(st.integers(0, 200), max_size=8), several=st.integers(1, 3))
def test_every_event_is_there_or_counted_however_often_there_is_no_room(
    sizes: list[int], several: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.json"
        number = 0
        file = EventFile(path)
        for more in [*sizes, 1 << 20]:
            with room(path.stat().st_size + more):
                names = [str(number + each) for each in range(several)]
                file.write([event(each) for each in names])
            number += several
        os.close(file._file)
        found: list[dict[str, Any]] = []
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # one that was cut off
    lost = [each["count"] for each in found if each["event"] == "events-unwritten"]
    there = [each["event"] for each in found if each["event"] != "events-unwritten"]
    assert there == sorted(set(there), key=int)
    assert len(there) + sum(lost) == number
    assert file.unwritten == 0


def test_line_that_a_dead_writer_has_begun_is_no_part_of_the_next(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.json"
    path.write_text('{"event": "on')
    EventFile(path).write([event("two")])
    assert path.read_text() == '{"event": "on\n' + json.dumps(event("two")) + "\n"


def link(path: Path) -> None:
    path.with_name("other").touch()
    path.symlink_to("other")


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (Path.mkdir, "Is a directory"),
        (os.mkfifo, "Not a regular file"),
        (link, "Too many levels of symbolic links"),
        (listen, "No such device or address"),
    ],
    ids=["folder", "pipe", "link", "socket"],
)
def test_what_is_no_file_is_not_written_to(
    tmp_path: Path, plant: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "events.json"
    plant(path)
    with pytest.raises(CthelperError, match=f"{path}: cannot be written: {reason}"):
        EventFile(path)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_device_is_not_written_to(path: str) -> None:
    with pytest.raises(CthelperError, match="Not a regular file"):
        EventFile(Path(path))


def test_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(CthelperError, match="No such file or directory"):
        EventFile(tmp_path / "new" / "events.json")

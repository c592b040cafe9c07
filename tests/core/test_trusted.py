# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that root goes by: nobody else may have a hand in them, wherever they lie."""

import os
import socket
import threading
from itertools import product
from pathlib import Path

import pytest

from cthelper.core import trusted
from cthelper.core.errors import CAP_NET_ADMIN
from cthelper.core.trusted import Untrusted, judge_folder, open_trusted

OTHER = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root and others")


def read(path: Path) -> bytes:
    with open_trusted(path) as file:
        return file.read()


def refusal(path: Path) -> Untrusted:
    with pytest.raises(Untrusted) as caught:
        open_trusted(path)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of root's in a folder of root's."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    file = folder / "file"
    file.write_bytes(b"text")
    file.chmod(0o644)
    return file


def test_file_of_ones_own_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(file) == b"text"
    monkeypatch.chdir(file.parent)
    assert read(Path("file")) == read(Path("../folder/./file")) == b"text"


@as_root
@pytest.mark.parametrize(
    ("which", "how"),
    [
        ("link", "owner"),  # its mode means nothing
        *product(
            ("file", "folder", "folder above", "beside"), ("owner", "group", "others")
        ),
    ],
)
def test_whatever_others_could_put_another_file_through_is_refused(
    file: Path, tmp_path: Path, which: str, how: str
) -> None:
    beside = tmp_path / "beside"
    beside.mkdir(mode=0o755)
    link = beside / "link"
    link.symlink_to("../folder/file")
    place = {
        "file": file,
        "folder": file.parent,
        "folder above": tmp_path,
        "link": link,
        "beside": beside,
    }[which]
    assert read(link) == b"text"
    if how == "owner":
        os.chown(place, OTHER, -1, follow_symlinks=False)
        why = f"belongs to user {OTHER}, who could change what root does: "
        mend = f"chown -h root {place}"
    else:
        mode = place.stat().st_mode & 0o777 | (0o020 if how == "group" else 0o002)
        place.chmod(mode)
        why = (
            f"others may write to it, and so change what root does (mode {mode:04o}): "
        )
        mend = f"chmod go-w {place}"
    error = refusal(link)
    assert (error.place, error.why) == (place, why + mend)
    assert str(error) == f"{place}: {why}{mend}"
    # What it says is what mends it.
    assert os.system(mend) == 0
    assert read(link) == b"text"


@as_root
@pytest.mark.parametrize("owner", [0, OTHER])
def test_file_of_roots_may_lie_in_a_sticky_folder(file: Path, owner: int) -> None:
    file.parent.chmod(0o1777)
    os.chown(file, owner, -1)
    if owner == 0:
        assert read(file) == b"text"
    else:
        assert refusal(file).place == file


@as_root
def test_sticky_folder_is_none_to_take_all_files_of(file: Path) -> None:
    judge_folder(file.parent)
    file.parent.chmod(0o1777)
    with pytest.raises(Untrusted, match="mode 1777"):
        judge_folder(file.parent)


@as_root
def test_file_that_is_exchanged_while_it_is_opened_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judged one is not the one that is read: whoever did that has won nothing."""
    walk = trusted._walk

    def exchanging(path: Path) -> tuple[Path, os.stat_result]:
        new = file.with_name("new")
        new.write_bytes(b"theirs")
        new.rename(file)
        return walk(path)

    monkeypatch.setattr(trusted, "_walk", exchanging)
    assert "was exchanged while it was opened" in str(refusal(file))


@as_root
def test_what_is_judged_is_what_is_read(file: Path) -> None:
    with open_trusted(file) as opened:
        new = file.with_name("new")
        new.write_bytes(b"theirs")
        new.rename(file)
        assert opened.read() == b"text"


@as_root
def test_links_in_a_circle_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        open_trusted(tmp_path / "a")
    with pytest.raises(OSError, match="Too many levels"):
        judge_folder(tmp_path / "a")


def test_pipe_and_descriptor_are_read(file: Path) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"piped")
    os.close(theirs)
    assert read(Path(f"/dev/fd/{ours}")) == b"piped"
    os.close(ours)
    with file.open("rb") as opened:
        assert read(Path(f"/proc/self/fd/{opened.fileno()}")) == b"text"
        # As a shell hands over a here-document.
        file.unlink()
        assert read(Path(f"/proc/self/fd/{opened.fileno()}")) == b"text"
    assert read(Path(os.devnull)) == b""


@as_root
def test_descriptor_of_a_file_is_judged_as_the_file_is(file: Path) -> None:
    with file.open("rb") as opened:
        os.chown(file.parent, OTHER, -1)
        path = Path(f"/proc/self/fd/{opened.fileno()}")
        assert refusal(path).place == file.parent


@as_root
def test_fifo_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    os.chown(path, OTHER, -1)
    writer = threading.Thread(target=lambda: path.open("wb").close())
    writer.start()
    assert refusal(path).place == path
    writer.join()


@pytest.mark.parametrize("what", ["absent", "folder", "socket"])
def test_what_cannot_be_opened_is_an_os_error(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket")
        with pytest.raises(OSError, match=r"\[Errno"):
            open_trusted(Path(what))


def test_user_reads_what_others_may_write(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    held: list[int] = []
    monkeypatch.setattr(trusted, "holds", held.__contains__)
    file.parent.chmod(0o777)
    file.chmod(0o666)
    assert read(file) == b"text"
    judge_folder(file.parent)
    # What root would get here is the right to change rules.
    held.append(CAP_NET_ADMIN)
    for look in (read, lambda path: judge_folder(path.parent)):
        with pytest.raises(Untrusted):
            look(file)


@as_root
def test_no_descriptor_is_left_open(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    before = len(os.listdir("/proc/self/fd"))
    for path, mode in ((link, 0o644), (link, 0o666), (file.with_name("no"), 0o644)):
        file.chmod(mode)
        try:
            read(path)
        except (Untrusted, OSError):
            continue
    assert len(os.listdir("/proc/self/fd")) == before

# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that root goes by: what others could change is refused.

Whoever may write to a file, to a folder above it or to a folder that a symbolic link on
the way stands in, may put another file in its place. So each of them must be root's,
and writable by nobody else; also for who is not root and has CAP_NET_ADMIN. A folder
with the sticky bit that is passed, such as /tmp, may be writable: what is in it its
owner alone can remove.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from cthelper.core.errors import CAP_NET_ADMIN, CthelperError, holds

_WRITABLE_BY_OTHERS: Final = 0o022
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# As many as the kernel follows (MAXSYMLINKS in include/linux/namei.h).
_LINKS: Final = 40


class Untrusted(CthelperError):
    """Others than root may change what stands at `place`; `why` says how to mend it."""

    def __init__(self, place: Path, why: str) -> None:
        super().__init__(f"{place}: {why}")
        self.place = place
        self.why = why


def open_trusted(path: Path) -> BinaryIO:
    """The file, open for reading.

    Raises OSError, and for root, or with CAP_NET_ADMIN, Untrusted. What has no name in
    a file system, such as a shell's pipe, is trusted: whoever started this process gave
    it.
    """
    file = path.open("rb")
    try:
        if privileged():
            _judge_open(file.fileno(), path)
    except BaseException:
        file.close()
        raise
    return file


def judge_folder(path: Path) -> None:
    """Raise Untrusted, as `open_trusted`, where others may change what is in a folder.

    Raises OSError.
    """
    if privileged():
        place, status = _walk(path)
        _judge(place, status)


def privileged() -> bool:
    """Whether this process has a right that who writes the file would get."""
    return os.geteuid() == 0 or holds(CAP_NET_ADMIN)


def _judge_open(descriptor: int, path: Path) -> None:
    """Judge the way to an open file, and that it is the one which stands there.

    The descriptor is what is read, whatever becomes of the path. So there is no moment
    in which somebody could exchange the one that was judged.
    """
    status = os.fstat(descriptor)
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    if not name.startswith("/"):
        return
    place = path
    if status.st_nlink:  # else it was removed, as a shell's here-document is
        place, found = _walk(path)
        if (found.st_dev, found.st_ino) != (status.st_dev, status.st_ino):
            raise Untrusted(path, "was exchanged while it was opened: try again")
    # Everybody may write to /dev/null.
    if not stat.S_ISCHR(status.st_mode):
        _judge(place, status)


def _walk(path: Path) -> tuple[Path, os.stat_result]:
    """Where a path leads to, and what is there.

    Raises OSError, and Untrusted for a folder or link on the way.
    """
    place = Path("/")
    descriptor = os.open(place, _LOOK)
    rest = list(reversed(path.absolute().parts[1:]))
    links = 0
    try:
        while rest:
            _judge(place, os.fstat(descriptor), passed=True)
            name = rest.pop()
            below = os.open(name, _LOOK, dir_fd=descriptor)
            status = os.fstat(below)
            if not stat.S_ISLNK(status.st_mode):
                os.close(descriptor)
                descriptor = below
                place = place.parent if name == ".." else place / name
                continue
            try:
                _judge(place / name, status)
                target = Path(os.readlink("", dir_fd=below))
            finally:
                os.close(below)
            links += 1
            if links > _LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if target.is_absolute():
                top = os.open("/", _LOOK)
                os.close(descriptor)
                place, descriptor = Path("/"), top
            rest += reversed([each for each in target.parts if each != "/"])
        return place, os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _judge(place: Path, status: os.stat_result, *, passed: bool = False) -> None:
    """Raise Untrusted for what is not root's, or what others may write to.

    `passed` is whether it is a folder on the way, in which one thing is looked up.
    """
    if status.st_uid != 0:
        raise Untrusted(
            place,
            f"belongs to user {status.st_uid}, who could change what root does: "
            f"chown -h root {place}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if (
        mode & _WRITABLE_BY_OTHERS
        and not (passed and mode & stat.S_ISVTX)
        and not stat.S_ISLNK(status.st_mode)  # its mode means nothing
    ):
        raise Untrusted(
            place,
            f"others may write to it, and so change what root does (mode {mode:04o}): "
            f"chmod go-w {place}",
        )

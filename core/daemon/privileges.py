# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of ``cthelper run`` may do, once all is open that needs more.

A server reads what strangers send. It is a user's of its own, without groups, with
CAP_NET_ADMIN alone; it can write to no file, run no program, start no process, open no
socket but of netlink (routes and netfilter), and read no file but code, /etc and /proc.
What it can still do is what CAP_NET_ADMIN lets it ask for: change conntrack, rules,
addresses and routes. And it can read and write what was open before. It imports plugins
once it is confined; who must know before what they are has them examined (examiner.py).

The supervisor keeps what running nft (CAP_NET_ADMIN) and servers of another user need,
and can write to no file but in the folder of the events' (event_log.py), nor can nft:
root without capabilities may write to much otherwise, such as
/proc/sys/kernel/core_pattern. Where it is not started by root, as by
the systemd unit, its servers are of the same user.

What the kernel or the machine does not have is left out, and said (`Confinement.gaps`).
"""

import os
import pwd
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cthelper.core.config import DaemonConfig
from cthelper.core.daemon import capabilities, landlock, seccomp
from cthelper.core.daemon.capabilities import Capability
from cthelper.core.errors import CthelperError

DEFAULT_USER: Final = DaemonConfig().user
"""The user of servers by default; where there is none, FALLBACK."""
FALLBACK: Final = "nobody"

# Of the supervisor, where it is root's and where it is not: the configuration, and the
# kernel's list of queues, are root's to read.
_ROOTS: Final = tuple(set(Capability) - {Capability.CAP_DAC_READ_SEARCH})
_NOT_ROOTS: Final = (Capability.CAP_NET_ADMIN, Capability.CAP_DAC_READ_SEARCH)
_SERVER: Final = (Capability.CAP_NET_ADMIN,)

# What the interpreter, its modules in C and the C library read: programs' code, names
# of services, time zones; and what the kernel tells of queues.
_READABLE: Final = (
    *("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/lib", "/lib64"),
    *("/usr/local/lib", "/usr/share/zoneinfo", "/etc", "/proc"),
    *("/dev/null", "/dev/urandom"),
)


class NoSuchUser(CthelperError):
    """Servers cannot be this user's; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class User:
    """Whose a server is."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Confinement:
    """How servers are confined; `gaps` are what is left out, a line each.

    `user` is None where this process may not take another one's place. `landlock` is
    the kernel's version, 0 for none.
    """

    user: User | None
    landlock: int
    seccomp: bool
    readable: tuple[Path, ...]
    gaps: tuple[str, ...] = ()

    def confine_server(self) -> None:
        """Give up in this process all that a server need not have.

        Raises CthelperError.
        """
        with _named():
            self._confine(_SERVER)

    def confine_controller(self) -> None:
        """Give up in this process all that a controller need not have.

        It has what a server has, and may accept connections. Raises CthelperError.
        """
        with _named():
            self._confine(_SERVER, accepts=True)

    def confine_bare(self) -> None:
        """Give up in this process all that it takes to ask, and to import somebody's
        code.

        It has what a server has, but for CAP_NET_ADMIN and netlink, and can write to
        what is open. Raises CthelperError.
        """
        with _named():
            self._confine((), bare=True)

    def confine_supervisor(self, folders: Iterable[Path] = ()) -> None:
        """Give up in this process all that no program it runs needs.

        Files in `folders` can be made and written to. Raises CthelperError.
        """
        with _named():
            self._confine_supervisor(folders)

    def _confine(
        self, kept: Iterable[Capability], *, bare: bool = False, accepts: bool = False
    ) -> None:
        if self.user is not None:
            capabilities.keep_when_user_changes()
            os.setgroups([])
            os.setresgid(self.user.gid, self.user.gid, self.user.gid)
            os.setresuid(self.user.uid, self.user.uid, self.user.uid)
            # The kernel has kept them as permitted; CAP_SETPCAP is still wanted.
            permitted = capabilities.held().permitted
            capabilities.hold(capabilities.Sets(permitted, permitted, 0))
        capabilities.keep_only(kept)
        capabilities.no_new_privileges()
        if self.landlock:
            changes = landlock.changes(self.landlock)
            handled = (
                changes | landlock.READ_FILE | landlock.READ_DIR | landlock.EXECUTE
            )
            landlock.restrict(
                self.landlock, handled, landlock.reading(self.readable), alone=True
            )
        if self.seccomp:
            seccomp.restrict(bare=bare, accepts=accepts)

    def _confine_supervisor(self, folders: Iterable[Path]) -> None:
        if os.geteuid() == 0:
            capabilities.keep_only(_ROOTS)
        else:
            capabilities.keep_only(_NOT_ROOTS, [Capability.CAP_NET_ADMIN])
        capabilities.no_new_privileges()
        if self.landlock:
            landlock.restrict(
                self.landlock,
                landlock.changes(self.landlock),
                {
                    **dict.fromkeys(_written(), landlock.WRITE_FILE),
                    **dict.fromkeys(folders, landlock.WRITE_FILE | landlock.MAKE_REG),
                },
            )


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CthelperError(f"privileges cannot be given up: {error}") from None


def plan(user: str, folder: Path | None = None) -> Confinement:
    """How servers can be confined here, as `user`; `folder` is that of the plugins.

    Raises NoSuchUser.
    """
    gaps: list[str] = []
    found = _user(user, gaps)
    closed = None if found is None else _closed_to(found)
    if closed is not None:
        gaps.append(
            f"servers cannot read {closed}: helpers of other distributions cannot be "
            "imported; install cthelper elsewhere (script/install)"
        )
    version = landlock.version()
    if not version:
        gaps.append(
            "the kernel has no Landlock, or it is off: what servers may write to and "
            "read is decided by their user alone"
        )
    filtered = seccomp.available()
    if not filtered:
        gaps.append(
            "libseccomp is not there, so servers' system calls are not filtered: "
            f"apt-get install {seccomp.PACKAGE}"
        )
    return Confinement(found, version, filtered, tuple(_readable(folder)), tuple(gaps))


def find_user(name: str) -> User:
    """The user of this name, which must not be root's. Raises NoSuchUser."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise NoSuchUser(
            f"there is no user {name}: adduser --system --group {name}"
        ) from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise NoSuchUser(f"user {name} is root, or of its group: name another one")
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _user(name: str, gaps: list[str]) -> User | None:
    """Whose servers are; the user that starts this, where that cannot be changed."""
    needed = (Capability.CAP_SETUID, Capability.CAP_SETGID, Capability.CAP_KILL)
    missing = [each.name for each in needed if not capabilities.has(each)]
    if missing:
        # Who is not root has nothing that he would have to give up.
        if os.geteuid() == 0:
            gaps.append(f"workers stay root's: needs {', '.join(missing)}")
        return None
    try:
        return find_user(name)
    except NoSuchUser as error:
        if name != DEFAULT_USER:
            raise
        gaps.append(
            f"{error}; until then workers are of user {FALLBACK}, whose other "
            "processes could end them"
        )
        return find_user(FALLBACK)


def _closed_to(user: User) -> Path | None:
    """The first folder on the way to cthelper's code that a user may not read."""
    code = Path(__file__).resolve().parents[2]
    for folder in (*reversed(code.parents), code):
        status = folder.stat()
        if status.st_uid == user.uid:
            shift = 6
        elif status.st_gid == user.gid:
            shift = 3
        else:
            shift = 0
        wanted = os.R_OK | os.X_OK if folder == code else os.X_OK
        if status.st_mode >> shift & wanted != wanted:
            return folder
    return None


def _readable(folder: Path | None) -> Iterator[Path]:
    """Where code is, and what it reads of itself; links are followed."""
    yield from map(Path, _READABLE)
    # `python -m` puts the folder in front that it was started in.
    yield from (Path(each) for each in sys.path if each not in ("", "/"))
    # What stands elsewhere, as in a tree that is worked on.
    files = {getattr(each, "__file__", None) for each in list(sys.modules.values())}
    places = {Path(each).resolve().parent for each in files if each}
    yield from places - {Path("/")}
    if folder is not None:
        yield folder


def _written() -> Iterator[Path]:
    """What the supervisor and nft write to: /dev/null, and a terminal."""
    yield Path(os.devnull)
    with suppress(OSError):
        if stat.S_ISCHR(os.fstat(2).st_mode):
            yield Path("/proc/self/fd/2")

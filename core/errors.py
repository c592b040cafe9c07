# SPDX-License-Identifier: GPL-2.0-or-later
"""The exceptions of cthelper. Each says who is at fault and what the host does."""

import errno as errno_module
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

CAP_NET_ADMIN: Final = 12

_REPLAY: Final = "scapy"
_METRICS: Final = "prometheus_client"
_TOP: Final = "textual"


class CthelperError(Exception):
    """Anything that cthelper raises on purpose."""


class Malformed(CthelperError):
    """The bytes break the protocol. The traffic's fault: accepted and counted."""


class Truncated(Malformed):
    """A length points past the end of the message."""


class Oversized(Malformed):
    """No complete message within the helper's limit."""


class StreamLost(CthelperError):
    """The bytes of a TCP flow cannot be followed; the host stops inspecting it.

    `reason` is ``mid-stream`` (the first packet seen is not the handshake's),
    ``gap`` (a missing segment did not come, but much beyond it) or ``overlap`` (a
    segment repeats bytes already seen with other content).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ExpectationRefused(CthelperError):
    """Policy or kernel said no to an expectation.

    It comes out of `cthelper.core.api.expect`; a helper may catch it, and may raise
    it where the protocol itself forbids the expectation. `reason` is a code in words
    joined by hyphens, such as ``third-party-address``; it names a counter.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RewriteRefused(ExpectationRefused):
    """A message cannot be written as it was granted; a helper may raise it.

    Nothing of its packet is rewritten, and all that was expected for it is taken back.
    """


class HelperFault(CthelperError):
    """A helper broke its contract, a bug: its flow is inspected no more."""


class Overrun(BaseException):
    """A helper was interrupted: it took longer over a message than it may.

    No `Exception`, so that a helper that catches those does not catch it.
    """


class RegistryError(CthelperError):
    """A helper class cannot be installed. Its author's fault; names class and field."""


class ConfigError(CthelperError):
    """The configuration is wrong. The operator's fault: exit code 2.

    The message is one line: the file, and the first problem, which is key, value and
    what is allowed. `problems` has all that were found, one line each.
    """

    def __init__(self, file: Path, *problems: str) -> None:
        text = f"{file}: {problems[0]}"
        if more := len(problems) - 1:
            text += f" ({more} more: `cthelper check` lists them)"
        super().__init__(text)
        self.file = file
        self.problems = problems

    @property
    def lines(self) -> list[str]:
        """Each problem with the file's name."""
        return [f"{self.file}: {problem}" for problem in self.problems]


class UsageError(CthelperError):
    """The command line asks for what is not there: exit code 2."""


class CaptureError(CthelperError):
    """A capture cannot be opened, or is none. One line that names the file."""


class RulesetError(CthelperError):
    """nft refused a ruleset, or is not there."""


class QueueError(CthelperError):
    """An NFQUEUE cannot be bound or read."""


class RestartNeeded(CthelperError):
    """The kernel cannot take a new configuration while the old one is in use."""


class NetlinkError(CthelperError):
    """The kernel refused a netlink request.

    `errno` is the positive error number; the subclasses name those that callers tell
    apart. `NetlinkError.of` picks the class. `reason` is a code that names a counter,
    such as ``kernel-ebusy``. `request` is what was asked for, `said` what the kernel
    said of it; the message puts both into words, since some errors are an answer that
    nobody reads.
    """

    def __init__(self, errno: int, request: object, said: str = "") -> None:
        super().__init__(errno, request, said)
        self.errno = errno
        self.request = request
        self._said = said

    @property
    def reason(self) -> str:
        """A code that names a counter."""
        return f"kernel-{self._name.lower()}"

    @property
    def _name(self) -> str:
        return errno_module.errorcode.get(self.errno, str(self.errno))

    def __str__(self) -> str:
        return f"{self.request}{self._said}: {os.strerror(self.errno)} ({self._name})"

    @staticmethod
    def of(errno: int, request: object, said: str = "") -> "NetlinkError":
        """The named error for `errno`, or a plain NetlinkError."""
        return _BY_ERRNO.get(errno, NetlinkError)(errno, request, said)


class NotFound(NetlinkError):
    """No such entry, expectation, helper or queued packet (ENOENT)."""


class AlreadyExists(NetlinkError):
    """It is there already and the request forbids replacing it (EEXIST)."""


class Busy(NetlinkError):
    """In use, or it clashes with what another owner holds (EBUSY)."""


class NotPermitted(NetlinkError):
    """The process lacks CAP_NET_ADMIN, or another process owns the thing (EPERM)."""


class Invalid(NetlinkError):
    """The kernel rejects the request's form (EINVAL)."""


class NotSupported(NetlinkError):
    """The kernel has no such feature, or the flow has no helper (EOPNOTSUPP)."""


class TableFull(NetlinkError):
    """A limit of the kernel is reached (EMFILE, ENFILE, ENOMEM)."""


_BY_ERRNO: dict[int, type[NetlinkError]] = {
    errno_module.ENOENT: NotFound,
    errno_module.EEXIST: AlreadyExists,
    errno_module.EBUSY: Busy,
    errno_module.EPERM: NotPermitted,
    errno_module.EINVAL: Invalid,
    errno_module.EOPNOTSUPP: NotSupported,
    errno_module.EMFILE: TableFull,
    errno_module.ENFILE: TableFull,
    errno_module.ENOMEM: TableFull,
}


def advice(errno: int) -> str:
    """What may help where the kernel refuses with `errno`; empty: nothing is known.

    A part of netfilter whose module is not there answers EINVAL (nfnetlink_rcv_msg in
    net/netfilter/nfnetlink.c), a family of sockets that is not there EPROTONOSUPPORT.
    """
    if errno in (errno_module.EPERM, errno_module.EACCES):
        return lacking()
    if errno in (
        errno_module.EINVAL,
        errno_module.EOPNOTSUPP,
        errno_module.EPROTONOSUPPORT,
    ):
        return "a kernel module may be missing, `cthelper doctor` says which"
    return ""


def holds(capability: int) -> bool:
    """Whether this process has a capability, by its number in linux/capability.h."""
    try:
        status = Path("/proc/thread-self/status").read_text(encoding="ascii")
    except (OSError, ValueError):
        return os.geteuid() == 0
    _, _, found = status.partition("\nCapEff:")
    return bool(int(found.split(maxsplit=1)[0], 16) >> capability & 1)


def lacking() -> str:
    """What to say where the kernel refuses what needs CAP_NET_ADMIN."""
    name = "needs CAP_NET_ADMIN"
    if holds(CAP_NET_ADMIN):
        return f"{name} in the user namespace that this network belongs to"
    if os.geteuid() == 0:
        where = "give it to the container or service"
        return f"{name}, which root does not have here: {where}"
    return f"{name}: run as root"


def advised(text: str, errno: int) -> str:
    """The text, and behind it what may help, where that is known."""
    return ": ".join(filter(None, (text, advice(errno))))


def pip_install(*packages: str) -> str:
    """The command that installs packages where this Python finds them."""
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])


def replay_extra() -> AbstractContextManager[None]:
    """Around what needs the packages of the extra ``replay``.

    Raises CthelperError that says how to install them, where one is missing.
    """
    return _needing(_REPLAY)


def metrics_extra() -> AbstractContextManager[None]:
    """The same of the extra ``metrics``."""
    return _needing(_METRICS)


def top_extra() -> AbstractContextManager[None]:
    """The same of the extra ``top``."""
    return _needing(_TOP)


@contextmanager
def _needing(package: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise CthelperError(
            f"{package} is not installed: {pip_install(package)}"
        ) from None

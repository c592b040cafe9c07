# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper record``: a helper's flows as a capture, to send with a bug report."""

import argparse
import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cthelper.core.cli.control import duration
from cthelper.core.cli.interruption import Interruption, interruption, undisturbed
from cthelper.core.cli.options import Commands, add_config, complain, configuration
from cthelper.core.config import Config, HelperConfig
from cthelper.core.errors import (
    CAP_NET_ADMIN,
    Busy,
    CthelperError,
    NetlinkError,
    NotPermitted,
    UsageError,
    holds,
    lacking,
)

if TYPE_CHECKING:
    from cthelper.core.netlink.nflog import Logged, PacketLog

_SECONDS: Final = 60.0
_MEGABYTES: Final = 64
_STDOUT: Final = Path("-")
# Groups beyond those that anybody chooses by hand.
_GROUPS: Final = range(25460, 25492)
# Seconds within which the queues are empty for a moment, or packets are lost.
_PATIENCE: Final = 5.0
_GLANCE: Final = 0.01
_PER_PACKET: Final = 48


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "record",
        help="captures the flows of one helper for `replay`, to send with a bug report",
        description="Writes what flows to the ports of a helper, and what it expected, "
        "as pcapng, until the time or the size is reached or Ctrl-C. Each packet is "
        "there once, as the clients' side of this gateway shows it, and as it was "
        "before the helper rewrote anything: replay takes it with --side client, its "
        "default. The rules that log it are a table of their own, inet "
        "cthelper-record-NUMBER, which is removed at the end. They decide about no "
        "packet; the daemon need not run. Only root may.",
    )
    parser.add_argument("name", metavar="NAME", help="the helper, such as ftp")
    parser.add_argument(
        *("-w", "--write"),
        type=Path,
        metavar="FILE",
        help="the capture, a new file, or - for standard output (default: NAME.pcapng)",
    )
    parser.add_argument(
        "--seconds",
        type=duration,
        default=_SECONDS,
        metavar="TIME",
        help=f"for so long, or 10m, 2h, 1d (default: {_SECONDS:.0f})",
    )
    parser.add_argument(
        "--megabytes",
        type=_megabytes,
        default=_MEGABYTES,
        metavar="SIZE",
        help=f"at most so large, 1 to 4096 (default: {_MEGABYTES})",
    )
    parser.add_argument(
        "--anonymize",
        action="store_true",
        help="put other addresses in the place of all, also within messages; the "
        "capture is kept in memory, and written at the end. Names, passwords and "
        "files stay what they are",
    )
    add_config(parser)
    parser.set_defaults(command=_record)


def _record(options: argparse.Namespace) -> int:
    config = configuration(options)
    helper = _helper(config, options.name)
    if not holds(CAP_NET_ADMIN):
        raise CthelperError(lacking())
    path = options.write or Path(f"{helper.helper.name}.pcapng")
    with ExitStack() as stack:
        file = stack.enter_context(_created(path))
        if options.anonymize:
            return _anonymized(options, config, helper, file, path)
        from cthelper.core.offline.pcapng import Writer

        writer = Writer(file)
        recording = _Recording(options, lambda: writer.size, writer.packet)
        recording.run(helper, path, file)
        _say(f"{recording.told} in {path}")
    return 0


def _anonymized(
    options: argparse.Namespace,
    config: Config,
    helper: HelperConfig,
    file: io.FileIO,
    path: Path,
) -> int:
    from cthelper.core.offline.anonymize import anonymize
    from cthelper.core.offline.pcapng import Writer

    packets: list[tuple[int, bytes]] = []
    size = 0

    def keep(when: int, packet: bytes) -> None:
        nonlocal size
        packets.append((when, packet))
        size += len(packet) + _PER_PACKET

    recording = _Recording(options, lambda: size, keep)
    recording.run(helper, path, file)
    found = anonymize(packets, config)
    writer = Writer(file)
    for when, packet in found.packets:
        writer.packet(when, packet)
    gone = len(packets) - len(found.packets)
    _say(f"{recording.told}; left out {gone}, blanked {found.blanked}: {path}")
    if not found.alike:
        complain(f"{path}: replay finds something else in it than without --anonymize")
    return int(not found.alike)


class _Recording:
    """Packets of a helper, one after the other, to whoever `keeps` them.

    `size` says how much that is by now.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        size: Callable[[], int],
        keeps: Callable[[int, bytes], None],
    ) -> None:
        self._seconds = options.seconds
        self._most = options.megabytes * 1_000_000
        self._size = size
        self._keeps = keeps
        self._count = 0
        self._time = 0
        self._missing = 0

    @property
    def told(self) -> str:
        """How many there are, and how many are not."""
        lost = f", {self._missing} more were lost" if self._missing else ""
        return f"{self._count} packets{lost}"

    def run(self, helper: HelperConfig, path: Path, file: io.FileIO) -> None:
        """Record until an end comes. Raises BrokenPipeError, CthelperError, OSError."""
        with interruption(signal.SIGTERM, signal.SIGHUP) as noted, _free_group() as log:
            with _rules(log.group, helper):
                _say(
                    f"recording {helper.name} to {path} for {self._seconds:.0f} s, "
                    "Ctrl-C ends it"
                )
                self._follow(log, file, noted)
            for logged in log.packets():
                if self._size() < self._most:
                    self._take(logged)
            self._missing = log.missing

    def _follow(self, log: "PacketLog", file: io.FileIO, noted: Interruption) -> None:
        until = time.monotonic() + self._seconds
        ready = select.poll()
        ready.register(log.fileno(), select.POLLIN)
        ready.register(noted.stop.fileno(), select.POLLIN)
        # A pipe that nobody reads any more says so without being asked.
        ready.register(file.fileno(), 0)
        while (left := until - time.monotonic()) > 0:
            came = ready.poll(left * 1000)
            if file.fileno() in (number for number, _ in came):
                raise BrokenPipeError
            if noted.came:
                return
            for logged in log.packets():
                self._take(logged)
                if self._size() >= self._most or time.monotonic() > until:
                    return

    def _take(self, logged: "Logged") -> None:
        if not shown(logged):
            return
        # Of packets on their way out the kernel does not say the time.
        now = time.time_ns() if logged.time is None else logged.time
        self._time = max(self._time, now)
        self._keeps(self._time, logged.packet)
        self._count += 1


def shown(logged: "Logged") -> bool:
    """Whether it is as the clients' side shows it, that of the control flow's client.

    What is translated and was expected is logged twice: as it came, and as it went on.
    """
    from cthelper.core.tuples import ORIGINAL

    entry = logged.conntrack
    if entry is None:
        return True
    from_opener = logged.direction is ORIGINAL
    master = entry.master
    # Those that a server opens come from the other side.
    turned = (
        master is not None
        and entry.translated
        and entry.reply.source.address == master.source.address
    )
    return logged.enters is (from_opener is not turned)


@contextmanager
def _rules(group: int, helper: HelperConfig) -> Iterator[None]:
    """Have a helper's flows logged to a group, which is ours, while it is entered."""
    from cthelper.nft import recording

    _clear(group)
    try:
        recording.begin(group, helper)
        yield
    finally:
        with undisturbed():
            recording.end(group)
            _await_empty_queues()
            recording.remove(group)


def _free_group() -> "PacketLog":
    """The first group that nobody has. Raises NetlinkError."""
    from cthelper.core.netlink.nflog import PacketLog

    for group in _GROUPS[:-1]:
        # By their versions kernels say one or the other.
        with suppress(Busy, NotPermitted):
            return PacketLog(group)
    return PacketLog(_GROUPS[-1])


def _clear(own: int) -> None:
    """Remove what recorders left that were killed: nobody has their group."""
    from cthelper.core.netlink.nflog import PacketLog
    from cthelper.nft import recording

    for group in recording.groups():
        if group == own:
            continue
        with suppress(NetlinkError), PacketLog(group):
            recording.end(group)
            _await_empty_queues()
            recording.remove(group)


def _await_empty_queues() -> None:
    """Wait until no packet waits for a verdict, for a while.

    When a base chain goes the kernel drops what waits in any queue
    (nf_queue_nf_hook_drop).
    """
    from cthelper.core.queue.binding import bound_queues

    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if not any(each.waiting for each in bound_queues().values()):
            return
        time.sleep(_GLANCE)


def _helper(config: Config, name: str) -> HelperConfig:
    for helper in config.helpers.values():
        # Either what it is, or what it is known as.
        if name in (helper.helper.name, helper.name):
            return helper
    raise UsageError(
        f"no helper {name} is enabled: there are {', '.join(sorted(config.helpers))}"
    )


@contextmanager
def _created(path: Path) -> Iterator[io.FileIO]:
    """A new file, for root's eyes alone. Raises CthelperError where there is one.

    Nothing that another user has put there is followed or written to.
    """
    from cthelper.core.offline.pcapng import EMPTY

    if path == _STDOUT:
        if sys.__stdout__ is None or sys.__stdout__.isatty():
            raise UsageError("-: standard output is no pipe and no file")
        yield io.FileIO(1, "wb", closefd=False)
        return
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise CthelperError(f"{path}: {error.strerror}") from None
    try:
        with io.FileIO(number, "wb") as file:
            yield file
    except OSError as error:  # such as a full disk
        raise CthelperError(f"{path}: {error.strerror}") from None
    except (CthelperError, KeyboardInterrupt):
        # Without a packet it would only be in the way of the next attempt.
        with suppress(FileNotFoundError):
            if path.stat().st_size <= EMPTY:
                path.unlink()
        raise


def _say(text: str) -> None:
    """Standard output may be the capture."""
    with suppress(OSError):
        print(f"cthelper: {text}", file=sys.stderr, flush=True)


def _megabytes(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 1 <= int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 to 4096")
    return int(text)

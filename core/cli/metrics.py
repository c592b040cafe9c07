# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper metrics``: what monitoring reads, by asking the daemon from outside it."""

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import mkstemp
from threading import Lock
from typing import Any, Final

from cthelper.control import Control, ControlError
from cthelper.core.cli.control import add_socket, duration
from cthelper.core.cli.options import Commands, warn
from cthelper.core.errors import CthelperError, UsageError, metrics_extra
from cthelper.core.records import read_endpoint
from cthelper.core.tuples import Address

_LISTEN: Final = "127.0.0.1:9747"
# Prometheus waits for ten by default.
_ASK_SECONDS: Final = 8.0
# How often the server looks whether it is to end; signals end it anyway.
_LOOK_SECONDS: Final = 60.0


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "metrics",
        help="the running daemon's metrics, for Prometheus, once or as a server",
        description="Asks the running daemon how it is and prints that in the format "
        "OpenMetrics, or serves it, or writes it to a file. Where no daemon answers "
        "cthelper_up is 0. Needs the Python package prometheus_client. "
        "docs/metrics.md has the metrics, alert rules and a dashboard.",
    )
    add_socket(parser)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--listen",
        nargs="?",
        type=endpoint,
        const=_LISTEN,
        metavar="ADDRESS:PORT",
        help="serve /metrics over HTTP until SIGTERM or Ctrl-C, by default at "
        f"{_LISTEN}; port 0: any that is free",
    )
    ways.add_argument(
        "--unix",
        type=Path,
        metavar="PATH",
        help="the same at a Unix socket, which its owner and group may connect to",
    )
    ways.add_argument(
        "--textfile",
        type=Path,
        metavar="FILE",
        help="write FILE, whose name ends in .prom, for the textfile collector of "
        "node_exporter",
    )
    parser.add_argument(
        "--every",
        type=duration,
        metavar="SECONDS",
        help="with --textfile: again and again",
    )
    parser.add_argument(
        "--anywhere",
        action="store_true",
        help="with --listen: also at an address that other hosts reach, who need no "
        "password then",
    )
    parser.set_defaults(command=_metrics)


def endpoint(text: str) -> tuple[Address, int]:
    """An address and a port: ``127.0.0.1:9747``, ``[::1]:9747``."""
    try:
        found = read_endpoint(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is no address and port such as {_LISTEN} or [::1]:9747"
        ) from None
    return found.address, found.port


def _metrics(options: argparse.Namespace) -> int:
    listen, file = options.listen, options.textfile
    if options.every is not None and file is None:
        raise UsageError("--every is for --textfile")
    if options.every == 0:
        raise UsageError("--every 0 is too often")
    if file is not None and file.suffix != ".prom":
        raise UsageError(f"{file}: node_exporter reads names that end in .prom alone")
    if options.anywhere and listen is None:
        raise UsageError("--anywhere is for --listen")
    if listen is not None and not (listen[0].is_loopback or options.anywhere):
        raise UsageError(
            f"{listen[0]} is no loopback address: anybody who reaches it could read, "
            "and without a password; if that is meant add --anywhere"
        )
    with metrics_extra():
        import prometheus_client  # noqa: F401 - before anything is opened
    daemon = Daemon(options.socket)
    if file is not None:
        _keep_writing(file, options.every, daemon)
    elif listen is not None or options.unix is not None:
        _serve(options.unix if listen is None else listen, daemon)
    else:
        print(daemon.expose(openmetrics=True)[0].decode(), end="")
    return 0


class Daemon:
    """The daemon at a socket, asked once at a time. It is told once why it is down."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._begun = -math.inf
        self._found: dict[str, Any] | None = None
        self._said = ""

    def expose(self, *, openmetrics: bool) -> tuple[bytes, str]:
        """The exposition and its type, in OpenMetrics or in Prometheus' own format."""
        from cthelper.core.cli.exposition import exposition

        return exposition(self.status(), openmetrics=openmetrics)

    def status(self) -> dict[str, Any] | None:
        """How it is; None where it does not answer.

        Whoever has waited while it was asked for others shares the next answer.
        """
        wanted = time.monotonic()
        with self._lock:
            if self._begun < wanted:
                self._begun = time.monotonic()
                self._found = self._ask()
            return self._found

    def _ask(self) -> dict[str, Any] | None:
        try:
            with Control(self._path, seconds=_ASK_SECONDS) as control:
                found = control.status()
        except ControlError as error:
            if str(error) != self._said:
                self._said = str(error)
                warn(self._said)
            return None
        self._said = ""
        return found


def _serve(where: tuple[Address, int] | Path, daemon: Daemon) -> None:
    # Only now: the other ways need no server.
    from cthelper.core.cli.scrapes import scrapes

    with scrapes(where, daemon.expose) as server:
        signal.signal(signal.SIGTERM, _end)
        print(f"cthelper: metrics at {server.where}", file=sys.stderr, flush=True)
        server.serve_forever(_LOOK_SECONDS)


def _keep_writing(file: Path, every: float | None, daemon: Daemon) -> None:
    """Write the file, and with `every` again.

    Raises CthelperError where that fails at first.
    """
    signal.signal(signal.SIGTERM, _end)
    _write(file, daemon)
    while every is not None:
        time.sleep(every)
        try:
            _write(file, daemon)
        except CthelperError as error:  # the disc is full: it may have room later
            warn(str(error))


def _write(file: Path, daemon: Daemon) -> None:
    """Put the whole file in place of the one before. Raises CthelperError."""
    # The collector reads the older format alone.
    text, _ = daemon.expose(openmetrics=False)
    try:
        descriptor, name = mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with open(descriptor, "wb") as made:
                # node_exporter is somebody else.
                os.fchmod(descriptor, 0o644)
                made.write(text)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise CthelperError(f"{file}: {error.strerror}") from None


def _end(*_: object) -> None:
    """End as after all is done."""
    sys.exit(0)

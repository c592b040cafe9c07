# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper events``: what the daemon decides, as it does."""

import argparse
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from cthelper.core.cli.control import (
    add_filter,
    add_json,
    add_socket,
    connected,
    duration,
    filter_of,
    flow_text,
    print_records,
)
from cthelper.core.cli.options import Commands, warn
from cthelper.core.daemon.log import quoted
from cthelper.core.errors import UsageError

_TOLD_APART: Final = ("time", "level", "event", "helper", "flow", "expects")


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "events",
        help="what the running daemon expects, refuses and finishes, as it happens",
        description="Prints the decisions of the running daemon as they happen, until "
        "Ctrl-C, also those that its log leaves out as too many. Each of its processes "
        "remembers its last 2,048.",
    )
    add_socket(parser)
    add_json(parser)
    parser.add_argument(
        "--since",
        type=duration,
        metavar="TIME",
        help="first those of so many seconds, or 10m, 2h, 1d, as far as they are "
        "remembered",
    )
    parser.add_argument(
        "--no-follow",
        action="store_true",
        help="with --since: do not wait for others",
    )
    parser.add_argument(
        "--event",
        action="append",
        default=[],
        metavar="NAME",
        help="of one kind, such as refused; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="at the end of a file, as JSON, of one daemon after the other; SIGHUP "
        "opens it anew",
    )
    add_filter(parser)
    parser.set_defaults(command=_events)


def _events(options: argparse.Namespace) -> int:
    if options.no_follow and options.since is None:
        raise UsageError("--no-follow is for --since")
    if options.output is not None:
        if options.no_follow:
            raise UsageError("--output goes on for ever: leave --no-follow out")
        _write(options)
    found = _asked(options, options.since)
    if options.json:
        print_records(found)
    else:
        for record in found:
            print(_line(record), flush=True)
    return 0


def _asked(
    options: argparse.Namespace, since: float | None
) -> Iterator[dict[str, Any]]:
    with connected(options) as control:
        yield from control.events(
            since=since,
            follow=not options.no_follow,
            events=options.event,
            **filter_of(options),
        )


def _write(options: argparse.Namespace) -> NoReturn:
    """Write to the file until a signal ends it."""
    from cthelper.core.cli.event_following import forever
    from cthelper.core.control.event_file import EventFile

    file = EventFile(options.output)
    signal.signal(signal.SIGHUP, lambda *_: file.reopen())
    for record in forever(partial(_asked, options), options.since, warn):
        file.write([record])
    raise AssertionError  # it has no end


def _line(record: dict[str, Any]) -> str:
    parts = [record["time"], record["event"]]
    if record.get("helper"):
        parts.append(record["helper"])
    if isinstance(record.get("flow"), dict):
        parts.append(flow_text(record["flow"]))
    if isinstance(record.get("expects"), dict):
        parts.append(f"expects {flow_text(record['expects'])}")
    for key, value in record.items():
        # Whose worker's end it is; of all others it says who tells of it.
        apart = key in _TOLD_APART or (
            key == "worker" and not record["event"].startswith("worker-")
        )
        if not apart and value not in (None, ""):
            parts.append(f"{key}={quoted(value)}")
    return " ".join(parts)

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper top``: the running daemon on a screen that goes on."""

import argparse
import os
import sys
from typing import Final

from cthelper.control import NotRunning
from cthelper.core.cli.control import (
    add_filter,
    add_socket,
    checked,
    connected,
    duration,
    filter_of,
)
from cthelper.core.cli.options import Commands, complain
from cthelper.core.cli.top_reading import Reader, Wanted
from cthelper.core.cli.top_rows import COLUMNS, Order
from cthelper.core.errors import UsageError, top_extra

_EVERY: Final = 2.0
# What a thread can sleep is bounded, too.
_RAREST: Final = 86_400.0
_NOT_RUNNING: Final = 2


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "top",
        help="the running daemon on a full screen: flows, what is expected, rates and "
        "refusals",
        description="Shows on a full screen, again and again, how the running daemon "
        "is, its control flows, below each what it expects, with the seconds that are "
        "left, and the flows that were expected, with packets, bytes and rates, and "
        "what was refused. The key ? lists all keys, q ends it. Needs the Python "
        "package textual. Exit code 2 where no daemon answers at the start; one that "
        "goes away later is waited for.",
    )
    add_socket(parser)
    parser.add_argument(
        "--every",
        type=duration,
        default=_EVERY,
        metavar="SECONDS",
        help="ask the daemon every 2 seconds or so many",
    )
    parser.add_argument(
        "--sort",
        choices=COLUMNS,
        default=Order().column,
        help=f"by what control flows are sorted (default: {Order().column})",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also entries of conntrack without a helper",
    )
    add_filter(parser, state=True)
    parser.set_defaults(command=_top)


def _top(options: argparse.Namespace) -> int:
    wanted = checked(filter_of(options))
    if options.every == 0:
        raise UsageError("--every 0 is too often")
    if options.every > _RAREST:
        raise UsageError("--every: a day at most")
    with top_extra():
        import textual  # noqa: F401 - before anything is asked
    _look_at_terminal()
    try:
        with connected(options):
            pass
    except NotRunning as error:
        complain(str(error))
        return _NOT_RUNNING
    # Only now, as it takes longer than all else.
    from cthelper.core.cli.top_screen import Top

    asked = Wanted(wanted, options.all, Order(options.sort))
    top = Top(Reader(options.socket), asked, options.every)
    # The mouse stays the terminal's, to mark and copy with.
    code = top.run(mouse=False)
    # Of one that was ended by an error of its own textual knows alone.
    return top.return_code or code or 0


def _look_at_terminal() -> None:
    """Whether there is one that can do it. Raises UsageError.

    Keys come from standard input, and the screen goes to standard error, as textual
    has it.
    """
    import curses

    for name, stream in (
        ("output", sys.stdout),
        ("input", sys.stdin),
        ("error", sys.stderr),
    ):
        if stream is None or not stream.isatty():
            raise UsageError(f"top: standard {name} is no terminal")
    # The size is the terminal's own: what a shell has exported does not change with it.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    try:
        curses.setupterm()
    except curses.error:  # none that is known here; most know the usual commands
        return
    if curses.tigetstr("cup") is None:
        raise UsageError(
            f"top: a terminal of type {os.environ.get('TERM')} has no full screen"
        )
    if curses.tigetnum("colors") < 8:
        os.environ["NO_COLOR"] = "1"

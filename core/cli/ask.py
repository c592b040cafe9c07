# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper ask``: what does the kernel do, for a daemon that may not ask it?"""

import argparse
from pathlib import Path

from cthelper.core.cli.options import Commands, warn


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ask",
        help="asks the kernel what it does, for `cthelper run --kernel FILE`",
        description="Asks the kernel, in a network namespace of its own, what it does "
        "where kernels differ, and writes that to FILE. Then `cthelper run --kernel "
        "FILE` need not have the right to make one. The systemd unit does so.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="written anew")
    parser.set_defaults(command=_ask)


def _ask(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.answers import write_answers
    from cthelper.core.daemon.probe import CannotAsk

    try:
        write_answers(options.file)
    except CannotAsk as error:
        # The daemon goes by what holds for most kernels, and says so.
        warn(str(error))
    return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one module a command.

Exit codes: 0 done, 1 the thing asked about failed, 2 wrong usage or configuration, 130
ended by Ctrl-C. Errors are one line to standard error.
"""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C: 128 and SIGINT, as a shell has it."""

COMMANDS: Final = (
    *("run", "status", "top", "flows", "expectations", "events", "stats"),
    *("explain", "metrics", "record"),
    *("check", "reload", "ruleset"),
    *("replay", "helpers", "new", "doctor", "ask"),
)
"""The commands, in the order of the help text; each has the module of its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; the exit code."""
    try:
        try:
            status = _run(arguments)
        except KeyboardInterrupt:
            status = INTERRUPTED
        # What cannot be written shall fail here and not when Python ends.
        if sys.stdout is not None:  # as where it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def parser(alone: str | None = None) -> "argparse.ArgumentParser":
    """What reads the command line, with all commands, or with one of them."""
    # Only now, as Ctrl-C may come while they load.
    import argparse
    from importlib import import_module

    from cthelper import __version__

    made = argparse.ArgumentParser(
        prog="cthelper",
        description="Connection-tracking helpers in user space: they read the messages "
        "of protocols that announce further addresses and ports, and tell the kernel "
        "which flows to expect.",
    )
    made.add_argument("--version", action="version", version=f"cthelper {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for each in COMMANDS if alone is None else (alone,):
        import_module(f"cthelper.core.cli.{each}").add_parser(commands)
    return made


def _run(arguments: Sequence[str] | None) -> int:
    # As above.
    from cthelper.core.cli.options import complain
    from cthelper.core.errors import (
        ConfigError,
        CthelperError,
        NetlinkError,
        RegistryError,
        UsageError,
        advised,
    )

    given = sys.argv[1:] if arguments is None else arguments
    # What the others import takes longer than a quick command.
    alone = given[0] if given and given[0] in COMMANDS else None
    options = parser(alone).parse_args(given)
    try:
        code: int = options.command(options)
    except CthelperError as error:
        text = str(error)
        if isinstance(error, NetlinkError):
            text = advised(text, error.errno)
        complain(text)
        wrong = isinstance(error, ConfigError | RegistryError | UsageError)
        return 2 if wrong else 1
    return code

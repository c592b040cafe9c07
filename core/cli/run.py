# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper run``: the daemon."""

import argparse

from cthelper.core.cli.options import Commands, add_config, configured
from cthelper.core.config import Config, read_file
from cthelper.core.errors import ConfigError


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="the daemon, until SIGTERM or SIGINT; SIGHUP reads the configuration "
        "again",
        description="Registers the helpers, loads the ruleset, and has one or more "
        "processes serve the queues until SIGTERM or SIGINT; then no packet is lost "
        "and nothing stays behind. SIGHUP reads the configuration again. Logs to "
        "standard error.",
    )
    add_config(parser)
    parser.add_argument(
        "--keep-ruleset",
        action="store_true",
        help="at the end leave the ruleset, and the helpers that it refers to, where "
        "they are; packets pass until the next run, or where a helper fails closed are "
        "dropped",
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.supervisor import Supervisor

    file = read_file(options.config)

    def read_again() -> Config:
        if not file.again:
            raise ConfigError(
                file.path,
                "came through a pipe and cannot be read again: restart cthelper",
            )
        return configured(read_file(options.config), options)

    Supervisor(
        configured(file, options), read_again, keep_ruleset=options.keep_ruleset
    ).run()
    return 0

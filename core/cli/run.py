# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper run``: the daemon."""

import argparse
from pathlib import Path

from cthelper.core.cli.options import Commands, add_config, declared_by, made_of
from cthelper.core.config import daemon_user, plugin_folder
from cthelper.core.errors import ConfigError
from cthelper.core.sources import Sources, read_sources


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
    parser.add_argument(
        "--kernel",
        type=Path,
        metavar="FILE",
        help="what the kernel does, as `cthelper ask` has written it; it is not asked",
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.examiner import Examiner
    from cthelper.core.daemon.privileges import NoSuchUser, plan
    from cthelper.core.daemon.supervisor import Supervisor

    sources = read_sources(options.config)
    user = daemon_user(sources.file)
    try:
        confinement = plan(user, plugin_folder(sources.file))
    except NoSuchUser as error:
        raise ConfigError(
            sources.file.path, f'daemon.user = "{user}": {error}'
        ) from None
    ask = Examiner(confinement)
    again = sources.file.again

    def read_again() -> bytes:
        if not again:
            raise ConfigError(
                sources.file.path,
                "came through a pipe and cannot be read again: restart cthelper",
            )
        return read_sources(options.config).packed()

    Supervisor(
        *(declared_by(sources, ask), read_again),
        lambda data: declared_by(Sources.unpacked(data), ask),
        lambda data: made_of(Sources.unpacked(data)),
        confinement,
        keep_ruleset=options.keep_ruleset,
        answers=options.kernel,
    ).run()
    return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper doctor``: can this machine run the daemon?"""

import argparse

from cthelper.core.cli.options import Commands, add_config, configuration


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="each requirement: ok, or how to mend it",
        description="Checks each requirement of `cthelper run`: ok, warning or FAIL "
        "and how to mend it. Exits with 1 where the daemon could not run.",
    )
    add_config(parser)
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.doctor import Health, Host, examine

    failed = False
    for finding in examine(lambda: configuration(options), Host()):
        print(finding)
        failed = failed or finding.health is Health.FAILURE
    return int(failed)

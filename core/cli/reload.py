# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper reload``: what ExecReload of the systemd unit runs."""

import argparse
import os
from pathlib import Path
from typing import Final

from cthelper.core.cli.options import Commands, complain
from cthelper.core.errors import UsageError

# Reading the configuration takes as long as the plugins' import, and a worker has 30 s
# to answer.
_SECONDS: Final = 80.0


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reload",
        help="for the systemd unit: signals the daemon and waits for what comes of it",
        description="Has the daemon that MAINPID names read its configuration again, "
        "and waits; exits with 1, and says why, where the daemon refuses it. For "
        "ExecReload of the systemd unit, which sets MAINPID and RUNTIME_DIRECTORY; by "
        "hand it is `systemctl reload cthelper`.",
    )
    parser.set_defaults(command=_reload)


def _reload(_options: argparse.Namespace) -> int:
    from cthelper.core.daemon import notify

    process = os.environ.get("MAINPID", "")
    folder = os.environ.get("RUNTIME_DIRECTORY")
    if not process.isdecimal() or not folder:
        raise UsageError(
            "MAINPID and RUNTIME_DIRECTORY are not set: use `systemctl reload cthelper`"
        )
    try:
        error = notify.reload(int(process), Path(folder), _SECONDS)
    except OSError as failed:
        error = f"cannot reload process {process}: {failed}"
    if error:
        complain(error)
    return int(bool(error))

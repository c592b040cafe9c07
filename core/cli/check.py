# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper check``: is the configuration right, and what is not?"""

import argparse
import os

from cthelper import nft
from cthelper.core.cli.options import (
    Commands,
    add_config,
    complain,
    left_out,
    modules_of,
    taking_for,
    warn,
    warned,
)
from cthelper.core.config import parse, plugin_folder, read_file
from cthelper.core.errors import ConfigError, RegistryError
from cthelper.core.registry import Broken, classes, find_helpers


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "check",
        help="is the configuration right; all that is wrong there, a line each",
        description="Checks the configuration and the plugins as a start or a reload "
        "of `cthelper run` would, and lists all that is wrong. Needs neither root nor "
        "a kernel. Exits with 2 where something is wrong.",
    )
    add_config(parser)
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    file = read_file(options.config)
    refused: list[RegistryError] = []
    problems: list[str] = []
    folder = None
    try:
        folder = plugin_folder(file)
    except ConfigError as error:
        problems += error.lines
    broken: list[Broken] = []
    taking = taking_for(file)
    found = find_helpers(folder, refuse=refused.append, broken=broken, taking=taking)
    problems += map(str, refused)
    for each in broken:
        warn(left_out(each))
    names = {each.name for each in broken}
    try:
        config = warned(
            parse(
                *(file.text, file.path, classes(found)),
                left_out=names,
                modules=modules_of(found),
            )
        )
        nft.render(config)
        written = config.events.file
        # Path.is_dir() raises where a folder above must not be read.
        if written is not None and not os.path.isdir(written.parent):
            warn(
                f"{file.path}: events.file: there is no folder {written.parent}: "
                "nothing is written there"
            )
    except ConfigError as error:
        problems += error.lines
    # What is wrong with the file as such was found twice.
    for problem in dict.fromkeys(problems):
        complain(problem)
    if problems:
        return 2
    print(f"{file.path}: nothing is wrong")
    return 0

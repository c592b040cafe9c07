# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from cthelper.core.config import (
    DEFAULT_PATH,
    Config,
    ConfigFile,
    daemon_user,
    parse,
    plugin_folder,
    read_file,
)
from cthelper.core.daemon.standard_error import priority
from cthelper.core.errors import RegistryError
from cthelper.core.examination import Ask, Examining
from cthelper.core.kernel_modules import loaded_module
from cthelper.core.registry import (
    IMPORTING,
    Broken,
    Found,
    Given,
    Point,
    Taking,
    classes,
    find_helpers,
    source_of,
)
from cthelper.core.sources import Declared, Sources
from cthelper.core.trusted import privileged

Commands = argparse._SubParsersAction  # argparse has no public name for it


def file_name(text: str) -> str:
    """The name of a file, as it is given. A shell knows by this type, and by Path, that
    it can complete it.
    """
    return text


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add ``--config FILE``."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration (default: {DEFAULT_PATH} where it exists, "
        "else every key at its default)",
    )


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin FILE``."""
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a helper of your own, beside those that are installed; may be repeated",
    )


def found_helpers(
    options: argparse.Namespace, broken: list[Broken]
) -> dict[str, Found]:
    """All helpers, those of the configured folder and of ``--plugin`` among them.

    See `find_helpers` for `broken`. Raises ConfigError, RegistryError.
    """
    file = read_file(options.config)
    return _found(file, options, broken, taking_for(file))


def complain(text: str) -> None:
    """Print an error; where nobody reads it the exit code says so still."""
    _print(text, "error")


def warn(text: str) -> None:
    """Print a warning; it is of no matter whether anybody reads it."""
    _print(f"warning: {text}", "warning")


def _print(text: str, level: str) -> None:
    with suppress(OSError):
        print(f"{priority(level)}cthelper: {text}", file=sys.stderr, flush=True)


def left_out(broken: Broken) -> str:
    """What to say of an entry point that is broken."""
    return f"{broken.reason}: left out"


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names; warnings go to standard error.

    Raises ConfigError, RegistryError.
    """
    return warned(configured(read_file(options.config), options))


def warned(config: Config) -> Config:
    """The same, once its warnings were printed to standard error."""
    for warning in config.warnings:
        warn(warning)
    return config


def configured(
    file: ConfigFile, options: argparse.Namespace, *, runs: bool = False
) -> Config:
    """What the file's text configures. Raises ConfigError, RegistryError.

    Plugins are there to be run with `runs`; else see `taking_for`.
    """
    broken: list[Broken] = []
    taking = IMPORTING if runs else taking_for(file)
    found = _found(file, options, broken, taking)
    # What is replayed meets no kernel.
    return _parsed(file, found, broken, {} if runs else modules_of(found))


def modules_of(found: Mapping[str, Found]) -> dict[str, str]:
    """The kernel's modules that have names of these helpers, by these."""
    modules = {name: loaded_module(name) for name in found}
    return {name: module for name, module in modules.items() if module is not None}


def taking_for(file: ConfigFile) -> Taking:
    """How to get at plugins to know of them: their code is not run with privileges.

    Who has some, root above all, has them examined in a process without any.
    """
    if not privileged():
        return IMPORTING
    examiner = cache(lambda: _examiner(file))
    return Examining(lambda *work: examiner()(*work), file.text)


def _examiner(file: ConfigFile) -> Ask:
    """What examines plugins. Raises ConfigError."""
    # Most hosts have no plugin, and it takes longer to import than all else.
    from cthelper.core.daemon.examiner import Examiner
    from cthelper.core.daemon.privileges import DEFAULT_USER, NoSuchUser, plan

    try:
        return Examiner(plan(daemon_user(file)))
    except NoSuchUser:  # `cthelper doctor` and `cthelper run` tell that
        return Examiner(plan(DEFAULT_USER))


def declared_by(sources: Sources, ask: Ask) -> Declared:
    """What sources configure, plugins being examined. Raises ConfigError,
    RegistryError.
    """
    broken: list[Broken] = []
    given = sources.helpers
    taking = Examining(ask, sources.file.text)
    found = find_helpers(broken=broken, given=given, taking=taking)
    modules = modules_of(found)
    config = _parsed(sources.file, found, broken, modules)
    taken = {each.source for each in found.values()}
    points: list[Point] = []
    for point in given.points:
        if source_of(point) in taken:
            # Another name of the same class was refused, since it is taken.
            taken.remove(source_of(point))
            points.append(point)
    kept = Sources(sources.file, Given(given.plugins, points, broken), modules)
    return Declared(config, kept.packed())


def made_of(sources: Sources) -> Config:
    """What sources configure that were examined, plugins being imported.

    Raises ConfigError, RegistryError.
    """
    broken: list[Broken] = []
    found = find_helpers(broken=broken, given=sources.helpers)
    if len(broken) > len(sources.helpers.broken):
        raise RegistryError(broken[-1].reason)
    return _parsed(sources.file, found, broken, sources.modules)


def _parsed(
    file: ConfigFile,
    found: dict[str, Found],
    broken: list[Broken],
    modules: Mapping[str, str],
) -> Config:
    names = {each.name for each in broken}
    config = parse(
        file.text, file.path, classes(found), left_out=names, modules=modules
    )
    told = tuple(map(left_out, broken))
    return replace(config, warnings=told + config.warnings)


def _found(
    file: ConfigFile,
    options: argparse.Namespace,
    broken: list[Broken],
    taking: Taking,
) -> dict[str, Found]:
    plugins = getattr(options, "plugin", ())
    return find_helpers(plugin_folder(file), plugins, broken=broken, taking=taking)

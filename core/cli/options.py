# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share."""

import argparse
import sys
from pathlib import Path

from cthelper.core.config import (
    DEFAULT_PATH,
    Config,
    ConfigFile,
    parse,
    plugin_folder,
    read_file,
)
from cthelper.core.registry import Found, classes, find_helpers

Commands = argparse._SubParsersAction  # argparse has no public name for it


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


def found_helpers(options: argparse.Namespace) -> dict[str, Found]:
    """All helpers, those of the configured folder and of ``--plugin`` among them.

    Raises ConfigError, RegistryError.
    """
    return _found(read_file(options.config), options)


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names; warnings go to standard error.

    Raises ConfigError, RegistryError.
    """
    return warned(configured(read_file(options.config), options))


def warned(config: Config) -> Config:
    """The same, once its warnings were printed to standard error."""
    for warning in config.warnings:
        print(f"cthelper: warning: {warning}", file=sys.stderr)
    return config


def configured(file: ConfigFile, options: argparse.Namespace) -> Config:
    """What the file's text configures. Raises ConfigError, RegistryError."""
    return parse(file.text, file.path, classes(_found(file, options)))


def _found(file: ConfigFile, options: argparse.Namespace) -> dict[str, Found]:
    return find_helpers(plugin_folder(file), getattr(options, "plugin", ()))

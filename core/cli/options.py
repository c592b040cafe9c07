# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share."""

import argparse
import sys
from pathlib import Path

from cthelper.core.config import DEFAULT_PATH, Config, load, plugin_folder
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
    return find_helpers(plugin_folder(options.config), getattr(options, "plugin", ()))


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names; warnings go to standard error.

    Raises ConfigError, RegistryError.
    """
    config = read_configuration(options)
    for warning in config.warnings:
        print(f"cthelper: warning: {warning}", file=sys.stderr)
    return config


def read_configuration(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names. Raises ConfigError, RegistryError."""
    return load(options.config, classes(found_helpers(options)))

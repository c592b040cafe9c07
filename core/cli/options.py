# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share."""

import argparse
from pathlib import Path

from cthelper.core.config import DEFAULT_PATH, Config, load
from cthelper.core.registry import builtin_helpers

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


def configuration(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names. Raises ConfigError."""
    return load(options.config, builtin_helpers())

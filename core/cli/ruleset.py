# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper ruleset``: the nft ruleset for the configuration."""

import argparse
import functools

from cthelper import nft
from cthelper.core.cli.options import (
    Commands,
    add_config,
    configuration,
    configured,
    warn,
)
from cthelper.core.config import read_file
from cthelper.core.errors import CthelperError


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ruleset",
        help="the ruleset for the configuration: show, check, install or remove it",
        description="The nft ruleset for the configuration: the table inet cthelper, "
        "which attaches helpers to new flows and queues what they read. `cthelper run` "
        "installs and removes it by itself.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, command, text in (
        (
            "show",
            _show,
            "Prints the ruleset for the configuration. It loads only through `cthelper "
            "ruleset install` or `cthelper run`, since the helpers must be registered "
            "first.",
        ),
        (
            "check",
            _check,
            "Has the kernel check the ruleset, and loads nothing. Helpers that are not "
            "registered are, while it checks.",
        ),
        (
            "install",
            _install,
            "Registers the helpers and loads the table inet cthelper, and no other, in "
            "the place of the one that is loaded. Until `cthelper run` serves the "
            "queues packets pass; what a helper would read that fails closed is "
            "dropped.",
        ),
        (
            "remove",
            _remove,
            "Deletes the table inet cthelper, and no other. Unregisters the helpers, "
            "too, unless a daemon serves their queue, which would put the table back: "
            "stop it. Needs no configuration, and warns where it is broken.",
        ),
    ):
        action = actions.add_parser(name, help=text.split(". ")[0], description=text)
        add_config(action)
        action.set_defaults(command=command)
        if name == "install":
            action.add_argument(
                "--retag",
                action="store_true",
                help="delete the untagged UDP conntrack entries that the ruleset "
                "matches, so that these flows begin anew and are tagged",
            )


def _show(options: argparse.Namespace) -> int:
    print(nft.render(configuration(options)), end="")
    return 0


def _check(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.ruleset import check

    check(configuration(options))
    print("the ruleset is right")
    return 0


def _install(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.probe import UNKNOWN, CannotAsk, Kernel, ask
    from cthelper.core.daemon.ruleset import install

    @functools.cache
    def kernel() -> Kernel:
        try:
            return ask()
        except CannotAsk as error:
            warn(str(error))
            return UNKNOWN

    retagged = install(
        configuration(options),
        retag_flows=options.retag,
        keeps_limits=lambda: kernel().keeps_limits,
        hands_down=lambda: kernel().hands_down,
    )
    print(f"table {nft.TABLE} is installed")
    if retagged is not None:
        print(f"{retagged} conntrack entries deleted, to be tagged anew")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.ruleset import remove

    served = remove()
    print(f"table {nft.TABLE} is removed", flush=True)
    if served:
        warn(
            f"a daemon serves {', '.join(served)}: stop it, or it puts the table back "
            "(unless its daemon.lost_ruleset is warn)"
        )
    # All is done: what it would take to install it again is of no more weight.
    try:
        configured(read_file(options.config), options)
    except CthelperError as error:
        warn(f"it cannot be installed again: {error}")
    return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper ruleset``: the nft ruleset for the configuration."""

import argparse

from cthelper import nft
from cthelper.core.cli.options import Commands, add_config, configuration


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ruleset",
        help="show, check, install or remove the nft ruleset for the configuration",
        description="The nft ruleset for the configuration: the table inet cthelper, "
        "which attaches helpers to new flows and queues what they read. `cthelper run` "
        "installs and removes it by itself.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, command, text in (
        (
            "show",
            _show,
            "Print the ruleset. It loads only through `cthelper ruleset install` or "
            "`cthelper run`, since the helpers must be registered first.",
        ),
        (
            "check",
            _check,
            "Have the kernel check the ruleset without loading it. Helpers that are "
            "not registered are, while it checks.",
        ),
        (
            "install",
            _install,
            "Register the helpers and load the ruleset in the place of the one that is "
            "loaded. Packets pass until `cthelper run` serves the queue, but for what "
            "a helper would read that fails closed.",
        ),
        (
            "remove",
            _remove,
            "Delete the table inet cthelper and nothing else, and unregister the "
            "helpers unless a daemon serves their queue.",
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
    from cthelper.core.daemon.ruleset import install

    retagged = install(configuration(options), retag_flows=options.retag)
    print(f"table {nft.TABLE} is installed")
    if retagged is not None:
        print(f"{retagged} conntrack entries deleted, to be tagged anew")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from cthelper.core.daemon.ruleset import remove

    remove(configuration(options))
    print(f"table {nft.TABLE} is removed")
    return 0

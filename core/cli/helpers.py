# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper helpers``: what is installed."""

import argparse
import sys

from cthelper.core import docstrings
from cthelper.core.api import Helper
from cthelper.core.cli.options import (
    Commands,
    add_config,
    add_plugins,
    found_helpers,
    left_out,
    warn,
)
from cthelper.core.ports import spelled
from cthelper.core.reference import table, title
from cthelper.core.registry import Broken, Found
from cthelper.core.tables import as_toml, nearest


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "helpers",
        help="what is installed: ports, policies, options, where from",
        description="Lists the installed helpers, or shows all about one. Plugins, "
        "which come with other distributions or lie in the configured folder, are "
        "listed with their source.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one helper")
    parser.add_argument(
        "--toml",
        action="store_true",
        help="print what can be configured, as TOML with every key at its default",
    )
    add_config(parser)
    add_plugins(parser)
    parser.set_defaults(command=_helpers)


def _helpers(options: argparse.Namespace) -> int:
    broken: list[Broken] = []
    installed = found_helpers(options, broken)
    for each in broken:
        warn(left_out(each))
    if options.name is None:
        rows = [
            table(each.helper) if options.toml else _row(each)
            for each in installed.values()
        ]
        print("\n".join(rows))
        return 0
    if options.name not in installed:
        known = ", ".join(installed)
        print(
            f"cthelper: no helper {options.name!r}{nearest(options.name, installed)}, "
            f"installed are {known}",
            file=sys.stderr,
        )
        return 1
    found = installed[options.name]
    print(table(found.helper) if options.toml else _page(found))
    return 0


def _row(found: Found) -> str:
    helper = found.helper
    row = f"{helper.name:<15} {_ports(helper):<22} {title(helper)}"
    return row.rstrip() if found.builtin else f"{row} [{found.source}]"


def _page(found: Found) -> str:
    helper = found.helper
    hooks = ", ".join(sorted(hook.value for hook in helper.hooks))
    lines = [
        f"{helper.name}: {title(helper)}",
        "",
        f"control ports  {_ports(helper)}",
        f"tagged at      {hooks}",
    ]
    if helper.destinations:
        lines.append(f"destinations   {', '.join(map(str, helper.destinations))}")
    if helper.template:
        lines.append(f'a template     for tables with type = "{helper.name}"')
    elif not helper.enabled:
        lines.append(f"off            until helpers.{helper.name}.enabled = true")
    lines.append(f"lowest port    {helper.lowest_port} may be announced")
    lines += [
        f"policy         {policy.name}: at most {policy.max_expected} expectations "
        f"for each control flow, {policy.timeout} s"
        for policy in helper.policies
    ]
    for option in helper.options:
        default = as_toml(option.default)
        lines.append(f"option         {option.name} = {default}")
        lines.append(f"               {option.meaning}")
        if option.choices:
            choices = ", ".join(map(as_toml, option.choices))
            lines.append(f"               one of {choices}")
    about = found.about or docstrings.of_module(helper)
    lines += [f"source         {found.source}", "", about]
    return "\n".join(lines)


def _ports(helper: type[Helper]) -> str:
    transports = ",".join(str(each) for each in sorted(helper.transports))
    ports = ",".join(map(str, spelled(helper.ports))) or "by configuration"
    return f"{transports} {ports}"

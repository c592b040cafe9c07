# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that log a helper's flows to a group, in a table of their own.

It decides about no packet. Who has bound the group has the table: one whose group
nobody has was left there. All functions raise RulesetError.
"""

import re
from typing import Final

from cthelper.core.config import HelperConfig
from cthelper.core.ports import spelled
from cthelper.nft import load, tables

_PREFIX: Final = "cthelper-record-"
_NAME: Final = re.compile(rf"{_PREFIX}(\d{{1,5}})", re.ASCII)
# IPS_SRC_NAT and IPS_DST_NAT.
_TRANSLATED: Final = "0x30"
# What this host sends to itself was logged on its way out.
_HERE: Final = '\t\tiifname "lo" return\n'


def name(group: int) -> str:
    """The table for a group."""
    return f"{_PREFIX}{group}"


def render(group: int, helper: HelperConfig) -> str:
    """The table: what flows to the helper's ports is logged, and what it expected.

    Each packet once, as the client's side shows it: before destination NAT what the
    client sends, after source NAT what it gets, and both before a helper has rewritten
    anything (priority 300). An expected flow that is translated may come from either
    side, so that both its faces are logged.
    """
    log = f"log group {group}"
    ports = [str(each) for each in spelled(helper.ports)]
    number = ports[0] if len(ports) == 1 else f"{{ {', '.join(ports)} }}"
    control = "".join(
        f"\t\tmeta l4proto {transport} ct original proto-dst {number} {log} return\n"
        for transport in sorted(helper.helper.transports)
    )
    expected = f'ct helper "{helper.name}" {log}\n'
    chains = "".join(
        f"\tchain {hook} {{\n"
        f"\t\ttype filter hook {hook} priority {priority}; policy accept;\n"
        f"{local}"
        f"\t\tct direction {first} jump concerned\n"
        f"\t\tct direction {other} jump translated\n"
        "\t}\n"
        for hook, priority, first, other, local in (
            ("prerouting", -149, "original", "reply", _HERE),
            ("output", -149, "original", "reply", ""),
            ("postrouting", 299, "reply", "original", ""),
            ("input", 299, "reply", "original", _HERE),
        )
    )
    return (
        f"table inet {name(group)} {{\n"
        f"\tchain concerned {{\n{control}\t\t{expected}\t}}\n"
        f"\tchain translated {{\n\t\tct status & {_TRANSLATED} != 0 {expected}\t}}\n"
        f"{chains}}}\n"
    )


def begin(group: int, helper: HelperConfig) -> None:
    """Load the table, in the place of one that was left there."""
    load(f"{_without(group)}{render(group, helper)}")


def end(group: int) -> None:
    """Log nothing more; the chains stay until `remove`."""
    table = f"inet {name(group)}"
    load(f"table {table}\nflush table {table}\n")


def remove(group: int) -> None:
    """Delete the table, if it is there."""
    load(_without(group))


def groups() -> list[int]:
    """The groups of the tables that are loaded."""
    found = map(_NAME.fullmatch, tables("inet"))
    return [int(each[1]) for each in found if each is not None]


def _without(group: int) -> str:
    # nft cannot delete what is not there, so it adds the table first.
    return f"table inet {name(group)}\ndelete table inet {name(group)}\n"

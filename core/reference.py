# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be configured for a helper, as TOML with every key at its default.

A helper declares its options once: the configuration is checked against them, and this
is where people read of them.
"""

import re
import textwrap
from collections.abc import Iterable
from typing import Final

from cthelper.core import docstrings
from cthelper.core.api import Helper
from cthelper.core.config import DaemonConfig
from cthelper.core.guard import Rules
from cthelper.core.ports import spelled
from cthelper.core.tables import as_toml
from cthelper.core.tuples import BROADCAST

_WIDTH: Final = 88
# Of a helper whose ports only the user knows.
_PORTS: Final = (9999,)

Key = tuple[str, object, str]
"""Name, default and meaning; empty: it needs no words."""


def title(helper: type[Helper]) -> str:
    """The first line of the helper's own docstring."""
    return docstrings.of_class(helper).partition("\n")[0]


def table(helper: type[Helper], *, brief: bool = False) -> str:
    """The tables ``[helpers.NAME]`` with all keys, each with its meaning.

    With `brief` only the helper's own options are explained.
    """
    own = {key for keys in _own(helper) for key, _, _ in keys}
    whole = "\n".join(
        _table(name, _without_meaning(keys, own) if brief else keys)
        for name, keys in tables(helper).items()
    )
    # Else they would be the tables of a helper that is not there.
    return re.sub(r"^\[", "#[", whole, flags=re.M) if helper.template else whole


def tables(helper: type[Helper]) -> dict[str, list[Key]]:
    """All keys of these tables, by the tables' names."""
    top = f"helpers.{'NAME' if helper.template else helper.name}"
    broadcast = f'"{BROADCAST}": every broadcast address of IPv4.'
    rules = Rules(lowest_port=helper.lowest_port)
    hooks = sorted((hook.value for hook in helper.hooks), reverse=True)
    common: list[Key] = [
        ("enabled", helper.enabled, ""),
        ("queue", DaemonConfig().queue, "NFQUEUE number; by default that of [daemon]."),
        (
            "ports",
            spelled(helper.ports or _PORTS),
            'Control ports that the ruleset tags: numbers, ranges such as "6660-6669", '
            'names of services such as "sunrpc" (/etc/services).',
        ),
        (
            "hooks",
            hooks,
            "Where it tags them: prerouting is what comes in, output is what this host "
            "sends. Without prerouting flows of other hosts open nothing.",
        ),
        (
            "interfaces",
            (),
            "Only flows that come in through these interfaces, or for this host's own "
            "flows leave through them. A * at the end matches any rest. Empty: all.",
        ),
        ("sources", (), "Only flows from and to these networks. Empty: all."),
        (
            "destinations",
            helper.destinations,
            broadcast if BROADCAST in helper.destinations else "",
        ),
        (
            "fail_closed",
            False,
            "true: what the helper would read is dropped where nobody can inspect it, "
            "that is while no daemon serves and where the queue is full; false: it "
            "passes. Helpers that fail closed have queues apart: where others have the "
            "same number, they take the next one (after those of all workers).",
        ),
        (
            "known_as",
            "",
            "Name that nft and conntrack know it as. Empty: its own, with -u at the "
            "end where a module of the kernel has that.",
        ),
    ]
    made, options = _own(helper)
    found = {top: [*made, *common, *options]}
    for policy in helper.policies:
        limits: list[Key] = [
            (
                "max_expected",
                policy.max_expected,
                "Expectations that one control flow may have at a time, 1 to 255.",
            ),
            ("timeout", policy.timeout, "Seconds that one lives, 1 to 86400."),
        ]
        found[f"{top}.policies.{policy.name}"] = limits
    found[f"{top}.guard"] = [
        (
            "denied_ports",
            spelled(rules.denied_ports),
            "Ports that are not opened; by default those of [guard].",
        ),
        (
            "allowed_ports",
            rules.allowed_ports,
            "The only ports that are opened, of the announcer's own; empty: all that "
            "are not denied.",
        ),
        ("lowest_port", rules.lowest_port, "The lowest port that may be opened."),
        (
            "allow",
            rules.allow,
            "Who may announce other hosts than itself, which ones and with which ports "
            '(without ports: those of the lines above), such as { from = "10.0.0.10", '
            'hosts = ["10.0.0.11", "10.0.0.12"], ports = ["1521-1522"] }.',
        ),
        (
            "allow_hosts",
            rules.allow_hosts,
            "Networks whose hosts anybody may announce, with any port that is not "
            "denied. Rather use allow.",
        ),
        (
            "per_source",
            rules.per_source,
            "Expectations a minute, for the flows of one source (an address, of IPv6 "
            "a /64) and for all of the helper's; beyond it they are refused. 0: no "
            "limit.",
        ),
        ("per_helper", rules.per_helper, ""),
    ]
    if helper.nat:
        found[f"{top}.nat"] = [
            (
                "outside",
                (),
                "Hosts behind destination NAT and the address that the other side "
                'knows each by, such as "10.0.0.3 203.0.113.3".',
            ),
            (
                "unrewritable",
                "accept",
                "What becomes of a packet whose announcement must be rewritten and "
                "cannot be: accept or drop.",
            ),
        ]
    return found


def _own(helper: type[Helper]) -> tuple[list[Key], list[Key]]:
    """The keys that not every helper has: what makes one of a template, and options."""
    options: list[Key] = [
        (each.name, each.default, f"{each.meaning}.") for each in helper.options
    ]
    made: list[Key] = []
    if helper.template:
        made = [
            (
                "type",
                helper.name,
                "Makes a helper of your own of this table, with a NAME of your own.",
            ),
            (
                "window",
                helper.policies[0].timeout,
                "Seconds that a port stays open for answers, 1 to 120.",
            ),
        ]
    return made, options


def _without_meaning(keys: list[Key], but: set[str]) -> list[Key]:
    return [
        (key, default, meaning if key in but else "") for key, default, meaning in keys
    ]


def _table(name: str, keys: Iterable[Key]) -> str:
    lines = [f"[{name}]"]
    for key, default, meaning in keys:
        lines += _comment(meaning)
        lines.append(f"#{key} = {as_toml(default)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    if not text.partition(" ")[0].endswith(":"):  # else it is a value, as written
        text = text[:1].upper() + text[1:]
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")

# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the user's that mean a helper by its name."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

_CT_HELPER: Final = {"ct": {"key": "helper"}}


def meant(ruleset: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The helpers that rules match, each with the first rule that does.

    `ruleset` is a listing of nft's, in its JSON.
    """
    found: dict[str, str] = {}
    for each in ruleset:
        rule = each.get("rule", {})
        for statement in rule.get("expr", []):
            for name in _names(statement):
                found.setdefault(name, named(rule))
    return found


def named(rule: Mapping[str, Any]) -> str:
    """Where a rule stands, and its number."""
    place = " ".join(str(rule[key]) for key in ("family", "table", "chain"))
    return f"rule {place} handle {rule['handle']}"


def _names(statement: Any) -> Iterator[str]:
    match statement:
        case {"match": {"left": left, "right": right}} if left == _CT_HELPER:
            yield from _strings(right)
        case {"vmap": {"key": key, "data": data}} if key == _CT_HELPER:
            yield from _strings(data)


def _strings(value: Any) -> Iterator[str]:
    """A string, those of a set, or the keys of a map."""
    match value:
        case str():
            yield value
        case {"set": elements}:
            for each in elements:
                yield from _strings(each[0] if isinstance(each, list) else each)

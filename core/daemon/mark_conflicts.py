# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the user's that would see, or set, the bit of the conntrack mark.

The bit says that a flow is no longer inspected. A rule that compares the whole mark, or
restores it into the packet's where a routing rule looks at that, takes a finished flow
for another; one that sets the bit ends inspection before it begins.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cthelper import nft
from cthelper.core.daemon.helper_rules import named

_ALL: Final = 0xFFFFFFFF
_CT_MARK: Final = {"ct": {"key": "mark"}}
_PACKET_MARK: Final = {"meta": {"key": "mark"}}
_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Conflict:
    """A rule, what is wrong with it, and how to mend it."""

    rule: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.rule} {self.what}"


def conflicts(bit: int) -> Iterator[Conflict]:
    """The rules that are loaded and see or set the bit. Raises RulesetError."""
    yield from of_rules(bit, nft.loaded_ruleset(), routing_rules())


def of_rules(
    bit: int, ruleset: list[dict[str, Any]], routing: list[dict[str, Any]]
) -> Iterator[Conflict]:
    """The same for a listing of nft's and those of ``ip -j rule``."""
    others = ~bit & _ALL
    rules = [each["rule"] for each in ruleset if "rule" in each]
    seers = [*_routing_seers(bit, routing), *_packet_mark_seers(bit, rules)]
    for rule in rules:
        name = named(rule)
        for statement in rule.get("expr", []):
            if any(_bits(each, _CT_MARK) & bit for each in _compared(statement)):
                yield Conflict(
                    name,
                    f"compares the conntrack mark's bit {bit:#x}",
                    f"mask it: ct mark and {others:#x}; or set another daemon.mark, "
                    "or 0 for none",
                )
            key, value = _set(statement)
            if key == _PACKET_MARK and _bits(value, _CT_MARK) & bit and seers:
                yield Conflict(
                    name,
                    f"restores the conntrack mark's bit {bit:#x} into the packet's, "
                    f"which {seers[0]} looks at",
                    f"mask it: meta mark set ct mark and {others:#x}; or set another "
                    "daemon.mark, or 0 for none",
                )
            if key == _CT_MARK and _constant(value) & bit:
                yield Conflict(
                    name,
                    f"sets the conntrack mark's bit {bit:#x}, so that its flows are "
                    "not inspected",
                    f"leave that bit alone: ct mark set ct mark and {bit:#x} or ...; "
                    "or set another daemon.mark, or 0 for none",
                )


def routing_rules() -> list[dict[str, Any]]:
    """What ``ip -j rule`` has for both families; nothing where there is no ``ip``."""
    program = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    found: list[dict[str, Any]] = []
    for family in ("-4", "-6") if program else ():
        done = subprocess.run(
            [str(program), family, "-j", "rule"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        if done.returncode == 0 and done.stdout.strip():
            found += json.loads(done.stdout)
    return found


def _routing_seers(bit: int, routing: list[dict[str, Any]]) -> Iterator[str]:
    for rule in routing:
        if "fwmark" in rule and int(rule.get("fwmask", hex(_ALL)), 0) & bit:
            yield f"ip rule {rule['priority']} (fwmark {rule['fwmark']})"


def _packet_mark_seers(bit: int, rules: list[dict[str, Any]]) -> Iterator[str]:
    for rule in rules:
        for statement in rule.get("expr", []):
            if any(_bits(each, _PACKET_MARK) & bit for each in _compared(statement)):
                yield named(rule)


def _compared(statement: Any) -> list[Any]:
    """What a statement compares with something."""
    match statement:
        case {"match": {"left": left, "right": right}}:
            return [left, right]
        case {"vmap": {"key": key}}:
            return [key]
    return []


def _set(statement: Any) -> tuple[Any, Any]:
    """What a statement sets, and to what."""
    match statement:
        case {"mangle": {"key": key, "value": value}}:
            return key, value
    return None, None


def _bits(expression: Any, source: Mapping[str, Any]) -> int:
    """The bits of a mark that an expression's value depends on."""
    if expression == source:
        return _ALL
    match expression:
        case {"&": [left, right]}:
            both = ((left, right), (right, left))
            return _one(_bits(a, source) & (_constant(b) or _ALL) for a, b in both)
        case {"|": [left, right]}:
            both = ((left, right), (right, left))
            return _one(_bits(a, source) & ~_constant(b) for a, b in both)
        case {"^": operands} | {"concat": operands}:
            return _one(_bits(each, source) for each in operands)
        case {"<<": [left, _]} | {">>": [left, _]}:
            return _ALL if _bits(left, source) else 0
        case {"map": {"key": key}}:
            return _bits(key, source)
    return 0


def _constant(expression: Any) -> int:
    """The bits that an expression sets whatever else it has."""
    match expression:
        case int():
            return expression
        case {"|": [left, right]}:
            return _constant(left) | _constant(right)
    return 0


def _one(masks: Iterator[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result

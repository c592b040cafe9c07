# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that would see or set the mark's bit, out of what nft and ip list."""

from typing import Any, Final

import pytest

from cthelper.core.daemon.mark_conflicts import of_rules

BIT: Final = 0x10000000
MARK: Final = {"ct": {"key": "mark"}}
PACKET: Final = {"meta": {"key": "mark"}}
FWMARK: Final = {"priority": 100, "src": "all", "fwmark": "0x1", "table": "100"}
MASKED: Final = {**FWMARK, "fwmask": "0xff"}


def rule(*statements: Any, chain: str = "prerouting") -> dict[str, Any]:
    place = {"family": "inet", "table": "user", "chain": chain, "handle": 4}
    return {"rule": {**place, "expr": list(statements)}}


def match(left: Any, right: Any = 1, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def mangle(key: Any, value: Any) -> dict[str, Any]:
    return {"mangle": {"key": key, "value": value}}


def said(*rules: dict[str, Any], routing: tuple[Any, ...] = ()) -> list[str]:
    return [each.what.split(" the ")[0] for each in of_rules(BIT, [*rules], [*routing])]


@pytest.mark.parametrize(
    "statement",
    [
        match(MARK),
        match(MARK, 0, "!="),
        match(MARK, {"set": [1, 2]}),
        match({"&": [MARK, 0xF0000000]}, 0),
        match({"concat": [{"payload": {"protocol": "ip", "field": "saddr"}}, MARK]}),
        match({"^": [MARK, 1]}),
        match({">>": [MARK, 4]}),
        match(PACKET, MARK),
        {"vmap": {"key": MARK, "data": {"set": [[1, {"accept": None}]]}}},
    ],
)
def test_rule_that_compares_the_bit_is_named(statement: dict[str, Any]) -> None:
    (found,) = of_rules(BIT, [rule({"counter": {}}, statement)], [])
    assert found.rule == "rule inet user prerouting handle 4"
    assert found.what == "compares the conntrack mark's bit 0x10000000"
    assert "ct mark and 0xefffffff" in found.mend


@pytest.mark.parametrize(
    "statement",
    [
        match({"&": [MARK, 0xFF]}),
        match({"&": [0xFF, MARK]}),
        match({"|": [MARK, BIT]}, BIT),
        match(PACKET),
        mangle(MARK, 1),
        mangle(MARK, {"|": [{"&": [MARK, BIT | 1]}, 1]}),
        mangle(PACKET, 1),
        {"accept": None},
    ],
)
def test_rule_that_leaves_the_bit_alone_is_not(statement: dict[str, Any]) -> None:
    assert said(rule(statement), routing=(FWMARK,)) == []


@pytest.mark.parametrize("value", [BIT | 1, {"|": [MARK, BIT]}, {"|": [1, BIT]}])
def test_rule_that_sets_the_bit_is_named(value: object) -> None:
    assert said(rule(mangle(MARK, value))) == ["sets"]


RESTORES: Final = [
    MARK,
    {"&": [MARK, 0xF0000000]},
    {"|": [MARK, 1]},
    {"map": {"key": MARK, "data": {"set": [[1, 5]]}}},
]


@pytest.mark.parametrize("value", RESTORES)
def test_rule_that_restores_the_bit_for_another_to_see_is_named(value: object) -> None:
    restores = rule(mangle(PACKET, value))
    (found,) = of_rules(BIT, [restores], [MASKED, FWMARK])
    assert "which ip rule 100 (fwmark 0x1) looks at" in found.what
    assert "meta mark set ct mark and 0xefffffff" in found.mend
    compares = rule(match(PACKET), chain="output")
    (found,) = of_rules(BIT, [restores, compares], [])
    assert "which rule inet user output handle 4 looks at" in found.what


@pytest.mark.parametrize("value", [*RESTORES, {"&": [MARK, 0xFF]}, {"|": [MARK, BIT]}])
def test_restoring_it_for_nobody_is_no_conflict(value: object) -> None:
    masked = rule(match({"&": [PACKET, 0xFF]}))
    assert said(rule(mangle(PACKET, value)), masked, routing=(MASKED,)) == []

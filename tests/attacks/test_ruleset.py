# SPDX-License-Identifier: GPL-2.0-or-later
"""What the shown ruleset admits, and that nobody can aim at a worker."""

import re
from pathlib import Path
from typing import Final

import pytest

from cthelper import nft
from cthelper.core.config import parse
from cthelper.core.daemon import installation
from cthelper.core.daemon.installation import Installation
from cthelper.core.registry import builtin_helpers

ROOT: Final = Path(__file__).parents[2]
_RULESET: Final = re.compile(r"^```nft\n(.*?)^```", re.MULTILINE | re.DOTALL)
_RELATED: Final = re.compile(r"^\s*(.*\bct state related\b.*\baccept)$", re.MULTILINE)
# Errors about flows that are there, which open nothing.
_ICMP: Final = "meta l4proto { icmp, icmpv6 }"


def _shown(page: str) -> list[str]:
    """The rules that admit related flows in a page's rulesets."""
    rules = [
        rule
        for ruleset in _RULESET.findall((ROOT / page).read_text())
        for rule in _RELATED.findall(ruleset)
    ]
    return [rule for rule in rules if _ICMP not in rule]


def test_shown_ruleset_names_the_helper_of_what_it_admits() -> None:
    rules = _shown("README.md")
    assert len(rules) > 2
    for rule in rules:
        assert re.search(r"\bct helper (\"\w+\"|\{ .* \})", rule), rule


def test_shown_ruleset_binds_interfaces_and_ports_of_what_it_admits() -> None:
    """A gateway's clients are on one side; what helpers open is not for all ports."""
    for rule in _shown("README.md"):
        if re.search(r'\bct helper .*"(sunrpc|tns)"', rule):
            assert re.search(r"\biif(name)? ", rule), rule
            assert re.search(r"\boif(name)? ", rule), rule
            assert re.search(r"\bdport [{\d]", rule), rule
        else:
            # This host's own questions: where answers come in, or from how far.
            assert re.search(r"\b(iif(name)? |ttl 255|hoplimit 255)", rule), rule


@pytest.mark.parametrize("page", ["README.md", "docs/ruleset.md"])
def test_no_page_shows_a_rule_that_admits_any_related_flow(page: str) -> None:
    rulesets = _RULESET.findall((ROOT / page).read_text())
    for ruleset in rulesets:
        for line in ruleset.splitlines():
            bare = re.fullmatch(r"\s*ct state (\{?[\w, ]*\}?) accept", line)
            assert bare is None or "related" not in bare[1], line


# Workers

_MASK: Final = 0xFFFFFFFF
_GOLDEN: Final = 0xDEADBEEF
_WORKERS: Final = 4


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def _jhash(address: int, seed: int) -> int:
    """The hash jhash of one word, as nft_hash has it (include/linux/jhash.h)."""
    a = b = c = (_GOLDEN + 4 + seed) & _MASK
    a = (a + address) & _MASK
    for left, right, bits in (
        ("c", "b", 14),
        ("a", "c", 11),
        ("b", "a", 25),
        ("c", "b", 16),
        ("a", "c", 4),
        ("b", "a", 14),
        ("c", "b", 24),
    ):
        words = {"a": a, "b": b, "c": c}
        words[left] ^= words[right]
        words[left] = (words[left] - _rotated(words[right], bits)) & _MASK
        a, b, c = words["a"], words["b"], words["c"]
    return c


def _worker(address: int, seed: int) -> int:
    """Which worker's queue one end's address chooses (reciprocal_scale)."""
    swapped = int.from_bytes(address.to_bytes(4), "little")
    return _jhash(swapped, seed) * _WORKERS >> 32


def _seed_of_a_start(monkeypatch: pytest.MonkeyPatch) -> int:
    """The seed that a daemon's ruleset would have."""
    seeds: list[int | None] = []
    monkeypatch.setattr(installation, "HelperTable", lambda: None)
    monkeypatch.setattr(installation, "TableEvents", lambda _table: None)
    monkeypatch.setattr(
        nft, "install", lambda _config, seed, **_options: seeds.append(seed)
    )
    started = Installation(None)  # type: ignore[arg-type]
    config = parse("daemon.workers = 4", Path("x.toml"), builtin_helpers())
    started._load(config)
    started._load(config)
    first, second = seeds
    assert first == second, "a flow keeps its worker when the ruleset is loaded anew"
    assert first is not None
    return first


def test_sources_chosen_for_one_worker_meet_all_of_them_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, next_one = (_seed_of_a_start(monkeypatch) for _ in range(2))
    assert known != next_one
    first = int.from_bytes(bytes([10, 0, 0, 0]))
    chosen = [
        address
        for address in range(first, first + 4096)
        if _worker(address, known) == 0
    ]
    # With the seed of before an attacker would have a worker for himself.
    assert len(chosen) > 800
    met = [0] * _WORKERS
    for address in chosen:
        met[_worker(address, next_one)] += 1
    # A quarter for each, and a wide margin for chance: twelve deviations.
    assert min(met) > len(chosen) / _WORKERS * 0.4, met

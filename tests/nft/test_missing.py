# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the ruleset that is loaded is whole."""

import errno
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from cthelper import nft
from cthelper.core.config import Config, parse
from cthelper.core.errors import RulesetError
from cthelper.core.registry import builtin_helpers
from tests.nft.fake_nft import FakeNft


def listing_of(text: str) -> str:
    """A rendered ruleset as nft lists it."""
    chain = ""
    listed: list[dict[str, object]] = [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "cthelper", "handle": 1}},
    ]
    for line in re.sub(r"#.*", "", text).splitlines():
        words = line.split()
        if words[:2] == ["ct", "helper"] and words[-1] == "{":
            listed.append({"ct helper": {"family": "inet", "name": words[2]}})
        elif words[:1] == ["chain"]:
            chain = words[1]
            listed.append({"chain": {"family": "inet", "name": chain, "handle": 2}})
        elif chain and words and words[0] not in ("type", "}"):
            listed.append({"rule": {"chain": chain, "handle": 3, "expr": []}})
    return json.dumps({"nftables": listed})


CLOSED = parse("helpers.tns.fail_closed = true\n", Path("test.toml"), builtin_helpers())
SPREAD = parse("daemon.workers = 3\n", Path("test.toml"), builtin_helpers())


@pytest.mark.parametrize("config", [CLOSED, SPREAD], ids=["closed", "spread"])
def test_ruleset_is_missing_where_anything_of_it_is(
    program: FakeNft, tmp_path: Path, config: Config
) -> None:
    whole = json.loads(listing_of(nft.render(config)))["nftables"]
    file = tmp_path / "whole"
    program.write(f'[ "$*" = "-j list table inet cthelper" ] && cat {file}')

    def missing(listed: list[dict[str, object]]) -> bool:
        file.write_text(json.dumps({"nftables": listed}))
        return nft.missing(config)

    assert not missing(whole)
    # What somebody has added, or we had before, does not matter.
    assert not missing([*whole, {"ct helper": {"name": "x"}}, {"rule": {"chain": "x"}}])
    for number in range(2, len(whole)):
        assert missing(whole[:number] + whole[number + 1 :]), whole[number]


def test_ruleset_is_missing_where_the_table_is(program: FakeNft) -> None:
    program.loaded()
    assert nft.missing(SPREAD)


def test_ruleset_is_not_taken_for_missing_where_nft_cannot_tell(
    program: FakeNft,
) -> None:
    program.write("echo Error: Operation not permitted >&2; exit 1")
    with pytest.raises(RulesetError, match="not permitted"):
        nft.missing(SPREAD)


def test_nft_that_cannot_be_run_is_an_error_of_the_ruleset(
    program: FakeNft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(RulesetError, match="nft cannot be run: Resource"):
        nft.missing(SPREAD)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What nft is asked for that is loaded, and what is made of its answer."""

import json
from typing import Final

import pytest

from cthelper import nft
from cthelper.core.errors import RulesetError
from tests.nft.fake_nft import FakeNft

OURS: Final = {"chain": {"family": "inet", "table": "cthelper", "name": "x"}}
THEIRS: Final = {"chain": {"family": "inet", "table": "firewall", "name": "x"}}


def test_whole_ruleset_has_our_table_and_what_is_loaded_besides_has_not(
    program: FakeNft,
) -> None:
    answer = json.dumps({"nftables": [OURS, THEIRS]})
    program.write(f"[ \"$*\" = '-j list ruleset' ] && echo '{answer}'")
    assert nft.whole_ruleset() == [OURS, THEIRS]
    assert nft.loaded_ruleset() == [THEIRS]


def test_ruleset_as_nft_writes_it_has_handles_and_no_counts(program: FakeNft) -> None:
    program.write('echo "$@"')
    assert nft.ruleset_text() == "-s -a list ruleset\n"


def test_what_nft_refuses_is_an_error(program: FakeNft) -> None:
    program.write("echo no >&2; exit 1")
    for listing in (nft.whole_ruleset, nft.ruleset_text):
        with pytest.raises(RulesetError, match="nft: no"):
            listing()

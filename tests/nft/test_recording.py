# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules that log a helper's flows: what they say, and whose table is whose."""

import re

import pytest

from cthelper.nft import recording
from tests.core.configured import read
from tests.nft.fake_nft import FakeNft

PLAIN = read('[helpers.plain]\nknown_as = "plain-u"\n').helpers["plain-u"]


def test_table_logs_and_decides_nothing() -> None:
    text = recording.render(7, PLAIN)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[:4] == [
        "table inet cthelper-record-7 {",
        "chain concerned {",
        "meta l4proto udp ct original proto-dst 7000-7001 log group 7 return",
        'ct helper "plain-u" log group 7',
    ]
    assert 'ct status & 0x30 != 0 ct helper "plain-u" log group 7' in lines
    assert re.findall(r"hook (\w+) priority (-?\d+); policy (\w+)", text) == [
        ("prerouting", "-149", "accept"),
        ("output", "-149", "accept"),
        ("postrouting", "299", "accept"),
        ("input", "299", "accept"),
    ]
    assert not re.search(r"\b(accept|drop|queue|set|goto)\b(?!;)", text)


@pytest.mark.parametrize("chain", ["prerouting", "output"])
def test_clients_side_is_where_requests_come_in(chain: str) -> None:
    rules = recording.render(7, PLAIN).partition(f"chain {chain} ")[2].partition("}")[0]
    assert "ct direction original jump concerned" in rules
    assert "ct direction reply jump translated" in rules


@pytest.mark.parametrize("chain", ["postrouting", "input"])
def test_clients_side_is_where_answers_go_on(chain: str) -> None:
    rules = recording.render(7, PLAIN).partition(f"chain {chain} ")[2].partition("}")[0]
    assert "ct direction reply jump concerned" in rules
    assert "ct direction original jump translated" in rules


def test_table_that_was_left_is_replaced(program: FakeNft) -> None:
    recording.begin(7, PLAIN)
    assert program.record.read_text() == (
        "-f -\ntable inet cthelper-record-7\ndelete table inet cthelper-record-7\n"
        + recording.render(7, PLAIN)
    )
    recording.end(7)
    assert program.record.read_text().endswith("flush table inet cthelper-record-7\n")
    recording.remove(7)
    assert program.record.read_text().endswith("delete table inet cthelper-record-7\n")


def test_groups_are_those_of_recorders_tables(program: FakeNft) -> None:
    names = ["cthelper", "filter", "cthelper-record-7", "cthelper-record-x", "25461"]
    names += ["my-cthelper-record-8", "cthelper-record-9-mine", "cthelper-record-25460"]
    listed = ", ".join(
        f'{{"table": {{"family": "inet", "name": "{each}"}}}}' for each in names
    )
    program.write(
        f"[ \"$*\" = '-j list tables inet' ] && "
        f'echo \'{{"nftables": [{{"metainfo": {{}}}}, {listed}]}}\''
    )
    assert recording.groups() == [7, 25460]

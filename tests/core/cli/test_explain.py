# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper explain``: how a flow is said, who is asked, and what is printed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from cthelper import nft
from cthelper.core.cli import main
from cthelper.core.cli.explain import read_asked
from cthelper.core.control.explain import Settings, Way
from cthelper.core.daemon import way as routes
from cthelper.core.errors import RulesetError, UsageError
from cthelper.core.records import Record
from tests.core.builders import CLIENT, SERVER
from tests.core.control.controlled import World, controller
from tests.core.control.test_tree import expectation, listed, tuple_of
from tests.core.test_firewall import ACCEPT, STATE, base, match, rule

OURS: Final = {"table": {"family": "inet", "name": "cthelper"}}
TEXT: Final = "table inet t {\n\tct state related accept # handle 6\n}\n"
WAY: Final = Way(path=("prerouting", "forward"), iif="a", oif="b", back="a")
RULES: Final = [OURS, base("drop"), rule(6, match(STATE, "related", "in"), ACCEPT)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A daemon whose flow 1 has announced port 7001, and rules that take related."""
    world = World(tmp_path / "socket")
    world.kernel.table = [listed(1, helper="line"), listed(2)]
    world.kernel.expected = [expectation(1, 7001)]
    monkeypatch.setattr(nft, "whole_ruleset", lambda: RULES)
    monkeypatch.setattr(nft, "ruleset_text", lambda: TEXT)
    monkeypatch.setattr(routes, "way", lambda *_: WAY)
    monkeypatch.setattr(routes, "settings", lambda _: Settings())
    with controller(world):
        yield world


class Ran:
    """What the command printed, and its exit code."""

    def __init__(
        self, path: Path, capsys: pytest.CaptureFixture[str], *words: str
    ) -> None:
        self.code = main(["explain", *words, "--socket", str(path)])
        self.out, self.err = capsys.readouterr()


def test_announced_flow_is_free_and_says_by_which_rule(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Ran(world.path, capsys, "tcp", CLIENT, f"{SERVER}:7001")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"tcp {CLIENT} > {SERVER}:7001",
        f"  announced  line expects one flow to {SERVER}:7001 from {CLIENT}, announced "
        f"by {tuple_of(1)}, 30 s left",
        "  rules      as ct state related of line it is accepted by table inet t, "
        "chain forward, rule handle 6: ct state related accept",
        "  rp_filter  the route back to 192.0.2.1 is by a, whose rp_filter is off",
        "  sysctl     nf_conntrack_helper is not there: rules alone attach helpers",
        "nothing in the way",
    ]


def test_another_flow_is_blocked(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"tcp {CLIENT}:5 > {SERVER}:7002"
    done = Ran(world.path, capsys, words)
    assert done.code == 1
    assert done.out.startswith(
        f"{words}\n! nearest    line expected tcp {CLIENT} > {SERVER}:7001 (in "
        f"{tuple_of(1)}) with 30 s left: the flow goes to port 7002\n"
        "! rules      as ct state new it is dropped "
    )
    assert done.out.endswith("\nblocked: nearest, rules\n")
    assert f"  control    line reads {tuple_of(1)}\n" in done.out
    control = f"tcp {CLIENT}:2 > {SERVER}:7000"
    done = Ran(world.path, capsys, words, "--control", control)
    assert f"! control    {control} has no helper: tcp port 7000 is no" in done.out
    elsewhere = f"tcp {CLIENT}:2 > 10.9.9.9:7000"
    done = Ran(world.path, capsys, words, "--control", elsewhere)
    assert f"! control    {elsewhere} is not in the kernel's table" in done.out


def test_what_strangers_have_said_is_no_order_to_a_terminal(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: Record = {
        **{"helper": "line", "flow": tuple_of(1), "endpoint": f"{SERVER}:7002"},
        **{"transport": "tcp", "reason": "forbidden", "detail": "\x1b[2J\nall is well"},
    }
    world.server.recent.add(time.time(), "refused", "info", fields)
    done = Ran(world.path, capsys, "tcp", CLIENT, f"{SERVER}:7002")
    assert "refused, forbidden: ?[2J?all is well\n" in done.out


def test_json_is_one_object(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    done = Ran(world.path, capsys, "tcp", CLIENT, f"{SERVER}:7002", "--json")
    assert done.code == 1
    found: dict[str, Any] = json.loads(done.out)
    assert (found["flow"], found["verdict"]) == (
        f"tcp {CLIENT} > {SERVER}:7002",
        "blocked: nearest, rules",
    )
    assert found["findings"][0]["blocks"] is True
    rules = [each["rule"] for each in found["findings"] if "rule" in each]
    assert [(each["handle"], each["verdict"]) for each in rules] == [
        (None, "drop"),
        (6, "accept"),
    ]


def test_ruleset_that_is_gone_and_another_zone_are_seen(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    cast(Record, world.supervisor.state)["ruleset"] = False
    done = Ran(world.path, capsys, "tcp", CLIENT, f"{SERVER}:7001", "--zone", "3")
    assert done.code == 1
    assert "! announced  nothing like it is remembered\n" in done.out
    assert "! ruleset    the table inet cthelper is gone" in done.out


def test_without_a_daemon_the_rules_are_told(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Ran(tmp_path / "none", capsys, "tcp", CLIENT, f"{SERVER}:7001")
    assert (done.code, done.err) == (1, "")
    assert "! daemon     no daemon answers: nothing is expected\n" in done.out


def test_without_rights_it_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> str:
        raise RulesetError("nft: Operation not permitted: run as root")

    monkeypatch.setattr(nft, "ruleset_text", refused)
    done = Ran(world.path, capsys, "tcp", CLIENT, f"{SERVER}:7001")
    assert (done.code, done.out) == (1, "")
    assert done.err == "cthelper: nft: Operation not permitted: run as root\n"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["tcp", "10.0.0.1", "10.0.0.2:80"], "tcp 10.0.0.1 > 10.0.0.2:80"),
        (["udp 10.0.0.1:9 > 10.0.0.2:80"], "udp 10.0.0.1:9 > 10.0.0.2:80"),
        (["tcp", "::1", ">", "[::2]:80"], "tcp ::1 > [::2]:80"),
        (["tcp", "[::1]", "[::2]:80"], "tcp ::1 > [::2]:80"),
        (["tcp [::1]:7>[::2]:80"], "tcp [::1]:7 > [::2]:80"),
    ],
)
def test_flow_is_read_in_one_word_or_in_several(words: list[str], shown: str) -> None:
    assert str(read_asked(words)) == shown


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["tcp"], "tcp is no flow such as"),
        (["tcp", "10.0.0.1", "10.0.0.2"], "10.0.0.2 is no address:port"),
        (["icmp", "10.0.0.1", "10.0.0.2:1"], "icmp is neither tcp nor udp"),
        (["tcp", "10.0.0.1:x", "10.0.0.2:1"], "10.0.0.1:x is no address:port"),
        (["tcp", "10.0.0.1", "10.0.0.2:99999"], "port 99999 is over 65535"),
        (["tcp", "::1:80", "10.0.0.2:9"], "two versions of IP"),
        (["tcp", "10.0.0.1", "[::1]:9"], "two versions of IP"),
        (["tcp", "10.0.0.1", "::1:9"], "of IPv6 it is \\[address\\]:port"),
        (["tcp", "host", "10.0.0.2:9"], "host is no address:port"),
    ],
)
def test_what_is_no_flow_is_refused(words: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        read_asked(words)

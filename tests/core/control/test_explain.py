# SPDX-License-Identifier: GPL-2.0-or-later
"""What is found to be in a flow's way, from what was gathered by hand."""

from dataclasses import replace
from typing import Any, Final

import pytest

from cthelper.core.control.explain import (
    Answer,
    Asked,
    Finding,
    Gathered,
    Settings,
    Way,
    answer,
)
from cthelper.core.control.memory import Memory
from cthelper.core.records import flow_record
from cthelper.core.tuples import TCP, UDP, Tuple
from tests.core.builders import CLIENT, SERVER, flow_tuple
from tests.core.control.test_memory import (
    FLOW,
    MASTER,
    NOW,
    REFUSED,
    announced,
    event,
    lives,
)
from tests.core.test_firewall import (
    ACCEPT,
    DPORT,
    DROP,
    FIB,
    HELPER,
    STATE,
    base,
    match,
    meta,
    payload,
    rule,
)

WAY: Final = Way(
    path=("prerouting", "forward", "postrouting"), iif="lan", oif="wan", back="lan"
)
OURS: Final = "inet", "cthelper"
TABLE: Final = {"table": {"family": "inet", "name": "cthelper", "handle": 1}}
RELATED: Final = rule(6, match(STATE, "related", "in"), ACCEPT)
FIREWALL: Final = (TABLE, base("drop"), RELATED)
STATUS: Final[dict[str, Any]] = {
    "supervisor": {"ruleset": True},
    "tables": {"conntrack": {"used": 2, "most": 100}, "expectations": None},
}


def entry(flow: Tuple, helper: str | None = None, **more: object) -> dict[str, Any]:
    return {
        **{"gone": False, "flow": flow_record(flow), "flows": [], "helper": helper},
        **{"inspection": helper and "inspected", "reason": None, "timeout": 30},
        **{"state": None, "answered": True, **more},
    }


def memory(*events: dict[str, Any], live: tuple[dict[str, Any], ...] = ()) -> Memory:
    return Memory(NOW, live, {MASTER}, events)


LIVE: Final = memory(live=(lives(),))


def gathered(
    *listing: dict[str, Any],
    asked: Tuple = FLOW,
    any_port: bool = False,
    **more: Any,
) -> Gathered:
    known: dict[str, Any] = {
        **{"control": None, "memory": memory(), "status": STATUS, "flows": []},
        "listing": list(listing or FIREWALL),
        **{"texts": {}, "table": OURS, "way": WAY, "settings": Settings()},
    }
    return Gathered(asked=Asked(asked, any_port), **{**known, **more})


def told(known: Gathered) -> list[tuple[bool | None, str, str]]:
    return [(each.blocks, each.kind, each.text) for each in answer(known).findings]


def blocking(known: Gathered) -> dict[str, str]:
    """What keeps the flow out, by kind; the last of each."""
    return {kind: text for blocks, kind, text in told(known) if blocks}


def test_flow_that_is_announced_and_accepted_is_free() -> None:
    texts = {("inet", "t", 6): "ct state related accept"}
    known = gathered(memory=LIVE, texts=texts)
    assert answer(known).blocks is False
    assert answer(known).verdict == "nothing in the way"
    assert told(known)[:2] == [
        (
            False,
            "announced",
            f"sunrpc expects any number of flows to {SERVER}:7001 from {CLIENT}, "
            f"announced by {MASTER}, 200 s left",
        ),
        (
            False,
            "rules",
            "as ct state related of sunrpc it is accepted by table inet t, chain "
            "forward, rule handle 6: ct state related accept",
        ),
    ]
    (_, rules, *_) = answer(known).findings
    assert rules.record(texts)["rule"] == {
        **{"family": "inet", "table": "t", "chain": "forward", "hook": "forward"},
        **{"handle": 6, "comment": None, "text": "ct state related accept"},
        "verdict": "accept",
    }


@pytest.mark.parametrize(
    ("listing", "verdict", "text"),
    [
        (
            (base("drop"), rule(5, match(DPORT, 7001), DROP, comment="mine"), RELATED),
            "blocked: rules",
            'is dropped by table inet t, chain forward, rule handle 5 "mine": drop',
        ),
        (
            (base(), rule(5, match(HELPER, "sunrpc"), {"reject": {}})),
            "blocked: rules",
            "is rejected by table inet t, chain forward, rule handle 5: reject",
        ),
        (
            (base("drop"), rule(5, match(HELPER, "ftp"), ACCEPT)),
            "blocked: rules",
            "is dropped by table inet t, chain forward, policy drop",
        ),
        (
            (base("drop"), rule(5, FIB, DROP), RELATED),
            "may be blocked: rules",
            "may be dropped by table inet t, chain forward, rule handle 5: drop; "
            "not certain, as it was not evaluated: fib missing",
        ),
        ((base(),), "nothing in the way", "is accepted: no rule is against it"),
        ((), "nothing in the way", "is accepted: no rule is against it"),
    ],
    ids=["rule", "reject", "policy", "not certain", "no rule", "no chain"],
)
def test_rules_decide_about_what_is_announced(
    listing: tuple[dict[str, Any], ...], verdict: str, text: str
) -> None:
    known = gathered(TABLE, *listing, memory=LIVE)
    assert answer(known).verdict == verdict
    assert any(found.endswith(text) for _, _, found in told(known)), told(known)


def test_what_is_not_announced_is_blocked_by_who_drops_new_flows() -> None:
    known = gathered()
    assert answer(known).verdict == "blocked: announced, control, rules"
    assert blocking(known) == {
        "announced": "nothing like it is remembered",
        "control": "no flow between the two has a helper",
        "rules": "as ct state new it is dropped by table inet t, chain forward, "
        "policy drop",
    }
    # It says, too, what would become of it once it is announced.
    last = [text for blocks, kind, text in told(known) if kind == "rules"][-1]
    assert last.startswith("as ct state related it is accepted by ")
    opened = gathered(TABLE, base("drop"), rule(5, match(DPORT, 7001), ACCEPT))
    assert answer(opened).verdict == "nothing in the way"


@pytest.mark.parametrize(
    ("events", "kind", "text"),
    [
        ([REFUSED], "refused", "refused, denied-port: port 7001 is denied"),
        ([announced(400)], "nearest", "it ended 100 s ago, after its 300 s"),
        ([announced(9, destination=f"{SERVER}:8")], "nearest", "goes to port 7001"),
    ],
)
def test_what_came_nearest_is_said(
    events: list[dict[str, Any]], kind: str, text: str
) -> None:
    assert text in blocking(gathered(memory=memory(*events)))[kind]


def test_control_flow_without_helper_is_no_cause_where_another_was_read() -> None:
    flows = [entry(MASTER)]
    known = gathered(*TAGS, tag(PORT), flows=flows, memory=memory(REFUSED))
    assert answer(known).verdict == "blocked: refused, rules"
    known = gathered(*TAGS, tag(PORT), flows=flows)
    assert answer(known).verdict == "blocked: announced, control, rules"


def test_troubles_of_its_control_flow_are_said() -> None:
    known = gathered(memory=memory(event("malformed", 9, detail="too short")))
    assert (
        False,
        "trouble",
        f"helper sunrpc, {MASTER}: malformed, too short 9 s ago",
    ) in told(known)


def test_without_a_daemon_the_rules_are_told_all_the_same() -> None:
    known = gathered(memory=None, status=None)
    assert blocking(known)["daemon"] == "no daemon answers: nothing is expected"
    assert "policy drop" in blocking(known)["rules"]
    known = gathered(TABLE, base(), memory=None, status=None)
    assert answer(known).blocks is False


def test_flow_that_is_there_is_not_blocked() -> None:
    known = gathered(flows=[entry(FLOW, state="SYN_SENT", answered=False)])
    (found,) = answer(known).findings
    assert found.text == (
        f"{FLOW} is in the kernel's table, SYN_SENT, 30 s left: its first packet has "
        "passed all chains here, and no answer to it has come"
    )
    assert answer(known).blocks is False
    # Of a tree, too, whose control flow has ended.
    tree = {"gone": True, "flows": [entry(FLOW)], "flow": flow_record(MASTER)}
    assert answer(gathered(flows=[tree])).findings[0].kind == "entry"
    # The next one from the same host may fare otherwise.
    known = gathered(flows=[entry(FLOW)], any_port=True)
    assert answer(known).blocks is True


# The control flow

TAGS: Final = (
    TABLE,
    base("drop"),
    {"chain": {**base(name="tag", hook="prerouting")["chain"], "table": "cthelper"}},
)


def tag(*matches: dict[str, Any]) -> dict[str, Any]:
    found = rule(3, *matches, {"ct helper": "sunrpc-udp"}, chain="tag")
    return {"rule": {**found["rule"], "table": "cthelper"}}


PORT: Final = match(payload("udp", "dport"), 111)
NARROW: Final = tag(match(meta("iifname"), "eth1"), PORT)
REPLY_WAY: Final = flow_tuple(UDP, (SERVER, 700), (CLIENT, 111))


@pytest.mark.parametrize(
    ("rules", "flows", "control", "text"),
    [
        ([tag(PORT)], [entry(MASTER, "sunrpc")], None, f"sunrpc reads {MASTER}"),
        (
            [tag(PORT)],
            [entry(MASTER, "sunrpc", inspection="finished", reason="gap")],
            None,
            f"sunrpc reads {MASTER} no longer (gap)",
        ),
        (
            [tag(PORT)],
            [entry(MASTER)],
            None,
            f"{MASTER} has no helper: the ruleset gives it the helper sunrpc, so that "
            "it began before that: cthelper ruleset install --retag",
        ),
        (
            [NARROW],
            [entry(MASTER)],
            None,
            f"{MASTER} has no helper: the rule of sunrpc leaves it out, by iifname "
            "eth1",
        ),
        (
            [tag(FIB, PORT)],
            [entry(MASTER)],
            MASTER,
            "the rule of sunrpc may leave it out, by fib missing",
        ),
        (
            [tag(match(meta("iifname"), "wan"), PORT)],
            [entry(REPLY_WAY)],
            None,
            f"{REPLY_WAY} has no helper: the ruleset gives it the helper sunrpc",
        ),
        ([tag(PORT)], [entry(FLOW)], None, "no flow between the two has a helper"),
        (
            [tag(PORT)],
            [],
            MASTER,
            f"{MASTER} is not in the kernel's table: it has ended, or has not passed "
            "here; the ruleset gives it the helper sunrpc",
        ),
        (
            [],
            [entry(MASTER)],
            MASTER,
            "has no helper: udp port 111 is no control port of an enabled helper",
        ),
    ],
    ids=[
        *("read", "finished", "began before", "narrowed", "not certain"),
        *("other direction", "no control flow", "not there", "no control port"),
    ],
)
def test_control_flow_is_looked_at(
    rules: list[dict[str, Any]],
    flows: list[dict[str, Any]],
    control: Tuple | None,
    text: str,
) -> None:
    asked = None if control is None else Asked(control, False)
    other = flow_tuple(TCP, (CLIENT, 1), (SERVER, 7001))
    known = gathered(*TAGS, *rules, flows=flows, control=asked, asked=other)
    found = [each for _, kind, each in told(known) if kind == "control"]
    assert any(text in each for each in found), told(known)


@pytest.mark.parametrize(
    "known",
    [
        gathered(base("drop"), RELATED),
        gathered(status={**STATUS, "supervisor": {"ruleset": False}}),
    ],
    ids=["no table", "the daemon says so"],
)
def test_ruleset_that_is_gone_is_said(known: Gathered) -> None:
    assert blocking(known)["ruleset"].startswith("the table inet cthelper is gone")


# All else


def test_full_table_keeps_flows_out() -> None:
    def tables(conntrack: int, expectations: int) -> dict[str, Any]:
        fills = {"conntrack": conntrack, "expectations": expectations}
        rows = {name: {"used": used, "most": 100} for name, used in fills.items()}
        return {**STATUS, "tables": rows}

    text = "the kernel's conntrack table has 100 of 100"
    known = gathered(memory=LIVE, status=tables(100, 1))
    assert blocking(known) == {"tables": text}
    known = gathered(memory=LIVE, status=tables(90, 100))
    assert answer(known).blocks is False  # it is in that table
    known = gathered(status=tables(1, 100))
    assert "expectations table has 100 of 100" in blocking(known)["tables"]
    known = gathered(memory=LIVE, status=tables(90, 1))
    assert (False, "tables", "the kernel's conntrack table has 90 of 100") in told(
        known
    )
    assert not any(
        kind == "tables"
        for _, kind, _ in told(gathered(memory=LIVE, status=tables(89, 89)))
    )


@pytest.mark.parametrize(
    ("iif", "modes", "blocks", "text"),
    [
        ("lan", {"lan": 1, "wan": 0}, False, "is by lan, whose rp_filter is strict"),
        ("lan", {"lan": 2, "wan": 1}, False, "loose; on wan it is strict, and drops"),
        ("wan", {"lan": 0, "wan": 1}, True, "it is strict on wan, where the flow is"),
        ("wan", {"lan": 0, "wan": 2}, False, "is by lan, whose rp_filter is off"),
    ],
)
def test_rp_filter_drops_what_comes_elsewhere_than_the_route_back(
    iif: str, modes: dict[str, int], blocks: bool, text: str
) -> None:
    known = gathered(
        memory=LIVE, way=replace(WAY, iif=iif), settings=Settings(rp_filter=modes)
    )
    (found,) = [each for each in told(known) if each[1] == "rp_filter"]
    assert found[0] is blocks
    assert text in found[2]


def test_settings_that_matter_are_told() -> None:
    known = gathered(
        memory=LIVE,
        way=replace(WAY, refusal="Network is unreachable", back=None),
        settings=Settings(conntrack_helper=1, legacy_tables=("filter",)),
    )
    texts = [text for _, _, text in told(known)]
    assert texts[0] == "the kernel does not route it: Network is unreachable"
    assert "iptables-legacy has rules, too, which are not read: filter" in texts
    assert any(each.startswith("nf_conntrack_helper is 1") for each in texts)
    known = gathered(memory=LIVE, settings=Settings(conntrack_helper=0))
    assert "nf_conntrack_helper is 0: rules alone attach helpers" in [
        text for _, _, text in told(known)
    ]


def test_verdict_says_what_blocks() -> None:
    found = Finding("a", "", True), Finding("b", "", True), Finding("c", "", None)
    assert Answer(found).verdict == "blocked: a, b"
    assert Answer(found[2:]).verdict == "may be blocked: c"
    assert Answer(()).verdict == "nothing in the way"

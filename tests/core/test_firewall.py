# SPDX-License-Identifier: GPL-2.0-or-later
"""What rules of nft's do to a packet, from its JSON."""

import json
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core import firewall
from cthelper.core.errors import Malformed
from cthelper.core.firewall import (
    Packet,
    Passage,
    Verdict,
    attachments,
    passages,
    rule_texts,
)
from cthelper.core.tuples import TCP, UDP

PATH: Final = ("prerouting", "forward", "postrouting")
PACKET: Final = Packet(
    path=PATH,
    transport=TCP,
    source=ip_address("192.0.2.1"),
    destination=ip_address("198.51.100.2"),
    sport=40000,
    dport=7000,
    iif="lan0",
    oif="wan0",
    state="related",
    helper="sunrpc",
)
IPV6: Final = replace(
    PACKET, source=ip_address("2001:db8::1"), destination=ip_address("2001:db8:1::2")
)
ACCEPT: Final[dict[str, Any]] = {"accept": None}
DROP: Final[dict[str, Any]] = {"drop": None}
FIB: Final = {
    "match": {
        "op": "==",
        "left": {"fib": {"result": "oif", "flags": ["saddr", "iif"]}},
        "right": False,
    }
}
"""What is not evaluated."""


def match(left: object, right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def ct(key: str) -> dict[str, Any]:
    return {"ct": {"key": key}}


def payload(protocol: str, name: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": name}}


def base(
    policy: str = "accept",
    *,
    name: str = "forward",
    hook: str = "forward",
    priority: int = 0,
    kind: str = "filter",
    family: str = "inet",
) -> dict[str, Any]:
    return {
        "chain": {
            **{"family": family, "table": "t", "name": name, "handle": 1},
            **{"type": kind, "hook": hook, "prio": priority, "policy": policy},
        }
    }


def plain(name: str) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "t", "name": name, "handle": 2}}


def rule(
    handle: int,
    *statements: dict[str, Any],
    chain: str = "forward",
    family: str = "inet",
    **more: object,
) -> dict[str, Any]:
    place = {"family": family, "table": "t", "chain": chain, "handle": handle}
    return {"rule": {**place, "expr": list(statements), **more}}


def elements(kind: str, name: str, values: list[Any]) -> dict[str, Any]:
    return {kind: {"family": "inet", "table": "t", "name": name, "elem": values}}


def ends(passage: Passage) -> list[tuple[str, int | None, bool]]:
    return [(each.verdict.value, each.handle, each.sure) for each in passage.endings]


def way(*listing: dict[str, Any], packet: Packet = PACKET) -> list[Any]:
    """The endings of the only base chain."""
    (passage,) = passages(list(listing), packet)
    return ends(passage)


STATE, HELPER = ct("state"), ct("helper")
SADDR, DADDR = payload("ip", "saddr"), payload("ip", "daddr")
SADDR6 = payload("ip6", "saddr")
DPORT, SPORT = payload("tcp", "dport"), payload("tcp", "sport")


@pytest.mark.parametrize(
    ("statement", "matches"),
    [
        (match(STATE, "related", "in"), True),
        (match(STATE, ["established", "related"], "in"), True),
        (match(STATE, "established", "in"), False),
        (match(STATE, "new", "!="), True),
        (match(STATE, ["related", "new"], "!"), False),
        (match(STATE, {"set": ["new", "related"]}), True),
        (match({"&": [STATE, "new"]}, 0), None),
        (match(HELPER, "sunrpc"), True),
        (match(HELPER, {"set": ["ftp", "tns"]}), False),
        (match(meta("iifname"), "lan0"), True),
        (match(meta("iifname"), "lan*"), True),
        (match(meta("iif"), "wan0"), False),
        (match(meta("oifname"), {"set": ["a", "b"]}, "!="), True),
        (match(meta("oifname"), "@names"), True),
        (match(meta("l4proto"), {"set": ["tcp", "udp"]}), True),
        (match(meta("l4proto"), 6), True),
        (match(meta("l4proto"), "udp"), False),
        (match(meta("l4proto"), {"range": [1, 9]}), None),
        (match(meta("nfproto"), "ipv4"), True),
        (match(meta("protocol"), "ip6"), False),
        (match(meta("skuid"), 0), None),
        (match(SADDR, "192.0.2.1"), True),
        (match(SADDR, {"prefix": {"addr": "192.0.2.0", "len": 24}}), True),
        (match(SADDR, {"range": ["192.0.2.2", "192.0.2.9"]}), False),
        (match(SADDR, {"range": ["192.0.2.1", "192.0.2.9"]}, "!="), False),
        (match(DADDR, {"set": ["192.0.2.1", "198.51.100.2"]}), True),
        (match(DADDR, "@hosts"), True),
        (match(DADDR, "@hosts", "!="), False),
        (match(SADDR, "@hosts"), False),
        (match(SADDR, "@none"), None),
        (match(SADDR, "a name"), None),
        (match(payload("ip", "protocol"), "tcp"), True),
        (match(payload("ip", "ttl"), 3), None),
        (match(SADDR6, "2001:db8::1"), False),
        (match(SADDR6, "2001:db8::1", "!="), False),
        (match(DPORT, 7000), True),
        (match(DPORT, {"range": [1, 6999]}), False),
        (match(DPORT, {"set": [1, {"range": [7000, 7009]}]}), True),
        (match(DPORT, {"set": [1, 3]}, "!="), True),
        (match(DPORT, 1024, ">"), True),
        (match(DPORT, 1024, "<="), False),
        (match(SPORT, 40000), True),
        (match(payload("th", "dport"), 7000), True),
        (match(payload("udp", "dport"), 7000), False),
        (match(payload("udp", "dport"), 1, "!="), False),
        (match(payload("icmp", "type"), "echo-request", "!="), False),
        (match(payload("tcp", "flags"), "syn"), None),
        (
            match(
                {"concat": [SADDR, DPORT]},
                {
                    "set": [
                        {"concat": ["192.0.2.9", 7000]},
                        {
                            "concat": [
                                {"prefix": {"addr": "192.0.2.0", "len": 24}},
                                {"range": [1, 7000]},
                            ]
                        },
                    ]
                },
            ),
            True,
        ),
        (match({"concat": [SADDR, payload("udp", "dport")]}, "@pairs", "!="), False),
        (match({"concat": [SADDR, DPORT]}, "@pairs"), False),
        (FIB, None),
        ({"match": 7}, None),
        ({"limit": {"rate": 3, "per": "second"}}, None),
        ({"counter": {"packets": 1, "bytes": 2}}, True),
        ({"log": {"prefix": "x"}}, True),
        ({"xt": {"type": "target", "name": "LOG"}}, True),
        ({"xt": None}, None),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_match_is_true_or_false_or_not_evaluated(
    statement: dict[str, Any], matches: bool | None
) -> None:
    listing = (
        base(),
        elements("set", "names", [{"elem": {"val": "wan0", "comment": "x"}}]),
        elements("set", "hosts", [{"elem": {"val": "198.51.100.2"}}]),
        elements("set", "pairs", [{"concat": ["192.0.2.1", 7]}]),
        rule(5, statement, DROP),
    )
    policy = ("accept", None, True)
    expected = {True: [("drop", 5, True)], False: [policy]}
    assert way(*listing) == expected.get(
        matches,  # type: ignore[arg-type] # None has none
        [("drop", 5, False), policy],
    )


def test_what_is_not_known_of_the_packet_is_not_evaluated() -> None:
    packet = replace(PACKET, sport=None, iif=None, helper=None)
    for statement in (
        match(SPORT, 1),
        match(SPORT, 1, ">"),
        match(meta("iifname"), "x"),
        match(HELPER, "x"),
    ):
        found = way(base(), rule(5, statement, DROP), packet=packet)
        assert found == [("drop", 5, False), ("accept", None, True)]


def test_first_rule_that_decides_does() -> None:
    chain = base("drop")
    accept = rule(6, match(STATE, "related", "in"), ACCEPT)
    assert way(chain, accept, rule(7, DROP)) == [("accept", 6, True)]
    assert way(chain, rule(5, {"reject": {}}), accept) == [("reject", 5, True)]
    assert way(chain, rule(5, {"queue": {"num": 3}}), accept) == [("queue", 5, True)]
    assert way(chain, rule(5, {"counter": {}})) == [("drop", None, True)]
    # Order is that of the listing, chain by chain.
    assert way(chain, rule(5, FIB, DROP), accept) == [
        ("drop", 5, False),
        ("accept", 6, True),
    ]


def test_jump_comes_back_and_goto_does_not() -> None:
    chains = base("drop"), plain("sub"), rule(9, {"return": None}, chain="sub")
    jump, goto = {"jump": {"target": "sub"}}, {"goto": {"target": "sub"}}
    after = rule(7, ACCEPT)
    assert way(*chains, rule(6, jump), after) == [("accept", 7, True)]
    assert way(*chains, rule(6, goto), after) == [("drop", None, True)]
    # It may have gone there, and never come back.
    assert way(*chains, rule(6, FIB, goto), after) == [
        ("accept", 7, False),
        ("drop", None, True),
    ]
    decided = base("drop"), plain("sub"), rule(9, ACCEPT, chain="sub")
    assert way(*decided, rule(6, jump), rule(7, DROP)) == [("accept", 9, True)]
    assert way(*decided, rule(6, FIB, jump), rule(7, DROP)) == [
        ("accept", 9, False),
        ("drop", 7, True),
    ]


def test_return_that_may_be_makes_the_rest_of_its_chain_uncertain() -> None:
    back = {"return": None}
    found = way(base("drop"), rule(5, FIB, back), rule(6, ACCEPT))
    assert found == [("accept", 6, False), ("drop", None, True)]
    assert way(base("drop"), rule(5, back), rule(6, ACCEPT)) == [("drop", None, True)]


def test_verdict_map_decides_by_its_key() -> None:
    def mapped(key: object, data: object) -> dict[str, Any]:
        return rule(5, {"vmap": {"key": key, "data": data}})

    states = {
        "set": [["established", ACCEPT], ["related", {"goto": {"target": "sub"}}]]
    }
    sub = plain("sub"), rule(9, DROP, chain="sub")
    assert way(base(), *sub, mapped(STATE, states)) == [("drop", 9, True)]
    ports = elements("map", "ports", [[22, ACCEPT], [{"range": [7000, 7001]}, DROP]])
    assert way(base(), ports, mapped(DPORT, "@ports")) == [("drop", 5, True)]
    none = {"set": [[1, DROP]]}
    assert way(base(), mapped(DPORT, none)) == [("accept", None, True)]
    assert way(base(), mapped(payload("udp", "dport"), none)) == [
        ("accept", None, True)
    ]
    every = {"set": [["*", DROP]]}
    assert way(base(), mapped(DPORT, every)) == [("drop", 5, True)]
    may = ("drop", 5, False), ("accept", None, True)
    assert way(base(), mapped(meta("skuid"), none)) == [*may]
    assert way(base(), mapped(DPORT, "@unknown")) == [*may]


def test_target_of_iptables_that_nft_does_not_name_may_drop() -> None:
    reject = {"xt": {"type": "target", "name": "REJECT"}}
    may = [("drop", 5, False), ("accept", None, True)]
    assert way(base(), rule(5, match(DPORT, 7000), reject)) == may
    assert way(base(), rule(5, {"xt": None}, {"counter": {}})) == [
        ("accept", None, True)
    ]


def test_chains_are_passed_in_the_order_of_hooks_and_priorities() -> None:
    listing = [
        base(name="late", priority=10),
        rule(3, DROP, chain="late"),
        base(name="early", priority=-10),
        rule(2, ACCEPT, chain="early"),
        base(name="first", hook="prerouting"),
        base(name="never", hook="postrouting"),
        base("drop", name="nat", hook="prerouting", kind="nat"),
        base("drop", name="other", hook="input"),
        base("drop", name="own", family="ip6"),
        base("drop", name="old", family="bridge"),
    ]
    found = [each.endings[-1] for each in passages(listing, PACKET)]
    assert [each.chain for each in found] == ["first", "early", "late"]
    assert found[-1].place == "table inet t, chain late, rule handle 3"
    assert [each.verdict for each in found] == [
        *(Verdict.ACCEPT, Verdict.ACCEPT),
        Verdict.DROP,
    ]
    assert list(passages(listing, PACKET, but=("inet", "t"))) == []


def test_conntrack_has_not_seen_what_comes_before_it() -> None:
    raw = base(hook="prerouting", priority=-300)
    dropped = rule(4, match(STATE, "related", "in"), DROP)
    assert way(raw, dropped) == [("drop", 4, False), ("accept", None, True)]


def test_table_of_one_family_sees_only_its_own() -> None:
    def listing(family: str) -> list[dict[str, Any]]:
        return [base(family=family), rule(4, DROP, family=family)]

    for family, packet, blocks in (
        ("ip", PACKET, True),
        ("ip", IPV6, False),
        ("ip6", IPV6, True),
        ("inet", IPV6, True),
    ):
        found = list(passages(listing(family), packet))
        assert any(each.blocks for each in found) is blocks


def test_passage_blocks_surely_where_all_its_ends_do() -> None:
    unsure = rule(4, FIB, DROP)
    (passage,) = passages([base("drop"), unsure], PACKET)
    assert passage.blocks is True
    (passage,) = passages([base(), unsure], PACKET)
    assert passage.blocks is None
    assert passage.endings[0].unknown == ("fib missing",)
    assert passage.main
    (passage,) = passages([base()], PACKET)
    assert passage.blocks is False


def helper_rule(handle: int, name: str, *matches: dict[str, Any]) -> dict[str, Any]:
    return rule(handle, *matches, {"ct helper": name}, chain="tag")


def test_rules_that_attach_helpers_say_whom_they_leave_out() -> None:
    packet = replace(PACKET, state="new", helper="")
    port = match(DPORT, {"set": [7000, 7001]})
    listing = [
        base(name="tag", hook="prerouting"),
        rule(1, match(STATE, "new", "!="), {"return": None}, chain="tag"),
        helper_rule(2, "tns-tcp", port),
        helper_rule(3, "ftp-tcp", match(DPORT, 21)),
        helper_rule(4, "old-tcp", match(STATE, "related", "in"), port),
        helper_rule(5, "a-tcp", match(meta("iifname"), {"set": ["x", "y"]}), port),
        helper_rule(6, "b-tcp", FIB, match(meta("l4proto"), "tcp"), port),
        helper_rule(
            7, "c-tcp", match(SADDR, {"prefix": {"addr": "10.0.0.0", "len": 8}}), port
        ),
    ]
    found = list(attachments(listing, packet, ("inet", "t")))
    assert [(each.object, each.matches, each.left_out) for each in found] == [
        ("tns-tcp", True, ()),
        ("a-tcp", False, ("iifname { x, y }",)),
        ("b-tcp", None, ("fib missing",)),
        ("c-tcp", False, ("ip saddr 10.0.0.0/8",)),
    ]
    assert list(attachments(listing, packet, ("inet", "other"))) == []


TEXT: Final = """\
table inet firewall { # handle 3
	set bad { # handle 3
		type ipv4_addr
		elements = { 1.2.3.4 comment "x",
			192.0.2.1-192.0.2.9 }
	}

	chain sub { # handle 1
		tcp dport 1-5 return # handle 5
	}

	chain through { # handle 2
		type filter hook forward priority filter; policy drop;
		counter accept comment "mine" # handle 6
		ip saddr { 1.2.3.4,
			1.2.3.5 } drop # handle 7
	}
}
table ip other { # handle 4
	chain sub { # handle 1
		accept # handle 5
	}
}
"""


def test_rules_have_their_words_by_handle() -> None:
    assert rule_texts(TEXT) == {
        ("inet", "firewall", 5): "tcp dport 1-5 return",
        ("inet", "firewall", 6): 'counter accept comment "mine"',
        ("inet", "firewall", 7): "ip saddr { 1.2.3.4, 1.2.3.5 } drop",
        ("ip", "other", 5): "accept",
    }


@given(st.text())
def test_any_text_has_rules_or_none(text: str) -> None:
    rule_texts(f"table inet t {{\n{text}")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ({}, "nft's listing is no list"),
        ([base(), {"rule": {**rule(1)["rule"], "expr": 3}}], "no list of statements"),
        ([base(), rule(1, {"jump": {"target": "x"}})], "there is no chain x"),
        (
            [
                *(base(), plain("a"), rule(1, {"jump": {"target": "a"}})),
                rule(2, {"jump": {"target": "a"}}, chain="a"),
            ],
            "nested deeper than 16",
        ),
    ],
    ids=["no list", "no statements", "no chain", "a circle"],
)
def test_what_is_no_ruleset_is_malformed(listing: Any, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        list(passages(listing, PACKET))


def test_rules_that_never_end_are_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firewall, "_MOST_RULES", 100)
    listing = [base()]
    for depth in range(10):
        chain = f"c{depth}" if depth else "forward"
        listing += [plain(f"c{depth + 1}")]
        jump = {"jump": {"target": f"c{depth + 1}"}}
        listing += [rule(each, jump, chain=chain) for each in range(10)]
    with pytest.raises(Malformed, match="more than 100 rules"):
        list(passages(listing, PACKET))


WORDS: Final = st.sampled_from(
    [
        *("match", "vmap", "op", "left", "right", "key", "data", "set", "elem", "val"),
        *("prefix", "addr", "len", "range", "concat", "payload", "protocol", "field"),
        *("meta", "ct", "state", "helper", "saddr", "dport", "tcp", "ip", "==", "in"),
        *("jump", "goto", "target", "accept", "drop", "xt", "limit", "ct helper", "<"),
        *("forward", "a", "@s", "related", "!=", "iifname", "192.0.2.1", "ip6"),
    ]
)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | WORDS | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3)
    ),
    max_leaves=20,
)
OPERANDS: Final = st.sampled_from(
    [STATE, HELPER, SADDR, SADDR6, DPORT, meta("iifname"), {"concat": [SADDR, DPORT]}]
)
STATEMENTS: Final = st.one_of(
    JSON,
    st.builds(match, OPERANDS | JSON, JSON, st.sampled_from(["==", "!=", "in", "<"])),
    st.builds(
        lambda key, data: {"vmap": {"key": key, "data": data}}, OPERANDS | JSON, JSON
    ),
    st.sampled_from([ACCEPT, DROP, {"jump": {"target": "a"}}, FIB]),
)


@given(st.lists(JSON, max_size=4), st.lists(st.lists(STATEMENTS, max_size=4)), JSON)
def test_any_json_is_answered_or_malformed(
    junk: list[Any], rules: list[list[Any]], elements_: Any
) -> None:
    listing = [base(), base(name="tag", hook="prerouting"), plain("a"), *junk]
    listing += [{"set": {"family": "inet", "table": "t", "name": "s"} | junk_of(junk)}]
    listing += [
        {"set": {"family": "inet", "table": "t", "name": "s", "elem": elements_}}
    ]
    for number, statements in enumerate(rules):
        chain = ("forward", "a", "tag")[number % 3]
        place = {"family": "inet", "table": "t", "chain": chain, "handle": number}
        listing.append({"rule": {**place, "expr": statements}})
    for packet in (PACKET, replace(IPV6, transport=UDP, sport=None, helper=None)):
        with suppress(Malformed):
            for passage in passages(listing, packet):
                assert passage.endings[-1].sure
            list(attachments(listing, packet, ("inet", "t")))


def junk_of(junk: list[Any]) -> dict[str, Any]:
    """The first object of it."""
    return next((each for each in junk if isinstance(each, dict)), {})


@given(JSON)
def test_any_listing_is_read_or_malformed(listing: Any) -> None:
    with suppress(Malformed):
        list(passages(listing, PACKET))

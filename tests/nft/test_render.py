# SPDX-License-Identifier: GPL-2.0-or-later
"""The ruleset as text. Whether a kernel takes it, the live tests show."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper import nft
from cthelper.core.api import TCP, UDP, Effects, Helper, Hook, Message, Policy
from cthelper.core.config import parse
from cthelper.core.registry import builtin_helpers

GOLDEN = Path(__file__).parents[1] / "golden" / "default.nft"


class Plain(Helper):
    """UDP alone, any address, both hooks."""

    name = "plain"
    transports = frozenset({UDP})
    ports: ClassVar[tuple[int, ...]] = (7000,)
    policies = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


class Both(Plain):
    """TCP and UDP, for packets that come in."""

    name = "both"
    transports = frozenset({UDP, TCP})
    ports = (7002, 7001)
    hooks = frozenset({Hook.PREROUTING})


def render(settings: str = "", *helpers: type[Helper]) -> str:
    """The ruleset for a configuration of `helpers`, or of Plain alone."""
    known = {each.name: each for each in helpers or (Plain,)}
    return nft.render(parse(settings, Path("test.toml"), known))


def rules(text: str, chain: str = "prerouting") -> list[str]:
    """The rules of a chain that attach a helper."""
    (body,) = re.findall(rf"\tchain {chain} {{\n(.*?)\t}}\n", text, re.DOTALL)
    return [line.strip() for line in body.splitlines() if "ct helper set" in line]


def objects(text: str) -> list[str]:
    return re.findall(r"^\tct helper (\S+) \{$", text, re.MULTILINE)


def narrowed(settings: str) -> list[str]:
    """The rules for Plain without what is the same in all of them."""
    end = ' udp dport 7000 ct helper set "plain-udp"'
    found = rules(render(f"[helpers.plain]\n{settings}\n"))
    assert all(each.endswith(end) for each in found)
    return [each.removesuffix(end) for each in found]


def test_default_configuration_gives_the_golden_ruleset() -> None:
    ruleset = nft.render(parse("", Path("test.toml"), builtin_helpers()))
    assert ruleset == GOLDEN.read_text("utf-8")


def test_no_helper_gives_a_table_that_attaches_none() -> None:
    text = render("[helpers.plain]\nenabled = false\n")
    assert objects(text) == []
    assert rules(text) == rules(text, "output") == []
    assert text.count("type filter hook") == 2


def test_disabled_helper_leaves_neither_object_nor_rule() -> None:
    text = render("[helpers.plain]\nenabled = false\n", Both, Plain)
    assert objects(text) == ["both-tcp", "both-udp"]
    assert "plain" not in text


def test_each_transport_has_an_object_and_a_rule() -> None:
    text = render("", Both)
    assert objects(text) == ["both-tcp", "both-udp"]
    assert '\t\ttype "both" protocol tcp;\n' in text
    assert '\t\ttype "both" protocol udp;\n' in text
    assert rules(text) == [
        'tcp dport { 7001, 7002 } ct helper set "both-tcp"',
        'udp dport { 7001, 7002 } ct helper set "both-udp"',
    ]


def test_helper_is_attached_at_its_hooks_alone() -> None:
    text = render("", Both, Plain)
    assert [each.split()[-1] for each in rules(text)] == [
        '"both-tcp"',
        '"both-udp"',
        '"plain-udp"',
    ]
    assert [each.split()[-1] for each in rules(text, "output")] == ['"plain-udp"']


def test_every_object_is_used_and_every_use_has_its_object() -> None:
    text = render("", Both, Plain)
    used = {each.split()[-1].strip('"') for each in rules(text) + rules(text, "output")}
    assert used == set(objects(text))


@pytest.mark.parametrize(
    ("ports", "match"),
    [("[9]", "9"), ("[9, 7]", "{ 7, 9 }"), ("[65535, 1, 80]", "{ 1, 80, 65535 }")],
    ids=["one", "two", "three"],
)
def test_ports_are_a_set_in_order(ports: str, match: str) -> None:
    (rule,) = rules(render(f"[helpers.plain]\nports = {ports}\n"))
    assert rule == f'udp dport {match} ct helper set "plain-udp"'


def test_interfaces_are_those_that_packets_come_in_by_or_leave_by() -> None:
    text = render('[helpers.plain]\ninterfaces = ["eth0"]\n')
    tail = 'udp dport 7000 ct helper set "plain-udp"'
    assert rules(text) == [f'iifname "eth0" {tail}']
    assert rules(text, "output") == [f'oifname "eth0" {tail}']


def test_several_interfaces_are_a_set() -> None:
    assert narrowed('interfaces = ["eth0", "vlan*"]') == ['iifname { "eth0", "vlan*" }']


V4, V6 = '"10.0.0.0/8"', '"fd00::/8"'


@pytest.mark.parametrize(
    ("sources", "destinations", "matches"),
    [
        (V4, "", ["ip saddr 10.0.0.0/8"]),
        (V6, "", ["ip6 saddr fd00::/8"]),
        ("", V4, ["ip daddr 10.0.0.0/8"]),
        ("", V6, ["ip6 daddr fd00::/8"]),
        (f"{V6}, {V4}", "", ["ip saddr 10.0.0.0/8", "ip6 saddr fd00::/8"]),
        (V4, V4, ["ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8"]),
        (
            f"{V4}, {V6}",
            f"{V6}, {V4}",
            [
                "ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8",
                "ip6 saddr fd00::/8 ip6 daddr fd00::/8",
            ],
        ),
        (V4, f"{V4}, {V6}", ["ip saddr 10.0.0.0/8 ip daddr 10.0.0.0/8"]),
        (f"{V4}, {V6}", V6, ["ip6 saddr fd00::/8 ip6 daddr fd00::/8"]),
        (V4, V6, []),
        ('"10.0.0.1"', "", ["ip saddr 10.0.0.1/32"]),
        (
            '"10.0.0.0/8", "192.0.2.0/24"',
            "",
            ["ip saddr { 10.0.0.0/8, 192.0.2.0/24 }"],
        ),
    ],
    ids=[
        "IPv4 sources",
        "IPv6 sources",
        "IPv4 destinations",
        "IPv6 destinations",
        "sources of both families",
        "sources and destinations",
        "both of both families",
        "destinations of a family without sources",
        "sources of a family without destinations",
        "families that never meet",
        "a host",
        "two networks",
    ],
)
def test_addresses_narrow_the_rules_of_their_family(
    sources: str, destinations: str, matches: list[str]
) -> None:
    found = narrowed(f"sources = [{sources}]\ndestinations = [{destinations}]")
    assert found == matches


@pytest.mark.parametrize(
    ("networks", "match"),
    [
        ('"10.0.0.0/8", "10.1.0.0/16"', "ip saddr 10.0.0.0/8"),
        ('"10.1.0.0/16", "10.0.0.0/8"', "ip saddr 10.0.0.0/8"),
        ('"10.0.0.0/25", "10.0.0.128/25"', "ip saddr 10.0.0.0/24"),
        ('"fd00::/8", "fd00::1"', "ip6 saddr fd00::/8"),
        (
            '"10.0.0.1", "10.0.0.0/31", "9.0.0.0/8"',
            "ip saddr { 9.0.0.0/8, 10.0.0.0/31 }",
        ),
    ],
    ids=["nested", "nested, inner first", "adjacent", "a host inside", "three"],
)
def test_networks_inside_others_are_left_out(networks: str, match: str) -> None:
    # nft takes no set whose intervals overlap.
    assert narrowed(f"sources = [{networks}]") == [match]


def test_interfaces_and_addresses_all_narrow_the_same_rule() -> None:
    found = narrowed(
        'interfaces = ["eth0"]\nsources = ["10.0.0.0/8"]\ndestinations = ["192.0.2.1"]'
    )
    assert found == ['iifname "eth0" ip saddr 10.0.0.0/8 ip daddr 192.0.2.1/32']


def test_destinations_of_the_helper_are_replaced_by_configured_ones() -> None:
    known = builtin_helpers()
    text = '[helpers.mdns]\ndestinations = ["224.0.0.251"]\n'
    ruleset = nft.render(parse(text, Path("test.toml"), known))
    mdns = [each for each in rules(ruleset, "output") if "mdns" in each]
    assert mdns == ['ip daddr 224.0.0.251/32 udp dport 5353 ct helper set "mdns-udp"']


def test_only_new_flows_meet_the_rules() -> None:
    text = render()
    for chain in ("prerouting", "output"):
        body = text.partition(f"chain {chain} {{")[2]
        assert 0 < body.index("ct state != new return") < body.index("ct helper set")


def test_table_accepts_and_drops_nothing() -> None:
    text = re.sub(r"#.*", "", render("", Both, Plain))
    assert text.count("policy accept;") == 2
    without = text.replace("policy accept;", "")
    assert not re.search(r"\b(accept|drop|reject|queue)\b", without)


networks = st.lists(
    st.ip_addresses().map(str) | st.sampled_from(["10.0.0.0/8", "10.0.0.0/30"]),
    max_size=6,
    unique=True,
)


@given(networks, networks)
def test_sets_of_addresses_never_overlap(sources: list[str], others: list[str]) -> None:
    text = render(f"[helpers.plain]\nsources = {sources}\ndestinations = {others}\n")
    for rule in rules(text):
        for found in re.findall(r"addr (?:\{ (.*?) \}|(\S+))", rule):
            members = [ip_network(each) for each in (found[0] or found[1]).split(", ")]
            for index, member in enumerate(members):
                rest = members[index + 1 :]
                assert not any(
                    member.version == each.version and member.overlaps(each)
                    for each in rest
                )

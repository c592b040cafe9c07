# SPDX-License-Identifier: GPL-2.0-or-later
"""The ruleset as text, and the program that takes it.

Whether a kernel takes it, the live tests show.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cthelper import nft
from cthelper.core.api import (
    TCP,
    UDP,
    Effects,
    Helper,
    Hook,
    Match,
    Message,
    Option,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.core.config import Config, parse
from cthelper.core.errors import RulesetError
from cthelper.core.registry import builtin_helpers
from tests.nft.fake_nft import FakeNft

GOLDEN = Path(__file__).parents[1] / "golden"


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


def objects_of(text: str) -> list[str]:
    return re.findall(r"^\tct helper (\S+) \{$", text, re.MULTILINE)


CLOSED = """
[daemon]
mark = 0x8000
[helpers]
dhcpv6.enabled = false
slp.enabled = false
tns = { fail_closed = true, chained = true }
"""


def narrowed(settings: str) -> list[str]:
    """The rules for Plain without what is the same in all of them."""
    end = ' udp dport 7000 ct helper set "plain-udp"'
    found = rules(render(f"[helpers.plain]\n{settings}\n"))
    assert all(each.endswith(end) for each in found)
    return [each.removesuffix(end) for each in found]


@pytest.mark.parametrize(
    ("settings", "golden"),
    [
        ("", "default.nft"),
        (CLOSED.replace("[daemon]", "[daemon]\nworkers = 2"), "workers.nft"),
        (CLOSED, "closed.nft"),
    ],
    ids=["default", "two workers", "fails closed"],
)
def test_configuration_gives_the_golden_ruleset(
    settings: str, golden: str, request: pytest.FixtureRequest
) -> None:
    ruleset = nft.render(parse(settings, Path("test.toml"), builtin_helpers()))
    if request.config.getoption("--update-golden"):
        (GOLDEN / golden).write_text(ruleset, "utf-8")
    assert ruleset == (GOLDEN / golden).read_text("utf-8")


def test_no_helper_gives_a_table_that_attaches_none() -> None:
    text = render("[helpers.plain]\nenabled = false\n")
    assert objects_of(text) == []
    assert rules(text) == rules(text, "output") == []
    assert text.count("type filter hook") == 4
    assert "queue" not in re.sub(r"#.*", "", text)


def test_disabled_helper_leaves_neither_object_nor_rule() -> None:
    text = render("[helpers.plain]\nenabled = false\n", Both, Plain)
    assert objects_of(text) == ["both-tcp", "both-udp"]
    assert "plain" not in text


def test_each_transport_has_an_object_and_a_rule() -> None:
    text = render("", Both)
    assert objects_of(text) == ["both-tcp", "both-udp"]
    assert '\t\ttype "both" protocol tcp;\n' in text
    assert '\t\ttype "both" protocol udp;\n' in text
    assert rules(text) == [
        'tcp dport 7001-7002 ct helper set "both-tcp"',
        'udp dport 7001-7002 ct helper set "both-udp"',
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
    assert used == set(objects_of(text))


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


class Chained(Both):
    """Goes on with the flows that it expected, by configuration."""

    name = "chained"
    options = (Option("chained", False, "follow redirects of redirects"),)

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        return options["chained"] is True


def test_expected_flows_are_tagged_where_the_helper_goes_on_with_them() -> None:
    assert not any("related" in each for each in rules(render("", Chained)))
    text = render("helpers.chained.chained = true", Chained)
    wanted = [
        f"meta l4proto {transport} ct state related ct helper "
        f'"chained" ct helper set "chained-{transport}"'
        for transport in ("tcp", "udp")
    ]
    # Whatever way they go, and before other flows than new ones are let go.
    assert rules(text, "output") == wanted
    assert rules(text)[:2] == wanted
    assert text.index(wanted[1]) < text.index("ct state != new return")


def body_of(text: str, chain: str) -> list[str]:
    """The rules of a chain."""
    (body,) = re.findall(rf"\tchain {chain} \{{\n(.*?)\t\}}\n", text, re.DOTALL)
    lines = [line.strip() for line in body.splitlines()]
    return [each for each in lines if not each.startswith(("#", "type "))]


# Queueing.


SPREAD = re.compile(
    r"jhash ct original (ip6?) saddr mod (\d+) seed (\w+) (\d+) "
    r"queue flags bypass to jhash ct reply \1 saddr mod \2 seed \3 map { (.*) }"
)


@pytest.mark.parametrize("workers", [2, 3, 16])
def test_workers_have_equal_shares_whichever_end_began(workers: int) -> None:
    text = render(f"daemon.workers = {workers}", Both)
    assert body_of(text, "inspected") == [
        f"meta l4proto {transport} ct original proto-dst 7001-7002 goto queue-2077"
        for transport in ("tcp", "udp")
    ]
    seeds = set()
    chosen: dict[tuple[str, int, int], int] = {}
    for rule in body_of(text, "queue-2077"):
        found = SPREAD.fullmatch(rule)
        assert found, rule
        family, modulus, seed, first, elements = found.groups()
        assert int(modulus) == workers
        seeds.add(seed)
        for element in elements.split(", "):
            second, _, queue = element.partition(" : ")
            chosen[family, int(first), int(second)] = int(queue)
    for family in ("ip", "ip6"):
        shares = Counter(
            queue for (version, *_), queue in chosen.items() if version == family
        )
        assert shares == dict.fromkeys(range(2077, 2077 + workers), workers)
    assert len(chosen) == 2 * workers**2
    assert all(
        chosen[family, second, first] == queue
        for (family, first, second), queue in chosen.items()
    )
    # Without a seed of ours each rule would have one of its own.
    assert len(seeds) == 1


def test_workers_share_registrations_and_tagging_rules() -> None:
    alone, several = render("", Both), render("daemon.workers = 3", Both)
    assert objects_of(several) == objects_of(alone)
    for chain in ("prerouting", "output", "postrouting", "input"):
        assert body_of(several, chain) == body_of(alone, chain)


@pytest.mark.parametrize("chain", ["postrouting", "input"])
@pytest.mark.parametrize(
    ("mark", "test"), [("0x40", "ct mark & 0x40 == 0 "), ("0", "")]
)
def test_packet_of_a_flow_without_a_helper_meets_one_test(
    chain: str, mark: str, test: str
) -> None:
    text = render(f"daemon.mark = {mark}")
    assert body_of(text, chain) == [f"ct status & 0x2000 != 0 {test}jump inspected"]


def filtering(
    prefilter: Prefilter, *, called: str = "plain", at: tuple[int, ...] = (7000,)
) -> type[Helper]:
    class Filtered(Plain):
        """It reads some."""

        name = called
        ports = at

        @classmethod
        def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
            return prefilter

    return Filtered


TWO = Prefilter(request=((Match(8, 4, 10), Match(32, 32, 7)), (Match(0, 8, 1),)))
REPLIES = Prefilter(request=(), reply=((Match(0, 1, 1),),))
FLOWS = "meta l4proto udp ct original proto-dst"


@pytest.mark.parametrize(
    ("prefilter", "expected"),
    [
        (
            TWO,
            [
                "ct direction original @ih,8,4 0xa @ih,32,32 0x7 queue num 2077 bypass",
                "ct direction original @ih,0,8 0x1 queue num 2077 bypass",
                "ct direction reply queue num 2077 bypass",
            ],
        ),
        (REPLIES, ["ct direction reply @ih,0,1 0x1 queue num 2077 bypass"]),
        (Prefilter(request=(), reply=()), []),
    ],
    ids=["alternatives", "nothing of one direction", "nothing"],
)
def test_kernel_queues_what_the_prefilter_names(
    prefilter: Prefilter, expected: list[str]
) -> None:
    text = render("", filtering(prefilter))
    assert body_of(text, "inspected") == [f"{FLOWS} 7000 goto udp-7000"]
    assert body_of(text, "udp-7000") == expected


def test_kernel_queues_all_without_a_prefilter() -> None:
    assert body_of(render(), "inspected") == [f"{FLOWS} 7000 queue num 2077 bypass"]


SHARED = """
helpers.one.sources = ["10.0.0.0/8"]
helpers.two.sources = ["192.168.0.0/16"]
helpers.three.sources = ["172.16.0.0/12"]
"""


def test_one_rule_queues_what_any_helper_of_a_port_reads() -> None:
    text = render(
        SHARED,
        filtering(REPLIES, called="one", at=(7000, 7001)),
        filtering(Prefilter(), called="three", at=(7002,)),
        filtering(TWO, called="two", at=(7001, 7002)),
    )
    assert body_of(text, "inspected") == [
        f"{FLOWS} 7000 goto udp-7000",
        f"{FLOWS} 7001 goto udp-7001",
        f"{FLOWS} 7002 queue num 2077 bypass",
    ]
    assert body_of(text, "udp-7000") == [
        "ct direction reply @ih,0,1 0x1 queue num 2077 bypass"
    ]
    assert body_of(text, "udp-7001") == [
        "ct direction reply @ih,0,1 0x1 queue num 2077 bypass",
        "ct direction original @ih,8,4 0xa @ih,32,32 0x7 queue num 2077 bypass",
        "ct direction original @ih,0,8 0x1 queue num 2077 bypass",
        "ct direction reply queue num 2077 bypass",
    ]


class Filtering(Chained):
    """And reads a part of what they send."""

    name = "filtering"

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        return REPLIES


def test_expected_flows_are_queued_by_what_their_helper_reads_of_any_port() -> None:
    text = render("helpers.filtering.chained = true", Filtering, Plain)
    assert body_of(text, "inspected") == [
        "meta l4proto tcp ct original proto-dst 7001-7002 queue num 2077 bypass",
        "meta l4proto udp ct original proto-dst 7001-7002 goto udp-7001",
        'meta l4proto tcp ct helper "filtering" queue num 2077 bypass',
        'meta l4proto udp ct helper "filtering" goto filtering-udp-expected',
        f"{FLOWS} 7000 queue num 2077 bypass",
    ]
    assert body_of(text, "udp-7001") == body_of(text, "filtering-udp-expected")
    assert body_of(text, "udp-7001") == [
        "ct direction reply @ih,0,1 0x1 queue num 2077 bypass"
    ]


def test_helpers_that_fail_closed_have_rules_without_bypass() -> None:
    settings = "helpers.both.fail_closed = true\n"
    text = render(settings, Both, Plain)
    assert body_of(text, "inspected")[1:] == [
        "meta l4proto udp ct original proto-dst 7001-7002 queue num 2078",
        f"{FLOWS} 7000 queue num 2077 bypass",
    ]
    text = render(f"daemon.workers = 2\n{settings}", Both, Plain)
    assert {each.split(" to ")[0][-5:] for each in body_of(text, "queue-2079")} == {
        "queue"
    }
    assert all("queue flags bypass" in each for each in body_of(text, "queue-2077"))


def test_only_new_flows_meet_the_rules() -> None:
    text = render()
    for chain in ("prerouting", "output"):
        body = text.partition(f"chain {chain} {{")[2]
        assert 0 < body.index("ct state != new return") < body.index("ct helper set")


def test_table_accepts_and_drops_nothing() -> None:
    text = re.sub(r"#.*", "", render("", Both, Plain))
    assert text.count("policy accept;") == 4
    without = text.replace("policy accept;", "")
    assert not re.search(r"\b(accept|drop|reject)\b", without)
    queueing = [each for each in without.splitlines() if "queue" in each]
    assert queueing
    assert all(each.endswith(" bypass") for each in queueing)


# Through the program, which here is one that writes down what it was given.


BOTH = parse("", Path("test.toml"), {"both": Both})


@pytest.mark.parametrize(
    ("action", "arguments"),
    [(nft.check, "-c -f -"), (nft.install, "-f -")],
    ids=["check", "install"],
)
def test_ruleset_takes_the_place_of_the_loaded_one_in_one_transaction(
    program: FakeNft,
    action: Callable[[Config], None],
    arguments: str,
) -> None:
    program.loaded()
    action(BOTH)
    first, _, text = program.record.read_text().partition("\n")
    assert first == arguments
    before, flush, after = text.partition("flush table inet cthelper\n")
    assert flush
    assert after == nft.render(BOTH)
    assert rules(before) == rules(before, "output") == objects_of(before) == []


def test_loaded_objects_and_chains_stay_so_that_no_queued_packet_is_dropped(
    program: FakeNft,
) -> None:
    program.loaded("gone-udp", "both-udp")
    nft.install(BOTH)
    text = re.sub(r"#.*", "", program.record.read_text())
    assert not re.search(r"\b(delete|destroy)\b", text)
    after = text.partition("flush table inet cthelper\n")[2]
    assert objects_of(after) == ["both-tcp"]
    assert rules(after) == rules(nft.render(BOTH))


@pytest.mark.parametrize(
    ("settings", "hands_down", "status"),
    [
        ("helpers.chained.chained = true", True, "0x2001"),
        ("helpers.chained.chained = true", False, "0x2000"),
        ("", True, "0x2000"),
    ],
)
def test_expected_flows_are_looked_at_where_their_helper_was_handed_down(
    program: FakeNft, settings: str, hands_down: bool, status: str
) -> None:
    program.loaded()
    config = parse(settings, Path("test.toml"), {"chained": Chained})
    nft.install(config, hands_down=hands_down)
    text = program.record.read_text().partition("flush table inet cthelper\n")[2]
    for chain in ("postrouting", "input"):
        assert body_of(text, chain) == [
            f"ct status & {status} != 0 ct mark & 0x10000000 == 0 jump inspected"
        ]


SPREAD_BOTH = parse("daemon.workers = 2", Path("test.toml"), {"both": Both})


def seeds(program: FakeNft) -> set[str]:
    """Those of the rules that were loaded last."""
    return set(re.findall(r" seed (\S+)", program.record.read_text()))


def test_seed_that_is_loaded_stays(program: FakeNft) -> None:
    # As nft 1.0.6 and 1.1.3 list it.
    key = {"jhash": {"mod": 2, "seed": 11, "offset": 0, "expr": {"ct": {}}}}
    rules = [{"match": {"left": key}}, {"queue": {"num": {"map": {"key": key}}}}]
    program.loaded("both-udp", rules=(["plain"], rules))
    nft.install(SPREAD_BOTH)
    assert seeds(program) == {"0xb"}
    nft.install(SPREAD_BOTH, seed=12)
    assert seeds(program) == {"0xc"}


@pytest.mark.parametrize("objects", [(), ("both-udp",)], ids=["no table", "no workers"])
def test_seed_of_a_ruleset_is_one_that_nobody_knows(
    program: FakeNft, objects: tuple[str, ...]
) -> None:
    program.loaded(*objects)
    found = set()
    for _ in range(3):
        nft.install(SPREAD_BOTH)
        found |= seeds(program)
    assert len(found) == 3


PAUSED = """\
flush chain inet cthelper inspected
table inet cthelper {
	chain inspected {
		meta l4proto tcp ct original proto-dst 1521 drop
		meta l4proto tcp ct helper "tns" drop
	}
}
"""


def test_pause_leaves_drops_for_what_fails_closed(program: FakeNft) -> None:
    config = parse(CLOSED, Path("test.toml"), builtin_helpers())
    for objects, chains in (((), ()), (("tns-tcp",), ("prerouting",))):
        program.loaded(*objects, chains=chains)
        nft.pause(config)
        assert not program.record.exists()
    program.loaded("tns-tcp", chains=("prerouting", "inspected"))
    nft.pause(config)
    assert program.record.read_text() == f"-f -\n{PAUSED}"


def test_table_is_removed_and_nothing_else(program: FakeNft) -> None:
    nft.remove()
    assert program.record.read_text() == (
        "-f -\ntable inet cthelper\ndelete table inet cthelper\n"
    )


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo Error: one >&2; echo two >&2; exit 1", "nft: Error: one"),
        ("exit 1", "nft: no explanation"),
    ],
    ids=["explained", "silent"],
)
def test_refusal_is_one_line(program: FakeNft, script: str, complaint: str) -> None:
    program.write(script)
    with pytest.raises(RulesetError, match=f"^{complaint}$"):
        nft.install(BOTH)


def test_version_is_what_the_program_says(program: FakeNft) -> None:
    program.write('echo "nftables v9.9.9 $*"')
    assert nft.version() == "nftables v9.9.9 --version"


networks = st.lists(
    st.ip_addresses().map(str) | st.sampled_from(["10.0.0.0/8", "10.0.0.0/30"]),
    max_size=6,
    unique=True,
)


@given(networks, networks)
def test_sets_of_addresses_never_overlap(sources: list[str], others: list[str]) -> None:
    versions = [
        {ip_network(each).version for each in side} for side in (sources, others)
    ]
    assume(not all(versions) or versions[0] & versions[1])
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""The attacks that the guard stops, each by its reason."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import ExpectationRefused
from cthelper.core.guard import UNLIMITED, Allowance, Guard, Rules
from cthelper.core.ledger import Standing
from tests.core.asking import asker, wished
from tests.core.builders import CLIENT, CLIENT6, SERVER, SERVER6, endpoint


def refusal(
    address: str,
    port: int,
    *,
    announcer: str | None = None,
    rules: Rules | None = None,
) -> str | None:
    """The reason why `announcer`, the address itself unless given, is refused."""
    try:
        Guard().check(
            endpoint(address, port), ip_address(announcer or address), rules or Rules()
        )
    except ExpectationRefused as error:
        return error.reason
    return None


@pytest.mark.parametrize("address", [CLIENT, CLIENT6, "10.0.0.255", "fe80::1"])
@pytest.mark.parametrize("port", [1024, 40000, 65535])
def test_own_address_and_high_port_are_allowed(address: str, port: int) -> None:
    assert refusal(address, port) is None


@pytest.mark.parametrize(
    ("address", "announcer"),
    [
        (SERVER, CLIENT),
        (SERVER6, CLIENT6),
        ("192.0.2.2", CLIENT),
        (CLIENT, CLIENT6),
        (CLIENT6, CLIENT),
    ],
    ids=["ipv4", "ipv6", "neighbour", "ipv4 on an ipv6 flow", "ipv6 on an ipv4 flow"],
)
def test_third_party_address_is_refused(address: str, announcer: str) -> None:
    # FTP bounce, NAT slipstreaming 2, TNS poison, SSDP LOCATION of another host.
    assert refusal(address, 5000, announcer=announcer) == "third-party-address"


@pytest.mark.parametrize("port", [1, 1023])
def test_low_port_is_refused(port: int) -> None:
    assert refusal(CLIENT, port) == "low-port"


def test_helper_may_declare_low_ports() -> None:
    rules = Rules(lowest_port=546)
    assert refusal(CLIENT, 546, rules=rules) is None
    assert refusal(CLIENT, 545, rules=rules) == "low-port"


@pytest.mark.parametrize("port", [22, 23, 25, 53, 80, 135, 139, 443, 445, 3389])
def test_denied_port_is_refused_whatever_the_helper_declares(port: int) -> None:
    assert refusal(CLIENT, port) == "denied-port"
    assert refusal(CLIENT, port, rules=Rules(lowest_port=1)) == "denied-port"


def test_configured_ports_take_the_place_of_the_usual_ones() -> None:
    rules = Rules(denied_ports=frozenset({6000}))
    assert refusal(CLIENT, 6000, rules=rules) == "denied-port"
    assert refusal(CLIENT, 3389, rules=rules) is None


def test_port_zero_is_refused_even_where_the_helper_declares_it() -> None:
    assert refusal(CLIENT, 0) == "port-zero"
    assert refusal(CLIENT, 0, rules=Rules(lowest_port=0)) == "port-zero"


@pytest.mark.parametrize(
    ("address", "announcer", "network"),
    [
        (SERVER, CLIENT, "198.51.100.0/24"),
        (SERVER6, CLIENT6, f"{SERVER6}/128"),
    ],
)
def test_configured_host_may_be_announced_by_another(
    address: str, announcer: str, network: str
) -> None:
    rules = Rules(allow_hosts=(ip_network(network),))
    assert refusal(address, 5000, announcer=announcer, rules=rules) is None
    assert refusal(address, 22, announcer=announcer, rules=rules) == "denied-port"
    other = "203.0.113.9"
    reason = refusal(other, 5000, announcer=announcer, rules=rules)
    assert reason == "third-party-address"


LISTENER, STRANGER, NODE = "10.0.0.10", "10.0.0.66", "10.0.0.5"
CLUSTER = Allowance(
    from_=(ip_network(f"{LISTENER}/32"), ip_network("fd00::10/128")),
    hosts=(ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
    ports=(range(1521, 1523), range(40000, 50000)),
)


@pytest.mark.parametrize(
    ("announcer", "address", "port", "reason"),
    [
        (LISTENER, NODE, 1521, None),
        (LISTENER, NODE, 49999, None),
        ("fd00::10", "fd00::5", 1522, None),
        # With allow_hosts = 10.0.0.0/24 this was opened.
        (STRANGER, NODE, 5985, "third-party-address"),
        (STRANGER, NODE, 1521, "third-party-address"),
        ("fd00::66", "fd00::5", 1521, "third-party-address"),
        (LISTENER, NODE, 5985, "third-party-port"),
        (LISTENER, NODE, 1520, "third-party-port"),
        (LISTENER, NODE, 50000, "third-party-port"),
        (LISTENER, "10.0.1.5", 1521, "third-party-address"),
        (LISTENER, "fd00:0:0:1::5", 1521, "third-party-address"),
        # Of its own address the entry says nothing.
        (LISTENER, LISTENER, 5985, None),
        (STRANGER, STRANGER, 5985, None),
    ],
)
def test_allowed_host_belongs_to_an_announcer_and_ports(
    announcer: str, address: str, port: int, reason: str | None
) -> None:
    rules = Rules(allow=(CLUSTER,))
    assert refusal(address, port, announcer=announcer, rules=rules) == reason


def test_listed_port_may_still_be_denied_or_too_low() -> None:
    everything = replace(CLUSTER, ports=(range(1, 65536),))
    rules = Rules(allow=(everything,), lowest_port=1000)
    for port, reason in ((22, "denied-port"), (999, "low-port"), (1000, None)):
        assert refusal(NODE, port, announcer=LISTENER, rules=rules) == reason


@pytest.mark.parametrize(
    ("announcer", "address", "port", "ports", "reason"),
    [
        (LISTENER, LISTENER, 1530, CLUSTER.ports, None),
        (LISTENER, LISTENER, 1540, CLUSTER.ports, "port-not-allowed"),
        (LISTENER, LISTENER, 1521, CLUSTER.ports, "port-not-allowed"),
        # An entry's ports stand in for them, and without its own they hold.
        (LISTENER, NODE, 1521, CLUSTER.ports, None),
        (LISTENER, NODE, 1530, CLUSTER.ports, "third-party-port"),
        (LISTENER, NODE, 1521, (), "port-not-allowed"),
        (LISTENER, NODE, 1530, (), None),
        (LISTENER, LISTENER, 22, CLUSTER.ports, "denied-port"),
    ],
)
def test_allowed_ports_are_all_that_is_opened_of_the_announcer_itself(
    announcer: str,
    address: str,
    port: int,
    ports: tuple[range, ...],
    reason: str | None,
) -> None:
    rules = Rules(
        allowed_ports=(range(1530, 1540), range(22, 23)),
        allow=(replace(CLUSTER, ports=ports),),
    )
    assert refusal(address, port, announcer=announcer, rules=rules) == reason


def test_one_of_several_entries_that_lists_the_port_is_enough() -> None:
    rules = Rules(
        allow=(CLUSTER, replace(CLUSTER, ports=(range(7000, 7001),))),
        allowed_ports=(range(9000, 9001),),
    )
    assert refusal(NODE, 7000, announcer=LISTENER, rules=rules) is None
    assert refusal(NODE, 9000, announcer=LISTENER, rules=rules) == "third-party-port"


@given(st.integers(0, 255), st.integers(0, 255), st.integers(1, 65535), st.booleans())
def test_no_entry_opens_what_it_does_not_list(
    announcer: int, host: int, port: int, listed: bool
) -> None:
    ports = CLUSTER.ports if listed else ()
    rules = Rules(allow=(replace(CLUSTER, ports=ports),))
    reason = refusal(
        f"10.0.0.{host}", port, announcer=f"10.0.0.{announcer}", rules=rules
    )
    if reason is None and announcer != host:
        assert announcer == 10
        assert not listed or 1521 <= port <= 1522 or 40000 <= port < 50000


def test_loopback_may_be_allowed_and_what_is_no_host_never() -> None:
    everywhere = tuple(map(ip_network, ("0.0.0.0/0", "::/0")))
    rules = Rules(allow_hosts=everywhere)
    assert refusal("127.0.0.1", 5000, rules=rules) is None
    assert refusal("::1", 5000, rules=rules) is None
    for address in ("::", "224.0.0.251", "255.255.255.255", "::ffff:192.0.2.1"):
        assert refusal(address, 5000, rules=rules) is not None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "unspecified-address"),  # noqa: S104 - nothing is bound to it
        ("::", "unspecified-address"),
        ("127.0.0.1", "loopback-address"),
        ("127.255.0.1", "loopback-address"),
        ("::1", "loopback-address"),
        ("224.0.0.251", "multicast-address"),
        ("239.255.255.250", "multicast-address"),
        ("ff02::fb", "multicast-address"),
        ("255.255.255.255", "broadcast-address"),
        ("::ffff:192.0.2.1", "v4-mapped-address"),
        ("::ffff:127.0.0.1", "v4-mapped-address"),
        ("::ffff:0.0.0.0", "v4-mapped-address"),
        ("::ffff:224.0.0.251", "v4-mapped-address"),
    ],
)
def test_address_of_no_host_is_refused(address: str, reason: str) -> None:
    # Both as the announcer's own address, where nothing else stops it, and as another.
    assert refusal(address, 5000) == reason
    assert refusal(address, 5000, announcer=CLIENT) == reason


@pytest.mark.parametrize(
    ("address", "port", "text"),
    [
        (
            SERVER,
            5000,
            "third-party-address: 192.0.2.1 announced 198.51.100.2, which it may not "
            "by guard.allow",
        ),
        (
            "127.0.0.1",
            5000,
            "loopback-address: 127.0.0.1 cannot be a host's address outside "
            "guard.allow",
        ),
        ("::", 5000, "unspecified-address: :: cannot be a host's address"),
        (CLIENT, 22, "denied-port: port 22 is in guard.denied_ports"),
        (
            "10.0.0.5",
            5985,
            "third-party-port: 192.0.2.1 announced port 5985 of 10.0.0.5, which is not "
            "among its ports in guard.allow",
        ),
        (CLIENT, 5985, "port-not-allowed: port 5985 is not in guard.allowed_ports"),
        (CLIENT, 80, "denied-port: port 80 is in guard.denied_ports"),
        (CLIENT, 1023, "low-port: port 1023 is below guard.lowest_port, 1024"),
    ],
)
def test_refusal_names_what_was_announced_and_the_key_that_would_allow_it(
    address: str, port: int, text: str
) -> None:
    rules = Rules(
        allowed_ports=(range(1, 5985),),
        allow=(replace(CLUSTER, from_=(ip_network(f"{CLIENT}/32"),)),),
    )
    with pytest.raises(ExpectationRefused) as caught:
        Guard().check(endpoint(address, port), ip_address(CLIENT), rules)
    assert str(caught.value) == text


# How many within a minute.


PORTS = count(1024)


def charged(
    guard: Guard, now: float, source: str, rules: Rules, size: int = 1, **more: Any
) -> str:
    """The reason of the refusal; empty: granted."""
    who = asker(source, **more)
    ports = (next(PORTS) % 60000 + 1024 for _ in range(size))
    try:
        guard.charge(now, who, rules, wished(who, *ports))
    except ExpectationRefused as error:
        return error.reason
    return ""


def limited(in_all: int) -> Guard:
    return Guard(replace(UNLIMITED, in_all=in_all))


@pytest.mark.parametrize(
    ("rules", "in_all", "text"),
    [
        (Rules(per_source=1), 0, "192.0.2.1 with sunrpc had 1 {} (guard.per_source)"),
        (Rules(per_helper=1), 0, "sunrpc had 1 {} (guard.per_helper)"),
        (Rules(), 1, "all helpers had 1 {} ([guard] in_all)"),
    ],
)
def test_rate_names_its_key(rules: Rules, in_all: int, text: str) -> None:
    who = asker()
    with pytest.raises(ExpectationRefused) as caught:
        limited(in_all).charge(0.0, who, rules, wished(who, 5000, 5001))
    assert caught.value.detail == text.format("expectations within a minute")


@pytest.mark.parametrize(
    ("rules", "in_all", "reason"),
    [
        (Rules(per_source=3), 0, "rate-source"),
        (Rules(per_helper=3), 0, "rate-helper"),
        (Rules(), 3, "rate-all"),
    ],
)
def test_so_many_at_once_and_then_as_many_a_minute(
    rules: Rules, in_all: int, reason: str
) -> None:
    guard = limited(in_all)
    granted = [charged(guard, 100.0, CLIENT, rules) for _ in range(5)]
    assert granted == ["", "", "", reason, reason]
    assert charged(guard, 119.9, CLIENT, rules) == reason
    assert charged(guard, 120.1, CLIENT, rules) == ""
    assert charged(guard, 120.1, CLIENT, rules) == reason
    assert [charged(guard, 999.0, CLIENT, rules) for _ in range(4)][-1] == reason


def test_sources_do_not_use_up_one_another() -> None:
    guard, rules = Guard(), Rules(per_source=2)
    assert [charged(guard, 0.0, CLIENT, rules) for _ in range(3)][-1] == "rate-source"
    assert charged(guard, 0.0, SERVER, rules) == ""


def test_helpers_do_not_use_up_one_another() -> None:
    guard, rules = Guard(), Rules(per_helper=1)
    assert charged(guard, 0.0, CLIENT, rules) == ""
    assert charged(guard, 0.0, CLIENT, rules) == "rate-helper"
    assert charged(guard, 0.0, CLIENT, rules, helper="mdns") == ""


def test_refusal_takes_nothing() -> None:
    guard = limited(4)
    rules = Rules(per_source=3)
    assert charged(guard, 0.0, CLIENT, rules, 2) == ""
    assert charged(guard, 0.0, CLIENT, rules, 2) == "rate-source"
    assert charged(guard, 0.0, SERVER, rules, 3) == "rate-all"
    assert charged(guard, 0.0, CLIENT, rules, 1) == ""
    assert charged(guard, 0.0, SERVER, rules, 1) == ""


def test_zero_is_no_rate() -> None:
    guard, rules = Guard(UNLIMITED), Rules(per_source=0, per_helper=0)
    for standing in Standing:
        for source in (CLIENT, CLIENT6):
            assert not charged(guard, 0.0, source, rules, 5000, standing=standing)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1", "fe80::2", False),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_source_is_an_address_or_a_64(one: str, other: str, same: bool) -> None:
    guard, rules = Guard(), Rules(per_source=1)
    assert charged(guard, 0.0, one, rules) == ""
    assert charged(guard, 0.0, other, rules) == ("rate-source" if same else "")


def test_what_may_be_forged_takes_nothing_from_what_was_answered() -> None:
    guard, rules = Guard(), Rules(per_source=8, per_helper=100)
    for standing, size in (
        (Standing.UNANSWERED, 2),
        (Standing.ANSWERED, 8),
        (Standing.PROVEN, 8),
    ):
        reasons = [
            charged(guard, 0.0, CLIENT, rules, standing=standing) for _ in range(9)
        ]
        assert reasons == [""] * size + ["rate-source"] * (9 - size)


@pytest.mark.parametrize(("per_helper", "in_all"), [(8, 0), (0, 8)])
def test_unanswered_flows_leave_half_to_the_others(
    per_helper: int, in_all: int
) -> None:
    guard, rules = limited(in_all), Rules(per_helper=per_helper)
    reasons = [
        charged(guard, 0.0, f"10.0.0.{host}", rules, standing=Standing.UNANSWERED)
        for host in range(5)
    ]
    assert reasons == [*[""] * 4, "rate-unanswered"]
    assert charged(guard, 0.0, CLIENT, rules, 4) == ""


@pytest.mark.parametrize(("per_helper", "in_all"), [(8, 0), (0, 8)])
def test_a_48_leaves_a_quarter_to_the_others(per_helper: int, in_all: int) -> None:
    guard, rules = limited(in_all), Rules(per_helper=per_helper)
    reasons = [charged(guard, 0.0, f"2001:db8:0:{n}::1", rules) for n in range(7)]
    assert reasons == [*[""] * 6, "rate-network"]
    assert charged(guard, 0.0, CLIENT6, rules, 2) == ""


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(0, 3), st.integers(1, 3)), max_size=60
    )
)
def test_no_minute_has_more_than_twice_what_is_allowed(
    asked: list[tuple[float, int, int]],
) -> None:
    guard, rules = Guard(), Rules(per_source=5, per_helper=8)
    now = 0.0
    granted: list[tuple[float, int, int]] = []
    for pause, host, number in asked:
        now += pause
        if not charged(guard, now, str(IPv4Address(host)), rules, number):
            granted.append((now, host, number))
    for start, _, _ in granted:
        within = [each for each in granted if start <= each[0] < start + 60]
        assert sum(number for _, _, number in within) <= 16
        for host in range(4):
            assert sum(number for _, own, number in within if own == host) <= 10


def test_buckets_that_are_full_again_are_forgotten() -> None:
    guard, rules = Guard(UNLIMITED), Rules(per_source=5, per_helper=0)
    for number in range(1000):
        charged(guard, float(number), str(IPv4Address(number)), rules)
    assert len(guard) <= 61


def test_other_limits_hold_from_then_on_and_what_was_taken_counts() -> None:
    guard = limited(2)
    assert charged(guard, 0.0, CLIENT, Rules(), 2) == ""
    guard.limit(replace(UNLIMITED, in_all=5))
    assert charged(guard, 30.0, CLIENT, Rules(), 3) == "rate-all"
    assert charged(guard, 30.0, CLIENT, Rules(), 2) == ""

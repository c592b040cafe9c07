# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules for flows to broadcast addresses, which no network holds."""

from pathlib import Path

import pytest

from cthelper import nft
from cthelper.core.config import parse
from cthelper.core.registry import builtin_helpers


def output_rules(settings: str, name: str) -> list[str]:
    """The rules of the chain output that attach a helper."""
    text = f"[helpers.{name}]\nenabled = true\n{settings}\n"
    ruleset = nft.render(parse(text, Path("test.toml"), builtin_helpers()))
    found = (each.strip() for each in ruleset.splitlines())
    return [each for each in found if each.endswith(f'ct helper set "{name}-udp"')]


BROADCAST = 'udp dport 137 fib daddr type broadcast ct helper set "netbios-ns-udp"'


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ("", [BROADCAST]),
        ('sources = ["10.0.0.0/8"]', [f"ip saddr 10.0.0.0/8 {BROADCAST}"]),
        (
            'interfaces = ["lan"]\nsources = ["10.0.0.0/8", "fd00::/8"]',
            [f'oifname "lan" ip saddr 10.0.0.0/8 {BROADCAST}'],
        ),
        (
            'destinations = ["broadcast", "224.0.0.9", "ff02::9"]',
            [
                'ip daddr 224.0.0.9/32 udp dport 137 ct helper set "netbios-ns-udp"',
                BROADCAST,
                'ip6 daddr ff02::9/128 udp dport 137 ct helper set "netbios-ns-udp"',
            ],
        ),
        (
            'sources = ["fd00::/8"]\ndestinations = ["broadcast", "ff02::9"]',
            [
                "ip6 saddr fd00::/8 ip6 daddr ff02::9/128 udp dport 137 "
                'ct helper set "netbios-ns-udp"',
            ],
        ),
    ],
)
def test_broadcast_is_looked_up_for_the_port_alone(
    settings: str, rules: list[str]
) -> None:
    assert output_rules(settings, "netbios-ns") == rules


def test_no_unicast_is_tagged_by_default() -> None:
    for name in ("netbios-ns", "bacnet", "gvcp"):
        (rule,) = output_rules("", name)
        assert "fib daddr type broadcast" in rule

# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers that the configuration makes of a template, and what is off by default."""

from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.api import (
    BROADCAST,
    UDP,
    Effects,
    Helper,
    Message,
    Option,
    OptionValue,
    Policy,
)
from cthelper.core.config import Config, HelperConfig, parse
from cthelper.core.contract import NAME_ALLOWED
from cthelper.core.errors import ConfigError
from cthelper.core.registry import register
from cthelper.core.tuples import Endpoint, Tuple
from tests.cases import cases

PATH: Final = Path("cthelper.toml")


def _even(value: object) -> int:
    if isinstance(value, int) and value % 2 == 0:
        return value
    raise ValueError("must be even")


class Asking(Helper):
    """What asks, of any name."""

    name = "asking"
    template = True
    transports = frozenset({UDP})
    ports = ()
    policies = (Policy("answer", max_expected=8, timeout=5),)
    options = (Option("even", 2, "an even number", element=_even),)
    destinations = (BROADCAST,)

    def on_message(self, message: Message) -> Effects:
        yield from ()


class Quiet(Helper):
    """Off, unless it is turned on."""

    name = "quiet"
    transports = frozenset({UDP})
    ports = (7000,)
    policies = (Policy("data"),)
    enabled = False

    def on_message(self, message: Message) -> Effects:
        yield from ()


HELPERS: Final = register([Asking, Quiet])


def read(text: str) -> Config:
    return parse(text, PATH, HELPERS)


def errors_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return [each.removeprefix(f"{PATH}: ") for each in caught.value.lines]


OWN: Final = '[helpers.kasa]\ntype = "asking"\nports = [9999]\n'


def own(more: str = "") -> HelperConfig:
    return read(f"{OWN}{more}").helpers["kasa"]


def test_template_by_itself_is_no_helper() -> None:
    assert read("").helpers == {}


def test_helper_that_is_off_by_default_is_turned_on() -> None:
    assert list(read("helpers.quiet.enabled = true").helpers) == ["quiet"]
    # What is wrong in its table is told in any case.
    assert errors_of("helpers.quiet.ports = [0]") != []


def test_table_with_a_type_is_a_helper_of_that_name() -> None:
    config = own()
    assert config.helper.name == "kasa"
    assert issubclass(config.helper, Asking)
    assert not config.helper.template
    assert config.ports == (9999,)
    assert config.policies == (Policy("answer", 8, 5),)
    assert config.destinations == (BROADCAST,)
    assert config.options == {"even": 2}
    # The kernel and the ruleset know it by that name.
    assert type(config.helper().name) is str


def test_window_is_the_life_of_what_is_expected() -> None:
    assert own("window = 30").policies == (Policy("answer", 8, 30),)
    assert own("window = 120").policies[0].timeout == 120
    more = "window = 30\n[helpers.kasa.policies.answer]\ntimeout = 7\n"
    assert own(more).policies == (Policy("answer", 8, 7),)


def test_several_helpers_of_one_template_are_each_for_itself() -> None:
    text = f'{OWN}[helpers.gree]\ntype = "asking"\nports = ["7000-7003"]\nwindow = 9\n'
    found = read(text).helpers
    assert {name: each.ports for name, each in found.items()} == {
        "kasa": (9999,),
        "gree": (7000, 7001, 7002, 7003),
    }
    assert [each.policies[0].timeout for each in found.values()] == [5, 9]


def test_reading_the_same_again_gives_the_same() -> None:
    # A reload that changes nothing has flows go on with the class that they have.
    assert own() == own()
    assert own().helper is own().helper
    assert own().helper is not own("window = 6").helper


def test_helper_of_a_template_is_turned_off_like_any_other() -> None:
    assert read(f"{OWN}enabled = false\n").helpers == {}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            '[helpers.kasa]\ntype = "asking"\n',
            "helpers.kasa.ports: is missing, such as [9999]",
        ),
        (
            '[helpers.kasa]\ntype = "asking"\nports = []\n',
            "helpers.kasa.ports = []: must name a port; enabled = false turns it off",
        ),
        (
            '[helpers.kasa]\ntype = "askin"\nports = [9999]\n',
            'helpers.kasa.type = "askin": must be one of asking',
        ),
        (
            "[helpers.kasa]\ntype = 7\nports = [9999]\n",
            "helpers.kasa.type = 7: must be one of asking",
        ),
        (
            "[helpers.kasa]\nports = [9999]\n",
            "[helpers.kasa]: unknown helper, known are quiet; one of your own has "
            'type = "asking"',
        ),
        (
            "[helpers.asking]\nports = [9999]\n",
            "[helpers.asking]: unknown helper, known are quiet; one of your own has "
            'type = "asking"',
        ),
        (
            '[helpers.asking]\ntype = "asking"\nports = [9999]\n',
            f'helpers.asking.type = "asking": name of the table: {NAME_ALLOWED}, '
            "other than asking",
        ),
        (
            '[helpers."My TV"]\ntype = "asking"\nports = [9999]\n',
            f'helpers."My TV".type = "asking": name of the table: {NAME_ALLOWED}, '
            "other than asking",
        ),
        (
            '[helpers.quiet]\ntype = "asking"\nports = [9999]\n',
            'helpers.quiet.type = "asking": quiet is taken by a helper that is '
            "installed",
        ),
        (
            f"{OWN}window = 0\n",
            "helpers.kasa.window = 0: must be a number from 1 to 120",
        ),
        (
            f"{OWN}window = 121\n",
            "helpers.kasa.window = 121: must be a number from 1 to 120",
        ),
        (f"{OWN}even = 3\n", "helpers.kasa.even = 3: must be even"),
        (
            f"{OWN}[helpers.kasa.policies.data]\n",
            "[helpers.kasa.policies.data]: unknown policy, known are answer",
        ),
        (
            f"{OWN}sources = ['fd00::/8']\n",
            'helpers.kasa.sources = ["fd00::/8"]: must share an IP version with '
            "destinations",
        ),
        (
            f'{OWN}[helpers.gree]\ntype = "asking"\nports = [9999]\n',
            "helpers.gree.ports = [9999]: udp 9999 is tagged by kasa already: let "
            "their ports, networks or interfaces differ, or set enabled = false for "
            "one",
        ),
    ],
)
def test_error_names_key_value_and_what_is_allowed(text: str, wrong: str) -> None:
    assert errors_of(text) == [wrong]


@cases(
    "value, expected",
    {
        "of one version": ('["broadcast"]', (BROADCAST,)),
        "twice": ('["broadcast", "broadcast"]', None),
        "in capitals": ('["BROADCAST"]', None),
    },
)
def test_broadcast_is_a_destination(value: str, expected: object) -> None:
    text = f"helpers.quiet.enabled = true\nhelpers.quiet.destinations = {value}\n"
    if expected is None:
        assert len(errors_of(text)) == 1
    else:
        assert read(text).helpers["quiet"].destinations == expected


@pytest.mark.parametrize(
    ("source", "destination", "tagged"),
    [
        ("192.0.2.1", "255.255.255.255", True),
        ("192.0.2.1", "192.0.2.255", True),
        ("10.1.2.3", "10.255.255.255", True),
        ("192.0.2.1", "192.0.2.8", False),
        ("192.0.2.1", "224.0.0.251", False),
        ("fe80::1", "ff02::1", False),
    ],
)
def test_flow_to_what_may_be_a_broadcast_address_is_tagged(
    source: str, destination: str, tagged: bool
) -> None:
    ends = Endpoint(ip_address(source), 40000), Endpoint(ip_address(destination), 9999)
    assert own().tags(Tuple(UDP, *ends)) is tagged


@pytest.mark.parametrize(
    ("theirs", "clash"),
    [
        ('["broadcast"]', True),
        ("[]", True),
        ('["192.0.2.0/24"]', True),
        ('["239.255.255.250"]', False),
        ('["ff02::c"]', False),
        ('["ff02::c", "broadcast"]', True),
    ],
)
def test_two_helpers_of_a_port_clash_where_both_are_sent_broadcasts(
    theirs: str, clash: bool
) -> None:
    quiet = "[helpers.quiet]\nenabled = true\nports = [9999]\ndestinations"
    text = f"{OWN}{quiet} = {theirs}\n"
    if clash:
        assert len(errors_of(text)) == 1
    else:
        assert read(text).helpers.keys() == {"kasa", "quiet"}


def test_option_that_is_no_list_is_read_by_its_own_reader() -> None:
    options: OptionValue = own("even = 4").options["even"]
    assert options == 4

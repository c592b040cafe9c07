# SPDX-License-Identifier: GPL-2.0-or-later
"""A helper and what it declares are the same to all that do not run it."""

import json
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest

from cthelper import nft
from cthelper.core.api import (
    TCP,
    UDP,
    Helper,
    Match,
    Option,
    OptionValue,
    Policy,
    Prefilter,
)
from cthelper.core.config import Config, parse
from cthelper.core.contract import check
from cthelper.core.daemon.channel import fingerprint
from cthelper.core.declaration import (
    Declaration,
    declare,
    is_stand_in,
    stand_in,
)
from cthelper.core.errors import ConfigError, RegistryError
from cthelper.core.reference import table
from cthelper.core.registry import builtin_helpers
from cthelper.core.tables import read_document
from cthelper.plugins.iperf import Iperf
from tests.core.test_contract import Good, variant

FILE = Path("test.toml")
# Templates are built in alone.
ALL: dict[str, type[Helper]] = {
    **{name: each for name, each in builtin_helpers().items() if not each.template},
    Iperf.name: Iperf,
}
SETTINGS = """
[helpers.sunrpc]
procedures = ["discovery", "dump"]
allow_programs = [100003, 100005]
[helpers.dhcpv6]
servers = ["2001:db8::1", "2001:db8::2"]
[helpers.tns]
chained = true
hosts = ["192.0.2.11 rac1 rac1.example.net"]
[helpers.slp]
any_sport = true
"""


def travelled(helper: type[Helper], configured: object = None) -> type[Helper]:
    """The stand-in of a helper whose declaration has gone through JSON."""
    packed = json.dumps(declare(helper, "about", configured).packed())
    return stand_in(Declaration.unpacked(json.loads(packed)))


def stand_ins(text: str) -> dict[str, type[Helper]]:
    """Those of all helpers, for a configuration."""
    values = read_document(text, FILE).table("helpers")
    return {
        name: travelled(each, values._values.get(name)) for name, each in ALL.items()
    }


def configured(text: str, helpers: Mapping[str, type[Helper]]) -> Config:
    return parse(text, FILE, helpers)


@pytest.mark.parametrize("name", ALL)
def test_stand_in_has_all_of_a_helper_but_its_code(name: str) -> None:
    helper = ALL[name]
    other = travelled(helper)
    assert table(other) == table(helper)
    for field in (
        "transports",
        "ports",
        "policies",
        "hooks",
        "destinations",
        "enabled",
        "api",
    ):
        assert getattr(other, field) == getattr(helper, field)
    assert (is_stand_in(other), is_stand_in(helper)) == (True, False)
    assert other.on_message is Helper.on_message


@pytest.mark.parametrize("text", ["", SETTINGS], ids=["defaults", "settings"])
def test_configuration_is_the_same_with_stand_ins(text: str) -> None:
    theirs, ours = configured(text, ALL), configured(text, stand_ins(text))
    assert nft.render(ours) == nft.render(theirs)
    assert fingerprint(ours) == fingerprint(theirs)
    assert fingerprint(ours) != fingerprint(configured("daemon.queue = 7", ALL))


def test_what_is_wrong_in_the_configuration_is_said_in_the_same_words() -> None:
    wrong = """
    [helpers.sunrpc]
    procedures = ["nothing", "discovery", "discovery"]
    allow_programs = ["x", -1, 2]
    unknown = 1
    [helpers.tns]
    hosts = ["10.0.0.1/24", "10.0.0.0/24", "10.0.0.0/24", 5, 1.5]
    chained = "yes"
    [helpers.dhcpv6]
    servers = "2001:db8::1"
    """
    said = []
    for helpers in (ALL, stand_ins(wrong)):
        with pytest.raises(ConfigError) as caught:
            configured(wrong, helpers)
        said.append(caught.value.problems)
    assert said[0] == said[1]
    assert len(said[0]) > 5


class Choosy(Helper):
    """Its options have elements of its own.

    More lines.
    """

    name = "choosy"
    transports = frozenset({UDP})
    ports = (7000,)
    policies = (Policy("data"),)
    options = (
        Option("nets", (ip_network("10.0.0.0/8"),), "networks", element=ip_network),  # type: ignore[arg-type]
        Option("numbers", (1, 2), "numbers", element=lambda value: int(str(value))),
        Option("words", ("a",), "words", ("a", "b")),
        Option("depth", 3, "a number"),
    )

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """By an option."""
        return Prefilter(reply=((Match(0, 8, int(str(options["depth"]))),),))

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        return options["depth"] == 4

    on_message = Good.on_message


CHOOSY = """
[helpers.choosy]
nets = ["192.0.2.0/24", "0.0.0.0/0"]
numbers = ["7", 8]
words = ["b"]
depth = 4
"""


def test_elements_are_read_once_by_the_helper_and_known_after() -> None:
    check(Choosy)
    given = read_document(CHOOSY, FILE).table("helpers").table("choosy")._values
    other = travelled(Choosy, given)
    (config,) = configured(CHOOSY, {"choosy": other}).helpers.values()
    assert config.options == {
        "nets": ("192.0.2.0/24", "0.0.0.0/0"),
        "numbers": (7, 8),
        "words": ("b",),
        "depth": 4,
    }
    assert config.prefilter == Prefilter(reply=((Match(0, 8, 4),),))
    assert config.tags_expected
    ours, theirs = (configured(CHOOSY, {"choosy": each}) for each in (other, Choosy))
    assert fingerprint(ours) == fingerprint(theirs)
    # One that has changed since it was asked is not taken for another.
    with pytest.raises(ConfigError, match="was not there when it was read"):
        configured(CHOOSY.replace("8]", "9]"), {"choosy": other})


def test_elements_that_are_equal_are_found_to_stand_twice() -> None:
    text = "[helpers.choosy]\nnumbers = ['07', 7]\n"
    given = {"numbers": ["07", 7]}
    for helper in (Choosy, travelled(Choosy, given)):
        with pytest.raises(ConfigError, match="stands there twice"):
            configured(text, {"choosy": helper})


def test_helper_that_is_off_or_configured_wrongly_is_not_asked_for_more() -> None:
    def fails(_cls: object, _options: object) -> Prefilter:
        raise AssertionError

    options = (Option("depth", 3, "a number"),)
    helper = variant(prefilter=classmethod(fails), options=options)
    for given in ({"enabled": False}, {"depth": "x"}):
        assert declare(helper, "", given).prefilter == Prefilter()
    with pytest.raises(AssertionError):
        declare(helper, "", None)


@pytest.mark.parametrize(
    "prefilter",
    [
        None,
        Prefilter(request=(Match(0, 8, 1),)),  # type: ignore[arg-type]
        Prefilter(reply=(((0, 8, 1),),)),  # type: ignore[arg-type]
        Prefilter(reply=((Match(-1, 8, 1),),)),
        Prefilter(reply=((Match(0, 33, 1),),)),
        Prefilter(reply=((Match(0, 0, 0),),)),
        Prefilter(reply=((Match(505, 8, 1),),)),
        Prefilter(reply=((Match(0, 8, 256),),)),
        Prefilter(reply=((Match(0, 8, -1),),)),
    ],
)
def test_prefilter_that_is_none_is_refused(prefilter: Prefilter) -> None:
    helper = variant(prefilter=classmethod(lambda _cls, _options: prefilter))
    with pytest.raises(RegistryError, match="prefilter: must"):
        declare(helper, "", None)


def test_longest_prefilter_is_taken() -> None:
    wanted = Prefilter(request=((Match(480, 32, 0xFFFFFFFF),), ()), answers=True)
    helper = variant(prefilter=classmethod(lambda _cls, _options: wanted))
    assert declare(helper, "", None).prefilter == wanted


WRONG: dict[str, list[object]] = {
    "name": [None, 1, "", "UPPER", "x" * 16, "a\nb"],
    "ports": [[], [0], [65536], [1, 1], [True], 7, ["7"]],
    "transports": [[], ["sctp"], [6], "tcp"],
    "policies": [
        *([], [["a"]], [["a", 0, 1]], [["a", 1, 0]], [["a", 1, 1], ["a", 1, 1]]),
        [[f"p{number}", 1, 1] for number in range(5)],
    ],
    "hooks": [[], ["forward"], [None]],
    "destinations": [["10.0.0.1/8"], [1], ["x"], {}],
    "lowest_port": [0, 65536, 1.0, "1", True],
    "nat": [1, None, "true"],
    "api": [[], [1], [1, 0, 0], [2, 0], [0, 0], [1, 9]],
    "message_limit": [0, -1, 2**64, None],
    "request": [1, [1], [[1]], [[[1, 2]]], [[[0, 40, 1]]]],
    "answers": [0, None],
    "options": [1, [1], [{}], [{"name": "x"}]],
    "title": [None, 1],
    "class": [None, []],
    "tags_expected": [1],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG.items() for value in values],
    ids=repr,
)
def test_value_that_is_not_right_is_refused(field: str, value: object) -> None:
    packed = declare(Good, "", None).packed()
    with pytest.raises((ValueError, RegistryError)):
        stand_in(Declaration.unpacked({**packed, field: value}))
    del packed[field]
    with pytest.raises(ValueError, match=f"has no {field}"):
        Declaration.unpacked(packed)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "queue"},
        {"name": "X"},
        {"default": None},
        {"default": {}},
        {"default": [[1]]},
        {"default": float("nan")},
        {"default": 1.5},
        {"default": ["a"]},
        {"default": ["a"], "choices": ["b"]},
        {"default": ["a"], "choices": ["a"], "elements": {}},
        {"choices": [True]},
        {"elements": []},
        {"elements": {"1": 1}},
        {"elements": {"1": [False, 1]}},
        {"elements": {"1": [True, []]}},
        {"elements": {"1": [1, "x"]}},
    ],
    ids=repr,
)
def test_option_that_is_not_right_is_refused(fields: dict[str, object]) -> None:
    option = {"name": "depth", "default": 1, "meaning": "a number", "choices": []}
    packed = declare(Good, "", None).packed()
    stand_in(Declaration.unpacked({**packed, "options": [option]}))
    with pytest.raises((ValueError, RegistryError)):
        stand_in(Declaration.unpacked({**packed, "options": [{**option, **fields}]}))


def test_text_for_people_has_no_control_characters() -> None:
    packed = declare(Good, "", None).packed()
    text = "a\x1b[31m\0\ud800\u202e\nb"
    told = Declaration.unpacked({**packed, "about": text, "class": "\0"})
    assert told.about == "a\\u001b[31m\\u0000\\ud800\\u202e\nb"
    assert stand_in(told).__name__ == "\\u0000"


def test_tcp_helper_needs_no_frame_to_be_declared() -> None:
    helper = variant(transports=frozenset({TCP}), frame=lambda self, data: len(data))
    assert travelled(helper).transports == frozenset({TCP})

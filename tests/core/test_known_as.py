# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers whose names modules of the kernel have, or that are known as another."""

from argparse import Namespace
from pathlib import Path

import pytest

from cthelper import nft
from cthelper.core.api import ORIGINAL, UDP, Effects, Helper, Message, Policy, expect
from cthelper.core.cli import options
from cthelper.core.config import ConfigFile, parse
from cthelper.core.daemon.channel import fingerprint
from cthelper.core.daemon.ruleset import registrations
from cthelper.core.engine import NOTHING, Engine
from cthelper.core.guard import Guard
from cthelper.core.registry import Given
from cthelper.core.sources import Sources
from tests.core.builders import conntrack, flow_tuple, udp
from tests.core.configured import HELPERS, PATH, Plain, error_of, read
from tests.core.host import on_link


def test_helper_is_known_by_its_own_name() -> None:
    found = read("").helpers
    assert {name: each.name for name, each in found.items()} == {
        "plain": "plain",
        "chosen": "chosen",
    }


def test_helper_whose_name_a_module_has_is_known_by_another() -> None:
    config = parse("", PATH, HELPERS, modules={"plain": "nf_conntrack_plain"})
    assert list(config.helpers) == ["plain-u", "chosen"]
    found = config.helpers["plain-u"]
    assert (found.name, found.helper) == ("plain-u", Plain)
    assert config.warnings == (
        "cthelper.toml: the kernel module nf_conntrack_plain has the name plain: "
        'helper plain is known as plain-u, in rules, too: ct helper "plain-u"',
    )


def test_helper_that_is_off_is_known_by_nothing() -> None:
    text = "[helpers.plain]\nenabled = false"
    config = parse(text, PATH, HELPERS, modules={"plain": "nf_conntrack_plain"})
    assert (list(config.helpers), config.warnings) == (["chosen"], ())


def test_helper_is_known_as_the_configuration_says() -> None:
    text = '[helpers.plain]\nknown_as = "other"'
    config = parse(text, PATH, HELPERS, modules={"plain": "nf_conntrack_plain"})
    assert (list(config.helpers), config.warnings) == (["other", "chosen"], ())


def test_name_of_the_configuration_that_a_module_has_is_told_of() -> None:
    text = '[helpers.plain]\nknown_as = "ftp"'
    (warning,) = parse(
        text, PATH, HELPERS, modules={"ftp": "nf_conntrack_ftp"}
    ).warnings
    assert warning == (
        'cthelper.toml: helpers.plain.known_as = "ftp": the kernel module '
        "nf_conntrack_ftp has this name: set another one"
    )


def test_long_name_makes_room_for_its_end() -> None:
    class Long(Plain):
        name = "fifteen-letters"

    config = parse("", PATH, {Long.name: Long}, modules={Long.name: "nf_conntrack_x"})
    assert list(config.helpers) == ["fifteen-lette-u"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            '[helpers.plain]\nknown_as = "Other"',
            'helpers.plain.known_as = "Other": must be 1 to 15 characters of a-z, 0-9, '
            "- and _, a letter first",
        ),
        (
            "[helpers.plain]\nknown_as = 7",
            "helpers.plain.known_as = 7: must be 1 to 15 characters of a-z, 0-9, - and "
            "_, a letter first",
        ),
        (
            '[helpers.chosen]\nknown_as = "plain"',
            'helpers.chosen.known_as = "plain": is the name of helper plain: set '
            "another one",
        ),
    ],
)
def test_names_that_helpers_cannot_be_known_as(text: str, wrong: str) -> None:
    assert wrong in error_of(text)


def test_names_may_change_places() -> None:
    text = '[helpers.chosen]\nknown_as = "plain"\n[helpers.plain]\nknown_as = "chosen"'
    found = read(text).helpers
    assert {name: each.helper.name for name, each in found.items()} == {
        "chosen": "plain",
        "plain": "chosen",
    }


class Chained(Helper):
    """Goes on with what it expects."""

    name = "chained"
    transports = frozenset({UDP})
    ports = (7300,)
    policies = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from expect(message.source, policy="data", helper=self.name)

    @classmethod
    def tags_expected(cls, options: object) -> bool:
        return True


def test_rules_and_registrations_have_the_name() -> None:
    known = parse(
        "", PATH, {"chained": Chained}, modules={"chained": "nf_conntrack_chained"}
    )
    plain = parse("", PATH, {"chained": Chained})
    # It stands in them in no other way than its own name would.
    assert nft.render(known) == nft.render(plain).replace("chained", "chained-u")
    assert [each.name for each in registrations(known.helpers.values())] == [
        "chained-u",
        "chained-u",
    ]


def test_what_is_expected_goes_on_with_the_name() -> None:
    config = parse("", PATH, {"chained": Chained}, modules={"chained": "nf_x"})
    engine = Engine(
        config.helpers,
        guard=Guard(config.limits),
        on_link=on_link,
        clock=lambda: 0.0,
        flow_limit=9,
    )
    entry = conntrack(flow_tuple(UDP), helper="chained-u")
    (expected,) = engine.handle(udp(b"x"), entry, ORIGINAL).expectations
    assert expected.helper == "chained-u"
    # One of the kernel's own is none of ours.
    others = conntrack(flow_tuple(UDP), helper="chained", id_=2)
    assert engine.handle(udp(b"x"), others, ORIGINAL) == NOTHING


def test_processes_that_cannot_look_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(options, "loaded_module", {"slp": "nf_conntrack_slp"}.get)
    sources = Sources(ConfigFile(tmp_path / "x.toml", ""), Given({}, [], []))
    declared = options.declared_by(sources, lambda work, *_: work())
    assert {"slp-u", "mdns"} < set(declared.config.helpers)
    monkeypatch.setattr(options, "loaded_module", lambda name: None)
    handed = options.made_of(Sources.unpacked(declared.sources))
    assert fingerprint(handed) == fingerprint(declared.config)


def test_replay_meets_no_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(options, "loaded_module", {"slp": "nf_conntrack_slp"}.get)
    file = ConfigFile(tmp_path / "x.toml", "")
    found = options.configured(file, Namespace(plugin=[]), runs=True)
    assert "slp" in found.helpers
    assert "slp-u" in options.configured(file, Namespace(plugin=[])).helpers

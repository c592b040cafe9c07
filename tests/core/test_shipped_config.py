# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration that is installed: every key is there, at its default."""

import re
import tomllib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

from cthelper.core.config import (
    DEFAULT_PLUGINS,
    Budget,
    Config,
    ControlConfig,
    EventsConfig,
    parse,
)
from cthelper.core.guard import Limits, Rules
from cthelper.core.registry import builtin_helpers

SHIPPED = files("cthelper.core").joinpath("cthelper.toml").read_text("utf-8")
# A commented key, as opposed to prose, has no blank after its mark.
WHOLE = re.sub(r"^#(?=[a-z0-9_]+ = )", "", SHIPPED, flags=re.MULTILINE)


def read(text: str) -> Config:
    return parse(text, Path("cthelper.toml"), builtin_helpers())


def test_shipped_file_is_the_default_configuration() -> None:
    assert read(SHIPPED) == read("")


def test_commented_keys_stand_at_their_defaults() -> None:
    assert WHOLE != SHIPPED
    assert read(WHOLE) == read("")


def test_every_key_is_there() -> None:
    written = tomllib.loads(WHOLE)
    assert set(written) == {
        *("daemon", "control", "events", "budget", "guard", "plugins", "helpers")
    }
    assert set(written["events"]) == {each.name for each in fields(EventsConfig)}
    assert set(written["control"]) == {each.name for each in fields(ControlConfig)}
    assert set(written["daemon"]) == {
        "queue",
        "workers",
        "receive_buffer",
        "flow_limit",
        "log_level",
        "log_format",
        "backend",
        "mark",
        "user_mask",
        "lost_ruleset",
        "user",
    }
    assert set(written["budget"]) == {each.name for each in fields(Budget)}
    assert set(written["guard"]) == {
        "denied_ports",
        *(each.name for each in fields(Limits)),
    }
    assert written["plugins"] == {"folder": str(DEFAULT_PLUGINS)}
    common = {
        *("enabled", "queue", "ports", "hooks", "interfaces", "sources"),
        *("destinations", "fail_closed", "known_as", "policies", "guard"),
    }
    for name, helper in builtin_helpers().items():
        if helper.template or not helper.enabled:
            assert name not in written["helpers"]
            continue
        nat = {"nat"} if helper.nat else set()
        options = {option.name for option in helper.options}
        table = written["helpers"][name]
        assert set(table) == common | options | nat
        assert set(table.get("nat", {})) == (
            {"outside", "unrewritable"} if nat else set()
        )
        assert set(table["guard"]) == {each.name for each in fields(Rules)}
        assert set(table["policies"]) == {policy.name for policy in helper.policies}
        for policy in table["policies"].values():
            assert set(policy) == {"max_expected", "timeout"}


def test_helpers_that_are_off_are_turned_on_in_a_line_each() -> None:
    off = {name for name, each in builtin_helpers().items() if not each.enabled}
    line = re.compile(r"^#(?=([a-z-]+)\.enabled = true  # )", re.MULTILINE)
    assert set(line.findall(SHIPPED)) == off
    on = read(line.sub("", SHIPPED)).helpers
    assert on.keys() == read("").helpers.keys() | off
    assert off.isdisjoint(read("").helpers)

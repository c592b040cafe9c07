# SPDX-License-Identifier: GPL-2.0-or-later
"""Two helpers for the tests of the configuration, and what a text becomes for them."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from cthelper.core.api import UDP, Effects, Helper, Message, Option, Policy
from cthelper.core.config import Config, parse
from cthelper.core.errors import ConfigError
from cthelper.core.tuples import Network

PATH = Path("cthelper.toml")


class Plain(Helper):
    """All defaults."""

    name = "plain"
    transports = frozenset({UDP})
    ports = (7000, 7001)
    policies = (Policy("data", max_expected=2, timeout=60), Policy("chained"))

    def on_message(self, message: Message) -> Effects:
        yield from ()


def network(value: object) -> Network:
    """As a helper reads the values of a list."""
    if not isinstance(value, str):
        raise ValueError("a network, as")
    return ip_network(value)


class Chosen(Helper):
    """Options of every type, and a destination."""

    name = "chosen"
    transports = frozenset({UDP})
    ports = (5353,)
    policies = (Policy("data"),)
    options = (
        Option("strict", False, "a switch"),
        Option("depth", 3, "a number"),
        Option("greeting", "hello", "a text"),
        Option("mode", "narrow", "a choice", ("narrow", "wide")),
        Option("version", 2, "a choice of numbers", (2, 3)),
        Option("networks", (), "a list", element=network),
        Option("words", ("a", "b"), "a list of choices", ("a", "b", "c")),
    )
    destinations = (ip_network("224.0.0.251/32"),)
    nat = False

    def on_message(self, message: Message) -> Effects:
        yield from ()


HELPERS: dict[str, type[Helper]] = {"plain": Plain, "chosen": Chosen}


def read(text: str) -> Config:
    """The configuration of `HELPERS` that a text is."""
    return parse(text, PATH, HELPERS)


def error_of(text: str) -> str:
    """Why a text is none, a line for each problem."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    return "\n".join(caught.value.lines)

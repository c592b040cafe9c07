# SPDX-License-Identifier: GPL-2.0-or-later
"""TOML that is read as tables: what the operator reads if a key is not as it must be.

The tables are those of the configuration.
"""

import pytest

from tests.core.configured import error_of

WORDS = "must be one of a, b, c"

WRONG = [
    # Keys that nobody knows.
    (
        "port = 1",
        "port = 1: unknown key, "
        "known are daemon, budget, control, events, guard, plugins, helpers",
    ),
    (
        '"a\\nb" = 1',
        '"a\\nb" = 1: unknown key, '
        "known are daemon, budget, control, events, guard, plugins, helpers",
    ),
    (
        '"daemon.queue" = 1',
        '"daemon.queue" = 1: unknown key (did you mean daemon?), '
        "known are daemon, budget, control, events, guard, plugins, helpers",
    ),
    # Tables that are none.
    ("daemon = 1", "daemon = 1: must be a table [daemon]"),
    ("helpers = []", "helpers = []: must be a table [helpers]"),
    (
        "helpers.plain = true",
        "helpers.plain = true: must be a table [helpers.plain]",
    ),
    (
        "helpers.plain.policies.data = 60",
        "helpers.plain.policies.data = 60: "
        "must be a table [helpers.plain.policies.data]",
    ),
    # Numbers, switches, texts and choices.
    (
        'daemon.queue = "2077"',
        'daemon.queue = "2077": must be a number from 0 to 65535',
    ),
    ("daemon.queue = true", "daemon.queue = true: must be a number from 0 to 65535"),
    ("daemon.queue = 1.0", "daemon.queue = 1.0: must be a number from 0 to 65535"),
    ("daemon.queue = -1", "daemon.queue = -1: must be a number from 0 to 65535"),
    ("daemon.queue = 65536", "daemon.queue = 65536: must be a number from 0 to 65535"),
    (
        'helpers.plain.enabled = "yes"',
        'helpers.plain.enabled = "yes": must be true or false',
    ),
    (
        "helpers.plain.enabled = 1",
        "helpers.plain.enabled = 1: must be true or false",
    ),
    ("plugins.folder = 1", "plugins.folder = 1: must be a string"),
    (
        "daemon.backend = 1",
        "daemon.backend = 1: must be one of auto, native, netfilterqueue",
    ),
    (
        "daemon.log_format = true",
        "daemon.log_format = true: must be one of text, json",
    ),
    # Lists.
    ("guard.denied_ports = 22", "guard.denied_ports = 22: must be a list"),
    (
        "helpers.chosen.networks = '::/0'",
        'helpers.chosen.networks = "::/0": must be a list',
    ),
    ("helpers.chosen.networks = [1]", "helpers.chosen.networks = 1: a network, as"),
    (
        "helpers.chosen.networks = ['::/0', '::/0']",
        'helpers.chosen.networks = "::/0": stands there twice',
    ),
    ("helpers.chosen.words = ['d']", 'helpers.chosen.words = "d": ' + WORDS),
    ("helpers.chosen.words = [1]", "helpers.chosen.words = 1: " + WORDS),
    (
        "helpers.plain.ports = [21, 22, 21]",
        "helpers.plain.ports = 21: stands there twice",
    ),
    (
        'helpers.plain.sources = ["192.0.2.0/24", "192.0.2.0/255.255.255.0"]',
        'helpers.plain.sources = "192.0.2.0/255.255.255.0": stands there twice',
    ),
    (
        'helpers.plain.interfaces = ["eth0", "eth0"]',
        'helpers.plain.interfaces = "eth0": stands there twice',
    ),
    # Options of helpers.
    ("helpers.chosen.strict = 1", "helpers.chosen.strict = 1: must be true or false"),
    ("helpers.chosen.depth = true", "helpers.chosen.depth = true: must be a number"),
    ("helpers.chosen.greeting = 1", "helpers.chosen.greeting = 1: must be a string"),
    (
        'helpers.chosen.mode = "tall"',
        'helpers.chosen.mode = "tall": must be one of narrow, wide',
    ),
    ("helpers.chosen.version = 4", "helpers.chosen.version = 4: must be one of 2, 3"),
]


@pytest.mark.parametrize(("text", "error"), WRONG, ids=[text for text, _ in WRONG])
def test_error_names_file_key_value_and_what_is_allowed(text: str, error: str) -> None:
    assert error_of(text) == f"cthelper.toml: {error}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[daemon]\nqueue 2077\n", "line 2, 'queue 2077'"),
        ("[daemon]\nqueue = \n\n", "line 2, 'queue ='"),
        ("[guard]\ndenied_ports = [1,\n", "line 2, 'denied_ports = [1,'"),
        ("queue = 1\nqueue = 2\n", "line 2, 'queue = 2'"),
        ("[daemon]\n\n[guard]\n[daemon]\n", "line 4, '[daemon]'"),
        ('[daemon]\nlog_level = "info\n', "line 2, 'log_level = \"info'"),
    ],
    ids=[
        "no equals sign",
        "no value",
        "list without an end",
        "key twice",
        "table twice",
        "string without an end",
    ],
)
def test_syntax_error_names_the_line(text: str, place: str) -> None:
    error = error_of(text)
    assert error.startswith(f"cthelper.toml: {place}: not TOML: ")
    assert len(error.splitlines()) == 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""core/discovery.toml and docs/television.md: protocols that are configured."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from cthelper import nft
from cthelper.core.api import UDP, Expect
from cthelper.core.config import Config, parse
from cthelper.core.registry import builtin_helpers
from cthelper.helpers.discovery import GroupQuery
from cthelper.testing import Line, play
from tests.core.builders import flow_tuple
from tests.pages import BLOCK, ROOT, blocks, commands, follow, lay_out, saved

PRESETS: Final = files("cthelper.core").joinpath("discovery.toml").read_text("utf-8")
PAGE: Final = (ROOT / "docs" / "television.md").read_text("utf-8")
ON: Final = "".join(
    f"[helpers.{name}]\nenabled = true\n"
    for name, each in builtin_helpers().items()
    if not each.template and not each.enabled
)

KASA: Final = bytes.fromhex(
    "d0f281f88bff9af7d5ef94b6d1b4c09fec95e68fe187e8caf08bf68bf6"
)
LIFX: Final = bytes.fromhex(
    "24000034839f3e7900000000000000000000000000000100000000000000000002000000"
)
YEELIGHT: Final = (
    b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1982\r\n"
    b'MAN: "ssdp:discover"\r\nST: wifi_bulb'
)
BJNP: Final = b"BJNP\1\1" + bytes(10)
SNMP: Final = bytes.fromhex(
    "302602010104067075626c6963a019020400000001020100020100300b"
)

# Where a query goes, its port, and its bytes; those of the clients that the file names
# as asked were taken off the wire as they sent them.
QUERIES: Final = {
    "kasa": ("255.255.255.255", 9999, KASA),
    "kasa, new": ("255.255.255.255", 20002, bytes.fromhex("0200000101e51100a284848d")),
    "lifx": ("192.0.2.255", 56700, LIFX),
    "gree": ("192.0.2.255", 7000, b'{"t": "scan"}'),
    "yeelight": ("239.255.255.250", 1982, YEELIGHT),
    "plex": ("239.0.0.250", 32414, b"M-SEARCH * HTTP/1.0"),
    "plex, broadcast": ("192.0.2.255", 32412, b"M-SEARCH * HTTP/1.1\r\n"),
    "jellyfin": ("255.255.255.255", 7359, b"Who is JellyfinServer?"),
    "govee": ("239.255.255.250", 4001, b'{"msg":{"cmd":"scan","data":{}}}'),
    "bjnp": ("192.0.2.255", 8611, BJNP),
    "bjnp, scanner": ("ff02::1", 8612, BJNP.replace(b"\1\1", b"\2\1")),
    "mssql": ("255.255.255.255", 1434, b"\x02"),
    "ubiquiti": ("233.89.188.1", 10001, bytes.fromhex("01000000")),
    "snmp-query": ("192.0.2.255", 161, SNMP),
}


def read(text: str) -> Config:
    return parse(text, Path("discovery.toml"), builtin_helpers())


def test_all_presets_go_together_and_with_all_helpers() -> None:
    config = read(PRESETS + ON)
    assert {each.partition(",")[0] for each in QUERIES} <= config.helpers.keys()
    assert nft.render(config).endswith("\n")


def test_each_preset_says_how_it_was_checked() -> None:
    tables = re.findall(r"((?:^#.*\n)+)\[helpers\.([\w-]+)\]", PRESETS, re.MULTILINE)
    assert [name for _, name in tables] == [
        name for name, each in read(PRESETS).helpers.items() if each.helper.name == name
    ][-len(tables) :]
    for comment, name in tables:
        words = " ".join(comment.replace("#", " ").split())
        assert re.search(r"(asked|source|reported)[:.] ?", words), name


@pytest.mark.parametrize("name", QUERIES)
def test_query_opens_a_port_of_the_asker(name: str) -> None:
    destination, port, payload = QUERIES[name]
    config = read(PRESETS).helpers[name.partition(",")[0]]
    source = "fe80::1" if ":" in destination else "192.0.2.1"
    original = flow_tuple(UDP, (source, 40000), (destination, port))
    assert config.tags(original)
    line = Line(original, config.options, group=True)
    (effect,) = play(config.helper(), [line.sent(payload)])
    assert isinstance(effect, Expect)
    govee = name == "govee"
    assert effect.endpoint.port == (4002 if govee else 40000)
    assert effect.source_port == (None if govee else port)
    assert play(config.helper(), [line.sent(b"\xff" + payload)]) == []


# The page.


def test_commands_give_what_the_page_shows(tmp_path: Path) -> None:
    follow(PAGE, lay_out(PAGE, tmp_path))


def test_every_block_of_the_page_is_tested() -> None:
    assert blocks(PAGE, "toml") == [text for _, text in saved(PAGE)]
    known = {"", "console", "nft", "toml"}
    assert {language for language, _ in BLOCK.findall(PAGE)} == known
    assert len(list(commands(PAGE))) == 5


def test_page_names_every_helper_of_queries_that_is_off() -> None:
    for name, each in builtin_helpers().items():
        # Compiled, issubclass() asks the base that all helpers have.
        if GroupQuery in each.__mro__ and not each.enabled:
            assert f"| `{name}` |" in PAGE


def test_configuration_of_the_page_makes_a_ruleset() -> None:
    for name, text in saved(PAGE):
        config = parse(text, Path(name), builtin_helpers())
        assert "camera" in config.helpers or "ssdp" in config.helpers
        nft.render(config)

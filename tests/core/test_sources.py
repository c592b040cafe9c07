# SPDX-License-Identifier: GPL-2.0-or-later
"""What a configuration is made of goes to another process as it was read."""

import os
from pathlib import Path

import pytest

from cthelper.core import registry
from cthelper.core.config import ConfigFile
from cthelper.core.errors import ConfigError, RegistryError
from cthelper.core.registry import Broken, Given, Point, find_helpers
from cthelper.core.sources import Sources, read_sources

PLUGIN = b"""from cthelper.core.api import Helper, Policy, Transport


class Answer(Helper):
    name = "answer"
    transports = frozenset({Transport.UDP})
    ports = (42,)
    policies = (Policy("one", 1, 30),)

    def on_message(self, message):
        yield from ()
"""


def configured(folder: Path) -> Path:
    file = folder / "cthelper.toml"
    file.write_text(f'[plugins]\nfolder = "{folder / "plugins"}"\n')
    (folder / "plugins").mkdir()
    return file


def test_file_and_plugins_are_read_and_handed_on(tmp_path: Path) -> None:
    file = configured(tmp_path)
    plugin = tmp_path / "plugins" / "answer.py"
    plugin.write_bytes(PLUGIN)
    for name in ("_hidden.py", "data.txt"):
        (tmp_path / "plugins" / name).write_text("x")
    sources = read_sources(file)
    assert sources.file == ConfigFile(file, file.read_text())
    assert sources.helpers.plugins == {plugin: PLUGIN}
    plugin.unlink()
    handed = Sources.unpacked(sources.packed())
    assert handed == sources
    found = find_helpers(given=handed.helpers)["answer"]
    assert (found.helper.ports, found.source) == ((42,), str(plugin))


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    points = [Point("x", "os:path", "os 1")]
    sources = Sources(
        ConfigFile(Path("/a/b.toml"), "é"),
        Given({Path("/p.py"): b"\xff\0"}, points, [Broken("y", "is bad")]),
    )
    assert Sources.unpacked(sources.packed()) == sources


def test_what_cannot_be_read_or_trusted_is_refused(tmp_path: Path) -> None:
    file = configured(tmp_path)
    plugin = tmp_path / "plugins" / "answer.py"
    plugin.symlink_to(tmp_path / "absent")
    with pytest.raises(RegistryError, match=r"answer\.py: cannot be read: No such"):
        read_sources(file)
    if os.geteuid() == 0:
        plugin.unlink()
        plugin.write_bytes(PLUGIN)
        plugin.chmod(0o666)
        with pytest.raises(RegistryError, match="others may write to it"):
            read_sources(file)
    file.write_text("[plugins]\nfolder = 1\n")
    with pytest.raises(ConfigError):
        read_sources(file)


def test_error_in_a_plugin_that_was_handed_names_its_file() -> None:
    with pytest.raises(RegistryError, match=r"/p\.py:2: ZeroDivisionError"):
        find_helpers(given=Given({Path("/p.py"): b"\n1 / 0\n"}, []))
    with pytest.raises(RegistryError, match=r"/p\.py: defines no helper"):
        find_helpers(given=Given({Path("/p.py"): b""}, []))


def test_nothing_that_was_not_given_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = find_helpers(given=Given({}, []))
    monkeypatch.setattr(registry, "installed_points", None)
    monkeypatch.setattr(registry, "read_folder", None)
    broken: list[Broken] = []
    given = Given({}, [Point("x", "os:path", "os 1")], [Broken("y", "is bad")])
    assert find_helpers(given=given, broken=broken) == before
    assert broken == [
        Broken("y", "is bad"),
        Broken(
            "x",
            "os 1: entry point x = 'os:path': must be a class of "
            "cthelper.core.api.Helper",
        ),
    ]

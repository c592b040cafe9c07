# SPDX-License-Identifier: GPL-2.0-or-later
"""What a configuration is made of, read at one time: its text, where helpers are, and
whose names modules of the kernel have.

Who may read the files hands it to processes that may not; all make the same of it.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cthelper.core.config import Config, ConfigFile, plugin_folder, read_file
from cthelper.core.registry import Broken, Given, Point, installed_points, read_folder


@dataclass(frozen=True, slots=True)
class Sources:
    """The configuration's file, and the helpers that are not built in.

    `modules` are the kernel's that have names of helpers, by these.
    """

    file: ConfigFile
    helpers: Given
    modules: Mapping[str, str] = field(default_factory=dict)

    def packed(self) -> bytes:
        """It, for another process."""
        plugins, points, broken = self.helpers
        code = {
            str(path): base64.b64encode(data).decode() for path, data in plugins.items()
        }
        file = [str(self.file.path), self.file.text]
        modules = dict(self.modules)
        return json.dumps([file, code, list(points), list(broken), modules]).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """What another process has packed."""
        (path, text), code, points, broken, modules = json.loads(data)
        return cls(
            ConfigFile(Path(path), text),
            Given(
                {Path(each): base64.b64decode(code[each]) for each in code},
                [Point(*each) for each in points],
                [Broken(*each) for each in broken],
            ),
            modules,
        )


@dataclass(frozen=True, slots=True)
class Declared:
    """A configuration whose plugins are known by what they declare.

    `sources`, packed, are what those make the same of who import them: what could not
    be examined is not among them.
    """

    config: Config
    sources: bytes


def read_sources(path: Path | None) -> Sources:
    """The configuration at `path`, see `read_file`, the plugins of its folder, and the
    entry points of what is installed.

    Raises ConfigError, and RegistryError for a plugin that cannot be read.
    """
    file = read_file(path)
    folder = plugin_folder(file)
    plugins = {} if folder is None else dict(read_folder(folder))
    return Sources(file, Given(plugins, *installed_points()))

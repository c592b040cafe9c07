# SPDX-License-Identifier: GPL-2.0-or-later
"""What a configuration is made of, read at one time: its text, and plugins' code.

Who may read the files hands it to processes that may not; all make the same of it.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cthelper.core.config import ConfigFile, plugin_folder, read_file
from cthelper.core.registry import read_folder


@dataclass(frozen=True, slots=True)
class Sources:
    """The configuration's file, and the plugins of its folder: their bytes by path."""

    file: ConfigFile
    plugins: Mapping[Path, bytes]

    def packed(self) -> bytes:
        """It, for another process."""
        plugins = {
            str(path): base64.b64encode(data).decode()
            for path, data in self.plugins.items()
        }
        return json.dumps([str(self.file.path), self.file.text, plugins]).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """What another process has packed."""
        path, text, plugins = json.loads(data)
        return cls(
            ConfigFile(Path(path), text),
            {Path(each): base64.b64decode(code) for each, code in plugins.items()},
        )


def read_sources(path: Path | None) -> Sources:
    """The configuration at `path`, see `read_file`, and the plugins of its folder.

    Raises ConfigError, and RegistryError for a plugin that cannot be read.
    """
    file = read_file(path)
    folder = plugin_folder(file)
    return Sources(file, {} if folder is None else dict(read_folder(folder)))

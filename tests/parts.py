# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of the set-up that only some tests need, and that may not be installed."""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Final

import pytest

# What reads the files of commands in bash, which by itself reads none.
BASH_COMPLETION: Final = "/usr/share/bash-completion/bash_completion"


@dataclass(frozen=True, slots=True)
class Part:
    """What has to be there, and the purpose for which script/setup installs it."""

    purpose: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def demand(self) -> None:
        """Skip the test that runs where something is missing; CI skips nothing."""
        missing = [
            *(each for each in self.packages if importlib.util.find_spec(each) is None),
            *(each for each in self.programs if shutil.which(each) is None),
            *(each for each in self.files if not os.path.exists(each)),
        ]
        if not missing:
            return
        why = f"not installed: {', '.join(missing)}: script/setup {self.purpose}"
        if os.environ.get("CI") == "true":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


PARTS: Final = {
    "bench": Part("bench", packages=("matplotlib",)),
    "browser": Part(
        "browser", packages=("selenium",), programs=("chromium", "chromedriver")
    ),
    "cluster": Part("cluster", packages=("distributed",)),
    "man": Part("test", programs=("man",)),
    "prometheus": Part(
        "metrics", programs=("prometheus", "promtool", "prometheus-node-exporter")
    ),
    "shells": Part("manual", programs=("zsh", "fish"), files=(BASH_COMPLETION,)),
    "site": Part("site", packages=("furo", "myst_parser", "sphinx")),
    "systemd": Part("test", programs=("systemd-analyze",)),
    "tmux": Part("test", programs=("tmux",)),
    "tshark": Part("test", programs=("tshark",)),
}
"""By the marker of the tests that need it."""

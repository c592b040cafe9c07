# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles of hypothesis: `dev` by default, `ci` where the environment has CI.

And ``--update-golden``, which has tests write their golden files anew, the extension in
C that CTHELPER_NATIVE names in place of the installed one (script/sanitize), and what
becomes of tests whose part of the set-up is not installed (`tests.parts`).
"""

import os

import pytest
from hypothesis import settings

from cthelper.core.cli import options
from cthelper.core.compiled import COMPILED
from tests import parts, sanitized

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("sanitize", max_examples=600, deadline=None)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)

sanitized.use_native()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files anew; look at what has changed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse the option where nobody looks."""
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden is for people, not for CI")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for the parts of the set-up that the test's markers name."""
    if COMPILED and item.get_closest_marker("interpreted") is not None:
        pytest.skip("puts something in the place of what compiled code calls directly")
    for name, part in parts.PARTS.items():
        if item.get_closest_marker(name) is not None:
            part.demand()


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written anew."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def _plain_names(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helpers have their own names, whatever this machine's kernel has built in."""
    if request.node.get_closest_marker("live") is None:
        monkeypatch.setattr(options, "loaded_module", {}.get)

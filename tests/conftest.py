# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles of hypothesis: `dev` by default, `ci` where the environment has CI.

And ``--update-golden``, which has tests write their golden files anew.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


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


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written anew."""
    return bool(request.config.getoption("--update-golden"))

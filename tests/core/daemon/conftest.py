# SPDX-License-Identifier: GPL-2.0-or-later
"""A supervisor for the tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.daemon.supervised import Running, running_in


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A supervisor that is still to be started."""
    yield from running_in(tmp_path, monkeypatch)

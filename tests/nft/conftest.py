# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixture of the tests that call nft."""

import os
from pathlib import Path

import pytest

from tests.nft.fake_nft import FakeNft


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNft:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return FakeNft(tmp_path)

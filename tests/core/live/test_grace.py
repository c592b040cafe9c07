# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for packets that are under way."""

import platform
import time

import pytest

from cthelper.core.live import grace


@pytest.mark.parametrize("number", [None, 1 << 20], ids=["unknown", "not there"])
def test_where_there_is_no_such_call_it_sleeps(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    numbers = {} if number is None else {platform.machine(): number}
    monkeypatch.setattr(grace, "_NUMBERS", numbers)
    monkeypatch.setattr(time, "sleep", slept.append)
    grace.wait_for_packets()
    assert slept == [grace._SECONDS]

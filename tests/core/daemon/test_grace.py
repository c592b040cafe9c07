# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for packets that are under way."""

import os
import platform
import time

import pytest

from cthelper.core.daemon import grace


@pytest.mark.parametrize(
    ("number", "processors"),
    [
        pytest.param(None, 2, id="unknown"),
        pytest.param(1 << 20, 2, id="not there"),
        pytest.param(grace._NUMBERS["x86_64"], 1, id="one processor"),
    ],
)
def test_where_the_call_does_not_wait_it_sleeps(
    number: int | None, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    numbers = {} if number is None else {platform.machine(): number}
    monkeypatch.setattr(grace, "_NUMBERS", numbers)
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(time, "sleep", slept.append)
    grace.wait_for_packets()
    assert slept == [grace._SECONDS]

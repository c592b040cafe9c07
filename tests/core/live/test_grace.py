# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for packets that are under way."""

import platform
import time

import pytest

from cthelper.core.live import grace


def test_this_kernel_knows_the_call() -> None:
    if platform.machine() in grace._NUMBERS:
        number = grace._NUMBERS[platform.machine()]
        assert grace._libc.syscall(number, grace._GLOBAL, 0, 0) == 0
    grace.wait_for_packets()


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

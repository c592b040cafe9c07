# SPDX-License-Identifier: GPL-2.0-or-later
"""Pauses that grow."""

import pytest

from cthelper.core.daemon.backoff import pause


@pytest.mark.parametrize(
    ("times", "seconds"), [(1, 1), (2, 2), (6, 32), (7, 60), (8, 60), (10**6, 60)]
)
def test_pause_is_doubled_each_time_up_to_a_minute(times: int, seconds: float) -> None:
    assert pause(1.0, times) == seconds

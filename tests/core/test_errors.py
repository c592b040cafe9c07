# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel refuses names the right that is missing."""

import errno
import os

import pytest

from cthelper.core import errors
from cthelper.core.errors import CAP_NET_ADMIN, advice, holds


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize(
    ("held", "user", "text"),
    [
        (False, 1000, "needs CAP_NET_ADMIN: run as root"),
        (
            False,
            0,
            "needs CAP_NET_ADMIN, which root does not have here: "
            "give it to the container or service",
        ),
        (
            True,
            0,
            "needs CAP_NET_ADMIN in the user namespace that this network belongs to",
        ),
    ],
    ids=["not root", "root without it", "root of another namespace"],
)
def test_missing_capability_is_named(
    monkeypatch: pytest.MonkeyPatch, number: int, held: bool, user: int, text: str
) -> None:
    monkeypatch.setattr(errors, "holds", lambda capability: held)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert advice(number) == text


def test_capabilities_are_those_that_the_kernel_tells() -> None:
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [each for each in file if each.startswith("CapEff:")]
    held = int(line.split()[1], 16)
    for number in range(CAP_NET_ADMIN + 1):
        assert holds(number) is bool(held >> number & 1)
    assert not holds(63)

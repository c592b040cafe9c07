# SPDX-License-Identifier: GPL-2.0-or-later
"""What the ledger is told of the kernel's table, and where the kernel says nothing."""

import errno
from pathlib import Path
from typing import Any

import pytest

from cthelper.core.daemon.expectation_table import ExpectationTable
from cthelper.core.errors import NetlinkError, Truncated
from cthelper.core.ledger import Room
from cthelper.core.tuples import Expectation
from tests.core.asking import asker, wished

(WISH,) = wished(asker(), 5000)


class Asked:
    """Answers with an expectation or a number, or raises."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def _say(self) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def covering(self, _expectation: Expectation) -> Any:
        return self._say()

    def expectation_count(self) -> Any:
        return self._say()


def table(answer: object, most: Path) -> ExpectationTable:
    return ExpectationTable(Asked(answer), most)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "lives"),
    [
        (WISH, True),
        (NetlinkError.of(errno.ENOENT, "get"), False),
        # Who does not know says that it is there.
        (NetlinkError.of(errno.EPERM, "get"), True),
    ],
)
def test_expectation_lives_unless_the_kernel_says_that_it_does_not(
    tmp_path: Path, answer: object, lives: bool
) -> None:
    assert table(answer, tmp_path / "absent").lives(WISH) is lives


def test_room_is_read_anew_each_time(tmp_path: Path) -> None:
    most = tmp_path / "most"
    most.write_text("120\n")
    asked = table(7, most)
    assert asked.room() == Room(7, 120)
    most.write_text("4096\n")
    assert asked.room() == Room(7, 4096)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (None, 7),
        ("", 7),
        ("many", 7),
        ("120", NetlinkError.of(errno.EPERM, "count")),
        ("120", Truncated("4 bytes")),
    ],
)
def test_room_that_the_kernel_does_not_tell_is_none(
    tmp_path: Path, text: str | None, answer: object
) -> None:
    most = tmp_path / "most"
    if text is not None:
        most.write_text(text)
    assert table(answer, most).room() is None

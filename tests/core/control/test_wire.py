# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket's lines."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.control.wire import Unreadable, line, lines
from cthelper.core.records import Record


def test_records_come_as_they_were_sent() -> None:
    sent: list[Record] = [{"a": 1}, {"b": ["ü", None]}]
    assert list(lines(io.BytesIO(b"".join(line(each) for each in sent)), 100)) == sent


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[]\n", "no JSON object"),
        (b"{\n", "no JSON"),
        (b"\xff\n", "no JSON"),
        (b"[" * 99 + b"\n", "no JSON"),
        (b'{"a": 1}', "cut off or too long"),
        (b'{"a": "' + b"x" * 100 + b'"}\n', "cut off or too long"),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        list(lines(io.BytesIO(data), 100))


@given(st.binary(max_size=300))
def test_any_bytes_are_records_or_unreadable(data: bytes) -> None:
    try:
        found = list(lines(io.BytesIO(data), 100))
    except Unreadable:
        return
    assert all(isinstance(each, dict) for each in found)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables and strategies that the tests of several helpers take their cases from."""

from typing import Final

import pytest
from hypothesis import strategies as st

unanswerable: Final = pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("198.51.100.1", "off-link"),
        ("0.0.0.0", "unspecified-address"),  # noqa: S104 - not a bind
        ("::", "unspecified-address"),
        ("127.0.0.1", "loopback-address"),
    ],
)
"""Askers that nobody on a link can answer, and what the refusal says."""


@st.composite
def damaged(draw: st.DrawFn, valid: st.SearchStrategy[bytes]) -> bytes:
    """The beginning of a message and any bytes after it."""
    whole = draw(valid)
    return whole[: draw(st.integers(0, len(whole)))] + draw(st.binary(max_size=80))

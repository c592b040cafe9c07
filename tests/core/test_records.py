# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows and endpoints read back from the words that tell of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.records import flow_record, read_endpoint, read_flow
from tests.core.builders import CLIENT6, SERVER6, endpoint, flow_tuple


@pytest.mark.parametrize(
    "flow",
    [flow_tuple(), flow_tuple(source=(CLIENT6, 1), destination=(SERVER6, 65535))],
)
def test_flow_is_read_as_it_was_told(flow: object) -> None:
    assert read_flow(flow_record(flow)) == flow  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "192.0.2.1", "192.0.2.1:", ":53", "192.0.2.1:65536", "192.0.2.1:²"),
        *("[192.0.2.1]:53", "::1:53", "[::1:53", "::1]:53", "[::1]", "host:53"),
    ],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_endpoint(text)


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    try:
        found = read_endpoint(text)
    except ValueError:
        return
    assert read_endpoint(str(found)) == found


def test_endpoint_is_read() -> None:
    assert read_endpoint("[::1]:53") == endpoint("::1", 53)

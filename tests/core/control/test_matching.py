# SPDX-License-Identifier: GPL-2.0-or-later
"""Which flows a filter means."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.control.matching import Ends, Filter
from cthelper.core.records import Record
from cthelper.core.tuples import TCP, UDP, Expectation
from tests.core.builders import endpoint, flow_tuple

FLOW = Ends.of(flow_tuple())
EXPECTED = Ends.expected(
    Expectation(
        master=flow_tuple(),
        transport=UDP,
        source=ip_network("192.0.2.0/24"),
        source_port=None,
        destination=endpoint("198.51.100.2", 2049),
        policy=None,
        timeout=1,
    )
)


@pytest.mark.parametrize(
    ("record", "flow", "expected"),
    [
        ({}, True, True),
        ({"transport": "tcp"}, True, False),
        ({"transport": "udp"}, False, True),
        ({"source": "192.0.2.1"}, True, True),
        ({"source": "192.0.2.7"}, False, True),
        ({"source": "192.0.0.0/16"}, True, True),
        ({"source": "198.51.100.2"}, False, False),
        ({"source": "2001:db8::/32"}, False, False),
        ({"destination": "198.51.100.0/24"}, True, True),
        ({"sport": 40000}, True, False),
        ({"sport": 40000, "dport": 7000}, True, False),
        ({"dport": 7000}, True, False),
        ({"dport": 2049}, False, True),
        ({"transport": "tcp", "dport": 7000, "sport": 1}, False, False),
    ],
)
def test_flow_or_what_is_expected_is_meant(
    record: Record, flow: bool, expected: bool
) -> None:
    found = Filter.read(record)
    assert (found.admits(FLOW), found.admits(EXPECTED)) == (flow, expected)
    assert Filter.read(found.record()) == found


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ([], "the filter is no object"),
        ({"port": 1}, "the filter has no key port"),
        ({"transport": "sctp"}, "sctp is neither tcp nor udp"),
        ({"source": "10.0.0.1/8"}, "has host bits set"),
        ({"source": 7}, "source is no text"),
        ({"dport": 65536}, "dport 65536 is no number from 0 to 65535"),
        ({"dport": True}, "dport True is no number"),
        ({"state": "open"}, "open is no state: NONE, SYN_SENT"),
    ],
)
def test_what_is_wrong_is_said(record: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Filter.read(record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
)


@given(
    st.dictionaries(
        st.sampled_from(["transport", "source", "destination", "sport", "zone", "x"]),
        JSON | st.sampled_from(["tcp", "10.0.0.0/8", "::1"]),
    )
)
def test_any_request_is_a_filter_or_an_error(record: Record) -> None:
    try:
        found = Filter.read(record)
    except ValueError:
        return
    found.admits(FLOW)


def test_ends_are_read_from_what_was_told() -> None:
    assert (
        Ends.told(
            {
                "transport": "tcp",
                "source": "192.0.2.1:40000",
                "destination": "198.51.100.2:7000",
            }
        )
        == FLOW
    )
    told = {
        "transport": "tcp",
        "source": None,
        "source_port": 7,
        "destination": "[::1]:9",
    }
    assert Ends.told(told) == (TCP, None, 7, endpoint("::1", 9).address, 9)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a flow was not expected, from histories made by hand."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.nearest import (
    Control,
    End,
    Moment,
    Pattern,
    Wish,
    fits,
    hints,
    nearest,
)
from cthelper.core.tuples import TCP, UDP, Tuple
from tests.core.builders import CLIENT, SERVER, endpoint, flow_tuple

OTHER: Final = "192.0.2.50"
NETWORK: Final = ip_network("192.0.2.0/24")
# An answer to what the client asked from port 40500.
ANSWER: Final = flow_tuple(UDP, ("192.0.2.9", 5353), (CLIENT, 40500))
PATTERN: Final = Pattern(UDP, NETWORK, 5353, endpoint(CLIENT, 40500))


def at(frame: int) -> Moment:
    return Moment(frame / 10, frame, f"in frame {frame}")


NOW: Final = at(50)


def wish(
    pattern: Pattern = PATTERN,
    *asked: int,
    refusal: str | None = None,
    end: End | None = None,
    ended: Moment | None = None,
) -> Wish:
    moments = [at(each) for each in asked or (1,)]
    return Wish("mdns", pattern, "what was asked", moments, refusal, end, ended)


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (
            flow_tuple(UDP, ("203.0.113.9", 5353), (CLIENT, 40500)),
            "its source 203.0.113.9 is not in 192.0.2.0/24",
        ),
        (
            flow_tuple(UDP, ("192.0.2.9", 20215), (CLIENT, 40500)),
            "the flow comes from port 20215, not 5353",
        ),
        (
            flow_tuple(TCP, ("192.0.2.9", 5353), (CLIENT, 40500)),
            "the flow is tcp, not udp",
        ),
        (
            flow_tuple(UDP, ("192.0.2.9", 5353), (CLIENT, 40501)),
            "the flow goes to port 40501",
        ),
        (
            flow_tuple(UDP, ("192.0.2.9", 5353), (OTHER, 40500)),
            f"the flow goes to {OTHER}, another address",
        ),
        (
            flow_tuple(UDP, ("2001:db8::9", 5353), ("2001:db8::1", 40500)),
            "the flow is IPv6, not IPv4",
        ),
        (
            flow_tuple(TCP, ("203.0.113.9", 1), (CLIENT, 40500)),
            "the flow is tcp, not udp; its source 203.0.113.9 is not in 192.0.2.0/24; "
            "the flow comes from port 1, not 5353",
        ),
    ],
    ids=[
        *("source", "source port", "transport", "port", "address", "IPv6", "several"),
    ],
)
def test_what_does_not_fit_is_said(flow: Tuple, said: str) -> None:
    near = nearest(flow, NOW, [wish()])
    assert near is not None
    assert str(near) == f"mdns expected what was asked in frame 1: {said}"
    assert not near.exact


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            wish(end=End.TIMEOUT, ended=Moment(3.1, 0, "at 3.100000 s")),
            "expected what was asked in frame 1: it ended at 3.100000 s",
        ),
        (
            wish(PATTERN, 1, 4, 9, end=End.USED_UP, ended=at(19)),
            "expected what was asked in frame 1, again in frame 4 and in frame 9: it "
            "was for one flow, and used up in frame 19",
        ),
        (
            wish(end=End.MASTER, ended=at(30)),
            "expected what was asked in frame 1: it ended in frame 30, with the flow "
            "that announced it",
        ),
        (
            wish(end=End.EVICTED, ended=at(7)),
            "expected what was asked in frame 1: it was evicted in frame 7, by a later "
            "one of its flow (max_expected of the policy)",
        ),
        (
            wish(end=End.WITHDRAWN, ended=at(1)),
            "expected what was asked in frame 1: it was withdrawn in frame 1",
        ),
        (
            wish(refusal="low-port: port 80"),
            "asked for what was asked in frame 1: refused, low-port: port 80",
        ),
        (
            wish(PATTERN, 51),
            "expected what was asked in frame 51: the flow had begun before, in frame "
            "50, and meets nothing more",
        ),
    ],
    ids=["timeout", "used up", "master", "evicted", "withdrawn", "refused", "late"],
)
def test_flow_that_was_meant_is_told_what_became_of_it(found: Wish, said: str) -> None:
    near = nearest(ANSWER, NOW, [found])
    assert near is not None
    assert str(near) == f"mdns {said}"
    assert near.exact


@pytest.mark.parametrize(
    "flow",
    [
        flow_tuple(UDP, ("203.0.113.9", 5353), (CLIENT, 40501)),
        flow_tuple(UDP, ("192.0.2.9", 53), (OTHER, 40500)),
        flow_tuple(TCP, ("192.0.2.9", 5353), (CLIENT, 22)),
        flow_tuple(UDP, ("192.0.2.9", 5353), (SERVER, 40501)),
    ],
)
def test_flow_with_which_a_wish_has_little_in_common_is_not_near(flow: Tuple) -> None:
    assert nearest(flow, NOW, [wish()]) is None
    assert nearest(flow, NOW, []) is None


def test_fewest_misfits_count_and_then_the_latest() -> None:
    far = wish(PATTERN._replace(transport=TCP, source_port=1))
    ended = wish(end=End.TIMEOUT, ended=at(20))
    later = wish(PATTERN, 30, end=End.USED_UP, ended=at(40))
    port = wish(PATTERN._replace(source_port=1), 45)
    for order in ([far, ended, later, port], [port, later, ended, far]):
        near = nearest(ANSWER, NOW, order)
        assert near is not None
        assert near.wish is later
    near = nearest(ANSWER, NOW, [far, port])
    assert near is not None
    assert near.wish is port


def test_networks_that_one_message_opened_are_named_together() -> None:
    away = flow_tuple(UDP, ("203.0.113.9", 5353), (CLIENT, 40500))
    other = wish(PATTERN._replace(source=ip_network("198.51.100.0/24")))
    elsewhere = wish(PATTERN._replace(source=ip_network("10.0.0.0/8")), 2, refusal="no")
    near = nearest(away, NOW, [elsewhere, wish(), other])
    assert near is not None
    assert near.misfits == (
        "its source 203.0.113.9 is not in 192.0.2.0/24 or 198.51.100.0/24",
    )


def test_wish_that_is_renewed_without_end_stays_small() -> None:
    found = wish(PATTERN, 1)
    for frame in range(2, 1000):
        found.ask_again(at(frame))
    assert len(found.asked) < 10
    assert (found.asked[0], found.asked[-1]) == (at(1), at(999))


def control(flow: Tuple, *troubles: str, read: int | None = 1) -> Control:
    found = Control("sunrpc", flow, None if read is None else at(read))
    for each in troubles:
        found.trouble(each, at(3))
    return found


QUERY: Final = flow_tuple(UDP, (CLIENT, 40500), ("224.0.0.251", 5353))
BETWEEN: Final = flow_tuple(TCP, (CLIENT, 700), ("192.0.2.9", 111))


def test_query_that_asked_for_nothing_is_named() -> None:
    assert list(hints(ANSWER, [control(QUERY)])) == [
        f"helper sunrpc read {QUERY} in frame 1, and asked for nothing"
    ]


def test_trouble_between_the_two_hosts_is_named() -> None:
    assert list(hints(ANSWER, [control(BETWEEN, "malformed, x", "refused, y")])) == [
        f"helper sunrpc, {BETWEEN}: malformed, x in frame 3; refused, y in frame 3"
    ]


def test_other_control_flows_are_not() -> None:
    asked = control(QUERY)
    asked.asked = at(2)
    others = [
        asked,
        control(QUERY, read=None),
        control(BETWEEN),
        control(replace(BETWEEN, destination=endpoint(OTHER, 111)), "malformed, x"),
        control(replace(QUERY, transport=TCP)),
    ]
    assert list(hints(ANSWER, others)) == []


def test_troubles_without_end_stay_few() -> None:
    found = control(BETWEEN, *map(str, range(1000)))
    assert len(found.troubles) == 4
    assert found.troubles[-1] == "999 in frame 3"


addresses = st.sampled_from([CLIENT, OTHER, SERVER, "192.0.2.9", "192.0.2.77"])
ends = st.tuples(addresses, st.sampled_from([1, 5353, 40500]))
flows = st.builds(flow_tuple, st.sampled_from([TCP, UDP]), ends, ends)
patterns = st.builds(
    lambda flow, wide, port: Pattern(
        flow.transport,
        {"any": None, "network": NETWORK}.get(wide, ip_network(flow.source.address)),
        flow.source.port if port else None,
        flow.destination,
    ),
    flows,
    st.sampled_from(["any", "network", "host"]),
    st.booleans(),
)


@given(flows, st.lists(patterns, max_size=6))
def test_flow_that_fits_what_lives_needs_no_explanation(
    flow: Tuple, wanted: list[Pattern]
) -> None:
    near = nearest(flow, NOW, [wish(each) for each in wanted])
    met = any(fits(each, flow) for each in wanted)
    assert near is None or (not met and near.misfits and not near.exact)


def test_flow_of_the_other_version_to_another_port_is_not_near() -> None:
    flow = flow_tuple(UDP, ("2001:db8::9", 5353), ("2001:db8::1", 40501))
    assert nearest(flow, NOW, [wish()]) is None


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (PATTERN, f"udp 192.0.2.0/24 port 5353 > {CLIENT}:40500"),
        (
            Pattern(TCP, ip_network(OTHER), None, endpoint(SERVER, 1)),
            f"tcp {OTHER} > {SERVER}:1",
        ),
        (Pattern(TCP, None, None, endpoint(SERVER, 1)), f"tcp any > {SERVER}:1"),
    ],
)
def test_pattern_reads_as_an_expectation_does(pattern: Pattern, text: str) -> None:
    assert str(pattern) == text

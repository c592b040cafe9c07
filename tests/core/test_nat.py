# SPDX-License-Identifier: GPL-2.0-or-later
"""What is granted on translated flows, and rewrites of a payload."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import Rewrite
from cthelper.core.errors import ExpectationRefused, HelperFault
from cthelper.core.nat import Opening, grant, rewritten
from cthelper.core.tuples import ORIGINAL, REPLY, TCP, Conntrack, Direction
from tests.core.builders import (
    CLIENT,
    CLIENT_PORT,
    SERVER,
    SERVER_PORT,
    conntrack,
    endpoint,
    flow_tuple,
)

PUBLIC = "203.0.113.9"

PLAIN = conntrack()
MASQUERADED = conntrack(
    reply=flow_tuple(TCP, (SERVER, SERVER_PORT), (PUBLIC, CLIENT_PORT))
)
FORWARDED = conntrack(
    original=flow_tuple(TCP, (CLIENT, CLIENT_PORT), (PUBLIC, SERVER_PORT)),
    reply=flow_tuple(TCP, (SERVER, SERVER_PORT), (CLIENT, CLIENT_PORT)),
)
PORT_TRANSLATED = conntrack(
    reply=flow_tuple(TCP, (SERVER, SERVER_PORT), (CLIENT, CLIENT_PORT + 1))
)


@pytest.mark.parametrize(
    ("entry", "direction", "announced", "receiver"),
    [
        (PLAIN, ORIGINAL, CLIENT, SERVER),
        (PLAIN, REPLY, SERVER, CLIENT),
        (MASQUERADED, REPLY, SERVER, CLIENT),
        (FORWARDED, ORIGINAL, CLIENT, SERVER),
        (PORT_TRANSLATED, ORIGINAL, CLIENT, SERVER),
    ],
    ids=[
        "no NAT, original",
        "no NAT, reply",
        "masquerade of the receiver",
        "DNAT of the receiver",
        "only the port of the flow is translated",
    ],
)
def test_receiver_opens_the_flow_from_its_own_address(
    entry: Conntrack, direction: Direction, announced: str, receiver: str
) -> None:
    wanted = endpoint(announced, 5000)
    opening = grant(entry, direction, wanted)
    assert opening == Opening(endpoint(receiver, 0).address, wanted)


@pytest.mark.parametrize(
    ("entry", "direction", "detail"),
    [
        (FORWARDED, REPLY, f"{SERVER} is translated to {PUBLIC}"),
        (MASQUERADED, ORIGINAL, f"{CLIENT} is translated to {PUBLIC}"),
    ],
    ids=["DNAT of the announcer", "SNAT of the announcer"],
)
def test_translated_announcer_is_refused(
    entry: Conntrack, direction: Direction, detail: str
) -> None:
    announced = SERVER if direction is REPLY else CLIENT
    with pytest.raises(ExpectationRefused) as caught:
        grant(entry, direction, endpoint(announced, 5000))
    assert (caught.value.reason, caught.value.detail) == ("nat", detail)


@pytest.mark.parametrize(
    ("rewrites", "result"),
    [
        ([], b"0123456789"),
        ([Rewrite((2, 4), b"ab")], b"01ab456789"),
        ([Rewrite((2, 4), b"")], b"01456789"),
        ([Rewrite((10, 10), b"ab")], b"0123456789ab"),
        ([Rewrite((0, 10), b"")], b""),
        ([Rewrite((1, 2), b"long"), Rewrite((8, 9), b"")], b"0long2345679"),
        ([Rewrite((8, 9), b""), Rewrite((1, 2), b"long")], b"0long2345679"),
        ([Rewrite((2, 4), b"ab"), Rewrite((4, 6), b"c")], b"01abc6789"),
    ],
    ids=[
        "none",
        "same length",
        "shorter",
        "at the end",
        "everything",
        "several",
        "several, last one first",
        "side by side",
    ],
)
def test_spans_count_from_the_old_payload(
    rewrites: list[Rewrite], result: bytes
) -> None:
    assert rewritten(b"0123456789", rewrites) == result


@pytest.mark.parametrize(
    "spans",
    [
        [(2, 5), (4, 6)],
        [(4, 6), (2, 5)],
        [(2, 8), (3, 4)],
        [(2, 4), (2, 4)],
        [(2, 4), (3, 3)],
        [(9, 11)],
        [(11, 12)],
        [(-1, 2)],
        [(4, 2)],
    ],
    ids=str,
)
def test_span_that_overlaps_or_leaves_is_the_helpers_fault(
    spans: list[tuple[int, int]],
) -> None:
    with pytest.raises(HelperFault, match="overlaps another or leaves it"):
        rewritten(b"0123456789", [Rewrite(span, b"x") for span in spans])


@given(st.binary(max_size=40), st.data())
def test_rewritten_is_the_pieces_joined(payload: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(payload)), max_size=8)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    rewrites = [Rewrite(span, data.draw(st.binary(max_size=4))) for span in spans]
    wanted, position = b"", 0
    for rewrite in rewrites:
        wanted += payload[position : rewrite.span[0]] + rewrite.data
        position = rewrite.span[1]
    wanted += payload[position:]
    assert rewritten(payload, data.draw(st.permutations(rewrites))) == wanted

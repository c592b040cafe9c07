# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made of remembered events, and of what lives."""

from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any, Final

import pytest

from cthelper.core.control.memory import Memory, ago, read_pattern
from cthelper.core.nearest import Pattern
from cthelper.core.records import flow_record
from cthelper.core.tuples import TCP, UDP, Tuple
from tests.core.builders import CLIENT, SERVER, endpoint, flow_tuple

NOW: Final = 1_800_000_000.0
MASTER: Final = flow_tuple(UDP, (CLIENT, 700), (SERVER, 111))
FLOW: Final = flow_tuple(TCP, (CLIENT, 40000), (SERVER, 7001))
EXPECTS: Final = {
    "transport": "tcp",
    "source": CLIENT,
    "source_port": None,
    "destination": f"{SERVER}:7001",
}


def event(name: str, age: float, **more: object) -> dict[str, Any]:
    then = datetime.fromtimestamp(NOW - age, UTC).isoformat(timespec="milliseconds")
    return {
        **{"time": then, "event": name, "helper": "sunrpc"},
        "flow": flow_record(MASTER),
        **more,
    }


def announced(
    age: float, *, timeout: int = 300, permanent: bool = False, **expects: object
) -> dict[str, Any]:
    return event(
        *("expectation", age),
        expects={**EXPECTS, **expects},
        timeout=timeout,
        permanent=permanent,
    )


def lives(**more: object) -> dict[str, Any]:
    return {
        **{"helper": "sunrpc", "flow": flow_record(MASTER), "zone": 0},
        **{"expects": EXPECTS, "permanent": True, "timeout": 200, "policy": "service"},
        **more,
    }


def memory(
    *events: dict[str, Any],
    live: tuple[dict[str, Any], ...] = (),
    masters: tuple[Tuple, ...] = (MASTER,),
) -> Memory:
    return Memory(NOW, live, set(masters), events)


REFUSED: Final = event(
    *("refused", 5),
    reason="denied-port",
    detail="port 7001 is denied",
    endpoint=f"{SERVER}:7001",
    transport="tcp",
)
WITHDRAWN: Final = event("expectation-withdrawn", 3, expects=EXPECTS, flows=0)
SHOWN: Final = f"sunrpc expected tcp {CLIENT} > {SERVER}:7001 (in {MASTER})"


@pytest.mark.parametrize(
    ("events", "masters", "said"),
    [
        ([announced(400)], [MASTER], "6 min ago: it ended 100 s ago, after its 300 s"),
        (
            [announced(400, permanent=True), announced(310, permanent=True)],
            [MASTER],
            "6 min ago, again 5 min ago: it ended 10 s ago, after its 300 s",
        ),
        ([announced(9)], [MASTER], "9 s ago: it was for one flow, and used up since"),
        ([announced(9)], [], "it ended since then, with the flow that announced it"),
        (
            [announced(9, permanent=True)],
            [MASTER],
            "it ended since then, before its time",
        ),
        ([announced(9), WITHDRAWN], [MASTER], "9 s ago: it was withdrawn 3 s ago"),
        (
            [event("refused", 2, reason="kernel-emfile", detail="x", expects=EXPECTS)],
            [MASTER],
            "2 s ago: refused, kernel-emfile: x",
        ),
        (
            [REFUSED],
            [MASTER],
            f"asked for a flow over tcp to {SERVER}:7001 (in {MASTER}) 5 s ago: "
            "refused, denied-port: port 7001 is denied",
        ),
        (
            [{**REFUSED, "transport": None}],  # of a daemon that does not say it
            [MASTER],
            "the flow is tcp, not udp; refused, denied-port",
        ),
        (
            [announced(9, source="10.0.0.0/8")],
            [MASTER],
            f"its source {CLIENT} is not in 10.0.0.0/8",
        ),
    ],
    ids=[
        *("time over", "renewed", "met", "its flow ended", "deleted", "withdrawn"),
        *("refused by the kernel", "by the guard", "by an old one", "another source"),
    ],
)
def test_nearest_says_what_became_of_it(
    events: list[dict[str, Any]], masters: list[Tuple], said: str
) -> None:
    found = memory(*events, masters=tuple(masters))
    assert found.admitting(FLOW, any_port=False) == []
    told = str(found.nearest(FLOW, any_port=False))
    assert said in told


def test_what_was_withdrawn_may_be_announced_again() -> None:
    found = memory(announced(9), WITHDRAWN, announced(1), live=(lives(),))
    assert len(found.admitting(FLOW, any_port=False)) == 1
    assert found.nearest(FLOW, any_port=False) is None


def test_events_of_several_processes_are_put_in_order() -> None:
    again = announced(1, timeout=0), WITHDRAWN, announced(9)
    assert "it ended 1 s ago" in str(memory(*again).nearest(FLOW, any_port=False))


def test_withdrawn_for_one_of_several_it_lives() -> None:
    partly = {**WITHDRAWN, "flows": 1}
    found = memory(announced(9, permanent=True), partly, live=(lives(),))
    assert found.nearest(FLOW, any_port=False) is None


def test_what_lives_is_known_without_an_event() -> None:
    other = flow_tuple(TCP, ("192.0.2.77", 1), (SERVER, 7001))
    found = memory(live=(lives(),))
    assert str(found.nearest(other, any_port=False)) == (
        f"{SHOWN} with 200 s left: its source 192.0.2.77 is not in {CLIENT}"
    )
    byhand = memory(live=(lives(helper=None),)).nearest(other, any_port=False)
    assert str(byhand).startswith("another program expected")
    assert memory().nearest(other, any_port=False) is None


def test_source_port_counts_where_it_is_known() -> None:
    bound = lives(expects={**EXPECTS, "source_port": 53})
    found = memory(live=(bound,))
    assert len(found.admitting(FLOW, any_port=True)) == 1
    assert found.admitting(FLOW, any_port=False) == []
    near = str(found.nearest(FLOW, any_port=False))
    assert near.endswith("the flow comes from port 40000, not 53")


def test_troubles_are_of_their_control_flow() -> None:
    found = memory(
        event("malformed", 9, detail="too short"),
        event("finished", 8, reason="gap", detail=""),
        event("finished", 7, reason="done", detail=""),
        event("helper-fault", 6, error="KeyError"),
        event("refused", 5, reason="off-link", detail="far away", endpoint=None),
    )
    (control,) = found.controls
    assert control.flow == MASTER
    assert control.troubles == [
        "malformed, too short 9 s ago",
        "read no longer, gap, since what came 8 s ago",
        "a bug of the helper, KeyError 6 s ago",
        "refused, off-link: far away 5 s ago",
    ]


def test_pattern_is_read_as_it_was_told() -> None:
    assert read_pattern(EXPECTS) == Pattern(
        TCP, ip_network(CLIENT), None, endpoint(SERVER, 7001)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_time_has_its_largest_unit(seconds: float, text: str) -> None:
    assert ago(seconds) == text

# SPDX-License-Identifier: GPL-2.0-or-later
"""Events of replays, made by hand, for the tests of the page."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final

from cthelper.core.api import DONE, Expect, Rewrite
from cthelper.core.grants import How
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    FaultEvent,
    FinishedEvent,
    FlowEvent,
    MalformedEvent,
    MessageEvent,
    Notice,
    RefusedEvent,
    RelatedEvent,
    Summary,
    WithdrawnEvent,
)
from cthelper.core.tuples import ORIGINAL, REPLY, TCP, UDP, Expectation
from tests.core.builders import CLIENT, SERVER, endpoint, flow_tuple

HOSTILE: Final = (
    "</script><img src=http://192.0.2.9/x onerror=\"document.title='owned'\"><!--"
)

CONTROL: Final = flow_tuple()
DATA: Final = flow_tuple(source=(CLIENT, 40001), destination=(SERVER, 43173))

_ASKED: Final = Expect(endpoint(SERVER, 43173), "data")

CALL: Final = MessageEvent(
    frame=4,
    time=0.25,
    helper="line",
    flow=CONTROL,
    direction=ORIGINAL,
    payload=b"OPEN?\n",
    fields={"type": "call"},
    effects=(),
)
ANNOUNCEMENT: Final = MessageEvent(
    frame=6,
    time=0.5,
    helper="line",
    flow=CONTROL,
    direction=REPLY,
    payload=b"OPEN 43173\n" + bytes(range(16)),
    fields={"type": "reply", "port": "43173"},
    effects=(_ASKED, Rewrite((5, 10), b"43173"), DONE),
)
EXPECTATION: Final = ExpectationEvent(
    frame=6,
    time=0.5,
    helper="line",
    direction=REPLY,
    expectation=Expectation(
        master=CONTROL,
        transport=TCP,
        source=ip_network(f"{CLIENT}/32"),
        source_port=None,
        destination=endpoint(SERVER, 43173),
        policy="data",
        timeout=60,
    ),
    how=How.CREATED,
    flows=1,
)
RELATED: Final = RelatedEvent(
    frame=9, time=0.75, expectation_frame=6, helper="line", flow=DATA
)
WITHDRAWN: Final = WithdrawnEvent(
    frame=12,
    time=1.0,
    helper="line",
    expectation=EXPECTATION.expectation,
    flows=0,
)
REFUSED: Final = RefusedEvent(
    frame=14,
    time=1.5,
    helper="line",
    reason="port-zero",
    detail="port 0 cannot be expected",
    wish=Expect(endpoint(SERVER, 0), "data", source=ip_network("192.0.2.0/24")),
    peer=ip_address(CLIENT),
    transport=UDP,
)
MALFORMED: Final = MalformedEvent(
    frame=15, time=1.75, helper="line", reason="port 70000 is over 65535"
)
FAULT: Final = FaultEvent(
    frame=16, time=1.8, helper="line", error="KeyError: 7", where="line.py:12"
)
FINISHED: Final = FinishedEvent(
    frame=17,
    time=1.85,
    helper="line",
    flow=CONTROL,
    reason="gap",
    detail="7 bytes wait beyond a missing segment",
)
CONTROL_FLOW: Final = FlowEvent(
    frame=1,
    time=0.0,
    last_frame=20,
    last_time=2.0,
    flow=CONTROL,
    helper="line",
    packets=14,
    finished="gap",
)
DATA_FLOW: Final = FlowEvent(
    frame=9,
    time=0.75,
    last_frame=18,
    last_time=1.9,
    flow=DATA,
    helper=None,
    packets=1,
    finished=None,
)
SUMMARY: Final = Summary(
    packets=20, flows=2, expectations=1, related=1, refused=1, malformed=1, finished=1
)

STORY: Final[tuple[Event, ...]] = (
    Notice(text="a.pcap: cut short"),
    CALL,
    ANNOUNCEMENT,
    EXPECTATION,
    RELATED,
    REFUSED,
    MALFORMED,
    FAULT,
    FINISHED,
    DATA_FLOW,
    CONTROL_FLOW,
    SUMMARY,
)


def hostile() -> tuple[str, tuple[Event, ...]]:
    """A label and events whose every text tries to become markup."""
    return HOSTILE, (
        Notice(text=HOSTILE),
        replace(
            ANNOUNCEMENT,
            helper=HOSTILE,
            payload=HOSTILE.encode(),
            fields={HOSTILE: HOSTILE},
            effects=(Expect(endpoint(SERVER, 43173), HOSTILE),),
        ),
        replace(
            EXPECTATION,
            helper=HOSTILE,
            expectation=replace(
                EXPECTATION.expectation, policy=HOSTILE, helper=HOSTILE
            ),
        ),
        replace(REFUSED, helper=HOSTILE, reason=HOSTILE, detail=HOSTILE),
        replace(MALFORMED, helper=HOSTILE, reason=HOSTILE),
        replace(FAULT, helper=HOSTILE, error=HOSTILE, where=HOSTILE),
        replace(FINISHED, helper=HOSTILE, reason=HOSTILE, detail=HOSTILE),
        replace(CONTROL_FLOW, helper=HOSTILE, finished=HOSTILE),
        SUMMARY,
    )


def many(count: int) -> tuple[Event, ...]:
    """So many messages, twenty to a flow, and what goes with them."""
    events: list[Event] = []
    for flow in range(count // 20):
        first = 1 + flow * 20
        control = flow_tuple(source=(CLIENT, 1024 + flow))
        events += [
            replace(CALL, frame=first + step, time=(first + step) / 100, flow=control)
            for step in range(20)
        ]
        events.append(
            replace(
                CONTROL_FLOW,
                frame=first,
                time=first / 100,
                last_frame=first + 19,
                last_time=first / 100 + 0.19,
                flow=control,
            )
        )
    return tuple(events)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks that want to exhaust: CPU, memory, the flow table, expectations, the log.

Nothing is unbounded; what would exceed its bound opens nothing, or is read no more, and
honest sessions go on. Limits are stated as parts of what the kernel has, so that they
hold whatever the configuration's defaults are.
"""

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import pytest

from cthelper.core.tuples import UDP
from tests.attacks import floods, wire
from tests.attacks.honest import SESSIONS
from tests.attacks.scene import (
    MOST_CALLS,
    Attack,
    Scene,
    Step,
    honest,
    perform,
)
from tests.attacks.wire import (
    ATTACKER,
    CONNECT,
    EVIL,
    GATEWAY,
    HONEST,
    HONEST_SERVER,
    Connection,
    address_of,
    datagram,
    redirect,
    udp_flow,
)
from tests.cases import cases

# Work

_OWN: Final = frozenset(
    f"{transport} {ATTACKER} > {EVIL}:{port}"
    for transport in ("tcp", "udp")
    for port in range(20_000, 21_000)
)
"""What the attacker may have of his own server."""

WORK: Final = {
    "packets of 8 bytes (TNS)": Attack(
        helper="tns",
        steps=floods.tns_small_packets,
        says=("finished.nothing-announced",),
    ),
    "replies to no call (RPC)": Attack(
        helper="sunrpc",
        steps=floods.rpc_unknown_replies,
        says=("finished.too-many-messages",),
    ),
    "fragments of nothing (RPC)": Attack(
        helper="sunrpc", steps=floods.rpc_empty_fragments, says=("malformed",)
    ),
    "a list of 58 KB (RPC)": Attack(
        helper="sunrpc", steps=floods.rpc_long_list, opens=_OWN, silent=True
    ),
    "lines of 2 bytes (FTP)": Attack(
        helper="ftp", steps=floods.ftp_short_lines, says=("finished.too-many-messages",)
    ),
    "1,200 commands that nobody answers (FTP)": Attack(
        helper="ftp",
        steps=lambda: floods.ftp_many_passives(20),
        opens=_OWN,
        says=("refused.unasked",),
    ),
    "12,000 questions (mDNS)": Attack(
        helper="mdns",
        steps=floods.mdns_many_questions,
        opens=frozenset({f"udp {wire.LINK} port 5353 > {GATEWAY}:40005"}),
        silent=True,
    ),
    "a nested redirect (TNS)": Attack(
        helper="tns", steps=floods.tns_nested_descriptor, says=("malformed",)
    ),
    "a redirect to many hosts (TNS)": Attack(
        helper="tns",
        steps=floods.tns_many_addresses,
        says=("refused.third-party-address",),
    ),
}


@cases("attack", WORK)
def test_no_packet_costs_more_than_a_millisecond(attack: Attack) -> None:
    perform(attack)


@cases(
    "helper, flood",
    {
        "TNS": ("tns", floods.tns_small_packets),
        "RPC": ("sunrpc", floods.rpc_unknown_replies),
        "FTP": ("ftp", floods.ftp_short_lines),
    },
)
def test_flow_of_dear_packets_is_soon_read_no_more(
    helper: str, flood: Callable[[int], Iterator[bytes]]
) -> None:
    scene = Scene()
    scene.play(flood(20))
    scene.wait(2.0)
    before = scene.cost.packets
    scene.play(list(flood(40))[-20:])
    assert scene.cost.packets == before, "packets of a finished flow are queued"
    honest(scene, SESSIONS[helper], 1)


@pytest.mark.interpreted
def test_source_above_its_share_is_inspected_no_more_and_others_are() -> None:
    scene = Scene("budget.source_cpu = 5")
    session = SESSIONS["tns"]
    honest(scene, session, 1)
    # Each flow is soon read no more, and there is ever another one.
    for number in range(600):
        scene.play(floods.tns_small_packets(port=1024 + number))
        scene.wait(0.0002)
    honest(scene, session, 2)
    scene.wait(1.0)
    assert scene.counters["uninspected.source-cpu"] > 100
    assert {"uninspected.source-cpu", "overspent.source-cpu"} <= scene.said
    # And it heals.
    scene.wait(10.0)
    line = Connection((ATTACKER, 999), (EVIL, 1521))
    scene.play([*line.opened(), *line.sent(CONNECT)])
    scene.play(line.answered(redirect(address_of(EVIL, 20_500))))
    assert f"tcp {ATTACKER} > {EVIL}:20500" in scene.live


# Memory


def _kept(scene: Scene, steps: Iterable[Step]) -> int:
    """Bytes that the daemon's own code keeps of what comes."""
    gc.collect()
    tracemalloc.start()
    try:
        scene.play(steps)
        gc.collect()
        taken = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # The model of conntrack is the kernel's, and this folder the attacker's.
    ours = [
        each
        for each in taken.statistics("filename")
        if not any(
            part in each.traceback[0].filename
            for part in ("/offline/", "/tests/", "tracemalloc", "/ipaddress.py")
        )
    ]
    return sum(each.size for each in ours)


_MEBIBYTE: Final = 1 << 20
_SMALL: Final = f"budget.memory = {_MEBIBYTE}"


@cases(
    "filled, flows",
    {
        "TNS": (floods.tns_filled_flow, 25),
        "RPC over UDP": (floods.rpc_pending_flow, 60),
    },
)
def test_memory_of_flows_has_a_bound(
    filled: Callable[[int], Iterator[bytes]], flows: int
) -> None:
    scene = Scene(_SMALL, count=False)
    helper = "tns" if filled is floods.tns_filled_flow else "sunrpc"
    honest(scene, SESSIONS[helper], 1)
    scene.play(filled(0))
    taken = _kept(scene, (each for flow in range(1, flows) for each in filled(flow)))
    honest(scene, SESSIONS[helper], 2)
    # The budget is an estimate of what is kept: twice as much is not out of bounds.
    assert taken < 2 * _MEBIBYTE
    scene.wait(1.0)
    assert scene.counters["evicted.memory"]
    assert "evicted.memory" in scene.said


def test_commands_that_nobody_answers_are_forgotten() -> None:
    """A hundred thousand of them take no more than a few do."""
    scene = Scene(count=False)
    taken = _kept(scene, list(floods.ftp_many_passives(1700))[:-100])
    assert taken < 200_000
    assert not scene.live


def test_honest_session_outlives_others_that_fill_the_memory() -> None:
    scene = Scene(_SMALL, count=False)
    line = Connection((HONEST, 50009), (HONEST_SERVER, 1521))
    scene.play([*line.opened(), *line.sent(CONNECT)])
    for number in range(12):
        scene.play(floods.tns_filled_flow(number))
    scene.play(line.answered(redirect(address_of(HONEST_SERVER, 40009))))
    assert f"tcp {HONEST} > {HONEST_SERVER}:40009" in scene.live


# Flow table

_FEW_FLOWS: Final = "daemon.flow_limit = 256"


def test_flood_of_unanswered_flows_pushes_no_answered_one_out() -> None:
    scene = Scene(_FEW_FLOWS, count=False)
    line = Connection((HONEST, 50009), (HONEST_SERVER, 1521))
    scene.play([*line.opened(), *line.sent(CONNECT)])
    scene.play(floods.unanswered_flows(800))
    scene.play(line.answered(redirect(address_of(HONEST_SERVER, 40009))))
    assert f"tcp {HONEST} > {HONEST_SERVER}:40009" in scene.live
    for number, helper in enumerate(("tns", "sunrpc")):
        honest(scene, SESSIONS[helper], number)


def test_flood_of_answered_flows_leaves_room_for_new_ones() -> None:
    scene = Scene(_FEW_FLOWS, count=False)
    for number in range(400):
        line = Connection((ATTACKER, 1024 + number), (EVIL, 1521))
        scene.play([*line.opened(), *line.sent(CONNECT)])
    for number, helper in enumerate(("tns", "sunrpc")):
        honest(scene, SESSIONS[helper], number)


# Expectations

_EXPECT_MAX: Final = 1024
"""What a small kernel has room for (nf_conntrack_expect_max)."""

_OURS: Final = _EXPECT_MAX * 3 // 4
"""What is left by the kernel's own helpers, which have a quarter."""

OPENINGS: Final[dict[str, tuple[Callable[[], Iterable[Step]], str]]] = {
    "one source": (lambda: floods.announcements(1, 1200), ""),
    "two sources, five minutes": (lambda: floods.announcements(2, 600, minutes=5), ""),
    "ten sources, at once": (lambda: floods.announcements(10, 120), ""),
    "a /64 of IPv6 addresses": (lambda: floods.from_one_network(1200), ""),
    "a server that answers for many": (lambda: floods.for_many_clients(1200), ""),
    "calls in an honest client's name": (
        lambda: floods.in_the_name_of(HONEST, 600),
        floods.FORGED_SETTINGS,
    ),
}


@cases("flood, settings", OPENINGS)
def test_flood_of_announcements_leaves_others_theirs(
    flood: Callable[[], Iterable[Step]], settings: str
) -> None:
    scene = Scene(settings, count=False, expect_max=_EXPECT_MAX)
    session = SESSIONS["sunrpc"]
    honest(scene, session, 1)
    steps = list(flood())
    half = len(steps) // 2
    for number, part in enumerate((steps[:half], steps[half:]), 2):
        scene.play(part)
        assert len(scene.live) <= _OURS
        honest(scene, session, number)
    assert not any("kernel" in each for each in scene.counters), "the table was full"
    refused = {each for each in scene.counters if each.startswith("refused.")}
    assert refused, "nothing has a bound"
    assert refused <= scene.said


def test_what_was_granted_stays_when_others_ask_for_too_much() -> None:
    """Refuse, never evict somebody else's."""
    scene = Scene(count=False, expect_max=_EXPECT_MAX)
    expected = honest(scene, SESSIONS["sunrpc"], 1)
    scene.play(floods.announcements(10, 120))
    assert expected <= set(scene.live)


def test_one_flow_has_no_more_than_its_policy_says() -> None:
    scene = Scene(count=False)
    way = udp_flow((ATTACKER, 40000), (EVIL, 111))
    for xid in range(200):
        scene.comes(datagram(way, wire.getport(xid)))
        answer = wire.reply(xid, wire.xdr(20_000 + xid))
        scene.comes(datagram(wire.turned(way), answer))
    assert len(scene.live) == 8


def test_local_program_that_asks_from_every_port_leaves_others_theirs() -> None:
    scene = Scene(count=False, expect_max=_EXPECT_MAX)
    for port in range(1024, 2000):
        way = udp_flow((GATEWAY, port), (wire.MDNS_GROUP, 5353))
        scene.comes(datagram(way, wire.mdns_query()))
    assert len(scene.live) <= _OURS
    for number, helper in enumerate(("sunrpc", "tns", "dhcpv6")):
        honest(scene, SESSIONS[helper], number)
    assert not scene.admits(UDP, ("203.0.113.7", 5353), (GATEWAY, 1024))


# The log


def test_flood_of_refusals_is_counted_and_hardly_written() -> None:
    scene = Scene(count=False)
    for number in range(800):
        way = udp_flow((ATTACKER, 1024 + number), (EVIL, 111))
        scene.play(
            [
                datagram(way, wire.getport(number)),
                datagram(wire.turned(way), wire.reply(number, wire.xdr(22))),
                0.001,
            ]
        )
    assert scene.counters["refused.denied-port"] == 800
    written = [each for each in scene.lines if each["event"] == "refused"]
    assert 50 <= len(written) <= 70
    scene.wait(2.0)
    perform(
        Attack(
            helper="sunrpc",
            steps=lambda: [
                datagram(
                    way := udp_flow((ATTACKER, 999), (EVIL, 111)), wire.getport(1)
                ),
                datagram(wire.turned(way), wire.reply(1, wire.xdr(22))),
            ],
            says=("refused.denied-port",),
        ),
        scene,
    )
    # Another event is not hidden by it, and the next line says what was left out.
    assert sum(each.get("suppressed", 0) for each in scene.lines) > 700


@cases(
    "text",
    {
        "a line end": b"A\nevent=expectation",
        "quotes": b'A" event="expectation',
        "escapes": b"\x1b[2J\x00\x7f\xff",
        "long": b"A" * 1400,
    },
)
def test_what_a_peer_says_cannot_forge_a_line(text: bytes) -> None:
    scene = Scene(count=False)
    line = Connection((ATTACKER, 40000), (EVIL, 21))
    scene.play(
        [
            *line.opened(),
            *line.answered(b"220 ready\r\n"),
            *line.sent(text + b"\r\n"),
        ]
    )
    (said,) = (each for each in scene.lines if each["event"] == "malformed")
    assert len(str(said["detail"])) < 400
    assert str(said["detail"]).isprintable()


def test_calls_are_counted() -> None:
    """Of what the tests above go by."""
    scene = Scene()
    honest(scene, SESSIONS["tns"], 1)
    assert 50 < scene.cost.calls < MOST_CALLS // 5

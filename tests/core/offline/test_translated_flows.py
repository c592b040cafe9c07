# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay of either side of a gateway: each way to be translated, and to announce."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import pytest

from cthelper.core import tuples
from cthelper.core.config import parse
from cthelper.core.errors import ExpectationRefused
from cthelper.core.grants import How, Placed
from cthelper.core.offline.events import ExpectationEvent, RefusedEvent, RelatedEvent
from cthelper.core.offline.nat import Nat, Side, turned
from cthelper.core.offline.replay import Replay
from cthelper.core.registry import register
from cthelper.core.tuples import ORIGINAL, REPLY, Expectation, Translation
from tests.core.builders import endpoint
from tests.core.offline.gateway import (
    CELLS,
    CONFIG,
    CONTROL,
    DATA,
    GATEWAYS4,
    OPENED_FROM,
    Announcer,
    Cell,
    announcement,
    datagram,
    flow,
    play,
)

SIDES: Final = tuple(Side)
BOTH: Final = GATEWAYS4[2]
NOWHERE: Final = ("192.0.2.77", 1), ("192.0.2.78", 2)


@pytest.mark.parametrize(
    ("cell", "confirmed"),
    [
        *((cell, True) for cell in CELLS),
        # The first packet of a flow is the client's.
        *((cell, False) for cell in CELLS if cell.opens is Side.SERVER),
    ],
    ids=str,
)
def test_data_flow_is_related_where_the_announcement_is_as_it_was_sent(
    cell: Cell, confirmed: bool
) -> None:
    sent = announcement(cell.announcer)
    packets = cell.packets(sent, confirmed=confirmed)
    played = play(packets, cell.gateway.nat(cell.side))
    (expectation,) = played.made
    data = flow((cell.opener, OPENED_FROM), (cell.told, DATA))
    assert played.met == [data]
    assert str(expectation) == f"udp {cell.opener} > {data.destination}"
    assert expectation.translation == Translation(
        ORIGINAL if cell.opens is Side.CLIENT else REPLY, DATA
    )
    # The receiver is told what it knows the announcer by.
    assert played.passed[-2] == announcement(cell.told)
    # Without the mapping the announcer's own address means it in a capture that shows
    # it, and then the receiver is told what means nothing to it; or it means nobody.
    plain = play(packets, None)
    assert bool(plain.met) == (cell.announcer == cell.announcer_shown)
    assert plain.reasons == ([] if plain.met else ["third-party-address"])
    assert plain.passed[-2] == sent


@pytest.mark.parametrize(
    "cell", [each for each in CELLS if each.opens is each.side], ids=str
)
def test_data_flow_is_related_where_the_announcement_was_rewritten(cell: Cell) -> None:
    """On the receiver's side a capture shows what a helper has written."""
    written = announcement(cell.told, DATA + 1)
    played = play(cell.packets(written, DATA + 1), cell.gateway.nat(cell.side))
    assert played.met == [flow((cell.opener, OPENED_FROM), (cell.told, DATA + 1))]
    assert played.passed[-2] == written


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_data_flow_to_another_port_or_of_another_host_is_not_related(
    cell: Cell,
) -> None:
    packets = cell.packets(announcement(cell.announcer))
    *before, data = packets
    version = ip_address(cell.announcer).version
    other = "192.0.2.99" if version == 4 else "2001:db8:99::1"
    end = (cell.announcer_shown, DATA)
    played = play(
        [
            *before,
            cell.packets(b"", DATA + 1)[-1],
            datagram(b"x", (other, OPENED_FROM), end),
            data,
        ],
        cell.gateway.nat(cell.side),
    )
    assert [each.frame for each in played.events if isinstance(each, RelatedEvent)] == [
        6
    ]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_expected_flow_is_known_by_both_of_its_directions(cell: Cell) -> None:
    """Its entry is found by what the capture shows, its tuples are the kernel's."""
    *before, data = cell.packets(announcement(cell.announcer))
    runner = Replay(CONFIG, nat=cell.gateway.nat(cell.side), warn=pytest.fail)
    for number, packet in enumerate(before):
        runner.step(number, 0.0, packet, 0)
    seen, _, _ = runner.step(8, 0.0, data, 0)
    assert seen is not None
    entry = seen.entry
    assert entry is not None
    answer = turned(entry.shown(ORIGINAL))
    ends = [(str(end.address), end.port) for end in (answer.source, answer.destination)]
    back, _, _ = runner.step(9, 0.0, datagram(b"y", *ends), 0)
    assert back is not None
    assert (back.entry, back.direction) == (entry, REPLY)
    conntrack = entry.conntrack(0.0)
    known = cell.gateway
    sender = known.client_known if cell.opens is Side.CLIENT else known.server_known
    assert conntrack.original == flow((cell.opener, OPENED_FROM), (cell.told, DATA))
    assert conntrack.reply == flow((cell.announcer, DATA), (sender, OPENED_FROM))
    assert (
        conntrack.master
        == known.nat(Side.CLIENT)
        .begin(flow((known.client, 40000), (known.server_known, CONTROL)))
        .original
    )
    assert runner.table.find(conntrack.original) is entry


# Ports


MASQUERADED = replace(GATEWAYS4[0], client="10.77.1.3"), GATEWAYS4[0]


def two_clients(*announced: bytes) -> tuple[list[bytes], Nat]:
    """Two clients behind one address announce, in this order; seen on their side."""
    first, second = MASQUERADED
    nat = Nat(
        sources={
            ip_address(each.client): ip_address(each.client_known)
            for each in MASQUERADED
        }
    )
    packets = []
    for gateway, sent in zip((first, second), announced, strict=True):
        *control, _ = Cell(gateway, Side.SERVER, Side.CLIENT).packets(sent)
        packets += control
    return packets, nat


def test_port_that_another_client_has_is_not_told_again() -> None:
    first, second = (each.client for each in MASQUERADED)
    known, server = GATEWAYS4[0].client_known, GATEWAYS4[0].server
    packets, nat = two_clients(announcement(first), announcement(second))
    packets += [
        datagram(b"x", (server, OPENED_FROM), (second, DATA)),
        datagram(b"x", (server, OPENED_FROM), (first, DATA)),
    ]
    played = play(packets, nat)
    assert (played.passed[2], played.passed[5]) == (
        announcement(known),
        announcement(known, DATA + 1),
    )
    # Each gets what it announced; the server sends to one address and two ports.
    assert played.met == [
        flow((server, OPENED_FROM), (known, DATA + 1)),
        flow((server, OPENED_FROM), (known, DATA)),
    ]


def test_pair_is_told_whole_where_one_of_it_is_taken() -> None:
    first, second = (each.client for each in MASQUERADED)
    known, server = GATEWAYS4[0].client_known, GATEWAYS4[0].server
    pair = announcement(second).replace(b"OPEN", b"PAIR")
    packets, nat = two_clients(announcement(first, DATA + 1), pair)
    packets += [
        datagram(b"x", (server, OPENED_FROM), (second, DATA + each)) for each in (0, 1)
    ]
    played = play(packets, nat)
    assert [each.destination.port for each in played.made] == [5001, 5002, 5003]
    assert played.passed[5] == f"PAIR {known} {DATA + 2}".encode()
    assert [each.destination.port for each in played.met] == [5002, 5003]


def test_own_expectation_with_another_translation_is_not_taken_for_the_wanted() -> None:
    """It is there with the port that is tried next, and leads to another."""
    first, second = (each.client for each in MASQUERADED)
    known, server = GATEWAYS4[0].client_known, GATEWAYS4[0].server
    packets, nat = two_clients(announcement(first), announcement(second, DATA + 1))
    packets += [
        datagram(announcement(second), (second, 40000), (server, CONTROL)),
        datagram(b"x", (server, OPENED_FROM), (second, DATA)),
    ]
    played = play(packets, nat)
    assert played.passed[6] == announcement(known, DATA + 2)
    assert [each.destination.port for each in played.met] == [DATA + 2]


def test_expectation_that_leads_alike_is_shared_and_keeps_its_master_alive() -> None:
    """One client announces the same on two flows, of which the second lives on."""
    gateway = BOTH
    client, server = gateway.client, gateway.server_known
    runner = Replay(CONFIG, nat=gateway.nat(Side.CLIENT), warn=pytest.fail)

    def said(port: int, payload: bytes) -> list[bytes]:
        ends = (client, port), (server, CONTROL)
        return [datagram(b"HELLO", *ends), datagram(payload, *ends[::-1])]

    packets = [
        *zip((0.0, 1.0), said(40000, announcement(server)), strict=True),
        *zip((90.0, 91.0), said(40001, announcement(server)), strict=True),
        (180.0, datagram(b"x", (client, OPENED_FROM), (server, DATA))),
    ]
    frames = [(number, *each, 0) for number, each in enumerate(packets, 1)]
    events = list(runner.run(frames))
    made = [each for each in events if isinstance(each, ExpectationEvent)]
    assert [each.expectation.destination.port for each in made] == [DATA, DATA]
    (met,) = [each for each in events if isinstance(each, RelatedEvent)]
    assert (met.frame, met.expectation_frame) == (5, 2)


class Placing:
    """A replay that has a translated flow, and wishes for it."""

    def __init__(self) -> None:
        cell = Cell(BOTH, Side.CLIENT, Side.SERVER)
        self.runner = Replay(CONFIG, nat=BOTH.nat(Side.SERVER), warn=pytest.fail)
        seen, _, _ = self.runner.step(1, 0.0, cell.packets(b"")[0], 0)
        assert seen is not None
        assert seen.entry is not None
        self.entry = seen.entry
        self.wanted = Expectation(
            master=self.entry.original,
            transport=tuples.UDP,
            source=tuples.host_network(ip_address(BOTH.client)),
            source_port=None,
            destination=endpoint(BOTH.server_known, DATA),
            policy="data",
            timeout=100,
            translation=Translation(ORIGINAL, DATA),
        )

    def place(self, *changes: Expectation) -> list[Placed] | None:
        entry = self.entry.conntrack(0.0)
        return self.runner.expecter.place(entry, changes or [self.wanted])

    @property
    def present(self) -> list[Expectation]:
        return [each.expectation for each in self.runner.table.live(0.0)]


def test_what_was_placed_can_be_withdrawn() -> None:
    placing = Placing()
    second = replace(
        placing.wanted,
        destination=endpoint(BOTH.server_known, DATA + 1),
        translation=Translation(ORIGINAL, DATA + 1),
    )
    placed = placing.place(placing.wanted, second)
    assert placed is not None
    assert placing.present == [placing.wanted, second]
    placing.runner.expecter.withdraw(placed[:1])
    assert placing.present == [second]
    cell = Cell(BOTH, Side.CLIENT, Side.SERVER)
    seen, _, _ = placing.runner.step(2, 0.0, cell.packets(b"")[-1], 0)
    assert seen is not None
    assert seen.met is None
    # It is not there any more, and another flow's is not ours to take.
    others = Placed(replace(second, master=flow(*NOWHERE)), How.CREATED, 1)
    placing.runner.expecter.withdraw([placed[0], others])
    assert placing.present == [second]


def test_all_are_placed_or_none() -> None:
    placing = Placing()
    second = replace(placing.wanted, destination=endpoint(BOTH.server_known, DATA + 1))
    taken = replace(second, translation=Translation(ORIGINAL, DATA + 7))
    assert placing.place(taken)
    assert not placing.place(placing.wanted, second)
    assert placing.present == [taken]


def test_expectation_that_clashes_is_not_placed() -> None:
    placing = Placing()
    first = placing.entry
    # Of any source, while the other flow's has one.
    assert placing.place()
    cell = Cell(replace(BOTH, server_known="203.0.113.81"), Side.CLIENT, Side.CLIENT)
    seen, _, _ = placing.runner.step(2, 0.0, cell.packets(b"")[0], 0)
    assert seen is not None
    assert seen.entry is not None
    assert seen.entry is not first
    placing.entry = seen.entry
    anybody = replace(placing.wanted, master=seen.entry.original, source=None)
    free = replace(anybody, destination=endpoint(BOTH.server_known, DATA + 1))
    assert not placing.place(anybody)
    assert not placing.place(free, anybody)
    assert placing.present == [placing.wanted]


def test_other_refusals_of_the_kernel_are_told() -> None:
    placing = Placing()
    placing.entry.helper = None
    with pytest.raises(ExpectationRefused, match="kernel-enotsup: expect udp"):
        placing.place()
    placing.wanted = replace(placing.wanted, master=flow(*NOWHERE))
    entry = replace(placing.entry.conntrack(0.0), original=flow(*NOWHERE))
    with pytest.raises(ExpectationRefused, match="kernel-enoent: expect udp"):
        placing.runner.expecter.place(entry, [placing.wanted])
    assert placing.present == []


def test_entry_that_has_ended_is_not_found() -> None:
    placing = Placing()
    original = placing.entry.original
    assert placing.runner.table.find(original) is placing.entry
    _, again, *_ = Cell(BOTH, Side.CLIENT, Side.SERVER).packets(b"")
    seen, _, _ = placing.runner.step(2, 1000.0, again, 0)
    assert seen is not None
    assert seen.created
    assert placing.runner.table.find(original) is None


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_refusal_names_the_own_address_of_who_would_have_opened_the_flow(
    cell: Cell,
) -> None:
    packets = cell.packets(announcement(cell.announcer, 22))
    events = play(packets, cell.gateway.nat(cell.side)).events
    (refused,) = [each for each in events if isinstance(each, RefusedEvent)]
    assert (refused.reason, str(refused.peer)) == ("denied-port", cell.opener)


# Other hosts, which the user's own rules translate


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("opens", Side)
def test_other_host_is_met_where_its_own_translation_leads(
    side: Side, opens: Side
) -> None:
    own, known = ("10.0.0.3", "203.0.113.3")
    gateway = BOTH.nat(side)
    pair = {ip_address(own): ip_address(known)}
    if opens is Side.CLIENT:
        destinations = {**gateway.destinations, ip_address(known): ip_address(own)}
        nat = replace(gateway, destinations=destinations)
        shown = known if side is Side.CLIENT else own
        opener = BOTH.client_on(side)
    else:
        nat = replace(gateway, sources={**gateway.sources, **pair})
        shown = own if side is Side.CLIENT else known
        opener = BOTH.server_on(side)
    settings = (
        f'[helpers.announcer.nat]\noutside = ["{own} {known}"]\n'
        f'[helpers.announcer.guard]\nallow_hosts = ["{own}"]\n'
    )
    config = parse(settings, Path("test.toml"), register([Announcer]))
    *before, _ = Cell(BOTH, opens, side).packets(announcement(own))
    data = datagram(b"x", (opener, OPENED_FROM), (shown, DATA))
    played = play([*before, data], nat, config)
    (expectation,) = played.made
    assert expectation.translation is None
    (met,) = played.met
    assert met.destination == endpoint(known, DATA)
    assert met.source.address in ip_network(str(expectation.source))

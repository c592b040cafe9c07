# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay: what the daemon does for a flow is done for a capture's, by its clock."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from cthelper.core.api import (
    Done,
    Effects,
    Endpoint,
    ExpectationRefused,
    Helper,
    Malformed,
    Message,
    Policy,
    Transport,
    expect,
)
from cthelper.core.config import Config, parse
from cthelper.core.offline.capture import Frame
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    FaultEvent,
    FinishedEvent,
    FlowEvent,
    MalformedEvent,
    MessageEvent,
    RefusedEvent,
    RelatedEvent,
    Summary,
)
from cthelper.core.offline.replay import Links, Replay
from cthelper.core.tuples import Expectation
from tests.core.builders import endpoint, flow_tuple

CLIENT, OTHER, SERVER = "192.0.2.1", "192.0.2.9", "198.51.100.2"
CONTROL, DATA = 7000, 5000


class Words(Helper):
    """A word a datagram: OPEN PORT, DONE, FAULT; all else is malformed."""

    name = "words"
    transports = frozenset({Transport.UDP})
    ports = (CONTROL,)
    policies = (Policy("data", max_expected=2, timeout=100),)

    def on_message(self, message: Message) -> Effects:
        match message.payload.split():
            case [b"OPEN", *ports]:
                for port in ports:
                    end = Endpoint(message.source.address, int(port))
                    yield from expect(end, policy="data", permanent=True)
            case [b"DONE"]:
                yield Done("the last word")
            case [b"FAULT"]:
                raise ZeroDivisionError
            case [b"HELLO"]:
                pass
            case _:
                raise Malformed("no such word")

    def describe(self, message: Message) -> dict[str, str]:
        if message.payload == b"HELLO":
            raise KeyError("a bug")
        if message.payload == b"NOISE":
            raise Malformed("noise")
        return {"word": message.payload.decode()}


CONFIG: Config = parse("", Path("test.toml"), {"words": Words})


def datagram(payload: bytes, source: tuple[str, int], to: tuple[str, int]) -> bytes:
    ip = IP(src=source[0], dst=to[0])
    return bytes(ip / UDP(sport=source[1], dport=to[1]) / payload)


def asked(payload: bytes, client: str = CLIENT) -> bytes:
    return datagram(payload, (client, 40000), (SERVER, CONTROL))


def answered(payload: bytes, client: str = CLIENT) -> bytes:
    return datagram(payload, (SERVER, CONTROL), (client, 40000))


def data(port: int = DATA, client: str = CLIENT, source: int = 41000) -> bytes:
    """A packet of a flow that the server may have announced."""
    return datagram(b"x", (client, source), (SERVER, port))


def play(*packets: tuple[float, bytes], watch: bool = False) -> list[Event]:
    runner = Replay(CONFIG, warn=pytest.fail, watch=watch)
    return list(runner.run(frames(packets)))


def frames(packets: Iterable[tuple[float, bytes]]) -> list[Frame]:
    return [(number, time, each, 0) for number, (time, each) in enumerate(packets, 1)]


def kinds(events: Iterable[Event]) -> list[type[Event]]:
    return [type(each) for each in events]


def test_announcement_expectation_and_flow() -> None:
    events = play((0.0, asked(b"HELLO")), (1.0, answered(b"OPEN 5000")), (2.5, data()))
    made, met, summary = events
    assert isinstance(made, ExpectationEvent)
    assert (made.frame, made.time, made.helper) == (2, 1.0, "words")
    assert str(made.expectation) == f"udp {CLIENT} > {SERVER}:{DATA}"
    assert isinstance(met, RelatedEvent)
    assert (met.frame, met.time, met.expectation_frame) == (3, 2.5, 2)
    assert summary == Summary(packets=3, flows=2, expectations=1, related=1)


@pytest.mark.parametrize(("later", "related"), [(99.0, 1), (101.5, 0)])
def test_master_is_kept_as_long_as_its_expectation(later: float, related: int) -> None:
    # By itself the flow would end 30 s after its last packet, and with it all.
    events = play(
        (0.0, asked(b"HELLO")), (1.0, answered(b"OPEN 5000")), (1.0 + later, data())
    )
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert summary.related == related


def test_first_packet_of_a_flow_can_announce_several() -> None:
    events = play((0.0, asked(b"OPEN 5001 5002")))
    assert kinds(events) == [ExpectationEvent, ExpectationEvent, Summary]


def test_first_packets_of_two_clients_share_an_expectation() -> None:
    # Both come back confirmed before what they announce goes in (gate.py).
    same = Replay(CONFIG, warn=pytest.fail)
    first = datagram(b"OPEN 5000", (CLIENT, 40000), (SERVER, CONTROL))
    again = datagram(b"OPEN 5000", (CLIENT, 40001), (SERVER, CONTROL))
    made, shared, _ = same.run(frames([(0.0, first), (1.0, again)]))
    assert isinstance(made, ExpectationEvent)
    assert isinstance(shared, ExpectationEvent)
    assert shared.expectation.destination == made.expectation.destination


def test_two_masters_of_one_expectation_keep_the_first_one_alive() -> None:
    # The kernel refreshes the first client's; it hangs on that flow and needs it.
    second = datagram(b"HELLO", (CLIENT, 40001), (SERVER, CONTROL))
    reply = datagram(b"OPEN 5000", (SERVER, CONTROL), (CLIENT, 40001))
    events = play(
        (0.0, asked(b"HELLO")),
        (1.0, answered(b"OPEN 5000")),
        (90.0, second),
        (91.0, reply),
        (180.0, data()),
    )
    met = [each for each in events if isinstance(each, RelatedEvent)]
    assert [each.frame for each in met] == [5]


def test_finished_flow_is_read_no_more() -> None:
    packets = [(0.0, asked(b"HELLO")), (1.0, asked(b"DONE"))]
    later = [(2.0 + each, asked(b"FAULT")) for each in range(3)]
    assert play(*packets, *later) == [Summary(packets=5, flows=1)]


def test_what_goes_wrong_is_told_and_the_replay_goes_on() -> None:
    events = play(
        (0.0, asked(b"NOISE")),
        (1.0, asked(b"OPEN 22")),
        (2.0, asked(b"FAULT")),
        (3.0, asked(b"HELLO", OTHER)),
    )
    malformed, refused, fault, finished, summary = events
    assert isinstance(malformed, MalformedEvent)
    assert malformed.reason == "no such word"
    assert isinstance(refused, RefusedEvent)
    assert (refused.reason, refused.peer) == ("denied-port", ip_address(SERVER))
    assert isinstance(fault, FaultEvent)
    assert fault.error == "ZeroDivisionError: "
    assert isinstance(finished, FinishedEvent)
    assert (finished.frame, finished.reason) == (3, "fault")
    assert summary == Summary(packets=4, flows=2, refused=1, malformed=1, finished=1)


def test_watched_replay_tells_messages_and_flows() -> None:
    events = play(
        (0.0, asked(b"HELLO")),
        (1.0, answered(b"OPEN 5000")),
        (2.0, data()),
        (3.0, data()),
        (4.0, asked(b"NOISE")),
        watch=True,
    )
    read = [each for each in events if isinstance(each, MessageEvent)]
    assert [(each.frame, each.fields) for each in read] == [
        (1, {"describe() failed": "KeyError: 'a bug'"}),
        (2, {"word": "OPEN 5000"}),
        (5, {"malformed": "noise"}),
    ]
    assert [len(each.effects) for each in read] == [0, 1, 0]
    flows = [each for each in events if isinstance(each, FlowEvent)]
    assert [
        (each.helper, each.frame, each.last_frame, each.packets) for each in flows
    ] == [
        ("words", 1, 5, 3),
        (None, 3, 4, 2),
    ]


def test_frames_that_go_back_in_time_do_no_harm() -> None:
    made, met, _ = play(
        (5.0, asked(b"HELLO")), (4.0, answered(b"OPEN 5000")), (-1.0, data())
    )
    assert isinstance(made, ExpectationEvent)
    assert isinstance(met, RelatedEvent)
    assert (made.time, met.time) == (4.0, -1.0)


# What is on-link


@pytest.mark.parametrize(
    ("networks", "address", "found"),
    [
        ([], "10.1.2.3", ["10.1.2.0/24"]),
        ([], "fd00::5", ["fd00::/64", "fe80::/10"]),
        ([], "fe80::5", ["fe80::/10"]),
        (["10.0.0.0/8"], "10.1.2.3", ["10.0.0.0/8"]),
        (["10.0.0.0/8", "10.1.0.0/16"], "10.1.2.3", ["10.0.0.0/8"]),
        (["10.0.0.0/8", "fd00::/16"], "fd00::5", ["fd00::/16", "fe80::/10"]),
        (["10.0.0.0/8", "fd00::/16"], "fe80::5", ["fd00::/16", "fe80::/10"]),
        (["10.0.0.0/8"], "fe80::5", ["fe80::/10"]),
        # Several subnets of one link.
        (
            ["192.0.2.0/24", "203.0.113.0/24", "fd00::/16"],
            "203.0.113.7",
            ["192.0.2.0/24", "203.0.113.0/24"],
        ),
        (
            ["fd00::/16", "fd77::/16"],
            "fd77::5",
            ["fd00::/16", "fd77::/16", "fe80::/10"],
        ),
        (["10.0.0.0/8", "fd00::/16"], "169.254.1.1", ["10.0.0.0/8"]),
    ],
)
def test_networks_that_are_on_link(
    networks: list[str], address: str, found: list[str]
) -> None:
    warnings: list[str] = []
    links = Links([ip_network(each) for each in networks], warnings.append)
    for _ in range(2):
        assert list(map(str, links.on_link(ip_address(address)))) == found
    assert len(warnings) == (0 if networks else 1)


def expected(
    source: str, end: tuple[str, int], source_port: int | None = None
) -> Expectation:
    return Expectation(
        master=flow_tuple(),
        transport=Transport.UDP,
        source=ip_network(source),
        source_port=source_port,
        destination=endpoint(*end),
        policy="data",
        timeout=10,
    )


@pytest.mark.parametrize(
    ("networks", "asker", "answerer", "options"),
    [
        ([], "fe80::c", "2001:db8:1::e1", "--network 2001:db8:1::/64"),
        (["10.0.0.0/8"], "fe80::c", "2001:db8:1::e1", "--network 2001:db8:1::/64"),
        (
            [],
            "192.0.2.10",
            "203.0.113.9",
            "--network 192.0.2.0/24 --network 203.0.113.0/24",
        ),
        (
            [],
            "2001:db8::c",
            "2001:db8:1::1",
            "--network 2001:db8::/64 --network 2001:db8:1::/64",
        ),
        # What was said is no guess.
        (["2001:db8::/64"], "fe80::c", "2001:db8:1::1", None),
        (["192.0.2.0/24"], "192.0.2.10", "203.0.113.9", None),
        # It came from there, and did not fit for another reason.
        ([], "192.0.2.10", "192.0.2.77", None),
    ],
)
def test_answer_that_a_guess_kept_out_is_told_once_with_what_to_say(
    networks: list[str], asker: str, answerer: str, options: str | None
) -> None:
    warnings: list[str] = []
    links = Links([ip_network(each) for each in networks], warnings.append)
    near = [
        expected(str(each), (asker, DATA), 5353)
        for each in links.on_link(ip_address(asker))
    ]
    warnings.clear()
    # From another port it would not have been let in either.
    links.missed(flow_tuple(Transport.UDP, (answerer, 9), (asker, DATA)), near)
    assert warnings == []
    for _ in range(2):
        links.missed(flow_tuple(Transport.UDP, (answerer, 5353), (asker, DATA)), near)
    assert warnings == (
        []
        if options is None
        else [
            f"{answerer} answered {asker} from outside what is taken for on-link: "
            f"{options} would have let it in"
        ]
    )


def test_scan_is_not_told_of_without_end() -> None:
    warnings: list[str] = []
    links = Links([], warnings.append)
    (network,) = links.on_link(ip_address(CLIENT))
    near = [expected(str(network), (CLIENT, DATA))]
    for number in range(100):
        source = f"10.0.{number}.1", 5353
        links.missed(flow_tuple(Transport.UDP, source, (CLIENT, DATA)), near)
    assert len(warnings) < 10


@pytest.mark.parametrize("address", ["192.0.2.1", "fd00::1", "169.254.1.1"])
def test_address_in_no_network_is_off_link(address: str) -> None:
    networks = [ip_network("10.0.0.0/8")] if address != "169.254.1.1" else []
    links = Links([*networks, ip_network("fd99::/64")], pytest.fail)
    with pytest.raises(ExpectationRefused, match=r"off-link: .* is not in .*--network"):
        links.on_link(ip_address(address))

# SPDX-License-Identifier: GPL-2.0-or-later
"""What inspection costs, accounted for each source, and what comes of too much."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.accounts import Account, Accounts
from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Transport
from cthelper.core.config import Budget
from cthelper.core.engine import NOTHING, Decision, Engine
from cthelper.core.guard import Guard
from cthelper.core.outcome import Finished
from cthelper.core.tuples import ORIGINAL, REPLY, Conntrack, Direction, Status, Tuple
from tests.core.builders import conntrack, flow_tuple, tcp, udp
from tests.core.host import FIRST, Clock, Datagrams, Lines, configured, on_link

# Compiled, sources would share by chance (`world`).
pytestmark = pytest.mark.interpreted

SERVER = "198.51.100.7"


def flow(source: str, server: str = SERVER, port: int = 40000) -> Tuple:
    destination = "2001:db8:ffff::7" if ":" in source else server
    return flow_tuple(UDP, (source, port), (destination, 111))


class World:
    """Accounts at 20 %, and a clock."""

    def __init__(self, percent: int = 20) -> None:
        self.clock = Clock()
        self.accounts = Accounts(percent, self.clock)

    def payer(
        self,
        source: str,
        *,
        assured: bool = False,
        server: str = SERVER,
        direction: Direction = ORIGINAL,
    ) -> Account:
        return self.accounts.of(flow(source, server), direction, assured=assured)

    def over(
        self,
        source: str,
        *,
        assured: bool = False,
        server: str = SERVER,
        direction: Direction = ORIGINAL,
    ) -> str | None:
        """The reason why such a packet would not be inspected."""
        payer = self.payer(source, assured=assured, server=server, direction=direction)
        found = self.accounts.overspent(payer, flow(source, server))
        return None if found is None else found.reason

    def spend(
        self,
        source: str,
        seconds: float,
        *,
        assured: bool = False,
        server: str = SERVER,
        direction: Direction = ORIGINAL,
    ) -> None:
        """As the engine does it."""
        account: Account | None = self.payer(
            source, assured=assured, server=server, direction=direction
        )
        while account is not None:
            account.left -= seconds
            account = account.wider


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    # No two of the tests' sources share by chance.
    monkeypatch.setattr(Accounts, "_number", lambda _, *key: hash((*key, 4)) % key[1])
    return World()


@pytest.mark.parametrize("assured", [False, True])
def test_source_has_its_share_of_a_second_at_once(
    world: World, *, assured: bool
) -> None:
    world.spend("192.0.2.1", 0.199, assured=assured)
    assert world.over("192.0.2.1", assured=assured) is None
    world.spend("192.0.2.1", 0.002, assured=assured)
    assert world.over("192.0.2.1", assured=assured) == "source-cpu"
    assert world.over("203.0.113.1", assured=assured) is None


def test_source_recovers_by_its_share_a_second(world: World) -> None:
    world.spend("192.0.2.1", 0.3, assured=True)
    world.clock.now += 0.49
    assert world.over("192.0.2.1", assured=True) == "source-cpu"
    world.clock.now += 0.02
    assert world.over("192.0.2.1", assured=True) is None
    # It is full again when it is empty next, and no fuller.
    world.clock.now += 1000
    world.spend("192.0.2.1", 0.01, assured=True)
    assert world.over("192.0.2.1", assured=True) is None
    world.spend("192.0.2.1", 0.201, assured=True)
    assert world.over("192.0.2.1", assured=True) == "source-cpu"


def test_over_a_long_time_a_source_has_its_share(world: World) -> None:
    taken = 0.0
    for _ in range(100_000):
        world.clock.now += 0.001
        if world.over("192.0.2.1", assured=True) is None:
            world.spend("192.0.2.1", 0.001, assured=True)
            taken += 0.001
    assert 20 <= taken <= 20.5


def test_hosts_of_one_ipv6_network_are_one_source(world: World) -> None:
    for number in range(100):
        world.spend(f"2001:db8:1:2:{number:x}::1", 0.003, assured=True)
    assert world.over("2001:db8:1:2:ffff::2", assured=True) == "source-cpu"
    assert world.over("2001:db8:1:3::1", assured=True) is None


def test_of_link_local_addresses_each_is_a_source(world: World) -> None:
    for _ in range(100):
        world.spend("fe80::1", 0.003, assured=True)
    assert world.over("fe80::1", assured=True) == "source-cpu"
    assert world.over("fe80::2", assured=True) is None


def test_forged_packets_do_not_spend_what_assured_flows_need(world: World) -> None:
    world.spend("192.0.2.1", 5.0)
    world.spend("192.0.2.1", 5.0, direction=REPLY)
    assert world.over("192.0.2.1") == "source-cpu"
    assert world.over("192.0.2.1", assured=True) is None
    assert world.over("192.0.2.1", assured=True, direction=REPLY) is None


def test_flows_of_one_network_that_are_not_assured_share(world: World) -> None:
    for number in range(100):
        world.spend(f"192.0.2.{number}", 0.0031)
    assert world.over("192.0.2.200") == "network-cpu"
    assert world.over("203.0.113.1") is None
    assert world.over("192.0.2.200", assured=True) is None


def test_networks_of_ipv6_are_told_apart_by_their_48_bits(world: World) -> None:
    for number in range(100):
        world.spend(f"2001:db8:1:{number:x}::1", 0.0031)
    assert world.over("2001:db8:1:ffff::1") == "network-cpu"
    assert world.over("2001:db8:2::1") is None


def test_all_flows_that_are_not_assured_leave_half_a_core(world: World) -> None:
    for number in range(200):
        world.spend(f"10.{number}.0.1", 0.0026)
    assert world.over("203.0.113.1") == "beginning-cpu"
    assert world.over("203.0.113.1", direction=REPLY) == "beginning-cpu"
    assert world.over("203.0.113.1", assured=True) is None


def test_server_spends_nothing_of_its_clients(world: World) -> None:
    spent = {"assured": True, "server": "198.51.100.66"}
    world.spend("192.0.2.1", 1.0, direction=REPLY, **spent)  # type: ignore[arg-type]
    assert world.over("192.0.2.1", direction=REPLY, **spent) == "source-cpu"  # type: ignore[arg-type]
    assert world.over("192.0.2.1", assured=True) is None
    assert world.over("192.0.2.1", assured=True, direction=REPLY) is None


def test_clients_of_a_server_spend_nothing_of_each_other(world: World) -> None:
    for number in range(100):
        world.spend(f"192.0.2.{number}", 0.0051, assured=True, direction=REPLY)
    assert world.over("203.0.113.1", assured=True, direction=REPLY) is None


def test_wider_accounts_are_never_less_than_a_source_has() -> None:
    world = World(percent=80)
    world.spend("192.0.2.1", 0.79)
    assert world.over("192.0.2.1") is None


def test_forged_sources_make_no_end_of_accounts_and_push_none_out() -> None:
    world = World()
    world.spend("192.0.2.1", 50.0, assured=True)
    for number in range(100_000):
        world.payer(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(world.accounts) < 20_000
    assert world.over("192.0.2.1", assured=True) == "source-cpu"


def test_too_much_is_told_once_and_counted_each_time(world: World) -> None:
    world.spend("192.0.2.1", 10.0, assured=True)
    for _ in range(40):
        world.over("192.0.2.1", assured=True)
        world.clock.now += 1
    assert world.accounts.refused == {"source-cpu": 40}
    (told,) = world.accounts.told
    assert told.reason == "source-cpu"
    assert told.detail.startswith("over 20% of a core, now by udp 192.0.2.1:40000 > ")
    world.clock.now += 60
    for _ in range(2):
        world.spend("192.0.2.1", 10.0, assured=True)
        world.over("192.0.2.1", assured=True)
    assert len(world.accounts.told) == 2


@given(
    st.lists(
        st.tuples(
            st.integers(0, 600), st.booleans(), st.booleans(), st.floats(0, 0.05)
        ),
        max_size=60,
    )
)
def test_accounts_never_hold_more_than_a_second_of_their_rate(
    steps: list[tuple[int, bool, bool, float]],
) -> None:
    world = World()
    for number, assured, replied, seconds in steps:
        source = f"10.0.{number >> 8}.{number & 255}"
        direction = REPLY if replied else ORIGINAL
        world.clock.now += seconds * 7
        world.over(source, assured=assured, direction=direction)
        world.spend(source, seconds, assured=assured, direction=direction)
        for each in world.accounts._accounts.values():
            assert each.left <= each.rate <= 0.5


# In the engine.


class Costly(Helper):
    """Takes so many milliseconds for each message."""

    def __init__(self) -> None:
        self.read = 0

    def on_message(self, message: Message) -> Effects:
        self.read += 1
        TIMER.now += int(message.payload) / 1000
        yield from ()


class CostlyDatagrams(Costly, Datagrams):
    __slots__ = ()


class CostlyLines(Costly, Lines):
    __slots__ = ()


TIMER = Clock()


class Flows:
    """An engine, and flows through it."""

    def __init__(self, budget: Budget | None = None, *, timed: bool = True) -> None:
        TIMER.now = 1000.0
        self.helpers: dict[Transport, type[Helper]] = {
            UDP: CostlyDatagrams,
            TCP: CostlyLines,
        }
        self.engine = Engine(
            {each.name: configured(each) for each in self.helpers.values()},
            guard=Guard(),
            on_link=on_link,
            clock=Clock(),
            flow_limit=1000,
            # Whose deadline is long: what would take longer counts for no more.
            budget=budget or Budget(deadline=60_000),
            timer=TIMER if timed else None,
        )
        self._numbers: Iterator[int] = iter(range(1, 1_000_000))

    def entry(
        self, source: str, transport: Transport = UDP, *, assured: bool = False
    ) -> Conntrack:
        made = conntrack(
            flow_tuple(transport, (source, 40000), (SERVER, 7000)),
            id_=next(self._numbers),
            helper=self.helpers[transport].name,
        )
        return sure(made) if assured else made

    def datagram(
        self, entry: Conntrack, milliseconds: int, direction: Direction = ORIGINAL
    ) -> Decision:
        packet = udp(b"%d" % milliseconds, direction=direction)
        return self.engine.handle(packet, entry, direction)

    def read(self, entry: Conntrack) -> int:
        """How many messages of the flow were read."""
        found = self.engine.flows.find(entry)
        assert found is not None
        return found.helper.read if isinstance(found.helper, Costly) else 0


def sure(entry: Conntrack) -> Conntrack:
    return replace(entry, status=entry.status | Status.ASSURED)


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> Flows:
    monkeypatch.setattr(Accounts, "_number", lambda _, *key: hash((*key, 4)) % key[1])
    return Flows()


@pytest.mark.parametrize("assured", [False, True])
def test_flow_of_a_source_that_takes_too_much_is_finished(
    flows: Flows, *, assured: bool
) -> None:
    heavy = flows.entry("192.0.2.1", assured=assured)
    # It becomes assured with its second packet.
    flows.datagram(heavy, 1)
    for _ in range(5):
        assert flows.datagram(heavy, 50).events == ()
    decision = flows.datagram(heavy, 1)
    assert decision.events == (Finished("source-cpu"),)
    assert "over 20% of a core" in str(decision.events[0])
    assert flows.datagram(heavy, 1) == Decision(decision.flow)


def test_new_flows_of_it_are_not_inspected_until_it_has_recovered(flows: Flows) -> None:
    flows.datagram(flows.entry("192.0.2.1"), 300)
    again = flows.entry("192.0.2.1")
    assert flows.datagram(again, 1) is NOTHING
    assert len(flows.engine.flows) == 1
    assert flows.engine.accounts is not None
    assert flows.engine.accounts.refused == {"source-cpu": 1}
    other = flows.entry("203.0.113.1")
    assert flows.datagram(other, 1).flow is not None
    TIMER.now += 0.6
    assert flows.datagram(again, 1).flow is not None
    assert flows.read(again) == 1


def test_flow_that_has_become_assured_is_not_its_forgers(flows: Flows) -> None:
    entry = flows.entry("192.0.2.1")
    flows.datagram(entry, 1)
    flows.datagram(flows.entry("192.0.2.1"), 900)
    assert flows.datagram(sure(entry), 1).events == ()
    assert flows.read(sure(entry)) == 2


def test_datagrams_of_others_pass_unread_where_many_take_too_much(flows: Flows) -> None:
    entry = flows.entry("203.0.113.1")
    flows.datagram(entry, 1)
    for number in range(200):
        flows.datagram(flows.entry(f"10.{number}.0.1"), 10)
    decision = flows.datagram(entry, 1)
    assert decision == Decision(decision.flow)
    assert decision.flow is not None
    assert decision.flow.finished is None
    assert flows.read(entry) == 1
    TIMER.now += 1
    flows.datagram(entry, 1)
    assert flows.read(entry) == 2


def test_flow_over_tcp_cannot_do_without_a_segment(flows: Flows) -> None:
    entry = flows.entry("203.0.113.1", TCP)
    flows.engine.handle(tcp(b"", FIRST - 1, flags="S"), entry, ORIGINAL)
    for number in range(200):
        flows.datagram(flows.entry(f"10.{number}.0.1"), 10)
    decision = flows.engine.handle(tcp(b"1\n", FIRST), entry, ORIGINAL)
    assert decision.events == (Finished("beginning-cpu"),)


def test_assured_flow_goes_on_beside_a_flood_of_forged_sources(flows: Flows) -> None:
    entry = flows.entry("203.0.113.1", assured=True)
    began, taken = TIMER.now, 0.0
    for number in range(4000):
        # As they come where nothing is done about them.
        TIMER.now += 0.001
        before = TIMER.now
        flows.datagram(flows.entry(f"10.{number >> 8}.{number & 255}.1"), 5)
        taken += TIMER.now - before
        if number % 100 == 0:
            assert flows.datagram(entry, 1).events == ()
    assert flows.read(entry) == 40
    assert taken < 0.5 * (TIMER.now - began) + 1
    assert flows.engine.accounts is not None
    assert flows.engine.accounts.refused["beginning-cpu"] > 2000


def test_reply_is_paid_for_by_its_server(flows: Flows) -> None:
    entry = flows.entry("192.0.2.1", assured=True)
    flows.datagram(entry, 1)
    flows.datagram(entry, 300, REPLY)
    assert flows.datagram(entry, 1).events == ()
    assert flows.datagram(entry, 1, REPLY).events == (Finished("source-cpu"),)
    assert flows.datagram(flows.entry("192.0.2.1", assured=True), 1).flow is not None


@pytest.mark.parametrize(
    "flows",
    [Flows(timed=False), Flows(Budget(source_cpu=100))],
    ids=["no timer", "no limit"],
)
def test_without_a_limit_nothing_is_accounted_for(flows: Flows) -> None:
    assert flows.engine.accounts is None
    entry = flows.entry("192.0.2.1")
    for _ in range(9):
        assert flows.datagram(entry, 900).events == ()


def test_another_budget_counts_for_flows_that_have_begun(flows: Flows) -> None:
    entry = flows.entry("192.0.2.1")
    flows.datagram(entry, 1)
    flows.engine.budget = Budget(source_cpu=1, deadline=60_000)
    flows.datagram(entry, 20)
    assert flows.datagram(entry, 1).events == (Finished("source-cpu"),)


def test_what_fails_is_paid_for(flows: Flows, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = flows.entry("192.0.2.1")

    class Ended(BaseException):
        pass

    def end(*_: object) -> None:
        TIMER.now += 1
        raise Ended

    with monkeypatch.context() as broken:
        broken.setattr(flows.engine._reader, "read", end)
        with pytest.raises(Ended):
            flows.datagram(entry, 1)
    assert flows.datagram(entry, 1).events == (Finished("source-cpu"),)


def test_what_stopped_this_process_is_nobodys_cost(flows: Flows) -> None:
    flows.engine.budget = Budget(deadline=100)
    entry = flows.entry("192.0.2.1")
    flows.datagram(entry, 60_000)
    other = flows.entry("198.51.100.77")
    assert flows.datagram(other, 1).events == ()
    TIMER.now += 1
    assert flows.datagram(entry, 1).events == ()

# SPDX-License-Identifier: GPL-2.0-or-later
"""How many expectations live: whose they are, when they end, who is refused."""

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cthelper.core.errors import ExpectationRefused
from cthelper.core.guard import UNLIMITED, Guard, Limits
from cthelper.core.ledger import Account, Asker, Ledger, Room, Standing
from cthelper.core.tuples import Expectation, flow_key
from tests.core.asking import NO_RATES, asker, refusal_of, wished
from tests.core.builders import CLIENT6

UNANSWERED, ANSWERED, PROVEN = Standing


class Table:
    """What the kernel has, of which only a look tells."""

    def __init__(self, most: int = 4096, others: int = 0) -> None:
        self.there: set[str] = set()
        self.most = most
        self.others = others
        self.asked = 0

    def lives(self, expectation: Expectation) -> bool:
        self.asked += 1
        return str(expectation) in self.there

    def room(self) -> Room:
        return Room(len(self.there) + self.others, self.most)


def guard(
    source: int = 0, server: int = 0, in_all: int = 0, table: Table | None = None
) -> Guard:
    limits = replace(UNLIMITED, live_source=source, live_server=server, live_all=in_all)
    return Guard(limits, lives=None if table is None else table.lives)


def taken(
    from_: Guard, now: float, who: Asker, ports: range, **more: Any
) -> tuple[int, str]:
    """How many of these the asker gets, one after the other, and why no more."""
    for number, port in enumerate(ports):
        reason = refusal_of(from_, now, who, wished(who, port, **more))
        if reason:
            return number, reason
    return len(ports), ""


PORTS = range(2000, 2100)
NEW = range(3000, 3100)


@pytest.mark.parametrize(
    ("own", "who", "text"),
    [
        (guard(source=3), asker(), "live-source: the flows of 192.0.2.1 have 3"),
        (guard(server=3), asker(), "live-server: the flows to 198.51.100.2 have 3"),
        (guard(in_all=3), asker(), "live-all: all flows have 3"),
        (
            guard(source=5),
            asker(standing=ANSWERED),
            "live-source: 192.0.2.1, which may be forged, has 3",
        ),
        (
            guard(server=6),
            asker(standing=UNANSWERED),
            "live-server: unanswered ones of the flows to 198.51.100.2 have 3",
        ),
        (
            guard(in_all=6),
            asker(standing=UNANSWERED),
            "live-unanswered: unanswered flows have 3",
        ),
        (
            guard(server=4),
            asker(standing=ANSWERED),
            "live-server: those that may be forged of the flows to 198.51.100.2 have 3",
        ),
        (
            guard(in_all=4),
            asker(standing=ANSWERED),
            "live-unproven: flows that may be forged have 3",
        ),
        (
            guard(in_all=4),
            asker(CLIENT6),
            "live-network: the /48 of 2001:db8:1::1 has 3",
        ),
    ],
)
def test_so_many_live_and_refusal_says_whose(own: Guard, who: Asker, text: str) -> None:
    assert taken(own, 0.0, who, range(2000, 2003)) == (3, "")
    with pytest.raises(ExpectationRefused) as caught:
        own.ledger.check(0.0, who, wished(who, 2003), moves=False)
    assert str(caught.value) == f"{text} live expectations"
    assert len(own.ledger) == 3


def test_calls_forged_in_the_names_of_many_leave_a_part_to_those_that_are_proven() -> (
    None
):
    own = guard(server=40, in_all=80)
    for number in range(1, 200):
        forged = asker(f"203.0.113.{number}", standing=ANSWERED, flow=number)
        taken(own, 0.0, forged, range(2000, 2001))
    assert taken(own, 0.0, asker(flow=1000), range(3000, 3010)) == (10, "")
    for number in range(1, 200):
        server = f"198.51.100.{number}"
        forged = asker("203.0.113.1", server=server, standing=ANSWERED, flow=number)
        taken(own, 0.0, forged, range(4000, 4001))
    elsewhere = asker(server="198.51.100.250", flow=1001)
    assert taken(own, 0.0, elsewhere, range(5000, 5010)) == (10, "")


def test_zero_is_no_limit() -> None:
    own = guard()
    for who in (asker(), asker(standing=UNANSWERED), asker(CLIENT6, server=None)):
        assert taken(own, 0.0, who, range(2000, 4000)) == (2000, "")


def test_end_of_its_time_makes_room() -> None:
    own, who = guard(source=2), asker()
    assert taken(own, 0.0, who, range(2000, 2001), timeout=10) == (1, "")
    assert taken(own, 0.0, who, range(2001, 2002), timeout=20) == (1, "")
    # The kernel has had it a little later than it was wished.
    assert taken(own, 10.5, who, NEW) == (0, "live-source")
    assert taken(own, 11.0, who, NEW) == (1, "live-source")
    assert taken(own, 72.0, who, range(4000, 4100)) == (2, "live-source")


def test_renewed_one_counts_once_and_lives_on() -> None:
    own = guard(source=1)
    for now, flow in ((0.0, 1), (50.0, 2), (100.0, 2)):
        who = asker(flow=flow)
        assert taken(own, now, who, range(2000, 2001), permanent=True) == (1, "")
    assert len(own.ledger) == 1
    assert taken(own, 160.0, asker(), range(2001, 2002)) == (0, "live-source")
    assert taken(own, 161.0, asker(), range(2001, 2002)) == (1, "")


def test_two_of_one_wish_that_are_the_same_count_once() -> None:
    own, who = guard(source=1), asker()
    assert refusal_of(own, 0.0, who, wished(who, 2000, 2000)) == ""
    assert len(own.ledger) == 1


def test_end_of_the_master_makes_room() -> None:
    own = guard(source=2)
    for flow in (1, 2):
        assert taken(own, 0.0, asker(flow=flow), range(flow, flow + 1)) == (1, "")
    own.ledger.forget(flow_key(3, 0))
    own.ledger.forget(flow_key(1, 7))
    assert taken(own, 0.0, asker(), NEW) == (0, "live-source")
    own.ledger.forget(flow_key(1, 0))
    assert taken(own, 0.0, asker(), NEW) == (1, "live-source")


def test_what_several_flows_asked_for_ends_with_the_last_of_them() -> None:
    """The kernel has one of them for its master, and does not say which."""
    own = guard(source=1)
    for flow in (1, 2):
        assert taken(own, 0.0, asker(flow=flow), range(2000, 2001)) == (1, "")
    own.ledger.forget(flow_key(1, 0))
    assert len(own.ledger) == 1
    own.ledger.forget(flow_key(2, 0))
    assert len(own.ledger) == 0


def test_what_very_many_flows_asked_for_ends_with_its_time() -> None:
    own = guard(source=1)
    for flow in range(1000):
        assert taken(own, 0.0, asker(flow=flow), range(2000, 2001)) == (1, "")
    for flow in range(1000):
        own.ledger.forget(flow_key(flow, 0))
    assert taken(own, 60.9, asker(), NEW) == (0, "live-source")
    assert taken(own, 61.0, asker(), NEW) == (1, "live-source")


def test_what_the_kernel_refuses_makes_room_and_what_it_has_does_not() -> None:
    own, who = guard(source=2), asker()
    wanted = wished(who, 2000)
    own.charge(0.0, who, NO_RATES, wanted)
    own.ledger.enter(0.0, who, wanted, placed=False)
    own.ledger.cancel(wanted)
    assert len(own.ledger) == 0
    assert refusal_of(own, 0.0, who, wanted) == ""
    # It is asked for again, and the kernel does not renew it.
    own.ledger.enter(0.0, who, wanted, placed=False)
    own.ledger.cancel(wanted)
    assert len(own.ledger) == 1
    own.ledger.remove(wanted)
    own.ledger.remove(wanted)
    assert len(own.ledger) == 0


# What has ended without a word.


@pytest.mark.parametrize("limits", [{"source": 8}, {"server": 8}, {"in_all": 8}])
def test_who_has_met_what_he_was_announced_is_not_refused(
    limits: dict[str, int],
) -> None:
    """An Oracle pool: one session after the other, each on a port of its own."""
    table = Table()
    own = guard(table=table, **limits)
    for number in range(1000):
        who = asker(flow=number)
        wanted = wished(who, 2000 + number)
        assert refusal_of(own, number / 1000, who, wanted) == ""
        table.there = {str(each) for each in wanted}
    assert table.asked <= 2000


def test_who_keeps_his_account_full_has_few_questions_answered() -> None:
    table = Table()
    own = guard(source=100, server=100, in_all=100, table=table)
    who = asker()
    wanted = wished(who, *range(2000, 2100), timeout=300)
    assert refusal_of(own, 0.0, who, wanted) == ""
    table.there = set(map(str, wanted))
    for number in range(10_000):
        assert refusal_of(own, number / 1000, who, wished(who, 5000)) == "live-source"
    assert table.asked <= 8 * 10


def test_those_that_may_be_met_are_asked_for_first_and_all_in_turn() -> None:
    table = Table()
    own, who = guard(source=100, table=table), asker()
    lasting = wished(who, *range(2000, 2090), timeout=300, permanent=True)
    once = wished(who, *range(3000, 3010), timeout=300)
    assert refusal_of(own, 0.0, who, lasting) == ""
    assert refusal_of(own, 0.0, who, once) == ""
    table.there = set(map(str, lasting))
    granted = [refusal_of(own, now, who, wished(who, 4000 + now)) for now in range(3)]
    assert "" in granted
    # Of a flow that expects more than its policy allows the kernel drops the oldest.
    table.there = set(map(str, lasting[8:]))
    granted = [
        refusal_of(own, now, who, wished(who, *range(5000, 5018)))
        for now in range(9, 30)
    ]
    assert "" in granted


def test_what_is_wished_again_is_not_given_up_for_what_is_wished_with_it() -> None:
    table = Table()
    own, who = guard(source=2, table=table), asker()
    assert refusal_of(own, 0.0, who, wished(who, 2000, 2001)) == ""
    table.there = {str(wished(who, 2001)[0])}
    assert refusal_of(own, 2.0, who, wished(who, 2000, 2002)) == "live-source"
    assert refusal_of(own, 4.0, who, wished(who, 2002)) == ""


def test_what_the_kernel_has_not_got_yet_is_not_asked_for() -> None:
    table = Table()
    own, who = guard(source=1, table=table), asker()
    own.ledger.enter(0.0, who, wished(who, 2000), placed=False)
    assert taken(own, 5.0, who, PORTS[1:]) == (0, "live-source")
    own.ledger.confirm(wished(who, 2000, 2001))
    assert taken(own, 6.0, who, PORTS[1:]) == (99, "")


# The kernel's table.


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("most", [120, 1024, 4096])
def test_quarter_of_the_table_is_left_to_others(most: int, workers: int) -> None:
    table = Table(most)
    own = Guard(lives=table.lives, room=table.room, workers=workers)
    for number in range(200):
        who = asker(f"10.0.{number}.1", server=f"10.1.{number}.1")
        for port in range(2000, 2040):
            wanted = wished(who, port, timeout=600)
            if not refusal_of(own, number * 0.05, who, wanted):
                table.there.add(str(wanted[0]))
    usable = most * 3 // 4 // workers
    assert len(table.there) == usable


def test_what_others_have_in_the_table_is_not_ours() -> None:
    table = Table(most=400, others=250)
    own = Guard(room=table.room)
    count, reason = taken(own, 0.0, asker(), PORTS)
    assert (count, reason) == (50, "live-all")
    # What was there before is renewed all the same.
    assert taken(own, 0.0, asker(), PORTS[:50], permanent=True) == (50, "")
    # But one-shot ones may have been met, and then they are new.
    assert taken(own, 0.0, asker(), PORTS[:50]) == (0, "live-all")
    table.others = 0
    assert taken(own, 0.9, asker(), PORTS[50:]) == (0, "live-all")
    assert taken(own, 1.0, asker(), PORTS[50:]) == (50, "")


def test_table_that_nobody_knows_is_no_limit() -> None:
    own = Guard(UNLIMITED, room=lambda: None)
    assert taken(own, 0.0, asker(), range(2000, 4000)) == (2000, "")


def test_table_for_none_takes_none() -> None:
    own = Guard(room=Table(most=0).room)
    assert taken(own, 0.0, asker(), PORTS) == (0, "live-all")


# Attacks. The limits are the default ones, the rates too high to matter.


def attacked(
    most: int, askers: Callable[[int], Asker], count: int, ports: int = 20
) -> tuple[Guard, Table]:
    """A guard that so many have asked for some ports each, 300 s long."""
    table = Table(most)
    own = Guard(lives=table.lives, room=table.room)
    for number in range(count):
        who = askers(number)
        for port in range(ports):
            wanted = wished(who, 2000 + 20 * (number % 1000) + port, timeout=300)
            if not refusal_of(own, number / 100, who, wanted):
                table.there |= set(map(str, wanted))
    return own, table


VICTIM_SERVER = "203.0.113.80"
SIZES = pytest.mark.parametrize("most", [120, 1024, 4096])


def served(own: Guard, who: Asker, *, at: float = 120.0) -> bool:
    return refusal_of(own, at, who, wished(who, 20048)) == ""


@SIZES
def test_two_sources_do_not_fill_the_table(most: int) -> None:
    """Over TCP and UDP, with all that they may forge, and any number of servers."""
    own, table = attacked(
        most,
        lambda n: asker(
            f"10.0.0.{n % 2}", server=f"10.1.{n}.1", standing=Standing(n // 2 % 3)
        ),
        240,
    )
    assert len(table.there) <= most * 3 // 4 * 3 // 4
    assert served(own, asker(server=VICTIM_SERVER))


@SIZES
@pytest.mark.parametrize("shift", [0, 64], ids=["of its /64", "of its /48"])
def test_host_with_ten_thousand_addresses_does_not_shut_out_others(
    most: int, shift: int
) -> None:
    first = int(ip_address("2001:db8:bad::1"))
    own, table = attacked(
        most,
        lambda n: asker(
            str(ip_address(first + (n << shift))), server=f"2001:db8:5::{n % 50}"
        ),
        10_000 if most == 4096 else 2_000,
        ports=1,
    )
    part = 3 / 4 if shift else 3 / 8
    assert len(table.there) <= most * 3 // 4 * part
    assert served(own, asker(CLIENT6, server="2001:db8:7::1"))
    assert served(own, asker(server=VICTIM_SERVER))


@SIZES
@pytest.mark.parametrize("standing", [UNANSWERED, ANSWERED])
def test_who_forges_a_source_does_not_spend_what_it_has(
    most: int, standing: Standing
) -> None:
    own, _ = attacked(
        most, lambda n: asker(standing=standing, server=f"10.1.{n}.1"), 100
    )
    for better in range(standing + 1, 3):
        who = asker(standing=Standing(better), server=VICTIM_SERVER)
        assert served(own, who)


@SIZES
def test_who_forges_many_sources_leaves_half_to_flows_that_were_answered(
    most: int,
) -> None:
    own, table = attacked(
        most, lambda n: asker(f"10.0.{n}.1", standing=UNANSWERED), 250
    )
    assert len(table.there) <= most * 3 // 4 // 2
    assert served(own, asker(standing=ANSWERED))


@SIZES
def test_server_that_announces_to_many_clients_does_not_shut_out_others(
    most: int,
) -> None:
    own, table = attacked(most, lambda n: asker(f"10.0.{n}.1"), 250)
    assert len(table.there) <= most * 3 // 4 // 2
    assert served(own, asker(server=VICTIM_SERVER))


def test_busy_client_is_not_refused() -> None:
    """Fifty servers whose exports are mounted, four services of each, for 300 s."""
    table = Table(4096)
    own = Guard(lives=table.lives, room=table.room)
    for number in range(50):
        who = asker(server=f"10.1.{number}.1", flow=number, standing=ANSWERED)
        wanted = wished(who, 111, 2049, 20048, 32803, timeout=300, permanent=True)
        assert refusal_of(own, number / 10, who, wanted) == ""
        table.there |= set(map(str, wanted))


def kept(ledger: Ledger) -> list[object]:
    """What stands in its attributes."""
    if hasattr(ledger, "__dict__"):
        return list(vars(ledger).values())
    # Compiled.
    return gc.get_referents(ledger)


def test_memory_is_bounded_by_what_lives() -> None:
    own = guard(in_all=50)
    for number in range(5000):
        who = asker(f"10.{number >> 8}.{number & 255}.1", flow=number)
        refusal_of(own, number / 10, who, wished(who, 2000, timeout=86400))
        own.ledger.forget(flow_key(number - 40, 0))
    sizes = [len(each) for each in kept(own.ledger) if isinstance(each, dict | list)]
    assert sizes
    assert max(sizes) <= 200


# Any order of events, against what the kernel has.

SOURCES = ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1")
SERVERS = (None, "10.9.9.1", "10.9.9.2")
LIMITS = Limits(in_all=0, live_source=6, live_server=7, live_all=12)


class Accounts(RuleBasedStateMachine):
    """The kernel has some, and says nothing of how they end.

    Its table is for 20: 15 of them are ours, and 5 a source's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        # When each ends, and of which flow it is.
        self.kernel: dict[str, tuple[float, int]] = {}
        self.others = 0
        self.guard = Guard(LIMITS, lives=self._lives, room=self._room)

    def _lives(self, expectation: Expectation) -> bool:
        return str(expectation) in self.kernel

    def _room(self) -> Room:
        return Room(len(self.kernel) + self.others, 20)

    @initialize(others=st.sampled_from([0, 8]))
    def begin(self, others: int) -> None:
        """What other programs have in the table, and keep."""
        self.others = others

    def _expire(self) -> None:
        self.kernel = {
            key: each for key, each in self.kernel.items() if each[0] > self.now
        }

    @rule(
        source=st.sampled_from(SOURCES),
        server=st.sampled_from(SERVERS),
        standing=st.sampled_from(Standing),
        flow=st.integers(1, 4),
        ports=st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True),
        timeout=st.sampled_from([2, 5, 60]),
        fate=st.sampled_from(["taken", "taken", "refused", "withdrawn"]),
    )
    def ask(
        self,
        source: str,
        server: str | None,
        standing: Standing,
        flow: int,
        ports: list[int],
        timeout: int,
        fate: str,
    ) -> None:
        who = asker(source, server=server, standing=standing, flow=flow)
        wanted = wished(who, *ports, timeout=timeout, permanent=flow % 2 == 0)
        before = self._counts()
        try:
            self.guard.charge(self.now, who, NO_RATES, wanted)
        except ExpectationRefused:
            # It gives up what has ended, and nothing else.
            assert len(self.kernel) <= len(self.guard.ledger)
            assert self._counts() <= before
            return
        ledger = self.guard.ledger
        ledger.enter(self.now, who, wanted, placed=False)
        if fate != "taken":
            ledger.cancel(wanted)
            return
        for each in wanted:
            key = str(each)
            end, master = self.kernel.get(key, (0.0, flow))
            self.kernel[key] = (max(end, self.now + timeout), master)
        ledger.confirm(wanted)

    @precondition(lambda self: self.kernel)
    @rule(of=st.sampled_from((2, 3, 100)))
    def meet(self, of: int) -> None:
        """Flows begin that were expected, and nobody hears of it."""
        keys = sorted(self.kernel)
        for key in keys if of == 100 else keys[::of]:
            del self.kernel[key]

    @rule(seconds=st.floats(0.1, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._expire()

    @rule(flow=st.integers(1, 4))
    def end(self, flow: int) -> None:
        self.kernel = {
            key: each for key, each in self.kernel.items() if each[1] != flow
        }
        self.guard.ledger.forget(flow_key(flow, 0))

    @invariant()
    def no_more_live_than_may(self) -> None:
        assert len(self.kernel) <= len(self.guard.ledger) <= LIMITS.live_all
        assert len(self.kernel) + self.others <= 15
        for account, number in self._counts().items():
            assert number >= 0
            kind = account[0]
            assert number <= {"source": 5, "server": 7}.get(str(kind), 12)

    def _counts(self) -> Counter[Account]:
        return Counter(
            account
            for live in self.guard.ledger._live.values()
            for account in live.accounts
        )

    def teardown(self) -> None:
        """All has ended: nothing is left, and nothing is refused."""
        for flow in range(1, 5):
            self.end(flow)
        self.now += 100
        self.others = 0
        who = asker("203.0.113.9", server="203.0.113.10")
        assert refusal_of(self.guard, self.now, who, wished(who, *range(1, 6))) == ""
        self.guard.ledger.forget(flow_key(1, 0))
        ledger = self.guard.ledger
        assert (len(ledger), ledger._members, ledger._of_flow) == (0, {}, {})


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=100, stateful_step_count=40)

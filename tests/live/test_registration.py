# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers registered with the kernel, and the ruleset that refers to them."""

import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, ip_network

import pytest

from cthelper import nft
from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Policy, Transport
from cthelper.core.config import Config, HelperConfig
from cthelper.core.daemon import ruleset
from cthelper.core.daemon.probe import Kernel
from cthelper.core.daemon.retag import retag
from cthelper.core.daemon.ruleset import registrations, unregister
from cthelper.core.errors import (
    Busy,
    Invalid,
    NotFound,
    RestartNeeded,
    RulesetError,
)
from cthelper.core.kernel_modules import loaded_module
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import (
    HelperTable,
    NameTaken,
    Registration,
    kernel_module,
)
from cthelper.core.queue.library import bind_queue
from tests.live.gateway import ask_in, helper_table, tables
from tests.live.netlink_lab import Flow, tcp_flow
from tests.live.world import CLIENT, SERVER, World

pytestmark = pytest.mark.live

PORT = 7300
OTHER_PORT = 7301
QUEUE = 4078
POLICIES = (Policy("data", 4, 30), Policy("brief", 255, 86400))

UDP4 = Registration(
    name="labreg",
    family=socket.AF_INET,
    transport=UDP,
    queue=QUEUE,
    policies=POLICIES,
)

_ports = itertools.count(7310)

# The gateway tracks connections only once a rule asks for it.
TRACKING = """
table inet tracking {
    chain tracking {
        type filter hook forward priority 0; policy accept;
        ct state new accept
    }
}
"""
REFERRING = """
table inet referring {
    ct helper labreg {
        type "labreg" protocol udp; l3proto ip;
    }
}
"""


class LabHelper(Helper):
    """A helper for both transports that never asks for anything."""

    name = "labsetup"
    transports = frozenset({TCP, UDP})
    ports = (PORT,)
    policies = POLICIES

    def frame(self, data: memoryview) -> int | None:
        """Every segment is a message."""
        return len(data)

    def on_message(self, message: Message) -> Effects:
        """React to nothing."""
        yield from ()


HELPER_CONFIG = HelperConfig(
    helper=LabHelper, queue=QUEUE, ports=(PORT,), policies=POLICIES, options={}
)
CONFIG = Config(helpers={LabHelper.name: HELPER_CONFIG})
WANTED = registrations([HELPER_CONFIG])


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[World]:
    """A world whose gateway tracks connections and does nothing with them."""
    world.reset()
    world.gateway.run("nft", "-f", "-", input=TRACKING, check=True)
    yield world
    world.reset()


@pytest.fixture
def table(gateway: World) -> Iterator[HelperTable]:
    """The table of helpers, which the test leaves as it was."""
    with helper_table(gateway) as table:
        before = table.list()
        yield table
        unregister(table, [each for each in table.list() if each not in before])


@pytest.fixture(scope="module")
def kernel(gateway: World) -> Kernel:
    """What this one does."""
    return ask_in(gateway)


@pytest.fixture
def inside(gateway: World) -> Iterator[None]:
    """The test runs in the gateway's namespace."""
    with gateway.gateway.entered():
        yield


@pytest.fixture
def ruleset_removed(table: HelperTable, inside: None) -> Iterator[None]:
    """The test may install our ruleset, which must go before its helpers can."""
    yield
    nft.remove()


def named(table: HelperTable, name: str) -> list[Registration]:
    """What the kernel holds under a name."""
    return [each for each in table.list() if each.name == name]


def in_order(found: list[Registration]) -> list[Registration]:
    """Registrations in an order that does not depend on the kernel's."""
    return sorted(found, key=lambda each: each.key)


def install(config: Config, *, retag_flows: bool) -> int | None:
    """Install as it is done on a kernel that keeps each policy's limits."""
    return ruleset.install(
        config,
        retag_flows=retag_flows,
        keeps_limits=lambda: True,
        hands_down=lambda: False,
    )


@contextmanager
def referring(world: World) -> Iterator[None]:
    """A ruleset on the gateway that refers to the helper, for a while."""
    world.gateway.run("nft", "-f", "-", input=REFERRING, check=True)
    try:
        yield
    finally:
        world.gateway.run("nft", "delete", "table", "inet", "referring", check=True)


# Registrations


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("enabled", [True, False])
def test_registration_is_listed_as_it_was_put(
    table: HelperTable, family: int, transport: Transport, enabled: bool
) -> None:
    wanted = replace(UDP4, family=family, transport=transport, enabled=enabled)
    table.put(wanted)
    assert named(table, "labreg") == [wanted]
    assert table.delete(wanted)
    assert named(table, "labreg") == []


def test_four_policies_and_the_longest_name_are_taken(table: HelperTable) -> None:
    policies = tuple(Policy(f"policy-{number}", number, 60) for number in range(1, 5))
    wanted = replace(UDP4, name="fifteen-letters", policies=policies, queue=65535)
    table.put(wanted)
    assert named(table, "fifteen-letters") == [wanted]


def test_name_of_sixteen_letters_is_invalid(table: HelperTable) -> None:
    with pytest.raises(Invalid, match="register helper"):
        table.put(replace(UDP4, name="sixteen--letters"))


def test_put_again_changes_queue_limits_and_enabled_in_place(
    gateway: World, table: HelperTable, kernel: Kernel
) -> None:
    table.put(UDP4)
    changed = replace(
        UDP4,
        queue=QUEUE + 1,
        policies=(Policy("data", 9, 31), Policy("brief", 1, 2)),
        enabled=True,
    )
    # What a ruleset refers to cannot be deleted, and so was not made anew.
    with referring(gateway):
        table.put(changed)
        held = named(table, "labreg")
    if not kernel.keeps_limits:
        # Linux 6.12.95: each policy has the first one's.
        assert held == [replace(changed, policies=_as_the_first(changed))]
        return
    assert held == [changed]
    table.put(UDP4)
    assert named(table, "labreg") == [UDP4]


def _as_the_first(registration: Registration) -> tuple[Policy, ...]:
    first, *_ = registration.policies
    return tuple(replace(first, name=each.name) for each in registration.policies)


def test_limits_are_changed_in_place_or_the_change_is_refused(
    gateway: World, table: HelperTable, kernel: Kernel
) -> None:
    present = replace(UDP4, policies=(Policy("data", 9, 31), Policy("brief", 1, 2)))
    table.put(present)
    keeps = kernel.keeps_limits
    if keeps:
        ruleset.register(table, [UDP4], keeps_limits=lambda: keeps)
    else:
        with pytest.raises(
            RestartNeeded, match="labreg ip udp is registered otherwise"
        ):
            ruleset.register(table, [UDP4], keeps_limits=lambda: keeps)
    assert named(table, "labreg") == [UDP4 if keeps else present]


@pytest.mark.usefixtures("ruleset_removed")
def test_installing_has_each_policy_with_its_limits_whatever_was_there(
    table: HelperTable, kernel: Kernel
) -> None:
    limits = (Policy("data", 7, 77), Policy("brief", 8, 88))
    for each in WANTED:
        table.put(replace(each, policies=limits))
    ruleset.install(
        CONFIG,
        retag_flows=False,
        keeps_limits=lambda: kernel.keeps_limits,
        hands_down=lambda: kernel.hands_down,
    )
    assert in_order(named(table, LabHelper.name)) == in_order(WANTED)


def test_put_leaves_other_transports_and_families_alone(table: HelperTable) -> None:
    others = [replace(UDP4, transport=TCP), replace(UDP4, family=socket.AF_INET6)]
    for each in others:
        table.put(each)
    table.put(UDP4)
    table.put(replace(UDP4, queue=9))
    assert table.delete(UDP4)
    assert in_order(named(table, "labreg")) == in_order(others)


@pytest.mark.parametrize(
    "policies",
    [
        POLICIES[:1],
        (*POLICIES, Policy("third")),
        (POLICIES[0], Policy("other", 255, 86400)),
    ],
    ids=["fewer", "more", "another name"],
)
def test_other_policies_need_a_restart(
    table: HelperTable, policies: tuple[Policy, ...]
) -> None:
    table.put(UDP4)
    with pytest.raises(RestartNeeded, match="labreg ip udp is registered with other"):
        table.put(replace(UDP4, policies=policies))
    assert named(table, "labreg") == [UDP4]


def test_delete_says_whether_the_helper_was_registered(table: HelperTable) -> None:
    table.put(UDP4)
    assert table.delete(UDP4) is True
    assert table.delete(UDP4) is False


def test_helper_that_a_ruleset_refers_to_can_be_deleted_since_linux_7(
    gateway: World, table: HelperTable
) -> None:
    table.put(UDP4)
    with referring(gateway):
        if int(os.uname().release.partition(".")[0]) < 7:
            with pytest.raises(Busy, match="unregister helper labreg ip udp"):
                table.delete(UDP4)
            assert named(table, "labreg") == [UDP4]
        else:
            # So nothing of ours may try to as long as the table is there.
            assert table.delete(UDP4)
    unregister(table, [UDP4])
    assert named(table, "labreg") == []


def test_name_that_a_kernel_module_serves_is_taken_until_it_is_removed(
    table: HelperTable,
) -> None:
    wanted = replace(UDP4, name="tftp")
    subprocess.run(["modprobe", "nf_conntrack_tftp"], check=True)
    try:
        with pytest.raises(NameTaken, match="nf_conntrack_tftp: set another one"):
            table.put(wanted)
        assert loaded_module("tftp") == "nf_conntrack_tftp"
        assert named(table, "tftp") == []
    finally:
        subprocess.run(["rmmod", "nf_conntrack_tftp"], check=True)
    assert loaded_module("tftp") is None
    table.put(wanted)
    assert named(table, "tftp") == [wanted]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("tftp", "nf_conntrack_tftp"),
        # These modules are not named after their helpers, their aliases are.
        ("RAS", "nf_conntrack_h323"),
        ("snmp_trap", "nf_nat_snmp_basic"),
        ("labreg", "nf_conntrack_labreg"),
    ],
)
def test_kernel_module_of_a_helper(name: str, module: str) -> None:
    assert kernel_module(name) == module


# The ruleset


@pytest.mark.usefixtures("inside")
def test_check_registers_helpers_only_for_its_while(table: HelperTable) -> None:
    before = table.list()
    with pytest.raises(RulesetError, match="No such file or directory"):
        nft.check(CONFIG)
    ruleset.check(CONFIG)
    assert in_order(table.list()) == in_order(before)


@pytest.mark.usefixtures("inside")
def test_check_leaves_registered_helpers_as_they_are(table: HelperTable) -> None:
    limits = (Policy("data", 7, 77), Policy("brief", 8, 88))
    present = replace(WANTED[0], queue=9, policies=limits, enabled=True)
    table.put(present)
    ruleset.check(CONFIG)
    assert named(table, LabHelper.name) == [present]


@pytest.mark.usefixtures("inside")
def test_check_of_a_wrong_ruleset_leaves_no_helpers(table: HelperTable) -> None:
    # The configuration's check would have refused it: IFNAMSIZ is 16.
    interface = "longer-than-sixteen"
    wrong = replace(HELPER_CONFIG, interfaces=(interface,))
    with pytest.raises(RulesetError, match="exceeds maximum"):
        ruleset.check(Config(helpers={LabHelper.name: wrong}))
    assert named(table, LabHelper.name) == []


@pytest.mark.usefixtures("ruleset_removed")
def test_install_and_remove_can_be_repeated(gateway: World, table: HelperTable) -> None:
    for _ in range(2):
        assert install(CONFIG, retag_flows=False) is None
        assert in_order(named(table, LabHelper.name)) == in_order(WANTED)
    assert f"table {nft.TABLE}\n" in tables(gateway)
    for _ in range(2):
        assert ruleset.remove() == []
        assert named(table, LabHelper.name) == []
    assert nft.TABLE not in tables(gateway)


@pytest.mark.usefixtures("ruleset_removed")
def test_flows_of_an_installed_ruleset_are_tracked_without_a_daemon(
    gateway: World,
) -> None:
    install(CONFIG, retag_flows=False)
    with (
        Flow(gateway, PORT) as flow,
        tcp_flow(gateway, PORT) as tcp,
        closing(Ctnetlink()) as ctnetlink,
    ):
        for original in (flow.begin().original, tcp):
            entry = ctnetlink.get(original)
            assert entry.confirmed
            assert entry.helper == LabHelper.name


@pytest.mark.usefixtures("ruleset_removed")
def test_helpers_of_a_served_queue_stay_registered(table: HelperTable) -> None:
    with closing(bind_queue(QUEUE, 1 << 20, fail_open=True)):
        install(CONFIG, retag_flows=False)
        assert ruleset.remove() == [LabHelper.name]
        assert in_order(named(table, LabHelper.name)) == in_order(WANTED)
    assert ruleset.remove() == []
    assert named(table, LabHelper.name) == []


# Tagging anew


@pytest.mark.usefixtures("ruleset_removed")
def test_retag_deletes_untagged_udp_flows_to_the_helpers_ports_alone(
    gateway: World,
) -> None:
    # Of its own: entries of other tests are still there.
    port = next(_ports)
    config = Config(helpers={LabHelper.name: replace(HELPER_CONFIG, ports=(port,))})
    with (
        Flow(gateway, port) as udp4,
        Flow(gateway, port, 6) as udp6,
        Flow(gateway, port) as tagged,
        Flow(gateway, OTHER_PORT) as other,
        tcp_flow(gateway, port) as tcp,
        closing(Ctnetlink()) as ctnetlink,
    ):
        for flow in (udp4, udp6, other):
            flow.begin()
        install(config, retag_flows=False)
        assert ctnetlink.get(tagged.begin().original).helper == LabHelper.name

        assert install(config, retag_flows=True) == 2
        for gone in (udp4, udp6):
            with pytest.raises(NotFound):
                ctnetlink.get(gone.original)
        for original in (tagged.original, other.original, tcp):
            assert ctnetlink.get(original).confirmed
        # The next packet begins the flow anew.
        assert ctnetlink.get(udp4.begin().original).helper == LabHelper.name
        assert install(config, retag_flows=True) == 0


@pytest.mark.usefixtures("ruleset_removed")
def test_retag_deletes_flows_whose_helper_was_registered_anew(
    gateway: World, table: HelperTable
) -> None:
    """Such an entry names no helper, from Linux 7.2 on the one that is gone."""
    port = next(_ports)
    config = Config(helpers={LabHelper.name: replace(HELPER_CONFIG, ports=(port,))})
    with (
        Flow(gateway, port) as early,
        Flow(gateway, port) as late,
        closing(Ctnetlink()) as ctnetlink,
    ):
        install(config, retag_flows=False)
        assert ctnetlink.is_attached(early.begin().original, LabHelper.name)
        nft.remove()
        unregister(table, WANTED)
        assert not ctnetlink.is_attached(early.original, LabHelper.name)
        install(config, retag_flows=False)
        early.begin()
        assert not ctnetlink.is_attached(early.original, LabHelper.name)
        late.begin()
        assert install(config, retag_flows=True) == 1
        assert ctnetlink.get(late.original).confirmed
        assert ctnetlink.is_attached(early.begin().original, LabHelper.name)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"sources": (ip_network(f"{CLIENT}/32"),)}, 1),
        ({"sources": (ip_network(f"{SERVER}/32"),)}, 0),
        ({"destinations": (IPv4Network("10.77.2.0/24"),)}, 1),
        ({"destinations": (ip_network("fd77:2::/64"), ip_network("10.1.0.0/16"))}, 1),
        ({"ports": (9, 65535)}, 0),
    ],
    ids=["source", "other source", "destination", "IPv6 destination", "other port"],
)
def test_retag_deletes_what_the_helpers_rules_match(
    gateway: World, changes: dict[str, tuple[object, ...]], count: int
) -> None:
    port = next(_ports)
    narrowed = {"ports": (port,), **changes}
    config = replace(HELPER_CONFIG, **narrowed)  # type: ignore[arg-type] # of each key
    with (
        Flow(gateway, port) as udp4,
        Flow(gateway, port, 6) as udp6,
        closing(Ctnetlink()) as ctnetlink,
    ):
        udp4.begin()
        udp6.begin()
        assert retag(ctnetlink, [config]) == count
        assert retag(ctnetlink, [config]) == 0

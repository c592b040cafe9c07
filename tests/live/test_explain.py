# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper explain`` on a gateway: what it says of a flow is what becomes of it."""

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.live.daemon import Daemon, equal_limits, only
from tests.live.traffic import PORT, Echo, asker, call, getport, getport_call
from tests.live.world import CLIENT, CLIENT6, LAN, SERVER, SERVER6, World, until

pytestmark = pytest.mark.live

ANNOUNCED: Final = 7999
DENIED: Final = 7998
OTHER_PORT: Final = 7112
STRANGER: Final = "10.77.1.3"
CONFIG: Final = (
    f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}, {OTHER_PORT}]\n"
    f"{equal_limits(300)}[helpers.sunrpc.guard]\ndenied_ports = [{DENIED}]\n"
)
PORTS: Final = f"udp dport {{ {PORT}, {OTHER_PORT} }} accept"
RULES: Final = f"table inet firewall {{ chain forward {{ {PORTS}; }}; }}"
# How the rule that lets in what is related is found in what is told.
ACCEPTING: Final = (
    r"as ct state related of sunrpc it is accepted by table inet firewall, chain "
    r'forward, rule handle \d+: ct state related counter name "related-forward" accept'
)


@pytest.fixture
def early(world: World, daemon: Daemon) -> Iterator[socket.socket]:
    """A flow that began before there was a daemon, which serves when this is there."""
    world.firewall(RULES)
    with ExitStack() as stack:
        stack.enter_context(Echo(world.server, ANNOUNCED))
        stack.enter_context(Echo(world.server, DENIED, OTHER_PORT))
        flow = stack.enter_context(asker(world))
        call(flow)
        daemon.start(CONFIG)
        yield flow


def explained(daemon: Daemon, code: int, *words: str) -> str:
    """What is said of a flow."""
    done = daemon.ask("explain", *words)
    print(done.stdout)  # for who reads on after a failure
    assert done.returncode == code, done
    return done.stdout


def knock(world: World) -> bool:
    """Whether a flow to the announced port gets through, and so has an entry."""
    with world.client.entered():
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with flow:
        flow.bind((CLIENT, 0))
        flow.sendto(b"x", (SERVER, ANNOUNCED))
        mine = ("-p", "udp", "--orig-port-src", str(flow.getsockname()[1]))
        return until(lambda: SERVER in world.conntrack("-L", *mine), 2)


def test_what_is_said_of_a_flow_is_what_becomes_of_it(
    world: World, daemon: Daemon, early: socket.socket
) -> None:
    # Nothing has announced it yet.
    call(early)
    words = ("udp", CLIENT, f"{SERVER}:{ANNOUNCED}")
    own = f"udp {CLIENT}:{early.getsockname()[1]} > {SERVER}:{PORT}"
    text = explained(daemon, 1, *words, "--control", own)
    assert "! announced  nothing like it is remembered\n" in text
    began = f"! control    {own} has no helper: the ruleset gives it the helper sunrpc"
    assert began in text
    assert not knock(world)

    # It is announced, and accepted.
    flow, port = getport(world)
    assert port == ANNOUNCED
    text = explained(daemon, 0, *words)
    control = f"udp {CLIENT}:{flow.getsockname()[1]} > {SERVER}:{PORT}"
    assert re.search(rf"announced by {control}, \d+ s left\n", text), text
    assert re.search(ACCEPTING, text), text
    assert text.endswith("\nnothing in the way\n")
    assert knock(world)

    # A rule of the user's drops it before.
    rule = f"udp dport {ANNOUNCED} ip daddr {SERVER} drop"
    added = ("nft", "-e", "-a", "insert", "rule", "inet", "firewall", "forward")
    told = world.gateway.run(*added, *rule.split(), "comment", '"mine"', check=True)
    handle = re.findall(r"# handle (\d+)", told.stdout)[-1]
    text = explained(daemon, 1, *words)
    assert (
        f"! rules      as ct state related of sunrpc it is dropped by table inet "
        f"firewall, chain forward, rule handle {handle}: udp dport {ANNOUNCED} "
        f'ip daddr {SERVER} drop comment "mine"\n'
    ) in text
    assert text.endswith("\nblocked: rules\n")
    assert not knock(world)
    world.gateway.run(
        *("nft", "delete", "rule", "inet", "firewall", "forward", "handle", handle),
        check=True,
    )

    # Another source, another version of IP.
    text = explained(daemon, 1, "udp", STRANGER, f"{SERVER}:{ANNOUNCED}")
    assert "! nearest    sunrpc expected udp" in text
    assert f"its source {STRANGER} is not in {CLIENT}\n" in text
    assert "chain forward, policy drop\n" in text
    text = explained(daemon, 1, f"udp {CLIENT6} > [{SERVER6}]:{ANNOUNCED}")
    assert "the flow is IPv6, not IPv4\n" in text

    # The configuration refuses it.
    with world.client.entered():
        refused = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with refused:
        refused.settimeout(10)
        refused.connect((SERVER, OTHER_PORT))
        refused.send(getport_call(1))
        assert refused.recv(100)
    text = explained(daemon, 1, "udp", CLIENT, f"{SERVER}:{DENIED}")
    assert re.search(
        rf"! refused    sunrpc asked for a flow over udp to {SERVER}:{DENIED} \(in udp "
        rf"{CLIENT}:\d+ > {SERVER}:{OTHER_PORT}\) \d+ s ago: refused, denied-port: ",
        text,
    ), text

    # Where the flow comes by another interface than the route back.
    strict = ("sh", "-c", f"echo 1 >/proc/sys/net/ipv4/conf/{LAN}/rp_filter")
    world.gateway.run(*strict, check=True)
    try:
        (found,) = daemon.records("explain", "udp", "10.77.2.9", *words[2:], "-i", LAN)
    finally:
        world.gateway.run("sh", "-c", strict[2].replace("1 >", "0 >", 1), check=True)
    assert found["verdict"].startswith("blocked: ")
    by_kind = {each["kind"]: each for each in found["findings"] if each["blocks"]}
    assert {"route", "rp_filter"} <= by_kind.keys()
    # A flow that is there is not blocked.
    assert "its first packet has passed all chains here" in explained(
        daemon, 0, *control.replace(">", "").split()
    )
    flow.close()

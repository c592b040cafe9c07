# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows that ask the guard for expectations, for the tests of its accounts."""

from ipaddress import ip_address

from cthelper.core.errors import ExpectationRefused
from cthelper.core.guard import Guard, Rules
from cthelper.core.ledger import Asker, Standing
from cthelper.core.tuples import TCP, UDP, Endpoint, Expectation, flow_key, host_network
from tests.core.builders import CLIENT, SERVER, flow_tuple

NO_RATES = Rules(per_source=0, per_helper=0)


def asker(
    source: str = CLIENT,
    *,
    server: str | None = SERVER,
    standing: Standing = Standing.PROVEN,
    flow: int = 1,
    helper: str = "sunrpc",
) -> Asker:
    """Who asks; `flow` is the id of his control flow."""
    to = None if server is None else ip_address(server)
    return Asker(helper, ip_address(source), to, standing, flow_key(flow, 0))


def wished(
    who: Asker, *ports: int, timeout: int = 60, permanent: bool = False
) -> list[Expectation]:
    """Expectations of flows from the asker to ports of his server."""
    server = who.server or who.source
    control = flow_tuple(UDP, (str(who.source), 9), (str(server), 111))
    return [
        Expectation(
            master=control,
            transport=TCP,
            source=host_network(who.source),
            source_port=None,
            destination=Endpoint(server, port),
            policy="data",
            timeout=timeout,
            permanent=permanent,
        )
        for port in ports
    ]


def refusal_of(
    guard: Guard,
    now: float,
    who: Asker,
    wanted: list[Expectation],
    rules: Rules = NO_RATES,
) -> str:
    """Charge them as is done for a packet; why they are refused, empty: they are not.

    The kernel takes what is granted.
    """
    try:
        guard.charge(now, who, rules, wanted)
    except ExpectationRefused as error:
        return error.reason
    guard.ledger.enter(now, who, wanted, placed=False)
    guard.ledger.confirm(wanted)
    return ""

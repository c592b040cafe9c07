# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows behind NAT: who is known by which address."""

from typing import Final

from hypothesis import assume
from hypothesis import strategies as st

from cthelper.core.api import Helper, Transport
from cthelper.core.errors import ExpectationRefused
from cthelper.core.guard import Guard, Rules
from cthelper.core.tuples import Address, Conntrack, Endpoint
from tests.helpers.inspected import entry_of

# The client's own address, what the server knows it by; what the client knows the
# server by, and the server's own address, by IP version.
CLIENT: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
MASQUERADED: Final = {4: "203.0.113.9", 6: "2001:db8:9::9"}
PUBLIC: Final = {4: "203.0.113.80", 6: "2001:db8:9::80"}
SERVER: Final = {4: "10.0.0.2", 6: "fd00::2"}

NATS: Final = ("snat", "dnat", "both")


def known(nat: str, version: int = 4) -> str:
    """What the client knows the server by."""
    return (SERVER if nat == "snat" else PUBLIC)[version]


def translated(
    helper: type[Helper],
    version: int = 4,
    nat: str = "dnat",
    *,
    transport: Transport | None = None,
    server: str | None = None,
    public: str | None = None,
) -> Conntrack:
    """A flow's entry; `nat` says which side is translated."""
    seen_as = (CLIENT if nat == "dnat" else MASQUERADED)[version]
    return entry_of(
        helper,
        (CLIENT[version], 650),
        public or known(nat, version),
        transport=transport,
        seen_as=(seen_as, 650),
        inside=server or SERVER[version],
    )


@st.composite
def servers(draw: st.DrawFn) -> tuple[int, str, str]:
    """An IP version, a server's own address, and another that it is known by."""
    version = draw(st.sampled_from([4, 6]))
    hosts = st.ip_addresses(v=4 if version == 4 else 6).filter(_is_a_hosts)
    server, public = draw(hosts), draw(hosts)
    assume(server != public)
    return version, str(server), str(public)


def _is_a_hosts(address: Address) -> bool:
    """Whether the guard takes it for the address of a host."""
    try:
        Guard().check(Endpoint(address, 5000), address, Rules())
    except ExpectationRefused:
        return False
    return True

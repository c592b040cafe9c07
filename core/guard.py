# SPDX-License-Identifier: GPL-2.0-or-later
"""What an expectation may open, and how many there may be.

Each check has a reason code, and each refusal leaves nothing open. An announced
address must be the announcer's own: this is what stops redirects to third parties
(FTP bounce, NAT slipstreaming, TNS poison). And whoever asks for too many, within a
minute or living at a time (core/ledger.py), is refused more, while what others were
granted stays.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from cthelper.core.errors import ExpectationRefused
from cthelper.core.ledger import (
    LIVE_ALL,
    LIVE_SERVER,
    LIVE_SOURCE,
    Account,
    Asker,
    Ledger,
    Room,
    Standing,
    part,
)
from cthelper.core.tuples import (
    LIMITED_BROADCAST,
    Address,
    Endpoint,
    Expectation,
    Network,
    same,
)

DENIED_PORTS: Final = frozenset({22, 23, 25, 53, 80, 135, 139, 443, 445, 3389})
"""Ports never to be opened by default: what they serve is not announced by a helper."""

IN_ALL: Final = 8192
"""Expectations a minute of all helpers together."""

_WHO: Final = {
    "rate-source": "{0.source} with {0.helper}",
    "rate-network": "the /48 of {0.source}",
    "rate-unanswered": "unanswered flows",
    "rate-unproven": "flows that may be forged",
    "rate-helper": "{0.helper}",
    "rate-all": "all helpers",
}

_MINUTE: Final = 60.0
# A source of which nothing was heard for a minute has a full bucket again, so that few
# are kept; this bounds them where nothing else is limited.
_SOURCE_LIMIT: Final = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Who may announce other hosts than itself; an entry of ``guard.allow``.

    Announcers in the networks `from_` may announce addresses in `hosts`, with `ports`;
    where these are empty, with the ports of the helper's rules.
    """

    from_: tuple[Network, ...]
    hosts: tuple[Network, ...]
    ports: tuple[range, ...] = ()

    def names(self, announcer: Address, address: Address) -> bool:
        """Whether the announcer may announce the address, with some port."""
        return _within(announcer, self.from_) and _within(address, self.hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one helper may open; table ``[helpers.NAME.guard]``.

    `lowest_port` is the lowest port that may be opened, 1 to 65535; of those above it
    none of `denied_ports`, and only `allowed_ports` where there are any. `allow` says
    who may announce other hosts than itself; whom `allow_hosts` has anybody may.
    `per_source` and `per_helper` are expectations a minute, as many at once, for the
    flows of one source and for all of the helper's; 0 is no limit.
    """

    denied_ports: frozenset[int] = DENIED_PORTS
    allowed_ports: tuple[range, ...] = ()
    lowest_port: int = 1024
    allow: tuple[Allowance, ...] = ()
    allow_hosts: tuple[Network, ...] = ()
    per_source: int = 512
    per_helper: int = 4096

    def allows(self, announcer: Address, endpoint: Endpoint) -> bool:
        """Whether `announcer` may announce an endpoint that is another host's.

        What no helper may open at all `refusal` says.
        """
        if not self.allow_hosts and not self.allow:
            return False
        address, port = endpoint.address, endpoint.port
        return _within(address, self.allow_hosts) or any(
            each.names(announcer, address)
            and (not each.ports or _among(port, each.ports))
            for each in self.allow
        )

    def names(self, announcer: Address, address: Address) -> bool:
        """Whether `announcer` may announce another host, with some port at least."""
        return _within(address, self.allow_hosts) or any(
            each.names(announcer, address) for each in self.allow
        )

    def refusal(self, port: int, *, listed: bool = False) -> ExpectationRefused | None:
        """Why a port must not be opened; None: it may be.

        `listed` is whether an entry of `allow` lists it, so that `allowed_ports` does
        not matter.
        """
        if port in self.denied_ports:
            return ExpectationRefused(
                "denied-port", f"port {port} is in guard.denied_ports"
            )
        if port < self.lowest_port:
            return ExpectationRefused(
                "low-port",
                f"port {port} is below guard.lowest_port, {self.lowest_port}",
            )
        if self.allowed_ports and not (listed or _among(port, self.allowed_ports)):
            return ExpectationRefused(
                "port-not-allowed", f"port {port} is not in guard.allowed_ports"
            )
        return None

    def lists(self, announcer: Address, endpoint: Endpoint) -> bool:
        """Whether an entry of `allow` lists the port of another host's endpoint."""
        return any(
            each.names(announcer, endpoint.address)
            and _among(endpoint.port, each.ports)
            for each in self.allow
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all helpers together may have; table ``[guard]``. 0 is no limit.

    `in_all` is expectations a minute; the others are live ones: of one source's flows,
    of those to one server, and in all.
    """

    in_all: int = IN_ALL
    live_source: int = LIVE_SOURCE
    live_server: int = LIVE_SERVER
    live_all: int = LIVE_ALL


UNLIMITED: Final = Limits(in_all=0, live_source=0, live_server=0, live_all=0)


@dataclass(slots=True)
class _Bucket:
    """A token bucket: it holds what may be taken at once, and fills in a minute."""

    tokens: float
    filled: float

    def fill(self, now: float, size: int) -> None:
        gained = (now - self.filled) * size / _MINUTE
        self.tokens = min(float(size), self.tokens + gained)
        self.filled = now


class Guard:
    """Refuses endpoints that no honest announcement names, and too many of any.

    `lives`, `room` and `workers` are the ledger's (core/ledger.py).
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        lives: Callable[[Expectation], bool] | None = None,
        room: Callable[[], Room | None] | None = None,
        workers: int = 1,
    ) -> None:
        limits = limits or Limits()
        self._in_all = limits.in_all
        self.ledger = Ledger(
            *(limits.live_source, limits.live_server, limits.live_all),
            lives=lives,
            room=room,
            workers=workers,
        )
        self._buckets: OrderedDict[Account, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        """How many rates are kept account of."""
        return len(self._buckets)

    def limit(self, limits: Limits) -> None:
        """Go by these from now on; what was taken, and what lives, still counts."""
        self._in_all = limits.in_all
        self.ledger.limit(limits.live_source, limits.live_server, limits.live_all)

    def check(self, endpoint: Endpoint, announcer: Address, rules: Rules) -> None:
        """Raise ExpectationRefused unless `announcer` may announce `endpoint`."""
        address, port = endpoint.address, endpoint.port
        allowed = rules.allows(announcer, endpoint)
        reason = _unusable(address)
        if reason is not None and not (allowed and address.is_loopback):
            text = f"{address} cannot be a host's address"
            if address.is_loopback:
                text += " outside guard.allow"
            raise ExpectationRefused(reason, text)
        other = not same(address, announcer)
        if other and not allowed:
            if rules.names(announcer, address):
                raise ExpectationRefused(
                    "third-party-port",
                    f"{announcer} announced port {port} of {address}, which is not "
                    "among its ports in guard.allow",
                )
            raise ExpectationRefused(
                "third-party-address",
                f"{announcer} announced {address}, which it may not by guard.allow",
            )
        if port == 0:
            raise ExpectationRefused("port-zero", f"{address} announced port 0")
        refusal = rules.refusal(port, listed=other and rules.lists(announcer, endpoint))
        if refusal is not None:
            raise refusal

    def charge(
        self,
        now: float,
        asker: Asker,
        rules: Rules,
        wanted: Sequence[Expectation],
        *,
        moves: bool = False,
    ) -> None:
        """Take these off what is left for a minute, or raise ExpectationRefused.

        Nor may they be too many with those that live; with `moves` they may yet be
        given other ports. `now` is a clock in seconds. A refusal takes nothing.
        """
        self.ledger.check(now, asker, wanted, moves=moves)
        count = len(wanted)
        taken: list[_Bucket] = []
        for reason, key, size, limit in self._rates(asker, rules):
            if not size:
                continue
            bucket = self._buckets.get(key) or _Bucket(size, now)
            bucket.fill(now, size)
            if bucket.tokens < count:
                who = _WHO[reason].format(asker)
                raise ExpectationRefused(
                    reason, f"{who} had {size} expectations within a minute ({limit})"
                )
            self._buckets[key] = bucket
            self._buckets.move_to_end(key)
            taken.append(bucket)
        for bucket in taken:
            bucket.tokens -= count
        self._forget(now)

    def _rates(
        self, asker: Asker, rules: Rules
    ) -> Iterator[tuple[str, Account, int, str]]:
        """Reason, account, size and key of what an asker's expectations are taken off.

        What anybody may have sent in a source's name is not taken off what that source
        has for flows that were answered, nor what an answer to a forged datagram may
        say off what it has for others. And all of it leaves something to the others.
        """
        helper, standing = asker.helper, asker.standing
        unanswered = standing is Standing.UNANSWERED
        per_source = part(rules.per_source, 1, 4) if unanswered else rules.per_source
        key = helper, int(standing), *asker.who
        yield "rate-source", key, per_source, "guard.per_source"
        network = asker.network
        for name, size, limit in (
            (helper, rules.per_helper, "guard.per_helper"),
            ("", self._in_all, "[guard] in_all"),
        ):
            if network is not None:
                key = name, *network
                yield "rate-network", key, part(size, 3, 4), f"3/4 of {limit}"
            if unanswered:
                key = name, "unanswered"
                yield "rate-unanswered", key, part(size, 1, 2), f"half of {limit}"
            if standing is not Standing.PROVEN:
                key = name, "unproven"
                yield "rate-unproven", key, part(size, 3, 4), f"3/4 of {limit}"
            yield "rate-helper" if name else "rate-all", (name,), size, limit

    def _forget(self, now: float) -> None:
        """Let go of buckets that are full again."""
        while self._buckets:
            oldest = next(iter(self._buckets.values()))
            if oldest.filled > now - _MINUTE and len(self._buckets) <= _SOURCE_LIMIT:
                return
            self._buckets.popitem(last=False)


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _among(port: int, ranges: tuple[range, ...]) -> bool:
    return any(port in each for each in ranges)


# The same few servers announce again and again, and each question costs a look-up.
@lru_cache(maxsize=4096)
def _unusable(address: Address) -> str | None:
    # First, because newer Pythons answer the other questions for the mapped address.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return "v4-mapped-address"
    if address.is_unspecified:
        return "unspecified-address"
    if address.is_loopback:
        return "loopback-address"
    if address.is_multicast:
        return "multicast-address"
    if address == LIMITED_BROADCAST:
        return "broadcast-address"
    return None

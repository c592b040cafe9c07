# SPDX-License-Identifier: GPL-2.0-or-later
"""What inspection costs, accounted for those who cause it.

An account is a token bucket of CPU seconds that holds what may be taken in a second
(and, since it is filled only once it is empty, that much again after a pause). A
packet is its sender's: the client's are accounted for by its address (IPv6: by the
/64), those of the server by both addresses, so that a server that somebody was lured to
spends no more than what the client has with it. Anybody may send as anybody before a
flow is assured (IPS_ASSURED): such flows have accounts of their own, so that forged
packets never spend what an assured flow needs, and share two larger ones besides, of
their sender's network and of all, so that many forged sources together leave half a
core to those that are assured.

Accounts are few, and made for whom a hash with a secret picks: who sends from millions
of addresses makes no more of them, and pushes none out. One in 128 of a network, or of
a server's clients, shares with one that takes too much, and nobody can arrange who.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cthelper.core.tuples import ORIGINAL, Direction, Tuple, host_number, version_of

NARROW: Final = "source-cpu"
"""The reason where one source takes too much, not many together."""

# Wider accounts of each kind, and narrower ones that share one of them.
_WIDER: Final = 128
_NARROWER: Final = 128
# Percent of a core: a network's flows that are not assured, all such flows, and the
# replies of one server. None of them is less than what one source may take.
_PERCENT: Final = {"network-cpu": 30, "beginning-cpu": 50}
# Bits of an address that do not tell networks apart.
_HOST_BITS: Final = {4: 8, 6: 80}
# Seconds without taking too much, after which it is told anew.
_CALM: Final = 10.0
_TOLD: Final = 64
_KEY: Final = 16  # bytes of the secret, and of an address


@dataclass(slots=True)
class Account:
    """What may be taken of a core: `left` seconds, and `rate` more each second.

    `filled` is when it was filled last. What is taken is taken from the `wider` one,
    too, and may be more than is left.
    `reason` is a code for having taken too much, of which was told until `told`.
    """

    reason: str
    rate: float
    left: float
    filled: float
    wider: "Account | None"
    told: float

    def __init__(
        self,
        reason: str,
        rate: float,
        left: float,
        filled: float,
        wider: "Account | None" = None,
        told: float = 0.0,
    ) -> None:
        self.reason = reason
        self.rate = rate
        self.left = left
        self.filled = filled
        self.wider = wider
        self.told = told

    @property
    def detail(self) -> str:
        """What is too much, in words."""
        return f"over {self.rate:.0%} of a core"


@dataclass(frozen=True, slots=True)
class Overspent:
    """Somebody takes too much. `reason` is a code, `detail` says who."""

    reason: str
    detail: str


class Accounts:
    """The accounts of all senders, each of which may take `percent` of a core.

    `timer` gives seconds and only moves forward. `refused` counts the packets and flows
    that are not inspected, by reason; `told` has who takes too much, once for as long
    as it lasts.
    """

    def __init__(self, percent: int, timer: Callable[[], float]) -> None:
        self.timer = timer
        self.refused: Counter[str] = Counter()
        self.told: deque[Overspent] = deque(maxlen=_TOLD)
        self._percent = percent
        self._accounts: dict[tuple[str, int, int], Account] = {}
        self._secret = random.randbytes(_KEY)
        self._beginning = self._made("beginning-cpu", _PERCENT["beginning-cpu"], None)

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, original: Tuple, direction: Direction, *, assured: bool) -> Account:
        """The account of what is sent in a direction of the flow.

        `assured` is whether both ends are known to be who they say.
        """
        source = original.source.address
        client = host_number(source)
        if direction is ORIGINAL:
            if assured:
                return self._narrow("client", client, client, None)
            network = int(source) >> _HOST_BITS[version_of(source)]
            wider = self._wide("network-cpu", network, self._beginning)
            return self._narrow("beginning client", network, client, wider)
        server = host_number(original.destination.address)
        if assured:
            return self._narrow("server", server, client, None)
        return self._narrow("beginning server", server, client, self._beginning)

    def overspent(self, account: Account, original: Tuple) -> Account | None:
        """The account that has nothing left, out of this and the wider ones; or None.

        `original` is the flow whose packet is to be inspected.
        """
        each: Account | None = account
        while each is not None:
            if each.left < 0 and not self._has_again(each):
                now = each.filled
                if now >= each.told:
                    detail = f"{each.detail}, now by {original}"
                    self.told.append(Overspent(each.reason, detail))
                each.told = now + _CALM
                self.refused[each.reason] += 1
                return each
            each = each.wider
        return None

    def _has_again(self, account: Account) -> bool:
        now = self.timer()
        gained = (now - account.filled) * account.rate
        account.left = min(account.rate, account.left + gained)
        account.filled = now
        return account.left >= 0

    def _wide(self, reason: str, key: int, wider: Account | None = None) -> Account:
        place = reason, self._number(key, _WIDER), 0
        account = self._accounts.get(place)
        if account is None:
            percent = _PERCENT[reason]
            account = self._accounts[place] = self._made(reason, percent, wider)
        return account

    def _narrow(
        self, kind: str, outer: int, key: int, wider: Account | None
    ) -> Account:
        # By the wider one's number first, so that it is the same for all who share it.
        place = kind, self._number(outer, _WIDER), self._number(key, _NARROWER)
        account = self._accounts.get(place)
        if account is None:
            account = self._made(NARROW, self._percent, wider)
            self._accounts[place] = account
        return account

    def _number(self, key: int, count: int) -> int:
        # Of bytes, for which the hash is a keyed one. By that of a tuple of numbers
        # the same would share whatever the secret.
        return hash(self._secret + key.to_bytes(_KEY)) % count

    def _made(self, reason: str, percent: int, wider: Account | None) -> Account:
        rate = max(percent, self._percent) / 100
        return Account(reason, rate, rate, self.timer(), wider)

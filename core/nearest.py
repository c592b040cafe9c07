# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a flow was not expected: what came nearest to it, and what did not fit.

It knows neither captures nor the kernel. Whoever asks keeps a history of what helpers
asked for, and gives the moments their words (``in frame 6``, a time of day).
"""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cthelper.core.records import network_text
from cthelper.core.tuples import Endpoint, Expectation, Network, Transport, Tuple

_MOMENTS: Final = 8
"""Moments that one wish keeps: the first one, and the last."""
_TROUBLES: Final = 4
"""Troubles that a control flow keeps: the last ones."""


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """When something was: seconds of any clock, then a number that only grows."""

    time: float
    number: int
    text: str = field(compare=False)

    def __str__(self) -> str:
        return self.text


class End(enum.Enum):
    """How an expectation ended."""

    TIMEOUT = "it ended {}"
    MASTER = "it ended {}, with the flow that announced it"
    USED_UP = "it was for one flow, and used up {}"
    EVICTED = (
        "it was evicted {}, by a later one of its flow (max_expected of the policy)"
    )
    WITHDRAWN = "it was withdrawn {}"


class Pattern(NamedTuple):
    """The flows that an expectation admits; None: from any network, from any port."""

    transport: Transport
    source: Network | None
    source_port: int | None
    destination: Endpoint

    @classmethod
    def of(cls, expectation: Expectation) -> "Pattern":
        """What this one admits."""
        return cls(
            expectation.transport,
            expectation.source,
            expectation.source_port,
            expectation.destination,
        )

    def __str__(self) -> str:
        source = "any" if self.source is None else network_text(self.source)
        if self.source_port is not None:
            source += f" port {self.source_port}"
        return f"{self.transport} {source} > {self.destination}"


@dataclass(slots=True)
class Wish:
    """What a helper asked for, and what became of it.

    `text` says it as it is shown. `asked` are the moments, more than one where it was
    renewed. `refusal` is why nothing was expected; else `end` and `ended` are how and
    when it ended, once it has.
    """

    helper: str
    pattern: Pattern
    text: str
    asked: list[Moment]
    refusal: str | None = None
    end: End | None = None
    ended: Moment | None = None

    def ask_again(self, now: Moment) -> None:
        """It was asked for again, which renewed it."""
        self.asked.append(now)
        if len(self.asked) > _MOMENTS:
            del self.asked[1]


@dataclass(slots=True)
class Control:
    """A flow that a helper reads, and what came of it but wishes.

    `read` is when a message was read last, `asked` when something was asked for;
    `troubles` say why nothing was, with their moments.
    """

    helper: str
    flow: Tuple
    read: Moment | None = None
    asked: Moment | None = None
    troubles: list[str] = field(default_factory=list)

    def trouble(self, text: str, now: Moment) -> None:
        """Something kept the helper from announcing what it might have."""
        self.troubles.append(f"{text} {now}")
        del self.troubles[:-_TROUBLES]


@dataclass(frozen=True, slots=True)
class Near:
    """The wish that came nearest, and what did not fit.

    `exact`: the flow is the one that was meant, at another time or refused.
    """

    wish: Wish
    misfits: tuple[str, ...]
    exact: bool

    def __str__(self) -> str:
        wish = self.wish
        first, *again = map(str, wish.asked)
        verb = "expected" if wish.refusal is None else "asked for"
        more = f", again {' and '.join(again)}" if again else ""
        return f"{wish.helper} {verb} {wish.text} {first}{more}: " + "; ".join(
            self.misfits
        )


def nearest(flow: Tuple, began: Moment, wishes: Iterable[Wish]) -> Near | None:
    """The wish that came nearest to a flow that began then.

    None: none is near, or the flow fits one, so that it was expected. Near is one for
    the same destination, or one of which nothing but the destination's address or its
    port is another. Of several the one with the fewest misfits, and of those the
    latest.
    """
    near: list[tuple[Wish, list[_Misfit]]] = []
    everything = list(wishes)
    for wish in everything:
        misfits = list(_misfits(wish, flow, began))
        if not misfits:
            return None
        if _is_near(misfits):
            near.append((wish, misfits))
    if not near:
        return None
    wish, misfits = max(near, key=_nearness)
    texts = tuple(
        _outside(wish, flow, everything) if each.weight == _Weight.SOURCE else each.text
        for each in misfits
    )
    return Near(wish, texts, all(each.weight == _Weight.TIME for each in misfits))


def hints(flow: Tuple, controls: Iterable[Control]) -> Iterator[str]:
    """What helpers read that has to do with a flow, and why it announced nothing.

    That is what was sent from where the flow goes to, and what went wrong between its
    two hosts.
    """
    hosts = {flow.source.address, flow.destination.address}
    for control in controls:
        ends = {control.flow.source.address, control.flow.destination.address}
        query = (
            control.flow.transport is flow.transport
            and control.flow.source == flow.destination
        )
        if not query and ends != hosts:
            continue
        if control.troubles:
            yield f"helper {control.helper}, {control.flow}: " + "; ".join(
                control.troubles
            )
        elif query and control.read is not None and control.asked is None:
            yield (
                f"helper {control.helper} read {control.flow} {control.read}, "
                "and asked for nothing"
            )


def fits(pattern: Pattern, flow: Tuple) -> bool:
    """Whether the flow is one of those that it admits."""
    return not any(_misplaced(pattern, flow))


class _Weight(enum.IntEnum):
    """How far away what does not fit takes a wish from a flow."""

    TIME = 1
    SOURCE_PORT = 2
    SOURCE = 3
    TRANSPORT = 4
    PORT = 5
    ADDRESS = 6


class _Misfit(NamedTuple):
    weight: _Weight
    text: str


def _nearness(near: tuple[Wish, list[_Misfit]]) -> tuple[int, int, Moment]:
    wish, misfits = near
    weight = sum(each.weight for each in misfits)
    return -len(misfits), -weight, wish.asked[-1]


def _is_near(misfits: list[_Misfit]) -> bool:
    places = [each.weight for each in misfits if each.weight != _Weight.TIME]
    if _Weight.ADDRESS in places or _Weight.PORT in places:
        return len(places) == 1
    return True


def _misfits(wish: Wish, flow: Tuple, began: Moment) -> Iterator[_Misfit]:
    yield from _misplaced(wish.pattern, flow)
    if wish.refusal is not None:
        yield _Misfit(_Weight.TIME, f"refused, {wish.refusal}")
    elif wish.asked[0] > began:
        yield _Misfit(
            _Weight.TIME, f"the flow had begun before, {began}, and meets nothing more"
        )
    elif wish.end is not None and wish.ended is not None and wish.ended <= began:
        yield _Misfit(_Weight.TIME, wish.end.value.format(wish.ended))


def _misplaced(pattern: Pattern, flow: Tuple) -> Iterator[_Misfit]:
    source, destination = flow.source, flow.destination
    wanted = pattern.destination
    if pattern.transport is not flow.transport:
        yield _Misfit(
            _Weight.TRANSPORT, f"the flow is {flow.transport}, not {pattern.transport}"
        )
    version, other = destination.address.version, wanted.address.version
    if version != other:
        # Then its source is another, too, which says nothing.
        yield _Misfit(_Weight.ADDRESS, f"the flow is IPv{version}, not IPv{other}")
        if wanted.port != destination.port:
            yield _Misfit(_Weight.PORT, f"the flow goes to port {destination.port}")
        return
    if wanted.address != destination.address:
        yield _Misfit(
            _Weight.ADDRESS, f"the flow goes to {destination.address}, another address"
        )
    if wanted.port != destination.port:
        yield _Misfit(_Weight.PORT, f"the flow goes to port {destination.port}")
    if pattern.source is not None and source.address not in pattern.source:
        # Which networks were opened with it only `_outside` can say.
        yield _Misfit(_Weight.SOURCE, "")
    if pattern.source_port not in (None, source.port):
        yield _Misfit(
            _Weight.SOURCE_PORT,
            f"the flow comes from port {source.port}, not {pattern.source_port}",
        )


def _outside(wish: Wish, flow: Tuple, everything: Iterable[Wish]) -> str:
    """That the flow's source is in no network that was opened with this wish."""
    pattern = wish.pattern
    networks = {
        network_text(each.pattern.source): None
        for each in everything
        if each.pattern.source is not None
        and each.pattern._replace(source=pattern.source) == pattern
        and each.asked == wish.asked
        and each.refusal is None
    }
    names = " or ".join(networks)
    return f"its source {flow.source.address} is not in {names}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Plays messages to a helper and writes down what it asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    Direction,
    Effect,
    Expect,
    Grant,
    Helper,
    Message,
    OptionValue,
    Tuple,
)


@dataclass(frozen=True, slots=True)
class Line:
    """Makes the messages of one flow, which is not translated."""

    original: Tuple
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    forwarded: bool = False

    def sent(self, payload: bytes, now: float = 0.0) -> Message:
        """A message in the original direction."""
        return self.message(ORIGINAL, payload, now)

    def answered(self, payload: bytes, now: float = 0.0) -> Message:
        """A message in the reply direction."""
        return self.message(REPLY, payload, now)

    def message(
        self, direction: Direction, payload: bytes, now: float = 0.0
    ) -> Message:
        """A message in `direction`."""
        ours = self.original
        theirs = Tuple(ours.transport, ours.destination, ours.source)
        tuple_ = ours if direction is ORIGINAL else theirs
        return Message(
            direction=direction,
            transport=ours.transport,
            source=tuple_.source,
            destination=tuple_.destination,
            payload=payload,
            original=ours,
            reply=theirs,
            now=now,
            options=self.options,
            forwarded=self.forwarded,
        )


def play(helper: Helper, messages: Iterable[Message]) -> list[Effect]:
    """The effects of `messages`, each Expect granted as it was asked for.

    What the helper raises comes out; play the messages that follow to the same
    instance.
    """
    effects: list[Effect] = []
    for message in messages:
        reaction = helper.on_message(message)
        answer: Grant | None = None
        try:
            while True:
                effect = reaction.send(answer)
                effects.append(effect)
                answer = Grant(effect.endpoint) if isinstance(effect, Expect) else None
        except StopIteration:
            pass
    return effects


def defaults(helper: type[Helper]) -> dict[str, OptionValue]:
    """The options of a helper as they are unless configured."""
    return {option.name: option.default for option in helper.options}

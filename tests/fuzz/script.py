# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fuzzer's bytes mean to a target that reads several messages: a script.

A head of a fixed size, then steps until the bytes end, 64 at most::

    flags (1 byte)   length (2 bytes)   payload (length bytes)

Any bytes are a script: what is missing at the end is left out, in the head it is zeros.
What the flags and the head say is the target's business.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Protocol

STEP_LIMIT: Final = 64
_LENGTH_LIMIT: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Step:
    """One payload; `flags` is a byte."""

    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Script:
    """The head, and the steps in order."""

    head: bytes
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, data: bytes, head: int) -> "Script":
        """The script that `data` means, with a head of `head` bytes."""
        steps: list[Step] = []
        at = head
        while at < len(data) and len(steps) < STEP_LIMIT:
            length = int.from_bytes(data[at + 1 : at + 3])
            payload = data[at + 3 : at + 3 + length]
            steps.append(Step(data[at], payload))
            at += 3 + length
        return cls(data[:head].ljust(head, b"\0"), tuple(steps))

    def write(self) -> bytes:
        """Bytes that mean this script; payloads over 65535 bytes are cut."""
        parts = [self.head]
        for step in self.steps:
            payload = step.payload[:_LENGTH_LIMIT]
            parts += [bytes([step.flags]), len(payload).to_bytes(2), payload]
        return b"".join(parts)


Mutate = Callable[[bytes, int], bytes]
"""Changes some bytes, to at most so many."""


class Mutator(Protocol):
    """Makes another input of at most `limit` bytes that differs a little."""

    def __call__(
        self, data: bytes, limit: int, seed: int, *, mutate: Mutate
    ) -> bytes: ...


def mutated(data: bytes, limit: int, seed: int, *, head: int, mutate: Mutate) -> bytes:
    """Another script of at most `limit` bytes that differs a little.

    A fuzzer that knows nothing of steps would spoil all lengths behind a byte that it
    puts in.
    """
    random = Random(seed)
    script = Script.read(data, head)
    steps = list(script.steps)
    at = random.randrange(len(steps)) if steps else 0
    choice = random.random()
    if not steps or choice < 0.03:
        return mutate(data, limit)[:limit]
    if choice < 0.70:
        payload = mutate(steps[at].payload, max(1, limit - len(data)))
        steps[at] = replace(steps[at], payload=payload)
    elif choice < 0.78:
        new = mutate(script.head, head) if head else b""
        script = replace(script, head=new[:head].ljust(head, b"\0"))
    elif choice < 0.86:
        steps[at] = replace(steps[at], flags=steps[at].flags ^ 1 << random.randrange(8))
    elif choice < 0.91:
        steps.insert(random.randrange(len(steps) + 1), steps[at])
    elif choice < 0.95:
        del steps[at]
    elif choice < 0.98:
        other = random.randrange(len(steps))
        steps[at], steps[other] = steps[other], steps[at]
    else:
        # Two steps in one, or one in two: to a stream it makes no difference.
        payload = steps[at].payload
        cut = random.randrange(len(payload) + 1)
        steps[at : at + 1] = [
            replace(steps[at], payload=payload[:cut]),
            replace(steps[at], payload=payload[cut:]),
        ]
    return replace(script, steps=tuple(steps)).write()[:limit]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What was rewritten in one direction of a TCP flow.

A segment may be sent again, alone or joined with others, and the receiver must get the
same bytes again. The kernel adjusts the sequence numbers of what follows a change of
length (nf_ct_seqadj_set in nf_conntrack_seqadj.c), after the queue: the segments that
are read here, and so the patches, have the sender's own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cthelper.core.errors import HelperFault, RewriteRefused
from cthelper.core.sequence import distance

# Nothing that far behind is sent again, and a sequence number comes again after 4 GiB.
_KEPT_BYTES: Final = 1 << 20
# What the receiver has not acknowledged may be sent again, and more are not kept. A
# segment full of portmapper's answers has some fifty.
_KEPT: Final = 256


@dataclass(frozen=True, slots=True)
class Patch:
    """`data` goes in the place of the `length` bytes from sequence number `sequence`.

    In a datagram the first byte's number is 0.
    """

    sequence: int
    length: int
    data: bytes

    def offset(self, sequence: int) -> int:
        """Where it begins, counted from `sequence`; negative: before that."""
        return distance(sequence, self.sequence)

    def is_inside(self, sequence: int, size: int) -> bool:
        """Whether the bytes that it replaces, or stands before, are all among these."""
        offset = self.offset(sequence)
        return 0 <= offset < size and offset + self.length <= size

    def is_before(self, sequence: int) -> bool:
        """Whether all that it replaces lies before `sequence`."""
        return self.offset(sequence) + max(self.length, 1) <= 0

    def is_outside(self, sequence: int, size: int) -> bool:
        """Whether none of the bytes that it replaces is among these."""
        offset = self.offset(sequence)
        return offset >= size or offset + max(self.length, 1) <= 0


class Patches:
    """The patches of one direction, the latest ones."""

    def __init__(self, patches: Iterable[Patch] = ()) -> None:
        self._patches = list(patches)

    def __len__(self) -> int:
        return len(self._patches)

    def __iter__(self) -> Iterator[Patch]:
        return iter(self._patches)

    def plus(self, patches: Iterable[Patch], acknowledged: int | None) -> "Patches":
        """These and further ones, 256 at most.

        Where they are more, the oldest go that the receiver has: it has all before
        `acknowledged`. Raises RewriteRefused where they do not suffice.
        """
        kept = [*self._patches, *patches]
        surplus = len(kept) - _KEPT
        if surplus > 0 and acknowledged is not None:
            old = sorted(
                (each for each in self._patches if each.is_before(acknowledged)),
                key=lambda each: each.offset(acknowledged),
            )
            gone = set(old[:surplus])
            kept = [each for each in kept if each not in gone]
        if len(kept) > _KEPT:
            raise RewriteRefused("rewrite-many", f"{len(kept)} rewrites, not received")
        return Patches(kept)

    def apply(self, sequence: int, data: bytes) -> bytes | None:
        """The bytes as the receiver is to get them; None: a patch is only partly there.

        `sequence` is that of the first of them. Raises HelperFault where two patches
        overlap.
        """
        inside: list[tuple[int, int, Patch]] = []
        for patch in list(self._patches):
            offset = patch.offset(sequence)
            if offset < -_KEPT_BYTES:
                self._patches.remove(patch)
            elif 0 <= offset < len(data) and offset + patch.length <= len(data):
                inside.append((offset, len(inside), patch))
            elif not patch.is_outside(sequence, len(data)):
                return None
        pieces = []
        limit = len(data)
        for start, _, patch in sorted(inside)[::-1]:
            if start + patch.length > limit:
                raise HelperFault(
                    f"rewrite of {patch.length} bytes at {start} overlaps another"
                )
            pieces += [data[start + patch.length : limit], patch.data]
            limit = start
        pieces.append(data[:limit])
        return b"".join(pieces[::-1])

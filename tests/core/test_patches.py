# SPDX-License-Identifier: GPL-2.0-or-later
"""What was rewritten is rewritten the same way whenever it is sent again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import HelperFault, RewriteRefused
from cthelper.core.patches import Patch, Patches

BASE = 2**32 - 4


def patches(*kept: Patch) -> Patches:
    return Patches(kept)


@pytest.mark.parametrize(
    ("kept", "result"),
    [
        ([], b"0123456789"),
        ([(2, 2, b"ab")], b"01ab456789"),
        ([(2, 2, b"")], b"01456789"),
        ([(0, 10, b"")], b""),
        ([(2, 0, b"ab")], b"01ab23456789"),
        ([(1, 1, b"long"), (8, 1, b"")], b"0long2345679"),
        ([(8, 1, b""), (1, 1, b"long")], b"0long2345679"),
        ([(2, 2, b"ab"), (4, 2, b"c")], b"01abc6789"),
        # Not in these bytes: before and after them.
        ([(-3, 3, b"x"), (10, 1, b"y"), (10, 0, b"z")], b"0123456789"),
    ],
)
def test_bytes_are_patched(kept: list[tuple[int, int, bytes]], result: bytes) -> None:
    made = patches(
        *(Patch((BASE + start) % 2**32, length, data) for start, length, data in kept)
    )
    assert made.apply(BASE, b"0123456789") == result
    assert made.apply(BASE, b"0123456789") == result


@pytest.mark.parametrize("start", [-1, 9])
def test_patch_that_is_partly_there_is_told(start: int) -> None:
    patch = Patch((BASE + start) % 2**32, 2, b"x")
    assert patches(patch).apply(BASE, b"0123456789") is None
    assert not patch.is_inside(BASE, 10)
    assert not patch.is_outside(BASE, 10)


@pytest.mark.parametrize(("one", "other"), [((2, 3), (4, 2)), ((2, 2), (2, 2))])
def test_patches_that_overlap_are_a_fault(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    made = patches(*(Patch(start, length, b"x") for start, length in (one, other)))
    with pytest.raises(HelperFault, match="overlaps another"):
        made.apply(0, b"0123456789")


def test_what_lies_far_behind_is_forgotten() -> None:
    made = patches(Patch(0, 1, b"x"))
    assert made.apply(1 << 20, b"0") == b"0"
    assert made
    assert made.apply((1 << 20) + 1, b"0") == b"0"
    assert not made


def runs(start: int, stop: int) -> list[Patch]:
    return [Patch(number, 1, b"x") for number in range(start, stop)]


def test_so_many_are_kept_until_they_are_acknowledged() -> None:
    made = patches(*runs(0, 200)).plus(runs(200, 256), None)
    assert made.apply(0, bytes(256)) == b"x" * 256
    for acknowledged in (None, 0, 43):
        with pytest.raises(RewriteRefused, match="rewrites, not received"):
            made.plus(runs(256, 300), acknowledged)
    # No more go than must, the oldest first.
    later = made.plus(runs(256, 300), 100)
    assert later.apply(0, bytes(300)) == bytes(44) + b"x" * 256
    assert made.apply(0, bytes(256)) == b"x" * 256


def test_a_packets_own_patches_are_all_kept_or_none() -> None:
    # They lie before what is acknowledged only if that is forged.
    with pytest.raises(RewriteRefused, match="257 rewrites, not received"):
        Patches().plus(runs(0, 257), 1000)
    assert len(list(Patches().plus(runs(0, 256), 1000))) == 256


@given(st.binary(min_size=1, max_size=60), st.data())
def test_parts_are_patched_as_the_whole_is(payload: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(payload)), max_size=8)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    kept = [
        Patch((BASE + start) % 2**32, stop - start, data.draw(st.binary(max_size=4)))
        for start, stop in spans
    ]
    made = patches(*data.draw(st.permutations(kept)))
    whole, position = b"", 0
    for patch, (start, stop) in zip(kept, spans, strict=True):
        whole += payload[position:start] + patch.data
        position = stop
    whole += payload[position:]
    assert made.apply(BASE, payload) == whole
    at = data.draw(st.integers(0, len(payload)))
    first = made.apply(BASE, payload[:at])
    second = made.apply((BASE + at) % 2**32, payload[at:])
    cut_through = any(start < at < stop for start, stop in spans)
    if cut_through and 0 < at < len(payload):
        assert first is None
        assert second is None
    elif first is not None and second is not None:
        assert first + second == whole

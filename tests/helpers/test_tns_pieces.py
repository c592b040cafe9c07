# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of a TNS redirect in many packets: what is kept is bounded, and its cost."""

import pytest

from cthelper.core.api import Oversized
from cthelper.helpers import tns, tns_descriptor
from cthelper.helpers.tns import Tns
from cthelper.testing import play
from tests.cases import cases
from tests.helpers.test_tns import (
    MARKER,
    TEXT,
    address,
    answered,
    conversation,
    data,
    deferred,
    line,
    packet,
    redirect,
    to,
)


@pytest.mark.interpreted
@cases("nothing", {"empty DATA": data(""), "NULL": packet(7), "MARKER": MARKER})
def test_packets_without_text_are_neither_kept_nor_have_it_read_again(
    nothing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def is_whole(text: bytes) -> bool:
        looked.append(len(text))
        return tns_descriptor.is_whole(text)

    monkeypatch.setattr(tns, "is_whole", is_whole)
    helper, flow = Tns(), line()
    first, second = redirect(length=0), data(address()[:-1])
    many = [nothing] * 30
    assert play(helper, conversation(flow, first, *many, second, *many)) == []
    assert len(looked) == 2
    assert helper._pending is not None
    assert len(helper._pending.pieces) == 2


@pytest.mark.parametrize("length", [None, 0])
def test_text_comes_whole_between_packets_without_any(length: int | None) -> None:
    first, second = deferred(TEXT, length=length)
    packets = [first, data(""), MARKER, second, data("")]
    assert answered(*packets) == [to()]


def test_text_in_more_than_16_packets_is_oversized() -> None:
    text = address()
    last = [data(each) for each in text[-14:]]
    assert answered(redirect(length=0), data(text[:-14]), *last) == [to()]
    last = [data(each) for each in text[-15:]]
    with pytest.raises(Oversized, match="over 16 packets"):
        answered(redirect(length=0), data(text[:-15]), *last)

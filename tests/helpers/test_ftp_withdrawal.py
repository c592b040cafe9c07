# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP: which announcements are taken back, and which are not."""

from collections.abc import Sequence
from typing import Final

import pytest

from cthelper.core.api import Expect, Withdraw
from cthelper.helpers.ftp import Ftp
from cthelper.testing import any_segmentation, play
from tests.helpers.inspected import Inspected
from tests.helpers.test_ftp import GREETING, lines
from tests.helpers.translated import translated

PORT: Final = "> PORT 192,0,2,1,156,64"
OTHER: Final = "> PORT 192,0,2,1,156,65"
PASSIVE: Final = "< 227 (198,51,100,2,156,64)"


def labels(texts: Sequence[str]) -> list[str]:
    """What is expected (+) and taken back (-), by its label."""
    found = []
    for effect in any_segmentation(Ftp, lines(GREETING, *texts)):
        if isinstance(effect, Expect):
            assert effect.label is not None
            found.append(f"+{effect.label.decode()}")
        else:
            assert isinstance(effect, Withdraw)
            found.append(f"-{effect.label.decode()}")
    return found


@pytest.mark.handles(
    "ftp", "4xx or 5xx to an announcement or its transfer", "takes it back"
)
@pytest.mark.handles("ftp", "2xx to ABOR", "takes back what came before")
@pytest.mark.parametrize(
    ("texts", "found"),
    [
        # The announcement is refused.
        ([PORT, "< 500 no"], ["+1", "-1"]),
        (["> NOOP", PORT, "< 200 ok", "< 421-no", "< 500 no"], ["+2"]),
        (["> EPRT |1|192.0.2.1|40000|", "< 522 no"], ["+1", "-1"]),
        # The transfer is.
        ([PORT, "> RETR f", "< 200 ok", "< 550 no"], ["+1", "-1"]),
        (["> PASV", PASSIVE, "> LIST", "< 425 no"], ["+1", "-1"]),
        (["> PASV", PASSIVE, "> STOR f", "< 150 soon", "< 426 no"], ["+1", "-1"]),
        # It is aborted, and answered once or twice.
        ([PORT, "< 200 ok", "> ABOR", "< 226 ok"], ["+1", "-1"]),
        (
            [PORT, "> RETR f", "> ABOR", "< 200 ok", "< 426 no", "< 226 ok"],
            ["+1", "-1"],
        ),
        (
            [PORT, "> ABOR", OTHER, "< 200 ok", "< 225 ok", "< 200 ok"],
            ["+1", "-1", "+3"],
        ),
        # Another one follows, and nothing has used it.
        ([PORT, "< 200 ok", OTHER], ["+1", "-1", "+2"]),
        ([PORT, "> NOOP", OTHER], ["+1", "-1", "+3"]),
        (["> PASV", PASSIVE, "> PASV", PASSIVE], ["+1", "-1", "+2"]),
        (["> PASV", PASSIVE, PORT], ["+1", "-1", "+2"]),
    ],
)
def test_what_is_void_is_taken_back(texts: Sequence[str], found: list[str]) -> None:
    assert labels(texts) == found


@pytest.mark.handles("ftp", "2xx to a transfer", "takes nothing back")
@pytest.mark.parametrize(
    "texts",
    [
        # The data flow may begin after its end was heard of.
        [PORT, "> RETR f", "< 200 ok", "< 150 soon", "< 226 done", OTHER],
        ["> PASV", PASSIVE, "> LIST", "< 150 soon", "< 226 done", OTHER],
        # Sent together: the first one's transfer is still to come.
        [PORT, "> RETR f", OTHER, "> RETR g"],
        [PORT, "> RETR f", OTHER, "> RETR g", *["< 200 ok"] * 3, "< 226 done"],
        [PORT, "> RETR f", "> PASV", "< 200 ok", "< 226 done", PASSIVE],
        ["> PASV", "> RETR f", "> PASV", "> RETR g", PASSIVE, "< 226 ok", PASSIVE],
        # What does not fail, and what others are answered.
        [PORT, "> ABOR", "< 200 ok", "< 502 what?", "> NOOP", "< 500 what?"],
        [PORT, "> SIZE f", "< 200 ok", "< 550 no", "> RETR f", "< 226 done"],
        [PORT, "> STOU", "< 200 ok", "< 150 FILE: x", "< 226 done", "> ABOR", "< 225"],
    ],
)
def test_what_is_or_may_be_used_is_not(texts: Sequence[str]) -> None:
    assert [each for each in labels(texts) if each[0] == "-"] == []


def test_transfer_that_fails_takes_back_its_own() -> None:
    texts = [PORT, "> RETR f", OTHER, "> RETR g", "< 200 ok", "< 550 no", "< 200 ok"]
    assert labels(texts) == ["+1", "+3", "-1"]
    assert labels([*texts, "< 550 no"]) == ["+1", "+3", "-1", "-3"]


def test_what_is_awaited_is_bounded() -> None:
    helper = Ftp()
    play(helper, lines(GREETING))
    before = helper.footprint()
    play(helper, lines(*[PORT, "> PASV", "> RETR f"] * 500))
    assert helper.footprint() - before < 10_000


# In the kernel


def passive(flow: Inspected, port: bytes = b"156,64") -> None:
    flow.sent(b"PASV\r\n")
    address = str(flow.entry.reply.source.address).replace(".", ",").encode()
    flow.answered(b"227 (%s,%s)\r\n" % (address, port))


def test_port_is_closed_behind_nat() -> None:
    flow = Inspected(Ftp, translated(Ftp))
    flow.answered(b"220 ready\r\n")
    passive(flow)
    assert len(flow.expectations) == 1
    flow.sent(b"RETR f\r\n")
    flow.answered(b"550 no\r\n")
    assert flow.expectations == []


def test_port_that_was_granted_in_place_of_another_is_closed_and_free_again() -> None:
    flow = Inspected(Ftp, translated(Ftp, nat="snat"), taken={40000})
    flow.answered(b"220 ready\r\n")
    for _ in range(2):
        received = flow.sent(b"PORT 192,0,2,1,156,64\r\n")
        assert received == b"PORT 203,0,113,9,156,65\r\n"
        assert [str(each) for each in flow.expectations] == [
            "tcp 10.0.0.2 > 203.0.113.9:40001"
        ]
    flow.answered(b"200 ok\r\n", b"500 no\r\n")
    assert flow.expectations == []

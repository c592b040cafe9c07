# SPDX-License-Identifier: GPL-2.0-or-later
"""Counted instructions: what is counted, and when one has grown too much."""

import platform
from contextlib import ExitStack

import pytest

from bench.instructions import BUILD, document, grown, section, total, unlike
from bench.table import with_compared, with_counted
from bench.transactions import BATCH, CASES, Case
from cthelper.core.compiled import COMPILED
from cthelper.core.engine import Decision

COUNTS = {"one": 1000, "other": 20_000}
KEPT = {
    "python": "3.11.2",
    "machine": "x86_64",
    "instructions": {"interpreted": COUNTS, "compiled": {"one": 300}},
}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_transaction_is_what_it_is_called(case: Case) -> None:
    with ExitStack() as stack:
        first, *others = case.prepare(stack, 3)
        answers = [first(), *(each() for each in others)]
    for answer in answers:
        if isinstance(answer, Decision):
            silent = case.name.endswith(("NULL", "SIZE"))
            assert len(answer.expectations) == (not silent)
        else:
            # One verdict for calls, or what passes; a reply's sets the flow's timeout.
            assert isinstance(answer, bytes)
            announcing = 0 if "NULL" in case.name else case.size
            assert len(answer) == 32 + announcing * 44


def test_instructions_are_the_sum_that_cachegrind_tells() -> None:
    assert total("desc: x\nevents: Ir\nfn=f\n7 12\nsummary: 4711\n") == 4711


def test_count_that_has_grown_by_over_a_tenth_is_named() -> None:
    assert grown({"one": 1100, "other": 22_001}, COUNTS) == [
        "other: 22,001 instructions, 10% over 20,000"
    ]


def test_case_that_is_new_or_gone_is_named() -> None:
    assert grown({"one": 1, "third": 1}, COUNTS) == [
        *("other: not in both", "third: not in both")
    ]


@pytest.mark.parametrize(
    ("python", "machine", "compared"),
    [
        ("3.11.9", "x86_64", True),
        ("3.12.1", "x86_64", False),
        ("3.11.2", "aarch64", False),
    ],
)
def test_counts_are_of_one_version_of_python_and_one_machine(
    python: str, machine: str, compared: bool
) -> None:
    why = unlike({"python": python, "machine": machine}, KEPT)
    assert (why is None) == compared
    assert why is None or python.rpartition(".")[0] in why


def test_counts_of_the_other_build_stay() -> None:
    here = {"python": platform.python_version(), "machine": platform.machine()}
    kept = {**here, "instructions": {"compiled": COUNTS, "interpreted": COUNTS}}
    other = "interpreted" if COMPILED else "compiled"
    for before, left in (
        (kept, [other]),
        ({**kept, "python": "3.1.0"}, []),
        (None, []),
    ):
        written = document({"one": 7}, before)
        counts = written["instructions"]
        assert counts.pop(BUILD) == {"one": 7}
        assert list(counts) == left
        assert written["python"] == platform.python_version()


def test_page_keeps_what_the_other_script_has_written() -> None:
    page = with_counted("# Compared\n\nold\n", section(KEPT))
    assert "| transaction | compiled | interpreted |\n|---|---|---|\n" in page
    assert "| one | 300 | 1,000 |\n" in page
    page = with_compared(page, "# Compared\n\nnew\n")
    assert page.startswith("# Compared\n\nnew\n\n## Instructions\n\nWhat ")
    assert with_counted(page, "again\n").endswith("\n## Instructions\n\nagain\n")
    assert page.count("## Instructions") == 1


def test_batch_is_one_step() -> None:
    assert {case.size for case in CASES} == {1, BATCH}

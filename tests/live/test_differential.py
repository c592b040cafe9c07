# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of conntrack against the kernel's own (see differential.py).

DIFFERENTIAL_SEQUENCES says how many sequences (200), DIFFERENTIAL_SEED which one alone.
"""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.daemon.probe import Kernel
from cthelper.core.offline.conntrack import State
from cthelper.core.offline.expectations import Outcome
from tests.live.differential import Batch, Report, configure
from tests.live.gateway import ask_here
from tests.live.tun_lab import TunLab

pytestmark = pytest.mark.live

_BATCH: Final = 200


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TunLab]:
    """The gateway between two TUN devices."""
    folder: Path = tmp_path_factory.mktemp("tun")
    processors = os.sched_getaffinity(0)
    # Timers run on the processor that has set them: the one that the test waits for.
    os.sched_setaffinity(0, {min(processors)})
    with TunLab(folder) as lab:
        configure(lab)
        yield lab
    os.sched_setaffinity(0, processors)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """What this kernel does."""
    return ask_here()


def test_model_and_kernel_agree(lab: TunLab, kernel: Kernel) -> None:
    report = Report()
    for seeds in _seeds():
        begin = time.monotonic()
        done = Batch(lab, seeds, kernel).run()
        spent = time.monotonic() - begin
        print(f"\nseeds {seeds[0]} to {seeds[-1]}, {spent:.0f} s: {done}", flush=True)
        done.differences = _again(lab, done.differences, kernel)
        report.add(done)
    print(f"all: {report}")
    assert report.sequences
    assert not report.differences, "\n".join(report.differences.values())
    if report.sequences >= _BATCH:
        # Otherwise nothing was tried that could differ.
        assert report.packets.keys() == set(State)
        # Nothing is "already" there for a master that is confirmed.
        lacking = set(Outcome) - report.outcomes.keys()
        assert lacking <= {Outcome.FULL, Outcome.ALREADY}
        # A busy machine leaves out more; half of it still says something.
        assert report.cut_short < report.sequences / 2
        assert report.left_out < report.operations / 2


def _again(lab: TunLab, differences: dict[int, str], kernel: Kernel) -> dict[int, str]:
    """Those that the same sequences show twice more.

    The two clocks are read one after the other, and a machine that is held up in
    between makes a second of an entry's life differ. A sequence does not depend on
    that, and a rule that the model has wrong differs each time.
    """
    for _ in range(2):
        if differences:
            print(*differences.values(), "again:", sep="\n", flush=True)
            differences = Batch(lab, list(differences), kernel).run().differences
    return differences


def _seeds() -> Iterator[list[int]]:
    chosen = os.environ.get("DIFFERENTIAL_SEED")
    if chosen:
        yield [int(chosen)]
        return
    wanted = os.environ.get("DIFFERENTIAL_SEQUENCES")
    total = int(wanted or "200")
    # An ordinary run has the same ones each time: where it fails, the tree has changed.
    first = secrets.randbelow(1 << 32) if wanted else 1
    for start in range(first, first + total, _BATCH):
        yield list(range(start, min(start + _BATCH, first + total)))

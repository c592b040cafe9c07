# SPDX-License-Identifier: GPL-2.0-or-later
"""Real clients with helpers of others, and the tables of what worked with whose.

Both are for the whole matrix only, ``script/live --matrix`` (NAT_MATRIX=all).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from tests.live.conntrackd import Tagged, conntrackd, tagging
from tests.live.scene import module
from tests.live.world import World

WHOLE: Final = os.environ.get("NAT_MATRIX") == "all"

# What has no address in its messages needs no module for NAT.
_MODULES: Final = {
    "amanda": "nf_nat_amanda",
    "ftp": "nf_nat_ftp",
    "irc": "nf_nat_irc",
    "netbios-ns": "nf_conntrack_netbios_ns",
    "sane": "nf_conntrack_sane",
    "tftp": "nf_nat_tftp",
}
_CONNTRACKD: Final = ("amanda", "ftp", "sane", "ssdp", "tftp")

Outcome = TypeVar("Outcome")
Row = TypeVar("Row")


def with_others(
    world: World, folder: Path, helper: Tagged, run: Callable[[], Outcome]
) -> dict[str, Outcome]:
    """What comes of a run with the kernel's own helper, and with conntrackd's, where
    they have one.

    Nothing, but in the whole matrix. Our daemon does not run meanwhile, whose helpers
    have these names.
    """
    found: dict[str, Outcome] = {}
    if not WHOLE:
        return found
    world.forget()
    if helper.helper in _MODULES:
        with _kernels_own(world, helper):
            found[f"nf_conntrack_{helper.helper.replace('-', '_')}"] = run()
    if helper.helper in _CONNTRACKD:
        with conntrackd(world, folder, helper):
            found["conntrackd"] = run()
        world.forget()
    return found


@contextmanager
def _kernels_own(world: World, helper: Tagged) -> Iterator[None]:
    # The module for NAT brings the other one.
    with module(_MODULES[helper.helper]):
        with tagging(world, helper):
            yield
        world.forget()


def print_table(
    title: str, rows: Iterable[Row], columns: Mapping[str, Mapping[Row, bool]]
) -> None:
    """Print what works: a row for each client, a column for each helper."""
    if not WHOLE:
        return
    print(f"\n\n| {title} | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for row in rows:
        marks = ["works" if each[row] else "fails" for each in columns.values()]
        print(f"| {row} | {' | '.join(marks)} |")

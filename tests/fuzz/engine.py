# SPDX-License-Identifier: GPL-2.0-or-later
"""One target under atheris, which sees what code the bytes reach.

usage: python -m tests.fuzz.engine TARGET LIBFUZZER-ARGUMENT...

The input with the slowest packet goes into the file that FUZZ_SLOWEST names.
"""

import gc
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import atheris

from tests.fuzz.cost import NOTABLE, WATCH


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=["cthelper"]):
        from tests.fuzz.targets import TARGETS
    name, *arguments = sys.argv[1:]
    target = TARGETS[name]
    mutator = {}
    if target.mutator is not None:
        mutator["custom_mutator"] = partial(target.mutator, mutate=_mutate)
    arguments.append(f"-max_len={target.largest}")
    slowest = os.environ.get("FUZZ_SLOWEST")
    longest = 0.0

    def run(data: bytes) -> None:
        nonlocal longest
        target.run(data)
        if slowest and target.cost is not None and WATCH.longest > longest:
            longest = WATCH.longest
            if longest > NOTABLE:
                Path(slowest).write_bytes(data)

    # What is there now stays, and need not be looked through again and again.
    gc.collect()
    gc.freeze()
    # To merge, libFuzzer runs itself anew by its name.
    itself = os.environ.get("FUZZ_ITSELF") or sys.argv[0]
    atheris.Setup([itself, *arguments], run, **mutator)
    atheris.Fuzz()


def _mutate(data: bytes, limit: int) -> bytes:
    changed: bytes = atheris.Mutate(data, limit)
    return changed


if __name__ == "__main__":
    main()

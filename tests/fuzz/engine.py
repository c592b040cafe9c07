# SPDX-License-Identifier: GPL-2.0-or-later
"""One target under atheris, which sees what code the bytes reach.

usage: python -m tests.fuzz.engine TARGET LIBFUZZER-ARGUMENT...
"""

import sys
import warnings
from functools import partial
from types import FunctionType

import atheris
from scapy.utils import RawPcapNgReader, RawPcapReader

from tests.fuzz.script import mutated


def main() -> None:
    """Fuzz until libFuzzer ends the process."""
    warnings.simplefilter("error")
    with atheris.instrument_imports(include=["cthelper"]):
        from tests.fuzz.targets import TARGETS
    # The captures' own reader is built upon these; all of scapy would take minutes.
    for function in (*vars(RawPcapReader).values(), *vars(RawPcapNgReader).values()):
        if isinstance(function, FunctionType):
            atheris.instrument_func(function)
    name, *arguments = sys.argv[1:]
    target = TARGETS[name]
    mutator = (
        {}
        if target.head is None
        else {"custom_mutator": partial(mutated, head=target.head, mutate=_mutate)}
    )
    arguments.append(f"-max_len={target.largest}")
    atheris.Setup([sys.argv[0], *arguments], target.run, **mutator)
    atheris.Fuzz()


def _mutate(data: bytes, limit: int) -> bytes:
    changed: bytes = atheris.Mutate(data, limit)
    return changed


if __name__ == "__main__":
    main()

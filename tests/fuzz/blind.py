# SPDX-License-Identifier: GPL-2.0-or-later
"""One target without libFuzzer: inputs are changed, whatever code they reach.

usage: python -m tests.fuzz.blind TARGET FILE...
       python -m tests.fuzz.blind TARGET FOLDER... OPTION...

Runs over the files as they are. Or takes inputs from the folders, and of libFuzzer's
options -runs, -max_total_time and -artifact_prefix. What is run now stands in the file
current behind that prefix: where a sanitizer ends the process it is what was found.
"""

import mmap
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from tests import sanitized

_CURRENT: Final = "current"
_LENGTH: Final = 4
_INTERESTING: Final = (0, 1, 3, 4, 0x7F, 0x80, 0xFF)


def main() -> None:
    """Run until the time is over, or as often as was asked for."""
    sanitized.use_native()
    from tests.fuzz.targets import TARGETS

    name, *arguments = sys.argv[1:]
    target = TARGETS[name]
    options = dict(each[1:].split("=", 1) for each in arguments if each[:1] == "-")
    paths = [Path(each) for each in arguments if each[:1] != "-"]
    if all(map(Path.is_file, paths)):
        for path in paths:
            target.run(path.read_bytes())
        return
    inputs = [path.read_bytes() for each in paths for path in each.iterdir()]
    runs = int(options.get("runs", "-1"))
    end = float(options.get("max_total_time", "inf"))
    assert target.mutator is not None
    random = Random()
    begun = time.monotonic()
    count = 0
    with _Current(Path(options["artifact_prefix"] + _CURRENT), target.largest) as note:
        while count != runs and time.monotonic() - begun < end:
            data = random.choice(inputs)[: target.largest]
            for _ in range(random.randrange(1, 5)):
                seed = random.getrandbits(32)
                mutate = partial(_mutate, Random(seed))
                data = target.mutator(data, target.largest, seed, mutate=mutate)
            note.write(data)
            target.run(data)
            count += 1
    print(f"Done {count} runs in {int(time.monotonic() - begun)} second(s)")


class _Current:
    """A file that has the input that is run, as long as the process does."""

    def __init__(self, path: Path, largest: int) -> None:
        self._path = path
        path.write_bytes(bytes(largest + _LENGTH))
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 0)

    def __enter__(self) -> "_Current":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._map.close()
        self._file.close()
        if error is None:
            self._path.unlink()

    def write(self, data: bytes) -> None:
        """Say what comes next."""
        self._map[: _LENGTH + len(data)] = len(data).to_bytes(_LENGTH) + data


def found(path: Path) -> bytes:
    """What was run when the process ended."""
    data = path.read_bytes()
    return data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH])]


def _mutate(random: Random, data: bytes, limit: int) -> bytes:
    """Some bytes changed, taken out, put in or repeated."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0:
                changed[at:at] = random.randbytes(random.randrange(1, 5))
            case 1:
                del changed[at : at + random.randrange(1, 9)]
            case 2:
                changed[at : at + 1] = bytes([random.choice(_INTERESTING)])
            case 3:
                changed[at : at + 1] = random.randbytes(1)
            case _:
                other = random.randrange(len(changed) + 1)
                changed[at:at] = changed[other : other + random.randrange(1, 33)]
    return bytes(changed[:limit])


if __name__ == "__main__":
    main()

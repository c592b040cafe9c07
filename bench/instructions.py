# SPDX-License-Identifier: GPL-2.0-or-later
"""What transactions cost in user space: instructions, which noise cannot touch.

usage: python -m bench.instructions [--json FILE] [--table FILE] [--check FILE]

Use ``script/instructions``. Valgrind counts (cachegrind, without the caches). One
process under it imports everything; for each case of `bench.transactions` it forks one
that runs the first transactions alone, and one that runs more, and what both have had
to do falls out of the difference. What the kernel does is not counted, and of what
feeds a server some 2,000 instructions for each packet are.

What is counted is this installation, compiled or interpreted (`script/compiled`); what
the file has of the other one stays. With --check nothing is written: counts are held
against those in the file, and the exit status is 1 where one has grown too much. They
are Python's as well as ours, so those of another minor version or machine are not
compared.
"""

import argparse
import gc
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.table import with_counted
from bench.transactions import BATCH, CASES, Case
from cthelper.core.compiled import COMPILED
from cthelper.core.daemon.memory_settings import settle

# After the first ones Python has made its bytecode fast; then so many are counted.
_BEFORE, _COUNTED = BATCH, BATCH
_TOLERATED: Final = 1.10
_VALGRIND: Final = (
    *("valgrind", "--tool=cachegrind", "--cache-sim=no"),
    # It wonders about caches that it is not to simulate.
    "--log-file=/dev/null",
)

Document = Mapping[str, Any]
"""What is written as JSON: ``python``, ``machine`` and ``instructions``.

These are by build, compiled or interpreted, and by case.
"""

Counts = Mapping[str, int]
"""Instructions by case."""

BUILD: Final = "compiled" if COMPILED else "interpreted"


def measure() -> Counts:
    """Count all cases. Ends the benchmark where that fails."""
    if shutil.which(_VALGRIND[0]) is None:
        sys.exit("bench: valgrind is not installed: script/setup bench")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        command = (
            *_VALGRIND,
            f"--cachegrind-out-file={files}/%p",
            *(sys.executable, "-m", "bench.instructions", "--run"),
        )
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        if done.returncode:
            sys.exit(f"bench: instructions ended with {done.returncode}")
        forked: dict[str, tuple[int, int]] = json.loads(done.stdout)
        counts = {
            name: tuple(total((files / str(each)).read_text("ascii")) for each in both)
            for name, both in forked.items()
        }
    return {
        name: round((more - less) / _COUNTED) for name, (less, more) in counts.items()
    }


def document(found: Counts, kept: Document | None) -> Document:
    """What to write: the counts of this build, and what is known of the other one."""
    here = _here()
    known = {} if kept is None or unlike(here, kept) else kept["instructions"]
    return {**here, "instructions": {**known, BUILD: found}}


def _here() -> dict[str, str]:
    """What counts of other places are not compared with."""
    return {"python": platform.python_version(), "machine": platform.machine()}


def total(text: str) -> int:
    """The instructions of a process, by what cachegrind has written of it."""
    (line,) = (each for each in text.splitlines() if each.startswith("summary:"))
    return int(line.split()[1])


def _run_all() -> dict[str, tuple[int, int]]:
    """Run each case twice, under valgrind, and say in which processes."""
    return {
        case.name: (_forked(case, _BEFORE), _forked(case, _BEFORE + _COUNTED))
        for case in CASES
    }


def _forked(case: Case, transactions: int) -> int:
    """Run so many in a process of their own; its number, once it has ended."""
    process = os.fork()
    if not process:
        random.seed(0)
        with ExitStack() as stack:
            steps = case.prepare(stack, (_BEFORE + _COUNTED) // case.size)
            settle()
            # It would come in one process and not in the other.
            gc.disable()
            for step in steps[: transactions // case.size]:
                step()
            os._exit(0)
    _, status = os.waitpid(process, 0)
    if status:
        sys.exit(f"bench: {case.name} ended with {os.waitstatus_to_exitcode(status)}")
    return process


def section(found: Document) -> str:
    """The counts as a section of docs/bench.md, without its heading."""
    builds = sorted(found["instructions"].items())
    heads = "".join(f" {build} |" for build, _ in builds)
    names = dict.fromkeys(name for _, counts in builds for name in counts)
    rows = "".join(
        f"| {name} |"
        + "".join(f" {counts.get(name, 0):,} |" for _, counts in builds)
        + "\n"
        for name in names
    )
    return f"""\
What `script/instructions` counted: instructions of a transaction in user space, with
Python {found["python"]} on {found["machine"]}. Two runs differ by less than a
hundredth, whatever else the machine does. `engine` is `Engine.handle` alone; `server`
is from the queue to the verdict, with the native backend, and with expectations and
their acknowledgements. A GETPORT is a call and its reply. What each is,
`bench/transactions.py` says.

| transaction |{heads}
|---|{"---|" * len(builds)}
{rows}"""


def unlike(found: Document, kept: Document) -> str | None:
    """Why two counts cannot be compared; None: they can."""
    ours, theirs = (
        (".".join(each["python"].split(".")[:2]), each["machine"])
        for each in (found, kept)
    )
    if ours == theirs:
        return None
    return (
        f"nothing is compared: the counts in the tree are of Python {theirs[0]} on "
        f"{theirs[1]}, and this is {ours[0]} on {ours[1]}"
    )


def grown(ours: Counts, theirs: Counts) -> list[str]:
    """What costs over a tenth more than it did, or is not in both."""
    complaints = [
        f"{name}: {count:,} instructions, {count / theirs[name] - 1:.0%} over "
        f"{theirs[name]:,}"
        for name, count in ours.items()
        if name in theirs and count > theirs[name] * _TOLERATED
    ]
    return complaints + [
        f"{name}: not in both" for name in sorted(ours.keys() ^ theirs.keys())
    ]


def main() -> int:
    """Count and print; write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(_run_all()))
        return 0
    kept: Document | None = None
    if options.check is not None:
        kept = json.loads(options.check.read_text("utf-8"))
        why = unlike(_here(), kept)
        if why is not None:
            print(f"instructions: {why}")
            return 0
    found = measure()
    for name, count in found.items():
        print(f"{count:>10,}  {name}")
    if options.json is not None:
        before: Document | None = None
        if options.json.exists():
            before = json.loads(options.json.read_text("utf-8"))
        written = document(found, before)
        text = json.dumps(written, indent=1)
        options.json.write_text(f"{text}\n", encoding="utf-8")
        if options.table is not None:
            page = options.table.read_text("utf-8")
            page = with_counted(page, section(written))
            options.table.write_text(page, encoding="utf-8")
    complaints = (
        [] if kept is None else grown(found, kept["instructions"].get(BUILD, {}))
    )
    for each in complaints:
        print(f"instructions: {each}; script/instructions counts anew")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())

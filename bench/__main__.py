# SPDX-License-Identifier: GPL-2.0-or-later
"""All benchmarks, one after the other: one table, JSON and a plot.

usage: python -m bench [--quick] [--json FILE] [--table FILE] [--plot FILE]

Use ``script/bench``. Needs root. Each benchmark is a process of its own, so that none
has another's memory or imports.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.table import (
    Row,
    document,
    forwarding_rows,
    live_rows,
    memory_rows,
    plot,
    replay_rows,
    start_rows,
    text,
    with_compared,
)

_ROOT: Final = Path(__file__).resolve().parents[1]
_KERNEL: Final = ("script/in-kernel", ".venv/bin/python", "-B")

_TITLE: Final = """\
# What script/bench measured

Medians of the rounds, and their range. The daemon and conntrackd ran in one boot of an
emulated stock kernel, in turn; "figures" are the daemon's and then conntrackd's own.
What each row is, the modules of `bench` say; why a target is missed,
[`speed.md`](speed.md).

"""

# Module and what --quick leaves of it.
_QUICK: Final[Mapping[str, Sequence[str]]] = {
    "bench.start": ("--rounds=3",),
    "bench.memory": ("--flows=10000", "--churn=10000"),
    "bench.replay": ("--rounds=1", "--packets=30000"),
    "bench.live": (
        *("--rounds=1", "--calls=128", "--trips=20", "--flows=32"),
        *("--mebibytes=4", "--fewer=1", "--memory=0"),
    ),
    "bench.forwarding": ("--pairs=2", "--packets=1280"),
}
_ROWS: Final[Mapping[str, Callable[[Mapping[str, Any]], list[Row]]]] = {
    "bench.start": start_rows,
    "bench.memory": memory_rows,
    "bench.replay": replay_rows,
    "bench.live": lambda found: live_rows(found["rounds"], found["memory"]),
    "bench.forwarding": forwarding_rows,
}
# What is compared by the clock needs two CPUs, what is counted has one.
_IN_KERNEL: Final[Mapping[str, Mapping[str, str]]] = {
    "bench.live": {"VM_CPUS": "2"},
    "bench.forwarding": {"VM_COUNTED": "yes"},
}


def _run(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark, show what it prints, and read its last line."""
    began = time.monotonic()
    command = _KERNEL if module in _IN_KERNEL else (sys.executable,)
    last = ""
    with subprocess.Popen(
        (*command, "-m", module, *arguments),
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_IN_KERNEL.get(module, {})},
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        for line in process.stdout:
            if line.strip():
                last = line
            if not line.startswith("{"):
                print(line, end="", flush=True)
    if process.returncode:
        sys.exit(f"bench: {module} ended with {process.returncode}")
    print(f"{module}: {time.monotonic() - began:.0f} s\n", flush=True)
    result: dict[str, Any] = json.loads(last)
    return result


def main() -> int:
    """Run all, print the table, write it, JSON and the plot where they are wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    results = {
        module: _run(module, _QUICK[module] if options.quick else ())
        for module in _ROWS
    }
    rows = [row for module, found in results.items() for row in _ROWS[module](found)]
    print(text(rows))
    if options.json is not None:
        about = document(
            rows,
            quick=options.quick,
            kernel=results["bench.live"]["kernel"],
            python=platform.python_version(),
            rounds=len(results["bench.live"]["rounds"]),
        )
        options.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if options.table is not None:
        page = options.table.read_text("utf-8") if options.table.exists() else ""
        compared = with_compared(page, f"{_TITLE}{text(rows)}")
        options.table.write_text(compared, encoding="utf-8")
    if options.plot is not None:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: ratios within one run, medians of several rounds."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PEER: Final = "conntrackd"
BACKENDS: Final = ("native", "netfilterqueue")

UNLIMITED: Final = """
[budget]
source_cpu = 100
[guard]
in_all = 0
live_source = 0
live_server = 0
live_all = 0
[helpers.sunrpc.guard]
per_source = 0
per_helper = 0
"""
"""A configuration in which nothing is refused for being too much of one source."""


def cpu_seconds(name: str, command: Sequence[str]) -> float:
    """User and system time of a whole process, whose output nobody reads.

    Ends the benchmark with the process's `name` where it fails.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"bench: {name} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def resident(process: int | str = "self") -> float:
    """Resident memory of a process, in MiB."""
    text = Path(f"/proc/{process}/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

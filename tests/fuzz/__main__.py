# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz targets, as many at a time as there are cores, and say what was found.

usage: script/fuzz [TARGET...]            (default: all; FUZZ_SECONDS each, default 30)
       script/fuzz --replay TARGET FILE...

What was reached is kept in .venv/fuzz, where the next run goes on. Exits with 1 where
something was found: an exception, a target that takes over 20 seconds or over 1 GiB.
Its bytes are printed, and the command that replays them without atheris. Once it is
mended they are kept in tests/fuzz/findings/TARGET/NAME.bin, which tests replay.
"""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS, Target

ROOT: Final = Path(__file__).parents[2]
_USAGE: Final = "usage: script/fuzz [TARGET...] | --replay TARGET FILE..."
# Inputs grow little by little also where they are scripts.
_LIMITS: Final = ("-timeout=20", "-rss_limit_mb=1024", "-len_control=100")
_RUNS: Final = re.compile(rb"^Done (\d+) runs in (\d+) second", re.MULTILINE)
# The end of what Python or libFuzzer says of a finding.
_TAIL: Final = 4000


@dataclass(frozen=True, slots=True)
class Result:
    """How a target fared; `findings` are the files that libFuzzer wrote."""

    name: str
    status: int
    output: bytes
    findings: tuple[Path, ...]

    def report(self) -> str:
        """Lines for people."""
        done = _RUNS.search(self.output)
        if self.status == 0 and done is not None:
            runs, seconds = int(done[1]), max(1, int(done[2]))
            return f"{self.name}: {runs} runs, {runs // seconds} a second"
        lines = [self.output[-_TAIL:].decode(errors="backslashreplace")]
        lines.append(f"{self.name}: FAILED, exit code {self.status}")
        for path in self.findings:
            lines.append(f"  bytes: {path.read_bytes().hex()}")
            lines.append(f"  again: script/fuzz --replay {self.name} {path}")
        return "\n".join(lines)


def fuzz(name: str, seconds: int, folder: Path) -> Result:
    """Fuzz one target for so long; `folder` holds what it has reached and found."""
    reached, seeds = folder / "reached", folder / "seeds"
    for each in (reached, seeds):
        each.mkdir(parents=True, exist_ok=True)
    for old in seeds.iterdir():
        old.unlink()
    for seed in TARGETS[name].seeds():
        (seeds / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    before = set(folder.iterdir())
    run = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.engine", name),
            *(str(reached), str(seeds), f"-max_total_time={seconds}", *_LIMITS),
            f"-artifact_prefix={folder}/",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    found = sorted(set(folder.iterdir()) - before)
    return Result(name, run.returncode, run.stdout, tuple(found))


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    if arguments[:1] == ["--replay"] and len(arguments) > 2:
        for path in arguments[2:]:
            _target(arguments[1]).run(Path(path).read_bytes())
        return 0
    names = arguments or list(TARGETS)
    for name in names:
        _target(name)
    seconds = int(os.environ.get("FUZZ_SECONDS") or 30)
    folder = ROOT / ".venv" / "fuzz"
    failed = False
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        results = pool.map(lambda name: fuzz(name, seconds, folder / name), names)
        for result in results:
            print(result.report(), flush=True)
            failed = failed or result.status != 0
    return int(failed)


def _target(name: str) -> Target:
    if name not in TARGETS:
        sys.exit(f"{_USAGE}\ntargets: {', '.join(TARGETS)}")
    return TARGETS[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

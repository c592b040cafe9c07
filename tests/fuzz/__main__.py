# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz targets, as many at a time as there are cores, and say what was found.

usage: script/fuzz [TARGET...]            (default: all; FUZZ_SECONDS each, default 12)
       script/fuzz --executions N [TARGET...]
       script/fuzz --merge [TARGET...]
       script/fuzz --replay TARGET FILE...

With --executions the targets run in turn until tests/fuzz/executions.tsv tells of N in
all, each its part; broken off and begun again it goes on where it was. With --merge
what was reached becomes tests/fuzz/corpus, as much of it as adds most and is small.

What was reached is kept in .venv/fuzz, where the next run goes on. Exits with 1 where
something was found: an exception, a packet that takes too long or has too much kept, a
target that takes over 20 seconds or over 1 GiB. Its bytes are printed, and the command
that replays them without atheris. Once it is mended they are kept in
tests/fuzz/findings/TARGET/NAME.bin, which tests replay. As many targets run at a time
as there are cores, or FUZZ_JOBS.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from tests.fuzz import blind, log
from tests.fuzz.cost import NOTABLE, WATCH
from tests.fuzz.targets import CORPUS, SANITIZED, TARGETS, Target

ROOT: Final = Path(__file__).parents[2]
_USAGE: Final = (
    "usage: script/fuzz [TARGET...] | --executions N [TARGET...] | --merge [TARGET...]"
    " | --replay TARGET FILE..."
)
# Inputs grow little by little also where they are scripts.
_LIMITS: Final = ("-timeout=20", "-len_control=100", "-rss_limit_mb=1024")
# It is a clock on the wall, and a long run may have to let all others go first.
_PATIENT: Final = "-timeout=300"
_RUNS: Final = re.compile(rb"^Done (\d+) runs in (\d+) second", re.MULTILINE)
_REACHED: Final = re.compile(rb"^#(\d+)\t", re.MULTILINE)
# The end of what Python or libFuzzer says of a finding.
_TAIL: Final = 4000
# How long a target runs at a time where all run in turn.
_SLICE: Final = 45
# Bytes of each target's part of the corpus, and of one input.
_CORPUS_LIMIT: Final = 10_000
_CORPUS_COUNT: Final = 24
_INPUT_LIMIT: Final = 2_000
_SLOWEST: Final = "slowest"


@dataclass(frozen=True, slots=True)
class Result:
    """How a target fared; `findings` are the files that libFuzzer wrote.

    `slowest` is what took longest, in seconds without the fuzzer, and its file; None:
    nothing is worth a line.
    """

    name: str
    status: int
    output: bytes
    findings: tuple[Path, ...]
    slowest: tuple[float, Path] | None = None

    @property
    def executions(self) -> int:
        """How often it ran, also where it was ended by a finding."""
        done = _RUNS.search(self.output)
        if done is not None:
            return int(done[1])
        return max(map(int, _REACHED.findall(self.output)), default=0)

    def line(self, command: str) -> log.Line:
        """What the log is told of it."""
        done = _RUNS.search(self.output)
        seconds = int(done[2]) if done is not None else 0
        crashes = int(self.status != 0)
        return log.Line(
            self.name, log.commit(), command, self.executions, seconds, crashes
        )

    def report(self) -> str:
        """Lines for people."""
        lines = []
        done = _RUNS.search(self.output)
        if self.status == 0 and done is not None:
            runs, seconds = int(done[1]), max(1, int(done[2]))
            lines.append(f"{self.name}: {runs} runs, {runs // seconds} a second")
        else:
            lines.append(self.output[-_TAIL:].decode(errors="backslashreplace"))
            lines.append(f"{self.name}: FAILED, exit code {self.status}")
        for path in self.findings:
            lines.append(f"  bytes: {path.read_bytes().hex()}")
            lines.append(f"  again: script/fuzz --replay {self.name} {path}")
        if self.slowest is not None:
            took, path = self.slowest
            lines.append(f"  slowest: {took * 1000:.1f} ms")
            lines.append(f"  again: script/fuzz --replay {self.name} {path}")
        return "\n".join(lines)


def fuzz(name: str, folder: Path, *options: str) -> Result:
    """Fuzz one target; `folder` holds what it has reached and found."""
    reached = folder / "reached"
    reached.mkdir(parents=True, exist_ok=True)
    seeds = write_seeds(name, folder / "seeds")
    slowest = folder / _SLOWEST
    slowest.unlink(missing_ok=True)
    before = set(folder.iterdir())
    run = _engine(
        name,
        *(str(reached), str(seeds), *_LIMITS, *options),
        f"-artifact_prefix={folder}/",
        slowest=slowest,
    )
    found = sorted(set(folder.iterdir()) - before - {slowest})
    if name == SANITIZED:
        for path in found:
            path.write_bytes(blind.found(path))
    took = _took(name, slowest) if slowest.exists() else 0.0
    notable = (took, slowest) if took >= NOTABLE else None
    return Result(name, run.returncode, run.stdout, tuple(found), notable)


def write_seeds(name: str, folder: Path) -> Path:
    """The folder, with what a target begins with: its seeds and its corpus."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = TARGETS[name]
    for seed in (*target.seeds(), *target.corpus()):
        (folder / hashlib.sha256(seed).hexdigest()[:32]).write_bytes(seed)
    return folder


def _engine(
    name: str,
    *arguments: str,
    slowest: Path | None = None,
    itself: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    engine = "blind" if name == SANITIZED else "engine"
    return subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{engine}", name, *arguments],
        cwd=ROOT,
        env={
            **_environment(name),
            "FUZZ_SLOWEST": str(slowest or ""),
            "FUZZ_ITSELF": str(itself or ""),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def _environment(name: str) -> dict[str, str]:
    """That of a target: what begins with SANITIZED_ is of the one of that name.

    script/fuzz sets it, where the extension is built anew.
    """
    environment = dict(os.environ)
    for key in list(environment):
        own = key.removeprefix("SANITIZED_")
        if own != key and name == SANITIZED:
            environment[own] = environment[key]
    return environment


def _took(name: str, path: Path) -> float:
    """Seconds of the slowest packet of an input, without the fuzzer; the best of 3."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--replay", name, *[str(path)] * 3],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=False,
    )
    times = re.findall(rb": slowest packet ([0-9.]+) ms", run.stdout)
    return min(map(float, times), default=0.0) / 1000


def replay(name: str, paths: Sequence[str]) -> None:
    """Run a target over files; raises what it finds."""
    target = _target(name)
    if name == SANITIZED:
        # Another extension in C must be there before any is loaded.
        subprocess.run(
            [sys.executable, "-m", "tests.fuzz.blind", name, *paths],
            env=_environment(name),
            check=True,
        )
        return
    for path in paths:
        target.run(Path(path).read_bytes())
        if target.cost is not None:
            print(f"{path}: slowest packet {WATCH.longest * 1000:.2f} ms")


def run_until(executions: int, names: Sequence[str], folder: Path) -> int:
    """Have targets run in turn until so many executions are logged; the exit code.

    A target that something was found with runs no more.
    """
    command = shlex.join(["script/fuzz", "--executions", str(executions), *names])
    names = names or list(TARGETS)
    whole = sum(TARGETS[name].part for name in names)
    quotas = {name: executions * TARGETS[name].part // whole for name in names}
    failed: set[str] = set()
    with ThreadPoolExecutor(_jobs()) as pool:
        while True:
            done = log.totals(log.read())
            left = {
                name: quota - done.get(name, 0)
                for name, quota in quotas.items()
                if quota > done.get(name, 0) and name not in failed
            }
            if not left:
                return int(bool(failed))
            order = sorted(left, key=lambda name: done.get(name, 0) / quotas[name])
            results = pool.map(
                lambda name, left=left: fuzz(
                    name,
                    folder / name,
                    *(f"-runs={left[name]}", f"-max_total_time={_SLICE}", _PATIENT),
                ),
                order,
            )
            for result in results:
                print(result.report(), flush=True)
                log.add(result.line(command))
                if result.status:
                    failed.add(result.name)


def merge(name: str, folder: Path) -> str:
    """Put what adds most to the seeds into the corpus; how much that is."""
    work, reached = folder / "merged", folder / "reached"
    shutil.rmtree(work, ignore_errors=True)
    # What the first folder holds counts as known, and the others add to it.
    begin = write_seeds(name, work / "corpus")
    for old in begin.iterdir():
        if old.read_bytes() in set(TARGETS[name].corpus()):
            old.unlink()
    known = set(begin.iterdir())
    candidates = work / "candidates"
    candidates.mkdir()
    for data in (*TARGETS[name].corpus(), *map(Path.read_bytes, reached.iterdir())):
        if len(data) <= _INPUT_LIMIT:
            (candidates / hashlib.sha256(data).hexdigest()[:32]).write_bytes(data)
    itself = work / "engine"
    command = shlex.join([sys.executable, "-m", "tests.fuzz.engine", name])
    itself.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    itself.chmod(0o700)
    run = _engine(
        name,
        *("-merge=1", str(begin), str(candidates), *_LIMITS),
        itself=itself,
    )
    if run.returncode:
        sys.exit(run.stdout[-_TAIL:].decode(errors="backslashreplace"))
    kept = CORPUS / name
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    # The small ones, which add as much for fewer bytes, and of many every so many-th.
    new = sorted(set(begin.iterdir()) - known, key=_size)
    ends = accumulate(map(_size, new))
    small = [path for path, end in zip(new, ends, strict=True) if end <= _CORPUS_LIMIT]
    chosen = small[:: -(-len(small) // _CORPUS_COUNT) or 1]
    for path in chosen:
        data = path.read_bytes()
        (kept / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
    return f"{name}: {len(chosen)} inputs"


def _size(path: Path) -> int:
    return path.stat().st_size


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    folder = ROOT / ".venv" / "fuzz"
    match list(arguments):
        case ["--replay", name, first, *others]:
            replay(name, [first, *others])
            return 0
        case ["--executions", number, *names] if number.isdecimal():
            _known(names)
            return run_until(int(number), names, folder)
        case ["--merge", *names]:
            _known(names)
            for name in names or TARGETS:
                if name == SANITIZED:
                    continue
                print(merge(name, folder / name), flush=True)
            return 0
        case names:
            _known(names)
    seconds = int(os.environ.get("FUZZ_SECONDS") or 12)
    failed = False
    with ThreadPoolExecutor(_jobs()) as pool:
        results = pool.map(
            lambda name: fuzz(name, folder / name, f"-max_total_time={seconds}"),
            names or list(TARGETS),
        )
        for result in results:
            print(result.report(), flush=True)
            failed = failed or result.status != 0
    return int(failed)


def _jobs() -> int:
    """How many targets run at a time."""
    return int(os.environ.get("FUZZ_JOBS") or len(os.sched_getaffinity(0)))


def _known(names: Sequence[str]) -> None:
    for name in names:
        _target(name)


def _target(name: str) -> Target:
    if name not in TARGETS:
        sys.exit(f"{_USAGE}\ntargets: {', '.join(TARGETS)}")
    return TARGETS[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Several captures: which files they are, and replaying them here or elsewhere."""

import glob
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIG_BLOCK, SIG_SETMASK, SIGINT, pthread_sigmask
from typing import Final

from cthelper.core.config import Config
from cthelper.core.errors import CaptureError, CthelperError, UsageError
from cthelper.core.offline.blocks import Batch
from cthelper.core.offline.capture import STDIN, Capture
from cthelper.core.offline.events import Begin, Event, Notice
from cthelper.core.offline.nat import Nat
from cthelper.core.offline.replay import Replay
from cthelper.core.tuples import Address, Network

_SUFFIXES: Final = (".pcap", ".pcapng", ".cap")
_COMPRESSED: Final = ("", ".gz", ".zst")
# Seconds between two looks whether to go on waiting for a worker.
_GLANCE: Final = 0.2
# Seconds that one has to come to an end.
_GRACE: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One capture to replay, and how; made to travel to another process.

    `read_config` gives the configuration there. The rest is as for `Replay`.
    """

    capture: Path
    read_config: Callable[[], Config]
    networks: tuple[Network, ...] = ()
    hosts: tuple[Address, ...] = ()
    nat: Nat | None = None
    watch: bool = False


def find_captures(names: Iterable[str]) -> list[Path]:
    """The files that `names` mean: files, patterns, folders with all below them.

    In a folder captures are known by their names: .pcap, .pcapng and .cap, also with
    .gz or .zst behind. ``-`` is STDIN. Raises UsageError for a name that means nothing.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if name == "-":
            found += [STDIN] if STDIN not in found else []
            continue
        if path.is_dir():
            meant = [each for each in sorted(path.rglob("*")) if _is_capture(each)]
        elif path.exists():
            meant = [path]
        else:
            meant = [Path(each) for each in sorted(glob.glob(name, recursive=True))]
            meant = [each for each in meant if each.is_file()]
        if not meant:
            raise UsageError(f"{name}: no capture there")
        meant = [each.absolute() if each == STDIN else each for each in meant]
        found += [each for each in meant if each not in found]
    return found


def _is_capture(path: Path) -> bool:
    endings = [suffix + more for suffix in _SUFFIXES for more in _COMPRESSED]
    return path.is_file() and path.name.lower().endswith(tuple(endings))


def replay_job(
    job: Job,
    progress: Callable[[int], None] | None = None,
    stop: Connection | None = None,
) -> Iterator[Event]:
    """The events of one capture, as they are found.

    `progress` is told now and then how many bytes of the file have been read. What
    goes wrong with the capture is a Notice. `stop` is as for Capture. Raises
    ConfigError, RegistryError.
    """
    notices: list[Notice] = []

    def warn(text: str) -> None:
        notices.append(Notice(text=text))

    config = job.read_config()
    replay = Replay(
        config,
        networks=job.networks,
        hosts=job.hosts,
        nat=job.nat,
        warn=lambda text: warn(f"{job.capture}: {text}"),
        watch=job.watch,
    )
    try:
        with Capture(job.capture, warn=warn, stop=stop) as capture:
            batches = capture.batches()
            if progress is not None:
                batches = _reporting(batches, capture, progress)
            begun = False
            for event in replay.run_batches(batches):
                if not begun:
                    begun = True
                    yield Begin(capture.begin)
                if notices:
                    yield from notices
                    notices.clear()
                yield event
    except CaptureError as error:
        notices.append(Notice(text=str(error), failed=True))
    yield from notices


def _reporting(
    batches: Iterator[Batch], capture: Capture, progress: Callable[[int], None]
) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        progress(capture.position)


def replay_all(
    jobs: Sequence[Job],
    executor: Executor,
    progress: Callable[[int], None] | None = None,
    stop: Connection | None = None,
) -> Generator[tuple[Job, list[Event]], None, None]:
    """Each job's events, in the order of the jobs, which run in `executor`.

    `progress` is told how many jobs have ended. What is at the other end of `stop`
    ends it by closing that: what has not begun is left out, and what runs is given a
    moment, in which a worker that has `stop`, too, comes to an end. Raises what
    `replay_job` raises, and CthelperError where the executor breaks.
    """
    futures = _submit(jobs, executor)
    try:
        for count, (job, future) in enumerate(zip(jobs, futures, strict=True), 1):
            if stop is not None and not _await(future, futures, stop):
                return
            if not future.cancelled() and (events := future.result()):
                yield job, events
            if progress is not None:
                progress(count)
    except BrokenExecutor as error:
        raise CthelperError(f"the executor broke: {error}") from None
    finally:
        for future in futures:
            future.cancel()


def _await(
    future: Future[list[Event]],
    futures: Sequence[Future[list[Event]]],
    stop: Connection,
) -> bool:
    """Wait for one of them, until `stop` ends all; whether it is done."""
    while not _is_done(future, _GLANCE):
        if stop.poll():
            for each in futures:
                each.cancel()
            return _is_done(future, _GRACE)
    return True


def _is_done(future: Future[list[Event]], seconds: float) -> bool:
    # Who waits for one that is cancelled already waits in vain.
    return future.cancelled() or bool(wait([future], seconds).done)


def _submit(jobs: Sequence[Job], executor: Executor) -> list[Future[list[Event]]]:
    # Processes that begin here inherit the mask: Ctrl-C, which the whole group gets,
    # is for this one to deal with.
    mask = pthread_sigmask(SIG_BLOCK, {SIGINT})
    try:
        return [executor.submit(_collect, job) for job in jobs]
    finally:
        pthread_sigmask(SIG_SETMASK, mask)


_stop_worker: Connection | None = None


def begin_worker(stop: Connection) -> None:
    """In a process of its own: `stop` ends the captures of all jobs there."""
    global _stop_worker
    _stop_worker = stop


def _collect(job: Job) -> list[Event]:
    if _stop_worker is not None and _stop_worker.poll():
        return []
    try:
        return list(replay_job(job, stop=_stop_worker))
    except CthelperError as error:
        # Not all of our errors can be pickled on their way from a worker.
        raise CthelperError(str(error)) from None


def make_executor(path: str) -> Executor:
    """What the function or class at an import path, ``module:name``, gives.

    It is called without arguments and gives a concurrent.futures.Executor, or what
    works like one. Raises UsageError.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise UsageError(f"--executor {path}: must be MODULE:NAME")
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--executor {path}: {error}") from None
    executor = factory()
    if not callable(getattr(executor, "submit", None)):
        raise UsageError(
            f"--executor {path}: gives a {type(executor).__name__}, "
            "which is no concurrent.futures.Executor"
        )
    result: Executor = executor
    return result

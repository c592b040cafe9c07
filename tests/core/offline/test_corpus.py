# SPDX-License-Identifier: GPL-2.0-or-later
"""Several captures: finding them, and replaying them elsewhere."""

from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from multiprocessing import Pipe, get_context
from pathlib import Path
from threading import Timer
from typing import Any, Final

import pytest

from cthelper.core.config import Config, parse
from cthelper.core.errors import ConfigError, CthelperError, UsageError
from cthelper.core.offline import corpus
from cthelper.core.offline.corpus import (
    Job,
    find_captures,
    make_executor,
    replay_all,
    replay_job,
)
from cthelper.core.offline.events import Notice, Summary
from cthelper.core.registry import builtin_helpers

PCAPS: Final = Path(__file__).parents[3] / "pcaps"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.pcap"], ["a.pcap"]),
        (["."], ["a.pcap", "b/c.PCAPNG", "b/d.cap.gz", "b/e.pcap.zst"]),
        (["b", "a.pcap"], ["b/c.PCAPNG", "b/d.cap.gz", "b/e.pcap.zst", "a.pcap"]),
        (["a.*"], ["a.pcap", "a.txt"]),
        (["**/*.gz"], ["b/d.cap.gz"]),
        (["a.pcap", "*.pcap", "a.pcap"], ["a.pcap"]),
        (["[x].pcap"], ["[x].pcap"]),
    ],
)
def test_names_mean_captures(
    names: list[str],
    found: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    for name in ("a.pcap", "a.txt", "b/c.PCAPNG", "b/d.cap.gz", "b/e.pcap.zst"):
        (tmp_path / name).touch()
    if names == ["[x].pcap"]:
        (tmp_path / "[x].pcap").touch()
    assert find_captures(names) == [Path(each) for each in found]


@pytest.mark.parametrize("name", ["nowhere", "*.pcap", "empty"])
def test_name_that_means_nothing_is_wrong_usage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no capture there"):
        find_captures([name])


def configuration() -> Config:
    return parse("", Path("corpus.toml"), builtin_helpers())


def jobs() -> list[Job]:
    return [
        Job(capture=path, read_config=configuration)
        for path in find_captures([str(PCAPS / "sunrpc")])
    ]


def test_progress_is_told_in_bytes() -> None:
    (job, *_) = jobs()
    told: list[int] = []
    events = list(replay_job(job, told.append))
    assert told[-1] == job.capture.stat().st_size
    assert isinstance(events[-1], Summary)


def test_jobs_elsewhere_give_their_events_in_order() -> None:
    told: list[int] = []
    with ThreadPoolExecutor(2) as executor:
        found = list(replay_all(jobs(), executor, told.append))
    assert [(job.capture, events) for job, events in found] == [
        (job.capture, list(replay_job(job))) for job in jobs()
    ]
    assert told == list(range(1, len(found) + 1))


class Stuck(Executor):
    """Runs the first job, begins the second one, and never comes to the others."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if len(self.futures) < 2:
            future.set_running_or_notify_cancel()
        if not self.futures:
            future.set_result(function(*args, **kwargs))
        self.futures.append(future)
        return future


@pytest.mark.parametrize("in_time", [True, False])
def test_stop_gives_what_runs_a_moment_and_leaves_out_the_rest(
    in_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_GRACE", 60.0 if in_time else 0.01)
    stop, held = Pipe(duplex=False)
    executor = Stuck()
    results = replay_all(jobs(), executor, stop=stop)
    assert next(results)[0] == jobs()[0]
    held.close()
    summary = Summary(packets=3)
    if in_time:
        Timer(0.5, executor.futures[1].set_result, [[summary]]).start()
    rest = [events for _, events in results]
    assert rest == ([[summary]] if in_time else [])
    assert len(executor.futures) > 2
    assert all(each.cancelled() for each in executor.futures[2:])
    stop.close()


def test_worker_that_was_told_to_stop_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop, held = Pipe(duplex=False)
    monkeypatch.setattr(corpus, "_stop_worker", None)
    corpus.begin_worker(stop)
    with ThreadPoolExecutor(1) as executor:
        assert len(list(replay_all(jobs(), executor))) == len(jobs())
        held.close()
        assert list(replay_all(jobs(), executor)) == []
    stop.close()


class Broken(Executor):
    """Its workers have died."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        from concurrent.futures import BrokenExecutor

        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor("a worker has died"))
        return future


def test_executor_that_breaks_is_an_error_of_one_line() -> None:
    with pytest.raises(CthelperError, match="the executor broke: a worker has died"):
        list(replay_all(jobs(), Broken()))


def wrong_configuration() -> Config:
    raise ConfigError(Path("cthelper.toml"), "key = 1: must not be there")


def test_error_of_a_worker_arrives() -> None:
    job = Job(capture=PCAPS, read_config=wrong_configuration)
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as executor,
        pytest.raises(CthelperError, match="key = 1: must not be there"),
    ):
        list(replay_all([job], executor))


def test_capture_that_cannot_be_read_is_a_notice(tmp_path: Path) -> None:
    (notice,) = replay_job(Job(capture=tmp_path / "x", read_config=configuration))
    assert isinstance(notice, Notice)
    assert notice.failed
    assert str(tmp_path / "x") in notice.text


def test_executor_by_its_import_path() -> None:
    executor = make_executor("concurrent.futures:ThreadPoolExecutor")
    assert isinstance(executor, ThreadPoolExecutor)
    executor.shutdown()

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper replay``: helpers over captures."""

import argparse
import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from cthelper.core.cli import INTERRUPTED
from cthelper.core.cli.interruption import Interruption, interruption
from cthelper.core.cli.options import (
    Commands,
    add_config,
    add_plugins,
    configured,
    file_name,
    warned,
)
from cthelper.core.cli.progress import Progress
from cthelper.core.config import Config, read_file
from cthelper.core.errors import UsageError
from cthelper.core.tuples import Address, Network

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from cthelper.core.offline.corpus import Job
    from cthelper.core.offline.events import Event
    from cthelper.core.offline.nat import Nat


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="the helpers over captures; needs no root and no kernel",
        description="Runs the configured helpers over captures (pcap, pcapng, also "
        "compressed), with a model of Linux's connection tracking (6.1 to 7.2) in the "
        "place of the kernel. Needs neither root nor a kernel. Exits with 1 where a "
        "capture could not be read, a helper has a bug, or --diff found a difference, "
        "and with 130 after Ctrl-C, which ends the output with the summaries so far. A "
        "capture that is cut short or damaged is used up to there, with a warning, and "
        "is no failure.",
    )
    parser.add_argument(
        "captures",
        type=file_name,
        nargs="+",
        metavar="CAPTURE",
        help="a file, a pattern, a folder with all captures below it, or - for "
        "standard input, which is read as it comes",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="one JSON object a line, for programs"
    )
    form.add_argument(
        "--explain",
        type=_frame,
        metavar="FRAME",
        help="say step by step why this frame of the one capture did, or did not, "
        "lead to an expectation, or meet one",
    )
    form.add_argument(
        "--diff",
        type=Path,
        metavar="OLD.json",
        help="print only what differs from what --json once wrote",
    )
    parser.add_argument(
        "--utc",
        action="store_true",
        help="times as UTC, as the daemon's log has them, not as seconds since the "
        "first frame (--json has both)",
    )
    parser.add_argument(
        "--only-events",
        action="store_true",
        help="leave out captures without any event",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write a page with a time line, to look at in a browser",
    )
    parser.add_argument(
        "--network",
        type=_network,
        action="append",
        default=[],
        metavar="CIDR",
        help="a network that was on-link where the captures were taken; may be "
        "repeated, all being of one link (default: the /24 or /64 around the address "
        "in question)",
    )
    parser.add_argument(
        "--host",
        type=_address,
        action="append",
        default=[],
        metavar="ADDRESS",
        help="an address of the machine that would run cthelper; may be repeated. "
        "Packets from others then count as forwarded (default: none does)",
    )
    parser.add_argument(
        "--snat",
        type=_translated,
        action="append",
        default=[],
        metavar="CLIENT=KNOWN",
        help="source NAT where the captures were taken: a client's own address, and "
        "the one that servers knew it by; may be repeated",
    )
    parser.add_argument(
        "--dnat",
        type=_translated,
        action="append",
        default=[],
        metavar="KNOWN=SERVER",
        help="destination NAT there: the address that clients knew a server by, and "
        "the server's own; may be repeated",
    )
    parser.add_argument(
        "--side",
        choices=("client", "server"),
        help="on which side of the NAT the captures were taken (default: client)",
    )
    parser.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="replay N captures at a time, in processes of their own",
    )
    parser.add_argument(
        "--executor",
        metavar="MODULE:NAME",
        help="replay in the concurrent.futures.Executor that this function gives, "
        "such as Dask's",
    )
    add_config(parser)
    add_plugins(parser)
    parser.set_defaults(command=_replay)


def _replay(options: argparse.Namespace) -> int:
    from cthelper.core.offline import corpus, output
    from cthelper.core.offline.capture import STDIN

    # Flows are many objects without cycles, and the collector would look at all of them
    # again and again: one tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    captures = corpus.find_captures(options.captures)
    live = STDIN in captures
    here = options.jobs is None and options.executor is None
    _refuse_what_excludes(options, live=live, here=here)
    file = read_file(options.config)
    config = warned(configured(file, options, runs=True))
    nat = _nat(options)
    if options.explain is not None:
        return _explain(options, captures, config, nat)
    # Elsewhere a pipe is empty, and the file may not be there.
    elsewhere = partial(configured, file, options, runs=True)
    jobs = [
        corpus.Job(
            capture=capture,
            read_config=(lambda: config) if here else elsewhere,
            networks=tuple(options.network),
            hosts=tuple(options.host),
            nat=nat,
            watch=options.html is not None,
        )
        for capture in captures
    ]
    pages: list[tuple[str, list[Event]]] = []
    shown = output.of(
        as_json=options.json,
        diff=options.diff,
        utc=options.utc,
        only_events=options.only_events,
    )
    failed = False
    with ExitStack() as stack:
        write_page = None
        if options.html is not None:
            from cthelper.core.offline.page import page_file

            write_page = stack.enter_context(page_file(options.html))
        noted = stack.enter_context(interruption())
        progress = Progress(*_extent(captures, here=here))
        stack.callback(progress.clear)
        for job, events in _running(options, jobs, stack, progress, noted):
            capture = str(job.capture)
            progress.clear()
            shown.begin(capture)
            if live:
                sys.stdout.flush()
            page: list[Event] = []
            told = False
            for event in events:
                progress.clear()
                wrong = output.warn(capture, event)
                failed = wrong or failed
                told = shown.event(capture, event) or wrong or told
                if live:
                    sys.stdout.flush()
                if write_page is not None:
                    page.append(event)
            # Whoever reads this need not wait for the captures that follow.
            sys.stdout.flush()
            if told or not options.only_events:
                pages.append((capture, page))
        progress.clear()
        if write_page is not None:
            write_page(pages)
        if noted.came and options.diff is not None:
            # What was not reached would seem to be gone.
            return INTERRUPTED
        failed = shown.end() or failed
        return INTERRUPTED if noted.came else int(failed)


def _refuse_what_excludes(
    options: argparse.Namespace, *, live: bool, here: bool
) -> None:
    if options.jobs is not None and options.executor is not None:
        raise UsageError("--jobs and --executor exclude each other")
    if live and not here:
        raise UsageError(
            "-: only this process has the standard input, so neither --jobs nor "
            "--executor goes with it"
        )
    if options.only_events and options.diff is not None:
        raise UsageError("--only-events and --diff exclude each other")


def _running(
    options: argparse.Namespace,
    jobs: Sequence["Job"],
    stack: ExitStack,
    progress: Progress,
    noted: Interruption,
) -> "Iterator[tuple[Job, Iterable[Event]]]":
    """The jobs' events, wherever they run, until `noted` comes."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from cthelper.core.offline import corpus

    executor: Executor
    if options.jobs is not None:
        # Forked workers would share all that this process has open.
        executor = ProcessPoolExecutor(
            options.jobs, get_context("spawn"), corpus.begin_worker, (noted.stop,)
        )
    elif options.executor is not None:
        executor = corpus.make_executor(options.executor)
    else:
        return _one_by_one(jobs, progress, noted)
    stack.enter_context(executor)
    # Before it is waited for, whatever ends this: an error, a reader that goes away.
    stack.callback(noted.end)
    results = corpus.replay_all(jobs, executor, progress.update, noted.stop)
    return stack.enter_context(closing(results))


def _one_by_one(
    jobs: Sequence["Job"], progress: Progress, noted: Interruption
) -> "Iterator[tuple[Job, Iterable[Event]]]":
    from cthelper.core.offline import corpus

    before = 0
    for job in jobs:
        if noted.came:
            return
        further = partial(_further, progress, before) if progress.wanted else None
        yield job, corpus.replay_job(job, further, noted.stop)
        before += _size(job.capture)


def _further(progress: Progress, before: int, position: int) -> None:
    progress.update(before + position)


def _extent(captures: Sequence[Path], *, here: bool) -> tuple[int, str]:
    """What there is to do, in which unit; 0 where nobody knows."""
    if not here:
        return len(captures), "captures"
    return sum(map(_size, captures)), "bytes"


def _size(capture: Path) -> int:
    """Of a file on disk; nothing else has one."""
    from cthelper.core.offline.capture import STDIN

    known = capture != STDIN and capture.is_file()
    return capture.stat().st_size if known else 0


def _explain(
    options: argparse.Namespace,
    captures: Sequence[Path],
    config: Config,
    nat: "Nat | None",
) -> int:
    from cthelper.core.offline.explain import explain

    if len(captures) != 1:
        raise UsageError("--explain takes one capture")
    for option in ("html", "only_events"):
        if getattr(options, option):
            raise UsageError(
                f"--explain and --{option.replace('_', '-')} exclude each other"
            )
    found = False
    for text in explain(
        captures[0],
        options.explain,
        config,
        networks=options.network,
        hosts=options.host,
        nat=nat,
        warn=lambda text: print(f"cthelper: {text}", file=sys.stderr),
        utc=options.utc,
    ):
        print(text, flush=True)
        found = True
    return int(not found)


def _nat(options: argparse.Namespace) -> "Nat | None":
    from cthelper.core.offline.nat import Nat, Side

    if not options.snat and not options.dnat:
        if options.side is not None:
            raise UsageError("--side says nothing without --snat or --dnat")
        return None
    return Nat(
        sources=_addresses("--snat", options.snat),
        destinations=_addresses("--dnat", options.dnat),
        side=Side(options.side or "client"),
    )


def _addresses(
    option: str, pairs: Sequence[tuple[Address, Address]]
) -> dict[Address, Address]:
    result: dict[Address, Address] = {}
    for address, other in pairs:
        if result.setdefault(address, other) != other:
            raise UsageError(
                f"{option} {address} is {result[address]} or {other}, not both"
            )
    return result


def _frame(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError("frames count from 1")
    return number


def _count(text: str) -> int:
    number = _whole(text)
    if not 1 <= number <= 256:
        raise argparse.ArgumentTypeError("must be a number from 1 to 256")
    return number


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _translated(text: str) -> tuple[Address, Address]:
    allowed = "must be two addresses such as 10.77.1.2=10.77.2.1, of one IP version"
    try:
        address, other = map(ip_address, text.split("="))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} {allowed}") from None
    # A link-local address with its zone is translated nowhere.
    if address.version != other.version or "%" in text:
        raise argparse.ArgumentTypeError(f"{text!r} {allowed}")
    return address, other

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper replay``: helpers over captures."""

import argparse
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address, ip_network
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from cthelper.core.cli.options import (
    Commands,
    add_config,
    add_plugins,
    configured,
    warned,
)
from cthelper.core.config import Config, read_file
from cthelper.core.errors import UsageError, replay_extra
from cthelper.core.tuples import Address, Network

if TYPE_CHECKING:
    from cthelper.core.offline.corpus import Job
    from cthelper.core.offline.events import Event
    from cthelper.core.offline.nat import Nat


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "replay",
        help="the helpers over captures; needs no root and no kernel",
        description="Runs the configured helpers over captures (pcap, pcapng, also "
        "compressed), with a model of the kernel's connection tracking in the place "
        "of the kernel. Needs neither root nor a kernel. Exits with 1 where a capture "
        "could not be read, a helper has a bug, or --diff found a difference.",
    )
    parser.add_argument(
        "captures",
        nargs="+",
        metavar="CAPTURE",
        help="a file, a pattern, or a folder with all captures below it",
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
    with replay_extra():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    from cthelper.core.offline import corpus, output

    # Flows are many objects without cycles, and the collector would look at all of them
    # again and again: one tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    if options.jobs is not None and options.executor is not None:
        raise UsageError("--jobs and --executor exclude each other")
    captures = corpus.find_captures(options.captures)
    file = read_file(options.config)
    config = warned(configured(file, options))
    nat = _nat(options)
    if options.explain is not None:
        return _explain(options, captures, config, nat)
    here = options.jobs is None and options.executor is None
    # Elsewhere a pipe is empty, and the file may not be there.
    elsewhere = partial(configured, file, options)
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
    shown = output.of(as_json=options.json, diff=options.diff)
    failed = False
    with _running(options, jobs) as results:
        for job, events in results:
            capture = str(job.capture)
            shown.begin(capture)
            page: list[Event] = []
            for event in events:
                failed = output.warn(capture, event) or failed
                shown.event(capture, event)
                if options.html is not None:
                    page.append(event)
            pages.append((capture, page))
    if options.html is not None:
        from cthelper.core.offline.page import write_page

        write_page(options.html, pages)
    return int(shown.end() or failed)


@contextmanager
def _running(
    options: argparse.Namespace, jobs: Sequence["Job"]
) -> "Iterator[Iterator[tuple[Job, Iterable[Event]]]]":
    """The jobs' events, wherever they run, with a progress bar on a terminal."""
    from cthelper.core.offline import corpus

    executor: Executor | None = None
    if options.jobs is not None:
        # Forked workers would share the threads of the progress bar.
        executor = ProcessPoolExecutor(options.jobs, get_context("spawn"))
    elif options.executor is not None:
        executor = corpus.make_executor(options.executor)
    with ExitStack() as stack:
        if executor is not None:
            stack.enter_context(executor)
            advance = _bar(stack, "captures", len(jobs))
            yield corpus.replay_all(jobs, executor, advance)
            return
        sizes = [job.capture.stat().st_size for job in jobs]
        advance = _bar(stack, "bytes", sum(sizes))

        def results() -> "Iterator[tuple[Job, Iterable[Event]]]":
            before = 0
            for job, size in zip(jobs, sizes, strict=True):
                progress = None
                if advance is not None:
                    progress = partial(_further, advance, before)
                yield job, corpus.replay_job(job, progress)
                before += size

        yield results()


def _further(advance: Callable[[int], None], before: int, position: int) -> None:
    advance(before + position)


def _bar(stack: ExitStack, unit: str, total: int) -> Callable[[int], None] | None:
    """A progress bar on standard error where it is a terminal; what moves it."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress

    progress = stack.enter_context(
        Progress(
            console=Console(stderr=True),
            transient=True,
            # What is printed to a terminal goes above the bar.
            redirect_stdout=sys.stdout.isatty(),
        )
    )
    task = progress.add_task(unit, total=total)
    return lambda completed: progress.update(task, completed=completed)


def _explain(
    options: argparse.Namespace,
    captures: Sequence[Path],
    config: Config,
    nat: "Nat | None",
) -> int:
    from cthelper.core.offline.explain import explain

    if len(captures) != 1:
        raise UsageError("--explain takes one capture")
    if options.html is not None:
        raise UsageError("--explain and --html exclude each other")
    found = False
    for text in explain(
        captures[0],
        options.explain,
        config,
        networks=options.network,
        hosts=options.host,
        nat=nat,
        warn=lambda text: print(f"cthelper: {text}", file=sys.stderr),
    ):
        print(text)
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

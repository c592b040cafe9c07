# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share that ask a running daemon: where it is, and which flows."""

import argparse
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from cthelper.control import SOCKET, Control, ControlError, NotRunning
from cthelper.core.errors import UsageError

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
# What a filter has, and the option that says it.
_FILTER: Final = {
    **{"transport": "-p", "source": "-s", "destination": "-d"},
    **{"sport": "--sport", "dport": "--dport"},
    **{"helper": "--helper", "state": "--state", "zone": "--zone"},
}


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add ``--socket PATH``."""
    parser.add_argument(
        "--socket",
        type=Path,
        default=SOCKET,
        metavar="PATH",
        help=f"where the daemon listens, control.socket (default: {SOCKET})",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line (docs/control.md)"
    )


def add_filter(
    parser: argparse.ArgumentParser, *, state: bool = False, service: bool = False
) -> None:
    """Add the options that narrow flows, in the words of conntrack(8).

    With `service` those of a peer and a service, which have no more.
    """
    group = parser.add_argument_group(
        "which flows", "of the original direction, as conntrack(8) has them"
    )
    group.add_argument(
        *("-p", "--proto", "--protonum"),
        dest="transport",
        choices=("tcp", "udp"),
        help="the transport",
    )
    group.add_argument(
        *("-s", "--src", "--orig-src"),
        dest="source",
        metavar="ADDRESS",
        help="from an address or a network",
    )
    group.add_argument(
        *("-d", "--dst", "--orig-dst"),
        dest="destination",
        metavar="ADDRESS",
        help="to an address or a network",
    )
    if not service:
        group.add_argument(
            "--sport", "--orig-port-src", type=int, metavar="PORT", help="from a port"
        )
    group.add_argument(
        "--dport", "--orig-port-dst", type=int, metavar="PORT", help="to a port"
    )
    group.add_argument("--helper", metavar="NAME", help="of one helper")
    if not service:
        group.add_argument(
            "--zone", type=int, metavar="ZONE", help="in a conntrack zone"
        )
    if state:
        group.add_argument(
            "--state",
            type=str.upper,
            metavar="STATE",
            help="in a state of TCP, UNREPLIED or ASSURED",
        )


def filter_of(options: argparse.Namespace) -> dict[str, object]:
    """What those options say."""
    given = {key: getattr(options, key, None) for key in _FILTER}
    return {key: value for key, value in given.items() if value is not None}


class _Words(argparse.ArgumentParser):
    """Reads those options where a user types them, and does not end the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def read_filter(text: str) -> dict[str, object]:
    """What those options say, in one line. Raises UsageError."""
    parser = _Words(add_help=False)
    add_filter(parser, state=True)
    try:
        return checked(filter_of(parser.parse_args(shlex.split(text))))
    except ValueError as error:  # of shlex: a quotation has no end
        raise UsageError(str(error).lower()) from None


def checked(filter_: dict[str, object]) -> dict[str, object]:
    """The same. Raises UsageError where the daemon would refuse it."""
    # Only here, as most commands start sooner without.
    from cthelper.core.control.matching import Filter

    try:
        Filter.read(filter_)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return filter_


def filter_text(filter_: Mapping[str, object]) -> str:
    """A filter as `read_filter` takes it."""
    words: list[str] = []
    for key, value in filter_.items():
        option = _FILTER[key]
        # A long one with its value, which could be taken for an option.
        long = option.startswith("--")
        words += [f"{option}={value}"] if long else [option, str(value)]
    return shlex.join(words)


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[Control]:
    """The daemon. Raises ControlError that says how to mend it."""
    try:
        with Control(options.socket) as control:
            yield control
    except NotRunning:
        raise
    except ControlError as error:
        if error.reason == "not-permitted":
            raise ControlError(error.reason, f"{error}: run it as root") from None
        raise


def print_records(records: Iterable[Any]) -> None:
    """Print each as JSON, as it comes."""
    for record in records:
        print(json.dumps(record), flush=True)


def duration(text: str) -> float:
    """Seconds: a number, or one with s, m, h or d behind it."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 30, 90s, 10m, 2h")
    return float(int(found[1]) * _UNITS[found[2]])


def flow_text(flow: dict[str, Any]) -> str:
    """A flow, or what an expectation admits, as the log has it."""
    source = flow["source"] or "any"
    if flow.get("source_port") is not None:
        source += f" port {flow['source_port']}"
    return f"{flow['transport']} {source} > {flow['destination']}"


def expectation_line(record: dict[str, Any]) -> str:
    """An expectation with its control flow."""
    kind = "permanent" if record["permanent"] else "once"
    policy = f" {record['policy']}" if record["policy"] else ""
    return (
        f"{flow_text(record['expects'])}  {record['helper']}{policy}, {kind}, "
        f"{record['timeout']} s, of {flow_text(record['flow'])}"
    )


def amount(number: int) -> str:
    """Bytes in the largest unit that leaves no fraction to be missed."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{number} B" if unit == "B" else f"{size:.1f} {unit}"

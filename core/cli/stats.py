# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper stats``: what came of announcements, by helper, peer and service."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from cthelper.core.cli.control import (
    add_filter,
    add_json,
    add_socket,
    amount,
    connected,
    filter_of,
    print_records,
)
from cthelper.core.cli.options import Commands
from cthelper.core.errors import UsageError

_LEFT_OUT: Final = {
    "announced": "announcements were too many to be remembered",
    "flows": "flows came of control flows that are not remembered, or were too many",
    "ends": "flows ended while events were lost: their packets are not counted",
    "packets": "flows ended uncounted: sysctl -w net.netfilter.nf_conntrack_acct=1",
    "rows": "peers and services have made room for others",
}
_HEADS: Final = (
    *("HELPER", "PEER", "SERVICE", "ANNOUNCED", "FLOWS", "LIVE"),
    *("PACKETS", "BYTES", "SETUP", "SLOWEST"),
)
_TEXTS: Final = 3
_COLUMNS: Final = ("helper", "peer", "service")
_ORDERS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "announced": lambda row: row["announced"],
    "flows": lambda row: row["flows"],
    "packets": lambda row: row["packets"],
    "bytes": lambda row: row["bytes"],
    "setup": lambda row: row["setup"]["slowest"],
}


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "stats",
        help="what came of announcements, by helper, peer and service: flows, packets, "
        "bytes, time until the first packet",
        description="Prints what the running daemon has counted since it began: a peer "
        "is who asks, a service where it asks. SETUP is the time from an announcement "
        "to the first packet of the flow that met it, for half of them at most so "
        "long, SLOWEST the longest. Statistics are off by default: [control] "
        "statistics.",
    )
    add_socket(parser)
    add_json(parser)
    parser.add_argument(
        "--by",
        choices=_COLUMNS,
        help="a line for each helper, peer or service alone",
    )
    parser.add_argument(
        "--sort", choices=_ORDERS, default="bytes", help="the most first (bytes)"
    )
    parser.add_argument(
        "-n", type=int, metavar="LINES", help="so many lines at most (default: all)"
    )
    add_filter(parser, service=True)
    parser.set_defaults(command=_stats)


def _stats(options: argparse.Namespace) -> int:
    if options.n is not None and options.n < 0:
        raise UsageError(f"-n {options.n}: say 0 or more")
    with connected(options) as control:
        found = control.stats(**filter_of(options))
        if options.json:
            print_records(found)
            return 0
        head, *rows = found
    since = datetime.fromtimestamp(head["since"], UTC).isoformat(" ", "seconds")
    print(f"since {since}")
    told = _together(map(_whole, rows), options.by)
    told.sort(key=_ORDERS[options.sort], reverse=True)
    for line in _table([_HEADS, *map(_cells, told[: options.n])]):
        print(line)
    for name, count in head["left_out"].items():
        print(f"{count:,} {_LEFT_OUT.get(name, name)}")
    return 0


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what its live flows have carried so far."""
    service = row["service"]
    return {
        **row,
        "service": f"{service['transport']} {service['destination']}",
        "packets": row["packets"] + row["live_packets"],
        "bytes": row["bytes"] + row["live_bytes"],
    }


def _together(
    rows: Iterable[dict[str, Any]], column: str | None
) -> list[dict[str, Any]]:
    """A row for each value of a column; None: as they are."""
    if column is None:
        return list(rows)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        bare = {**row, **{each: "" for each in _COLUMNS if each != column}}
        key = row[column]
        found[key] = _sum(found[key], bare) if key in found else bare
    return list(found.values())


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    numbers = ("announced", "flows", "live", "packets", "bytes")
    ours, theirs = one["setup"], other["setup"]
    return {
        **one,
        **{each: one[each] + other[each] for each in numbers},
        "setup": {
            "count": ours["count"] + theirs["count"],
            "slowest": max(ours["slowest"], theirs["slowest"]),
            "classes": [
                [end, one + other]
                for (end, one), (_, other) in zip(
                    ours["classes"], theirs["classes"], strict=True
                )
            ],
        },
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    setup = row["setup"]
    return (
        *(row[each] for each in _COLUMNS),
        *(f"{row[each]:,}" for each in ("announced", "flows", "live", "packets")),
        amount(row["bytes"]),
        _middle(setup),
        f"{setup['slowest']:.3f} s" if setup["count"] else "",
    )


def _middle(setup: dict[str, Any]) -> str:
    """At most how long half of them took; empty where there was none."""
    below, known = 0, ""
    for end, count in setup["classes"]:
        below += count
        known = f"over {known}" if end is None else f"{end} s"
        if below * 2 >= setup["count"] > 0:
            return known
    return ""


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Texts to the left, numbers to the right; columns that are empty left out."""
    columns = [each for each in zip(*rows, strict=True) if any(each[1:])]
    widths = [max(map(len, each)) for each in columns]
    texts = [each[0] in _HEADS[:_TEXTS] for each in columns]
    for cells in zip(*columns, strict=True):
        yield "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(cells, widths, texts, strict=True)
        ).rstrip()

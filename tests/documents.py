# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents that are generated from the helpers and from the tests of them.

What a test proves stands in its marks: ``handles`` names a helper, a message type and
what becomes of it, ``fault`` a fault of conntrackd's helper that is not ours.
"""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.api import Helper
from cthelper.core.reference import table, title
from cthelper.core.registry import builtin_helpers
from tests.fuzz.page import page
from tests.picture import draw, read

ROOT: Final = Path(__file__).parents[1]

PICTURE: Final = "docs/how-it-works.txt"

_CONFIG: Final = "core/cthelper.toml"
_MARK: Final = "# The helpers. "
_OFF: Final = """# Off, since few gateways ask so; without its mark a line turns one on.
# `cthelper helpers NAME` explains their keys. A protocol that is not among these has a
# table of its own, with type = "discovery": see discovery.toml.
[helpers]
"""
_GENERATED: Final = (
    "<!-- Written by script/docs; a test holds it and the code together. -->"
)

# What each helper is for, and the flows that it expects.
_PURPOSES: Final = {
    "amanda": (
        "Amanda: answers (REP) of hosts that are backed up, with auth bsd and bsdudp",
        "the backup server's flows to the announced ports",
    ),
    "bacnet": (
        "BACnet/IP: Who-Is and Who-Has of this host, by broadcast",
        "the unicast answers of devices on the link",
    ),
    "coap": (
        "CoAP: requests of this host to a group of devices",
        "the unicast answers of devices on the link, by configuration of all",
    ),
    "dhcpv6": (
        "DHCPv6: what this host, as client, by configuration as relay, sends to "
        "ff02::1:2 and ff05::1:3",
        "the unicast answers of servers and relays",
    ),
    "discovery": (
        "what you configure: queries of this host to a group or by broadcast",
        "the unicast answers of hosts on the link, by configuration of all",
    ),
    "ftp": (
        "FTP: PORT, EPRT, and the answers to PASV and EPSV; TLS's return to clear text "
        "(CCC) by configuration",
        "the data flows, of the server to the client and of the client to the server",
    ),
    "gvcp": (
        "GigE Vision: searches of this host for cameras, by broadcast",
        "the unicast answers of cameras on the link",
    ),
    "irc": (
        "IRC: DCC CHAT and SEND of a client, and what has their form",
        "a connection of anybody to the announced port of the client",
    ),
    "knx": (
        "KNXnet/IP: searches of this host for gateways",
        "the unicast answers of gateways on the link",
    ),
    "llmnr": (
        "LLMNR: names that this host asks for",
        "the unicast answers of hosts on the link",
    ),
    "mdns": (
        "Multicast DNS: one-shot and QU queries of this host",
        "the unicast answers of hosts on the link",
    ),
    "netbios-ns": (
        "NetBIOS: names that this host asks for by broadcast",
        "the unicast answers of hosts on the link",
    ),
    "sane": (
        "SANE: a scanner's answers to START, over TCP, with a password or without",
        "the client's flow to the announced port, for each page",
    ),
    "slp": (
        "SLPv2 requests of this host by multicast and broadcast; SLPv1 by "
        "configuration",
        "the unicast answers of agents on the link",
    ),
    "ssdp": (
        "UPnP: searches of this host (M-SEARCH)",
        "the unicast answers of devices on the link",
    ),
    "sunrpc": (
        "portmapper v2, rpcbind v3 and v4: GETPORT, GETADDR, GETVERSADDR, GETADDRLIST; "
        "by configuration DUMP, CALLIT, BCAST, INDIRECT; UDP and TCP",
        "the client's flows to the announced services; answers to a broadcast call",
    ),
    "tftp": (
        "TFTP: RRQ and WRQ",
        "the server's answer, from a port of its own, to the port that asked",
    ),
    "tns": (
        "Oracle TNS: REDIRECT, its descriptor inline or in DATA",
        "the client's connection to the announced endpoint",
    ),
    "wsd": (
        "WS-Discovery: Probe and Resolve of this host",
        "the unicast answers of devices on the link",
    ),
}

# The highest line of each C helper that the reading of it refers to (conntrack-tools at
# commit 475cf4d, src/helpers): it has at least so many. Of others it has none, or one
# that was not compared.
_THEIRS: Final = {"dhcpv6": 122, "mdns": 206, "sunrpc": 449, "slp": 69, "tns": 377}
# Wire code, by the helper that it is counted with.
_WIRE: Final = {
    "dns": "mdns",
    "rpcbind": "sunrpc",
    "xdr": "sunrpc",
    "sane_wire": "sane",
    "tns_descriptor": "tns",
}


@dataclass(frozen=True, slots=True, order=True)
class Proof:
    """A test, and one thing that it proves. `subject` is a helper, or a fault's."""

    subject: str
    what: str
    outcome: str
    file: str
    test: str

    @property
    def link(self) -> str:
        """The test's name, leading to its file."""
        return f"[`{self.test}`](../{self.file})"


class _Collector:
    """A plugin of pytest that looks at the collected tests and runs none."""

    def __init__(self) -> None:
        self.handled: set[Proof] = set()
        self.faults: set[Proof] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Read the marks."""
        for item in session.items:
            file = item.path.relative_to(ROOT).as_posix()
            test = item.name.partition("[")[0]
            for mark in item.iter_markers("handles"):
                helper, message, *outcome = mark.args
                self.handled.add(Proof(helper, message, "".join(outcome), file, test))
            for mark in item.iter_markers("fault"):
                number, what = mark.args
                self.faults.add(Proof(number, what, "", file, test))


def generate() -> dict[str, str]:
    """The text of each generated file, by its path in the project."""
    helpers = builtin_helpers()
    collector = _Collector()
    tests = [str(ROOT / "tests" / folder) for folder in ("helpers", "live")]
    options = ["--collect-only", "-m", "", "-p", "no:cacheprovider"]
    listing = io.StringIO()
    with redirect_stdout(listing):
        code = pytest.main(["--rootdir", str(ROOT), *options, *tests], [collector])
    if code:
        raise RuntimeError(f"pytest could not collect: {listing.getvalue()}")
    return {
        _CONFIG: _config(helpers.values()),
        "docs/helpers.md": _reference(helpers.values()),
        "docs/protocols.md": _protocols(helpers, collector),
        "docs/fuzzing.md": page(),
        "docs/how-it-works.svg": draw(read((ROOT / PICTURE).read_text("utf-8"))),
    }


def _config(helpers: Collection[type[Helper]]) -> str:
    whole = (ROOT / _CONFIG).read_text("utf-8")
    head, mark, rest = whole.partition(_MARK)
    note, _, _ = rest.partition("\n\n")
    ordinary = [each for each in helpers if each.enabled and not each.template]
    off = [
        f"#{each.name}.enabled = true  # {title(each)}\n"
        for each in helpers
        if not each.enabled
    ]
    tables = [
        f"# {title(helper)}\n{table(helper, brief=number > 0)}"
        for number, helper in enumerate(ordinary)
    ]
    return "\n".join([f"{head}{mark}{note}\n", f"{_OFF}{''.join(off)}", *tables])


def _reference(helpers: Iterable[type[Helper]]) -> str:
    parts = [
        _GENERATED,
        "# Helpers: reference",
        "`cthelper helpers NAME` prints the same, for plugins as well.",
    ]
    for helper in helpers:
        module = inspect.getdoc(inspect.getmodule(helper)) or ""
        parts += [
            f"## {helper.name}",
            title(helper),
            _markdown(module),
            f"```toml\n{table(helper)}```",
        ]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    """A docstring's text with its few marks as Markdown has them."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    lines = []
    for line in text.splitlines():
        lines.append("" if line.strip() == "::" else line)
    return "\n".join(lines)


def _protocols(helpers: dict[str, type[Helper]], found: _Collector) -> str:
    parts = [
        _GENERATED,
        "# What each helper handles, and the test that proves it",
        _table(
            ["helper", "protocol", "what it expects"],
            [[f"[`{name}`](#{name})", *_PURPOSES[name]] for name in helpers],
        ),
        "The tables below come out of the tests' marks.",
    ]
    for name, proofs in _grouped(found.handled):
        rows = [
            [what, _outcomes(group), _links(group)]
            for what, group in _runs(proofs, key=lambda each: each.what)
        ]
        parts.append(f"## {name}\n\n{title(helpers[name])}")
        parts.append(_table(["message", "what becomes of it", "proved by"], rows))
    parts += [
        "## Faults of conntrackd's helpers",
        "Found by reading conntrack-tools at commit 475cf4d. Each has a test that ours "
        "does not have it.",
    ]
    by_number = sorted(found.faults, key=lambda each: (_natural(each.subject), each))
    rows = [
        [number, "; ".join(sorted({each.what for each in group})), _links(group)]
        for number, group in _runs(by_number, key=lambda each: each.subject)
    ]
    parts.append(_table(["fault", "what goes wrong there", "proved by"], rows))
    parts += [
        "## Lines",
        "Of the helper's file and of the wire code that it uses, all of it and of that "
        "code (no blank lines, comments, docstrings); and how many conntrackd's helper "
        "has at least, all of it.",
        _table(
            ["helper", "lines", "of code", "conntrackd's, at least"], list(_lines())
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _lines() -> Iterator[list[str]]:
    """A row for each helper."""
    counts: dict[str, list[int]] = {}
    for file in sorted((ROOT / "helpers").glob("*.py")):
        if file.stem == "__init__":
            continue
        helper = _WIRE.get(file.stem, file.stem.replace("_", "-"))
        text = file.read_text("utf-8")
        count = counts.setdefault(helper, [0, 0])
        count[0] += len(text.splitlines())
        count[1] += len(_code_lines(text))
    for helper, (lines, code) in sorted(counts.items()):
        yield [f"`{helper}`", str(lines), str(code), str(_THEIRS.get(helper, "-"))]


def _code_lines(text: str) -> set[int]:
    """The numbers of the lines that hold a token other than a comment or docstring."""
    doc: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                doc.update(range(node.lineno, (node.end_lineno or 0) + 1))
    void = {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT),
        *(tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING),
    }
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in void
        for line in range(token.start[0], token.end[0] + 1)
    }
    return lines - doc


def _grouped(proofs: Iterable[Proof]) -> Iterator[tuple[str, list[Proof]]]:
    """Each helper's proofs, message types in the order of their numbers."""
    ordered = sorted(proofs, key=lambda each: (each.subject, _number(each.what), each))
    return _runs(ordered, key=lambda each: each.subject)


def _runs(
    proofs: Iterable[Proof], key: Callable[[Proof], str]
) -> Iterator[tuple[str, list[Proof]]]:
    for value, group in groupby(proofs, key):
        yield value, list(group)


def _number(message: str) -> tuple[list[int], str]:
    """The numbers in parentheses, so that types come in order; others come last."""
    numbers = re.findall(r"\d+", "".join(re.findall(r"\(.*?\)", message)))
    return [int(each) for each in numbers] or [1 << 16], message


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts "type 9" before "type 10"."""
    return [
        (int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", text)
    ]


def _outcomes(proofs: Iterable[Proof]) -> str:
    return "; ".join(dict.fromkeys(each.outcome for each in proofs if each.outcome))


def _links(proofs: Iterable[Proof]) -> str:
    return ", ".join(dict.fromkeys(each.link for each in sorted(proofs)))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]
    )

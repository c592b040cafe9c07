# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines that the pages show, and which test runs each of them.

A line stands in a block of code without a language, or in one of `sh` or `console`. It
is an example, perhaps behind a prompt and followed by what it prints, or a synopsis,
with alternatives (`a|b`), options ([--json]), and placeholders (NAME).
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "plugins").glob("*.md")),
]
# Pages whose lines their own tests run one after the other (tests.pages.follow).
FOLLOWED: Final = ("docs/television.md", "plugins/README.md")

TROUBLESHOOTING: Final = "docs/troubleshooting.md"
# Commands that need no kernel and no daemon.
OFFLINE: Final = frozenset({"replay", "check", "helpers", "new"})
# Other programs that the live test runs, too.
LIVE: Final = frozenset({"conntrack", "curl", "modprobe", "nft", "sysctl"})

_MORE: Final = " ..."
MEANINGS: Final = {
    "ADDRESS": "10.77.1.2",
    "ADDRESS:PORT": "10.77.2.2:7500",
    "--listen ADDRESS:PORT": "127.0.0.1:9748",
    "DESTINATION": "10.77.2.2:7111",
    "FILE": "/run/cthelper",
    "--output FILE": "/run/cthelper-events.json",
    "--textfile FILE": "/run/cthelper.prom",
    "-w FILE": "/run/cthelper.pcapng",
    "FLOW": "udp 10.77.1.2 10.77.2.2:7999",
    "--control FLOW": "'udp 10.77.1.2:40000 > 10.77.2.2:7111'",
    "COLUMN": "bytes",
    "INTERFACE": "lan",
    "KIND": "new",
    "LINES": "9",
    "NAME": "sunrpc",
    "--event NAME": "expectation",
    "--policy NAME": "service",
    "PATH": "/run/cthelper-metrics.sock",
    "--socket PATH": "/run/cthelper/control.sock",
    "PORT": "7111",
    "SECONDS": "1",
    "SIZE": "1",
    "SOURCE": "10.77.1.2:40000",
    "STATE": "ESTABLISHED",
    "TIME": "1",
    "TRANSPORT": "udp",
    "ZONE": "0",
    _MORE: "-s 10.77.1.2",
}
"""What stands for a placeholder, or for the one that follows an option. Where `...`
stands alone more of the options that say which flows may follow."""

# What begins a block that has no commands: a file, by its name, and a line of the log.
_NO_COMMANDS: Final = ("# /etc/", "time=")
_BLOCK: Final = re.compile(r"^```(|sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PROMPT: Final = re.compile(r"^[#$] ", re.MULTILINE)
_COMMENT: Final = re.compile(r"\s{2,}# .*$")
_TOKEN: Final = re.compile(r"\"[^\"]*\"|'[^']*'|[\[\]]|\|(?= )|(?: (?=\.)|)[^\s\[\]]+")
_CALL: Final = re.compile(r"(?:\w+=\S+ )*(?:\S*/)?cthelper (.*)")
_PLACEHOLDER: Final = re.compile(r"[A-Z]+(:[A-Z]+)?")


@dataclass(frozen=True, slots=True)
class Line:
    """A command line, the heading above it, and what it prints where that is shown."""

    page: str
    heading: str
    language: str
    text: str
    output: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def program(self) -> str:
        """What it starts with, without a folder; `script/NAME` is whole."""
        word = self.text.split()[0]
        return word if word.startswith("script/") else word.rpartition("/")[2]

    @property
    def is_live(self) -> bool:
        """Whether it needs root, a kernel or a daemon, and is run where these are."""
        if self.page == TROUBLESHOOTING or self.program in LIVE:
            return True
        return any(each.split()[0] not in OFFLINE for each in calls(self.text))


def lines() -> list[Line]:
    """Those of all pages."""
    return [each for page in PAGES for each in lines_of(page)]


def live_lines() -> list[Line]:
    """Those that tests/live/test_documents.py runs."""
    return [each for each in lines() if each.is_live]


def lines_of(page: Path) -> Iterator[Line]:
    """Those of a page."""
    name = str(page.relative_to(ROOT))
    heading = ""
    text = page.read_text("utf-8")
    # A comment in a block is no heading.
    for part in re.split(r"(^```\w*\n.*?^```$)", text, flags=re.DOTALL | re.MULTILINE):
        block = _BLOCK.fullmatch(part)
        if block is None:
            if not part.startswith("```"):
                heading = [heading, *re.findall(r"^#+ (.*)$", part, re.MULTILINE)][-1]
        elif not block[2].startswith(_NO_COMMANDS):
            for command, output in _commands(block[2]):
                yield Line(name, heading, block[1], command, output)


def _commands(text: str) -> Iterator[tuple[str, str]]:
    if _PROMPT.match(text):
        for each in _PROMPT.split(text)[1:]:
            command, _, output = each.partition("\n")
            yield command, output
        return
    # What is indented goes on.
    for line in re.sub(r"\n\s+", " ", text).splitlines():
        yield _COMMENT.sub("", line), ""


def calls(text: str) -> list[str]:
    """What a line gives to `cthelper`, once or more often, or not at all."""
    parts = re.split(r"\s*(?:;|&&)\s*|(?<![\]A-Z]) \| (?![\[-])", text)
    found = (
        re.fullmatch(r"(?:\w+=\S+ )*(?:\S*/)?cthelper (.*)", each) for each in parts
    )
    return [each[1] for each in found if each]


def variants(synopsis: str) -> list[list[str]]:
    """Arguments that a synopsis admits, so that each alternative is in one of them."""
    made: list[list[str]] = []
    most = 1
    while len(made) < most:
        reader = _Reader(_TOKEN.findall(synopsis), len(made))
        made.append(list(_meant(reader.group())))
        most = reader.most
    return made


class _Reader:
    """Reads a synopsis, and takes the alternative of a number, where there are any."""

    def __init__(self, tokens: list[str], number: int) -> None:
        self._tokens = iter(tokens)
        self._number = number
        self.most = 1

    def group(self) -> list[str]:
        """What a pair of brackets comes to, or all of it."""
        alternatives: list[list[str]] = [[]]
        for each in self._tokens:
            match each:
                case "]":
                    break
                case "[":
                    alternatives[-1] += self.group()
                case "|":
                    alternatives.append([])
                case "...":
                    pass
                case _ if each[0] in "\"'":
                    alternatives[-1] += shlex.split(each)
                case _:
                    words = [[word] for word in each.split("|")]
                    alternatives[-1] += self._chosen(words)
        return self._chosen(alternatives)

    def _chosen(self, alternatives: list[list[str]]) -> list[str]:
        self.most = max(self.most, len(alternatives))
        return alternatives[self._number % len(alternatives)]


def _meant(words: list[str]) -> Iterator[str]:
    """The words, with what placeholders mean in their places."""
    option = ""
    for word in words:
        name = word.partition(".")[0]
        if word == _MORE:
            yield from MEANINGS[word].split()
        elif _PLACEHOLDER.fullmatch(name):
            meaning = MEANINGS.get(f"{option} {name}", MEANINGS[name])
            yield from shlex.split(meaning + word.removeprefix(name))
        else:
            yield word
        option = word if word.startswith("-") else option

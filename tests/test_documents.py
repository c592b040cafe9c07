# SPDX-License-Identifier: GPL-2.0-or-later
"""What script/docs has written is what it would write, and links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.registry import builtin_helpers

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "plugins").glob("*.md")),
]
PROTOCOLS: Final = (ROOT / "docs" / "protocols.md").read_text("utf-8")

# How many faults of each of conntrackd's helpers are known.
FAULTS: Final = {"dhcpv6": 11, "mdns": 6, "rpc": 12, "slp": 9, "tns": 12}


@pytest.mark.interpreted
def test_generated_documents_are_as_the_code_is() -> None:
    done = subprocess.run(
        [sys.executable, "script/docs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", FAULTS)
def test_every_known_fault_has_a_test(name: str) -> None:
    numbers = re.findall(rf"^\| {name} (\d+) \|", PROTOCOLS, re.MULTILINE)
    assert [int(each) for each in numbers] == list(range(1, FAULTS[name] + 1))


@pytest.mark.parametrize("name", builtin_helpers())
def test_every_helper_says_what_it_handles(name: str) -> None:
    section = PROTOCOLS.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| .*\[`test_", section, re.MULTILINE)) > 5


def prose(page: Path) -> str:
    """A page without its blocks of code, in which nothing is a heading or a link."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in titles}


def links(page: Path) -> list[str]:
    """The targets of a page's links and images that are in the project."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [each for each in targets if not re.match(r"\w+:", each)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        file, _, fragment = target.partition("#")
        assert not file.startswith("/"), target
        path = page.parent / file if file else page
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT), target
        assert not fragment or fragment in anchors(path), target


# What docs/comparison.md counts of docs/nat.md: the first column there, and here.
COUNTED: Final = {
    "masquerade": "SunRPC, NFS, Oracle; client translated",
    "dnat": "the same, server translated",
    "both": "the same, both translated",
    "TFTP": "TFTP",
    "SANE": "SANE",
    "Amanda": "Amanda",
    "IRC": "IRC",
    "ssdp": "SSDP, asked by this host",
    "netbios-ns": "NetBIOS names, asked by this host",
}
FTP: Final = (
    "FTP",
    *(f"FTP, {each} translated" for each in ("client", "server", "both")),
)


def tables(page: str) -> list[list[list[str]]]:
    """The cells of each table of a page, its head first."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [
        [
            [cell.strip() for cell in row.strip("|").split("|")]
            for row in found.splitlines()
        ]
        for found in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    ]


def works(rows: list[list[str]], column: int) -> str:
    return str(sum(row[column] == "works" for row in rows))


def test_comparison_counts_what_nat_has_measured() -> None:
    shown = {row[0]: row[1:] for row in tables("comparison.md")[0]}
    for head, _, *rows in tables("nat.md"):
        tried = str(len(rows))
        if name := COUNTED.get(head[0]):
            columns = {title: works(rows, number) for number, title in enumerate(head)}
            ours = columns.pop("cthelper")
            theirs = columns.pop("conntrackd", "no helper")
            kernels = [each for title, each in columns.items() if "_" in title]
            kernel = kernels[0] if kernels else "no helper"
            assert shown[name] == [tried, ours, theirs, kernel], name
        elif head[0].startswith("FTP, "):
            column = 3 if head[0].endswith("nf_conntrack_ftp") else 2
            for number, name in enumerate(FTP, 1):
                assert shown[name][0] == shown[name][1] == tried
                assert shown[name][column] == works(rows, number), name


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    following = list(reached)
    while following:
        page = following.pop()
        for target in links(page):
            path = (page.parent / target.partition("#")[0]).resolve()
            if path.suffix == ".md" and path not in reached:
                reached.add(path)
                following.append(path)
    assert reached >= set(PAGES) - {ROOT / "CHANGELOG.md"}

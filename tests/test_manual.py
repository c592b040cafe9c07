# SPDX-License-Identifier: GPL-2.0-or-later
"""The man pages hold all that there is, man shows them, and the shells complete."""

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Final

import pytest

from cthelper.core import api, cli, reference
from cthelper.core.config import Budget, DaemonConfig
from cthelper.core.guard import Limits
from cthelper.core.registry import builtin_helpers
from tests.cases import cases
from tests.parts import BASH_COMPLETION

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {
    "cthelper": "man/man1/cthelper.1",
    "cthelper.toml": "man/man5/cthelper.toml.5",
    "cthelper-plugin": "man/man7/cthelper-plugin.7",
}
BASH: Final = "bash-completion/completions/cthelper"
SHELLS: Final = {
    "bash": BASH,
    "zsh": "zsh/site-functions/_cthelper",
    "fish": "fish/vendor_completions.d/cthelper.fish",
}
ESCAPES: Final = {r"\-": "-", r"\(aq": "'", r"\(dq": '"', r"\(ga": "`"}
PROMPT: Final = "READY>"
END: Final = "the end"
SECONDS: Final = 60.0
# What a terminal is told besides text: to move the cursor, and else.
MOVES: Final = re.compile(r"\x1b\[[0-9;]*[A-LP]|[\r\x08]")
CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\a")


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder share of a prefix, with all that script/manual writes."""
    prefix = tmp_path_factory.mktemp("prefix")
    subprocess.run([sys.executable, ROOT / "script/manual", prefix], check=True)
    return prefix / "share"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files and a folder in it, to be completed."""
    place = tmp_path / "place"
    (place / "cellar").mkdir(parents=True)
    (place / "attic.toml").touch()
    (place / "bath.pcap").touch()
    return place


def text_of(page: Path) -> str:
    """What a page says, without the marks of fonts and paragraphs."""
    text = re.sub(r"\\f.|\\[,/]|^\.\w+$", "", page.read_text("utf-8"), flags=re.M)
    for spelled, meant in ESCAPES.items():
        text = text.replace(spelled, meant)
    return " ".join(text.split())


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of all commands below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from commands(each)


def test_files_are_where_man_and_the_shells_look(share: Path) -> None:
    files = {
        str(file.relative_to(share)) for file in share.rglob("*") if file.is_file()
    }
    assert files == {*PAGES.values(), *SHELLS.values()}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("one", "two")])
def test_wrong_usage_writes_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "script/manual", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "usage: script/manual PREFIX\n"
    assert list(tmp_path.iterdir()) == []


def test_what_makes_them_is_not_loaded_by_the_command() -> None:
    program = (
        "import sys; from cthelper.core.cli import parser; parser(); "
        "print(*{'argparse_manpage', 'docutils', 'shtab'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


# Pages.


@pytest.mark.man
@pytest.mark.parametrize("name", PAGES)
def test_man_finds_and_shows_a_page_without_a_warning(share: Path, name: str) -> None:
    done = subprocess.run(
        ["man", "--warnings=w", f"--manpath={share / 'man'}", name],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^NAME\n +{re.escape(name)} - \w", done.stdout, re.M | re.I)


@pytest.mark.man
@pytest.mark.parametrize("name", PAGES)
def test_page_has_a_line_that_apropos_finds_it_by(share: Path, name: str) -> None:
    done = subprocess.run(
        ["lexgrog", share / PAGES[name]], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert f'"{name} - ' in done.stdout


def test_each_command_and_option_is_in_its_page(share: Path) -> None:
    text = text_of(share / PAGES["cthelper"])
    found = list(commands(cli.parser()))
    assert len(found) > 10
    for parser in found:
        assert f"{parser.prog} " in text
        assert " ".join((parser.description or "").split()) in text
        for action in parser._actions:
            if "--help" in action.option_strings:
                continue  # it is a matter of course, and left out
            assert [each for each in action.option_strings if each not in text] == []
            assert action.help is None or "%(" in action.help or action.help in text


def test_each_key_is_in_its_page(share: Path) -> None:
    page = share / PAGES["cthelper.toml"]
    text = text_of(page)
    keys = {
        each.name for kind in (DaemonConfig, Budget, Limits) for each in fields(kind)
    }
    assert {key for key in keys if f" {key} = " not in text} == set()
    for helper in builtin_helpers().values():
        assert f"Helper {helper.name} {reference.title(helper)}" in text
        for option in helper.options:
            assert f"{option.name} = " in text
            assert " ".join(option.meaning.split()) in text
        for name, keys_ in reference.tables(helper).items():
            assert name.startswith("helpers.")
            assert [key for key, _, _ in keys_ if key not in text] == []
            assert [each for _, _, each in keys_ if each not in text] == []


def test_each_name_of_the_api_is_in_its_page(share: Path) -> None:
    text = text_of(share / PAGES["cthelper-plugin"])
    assert {each for each in api.__all__ if f".SS {each} " not in text} == set()
    hooks = {each for each in vars(api.Helper) if not each.startswith("_")}
    assert "on_message" in hooks
    assert {each for each in hooks if each not in text} == set()


# Completion.

LINES: Final = {
    "a command": ("cthelper rul", {"ruleset"}, {"replay"}),
    "commands": (
        "cthelper ",
        {"run", "check", "reload", "ruleset", "replay", "helpers", "new", "doctor"},
        {"show"},
    ),
    "actions": (
        "cthelper ruleset ",
        {"show", "check", "install", "remove"},
        {"replay"},
    ),
    "options": (
        "cthelper ruleset install --",
        {"--config", "--retag", "--help"},
        {"--json"},
    ),
    "choices": ("cthelper new --transport ", {"tcp", "udp"}, {"attic.toml"}),
    "files of an option": (
        "cthelper check --config ",
        {"attic.toml", "bath.pcap", "cellar"},
        set(),
    ),
    "files": ("cthelper replay ", {"attic.toml", "bath.pcap", "cellar"}, set()),
    "folders": ("cthelper new --folder ", {"cellar"}, {"attic.toml"}),
}


def pressed(shell: list[str | Path], line: str, folder: Path, **variables: str) -> str:
    """What a terminal shows of a shell once Tab was pressed at the end of a line."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    process = subprocess.Popen(
        shell,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **variables},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        until(ours, PROMPT)
        # Not what is shown of the line itself: there a word is cut in two.
        os.write(ours, f"{line}\t\x15echo the' 'e''nd\n".encode())
        return until(ours, END)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def until(terminal: int, mark: str) -> str:
    """What is shown up to a mark."""
    seen = ""
    deadline = time.monotonic() + SECONDS
    while mark not in (shown := CONTROL.sub("", MOVES.sub(" ", seen))):
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, shown
        seen += os.read(terminal, 4096).decode(errors="replace")
    return shown


def in_bash(completion: str, line: str, folder: Path) -> str:
    """What bash shows, once it has run these commands."""
    file = folder.parent / "bashrc"
    file.write_text(
        f"PS1='{PROMPT}'\nbind 'set show-all-if-ambiguous on'\n"
        f"bind 'set enable-bracketed-paste off'\n{completion}\n"
    )
    return pressed(["bash", "--noprofile", "--rcfile", file, "-i"], line, folder)


def in_zsh(share: Path, line: str, folder: Path) -> str:
    """What zsh shows, with the prefix's folder among those that it searches."""
    own = folder.parent
    (own / ".zshrc").write_text(
        f"fpath=({share / 'zsh/site-functions'} $fpath)\n"
        f"autoload -Uz compinit\ncompinit -u -d {own / 'dump'}\n"
        f"unsetopt prompt_cr prompt_sp\nPS1='{PROMPT}'\n"
    )
    return pressed(["zsh", "-d", "-i"], line, folder, ZDOTDIR=str(own))


def in_fish(share: Path, line: str, folder: Path) -> str:
    """What fish would show, with the prefix among those that it searches."""
    done = subprocess.run(
        ["fish", "--private", "--command", 'complete --do-complete "$LINE"'],
        cwd=folder,
        env={
            **os.environ,
            # It completes commands that are there.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder.parent),
            "LINE": line,
            "XDG_DATA_DIRS": f"{share}:/usr/share",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def words(shown: str) -> set[str]:
    """The words, apart from what marks a folder."""
    return {each.rstrip("/") for each in shown.replace(PROMPT, " ").split()}


@cases("line, wanted, unwanted", LINES)
def test_bash_completes(
    share: Path, folder: Path, line: str, wanted: set[str], unwanted: set[str]
) -> None:
    shown = words(in_bash(f". {share / BASH}", line, folder))
    assert wanted <= shown
    assert not unwanted & shown


@pytest.mark.shells
@pytest.mark.parametrize("shell", SHELLS)
@cases("line, wanted, unwanted", LINES)
def test_shell_finds_the_file_and_completes(
    share: Path,
    folder: Path,
    shell: str,
    line: str,
    wanted: set[str],
    unwanted: set[str],
) -> None:
    match shell:
        case "bash":
            search = f"XDG_DATA_DIRS={share}:/usr/share; . {BASH_COMPLETION}"
            shown = words(in_bash(search, line, folder))
        case "zsh":
            shown = words(in_zsh(share, line, folder))
        case _:
            shown = words(in_fish(share, line, folder))
    assert wanted <= shown
    assert not unwanted & shown

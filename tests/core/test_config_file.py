# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration's file: read once, whatever it is, and all problems of its text."""

import os
import threading
from pathlib import Path

import pytest

from cthelper.core import config
from cthelper.core.config import (
    ConfigFile,
    DaemonConfig,
    parse,
    plugin_folder,
    read_file,
)
from cthelper.core.errors import ConfigError
from tests.core.configured import HELPERS, PATH, error_of


def refusal(path: Path | None) -> str:
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    return str(caught.value)


def test_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "cthelper.toml"
    path.write_bytes('helpers.chosen.greeting = "grüß"'.encode())
    file = read_file(path)
    assert file == ConfigFile(path, 'helpers.chosen.greeting = "grüß"')
    chosen = parse(file.text, file.path, HELPERS).helpers["chosen"]
    assert chosen.options["greeting"] == "grüß"


def test_unreadable_file_is_an_error_that_names_it_once(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert refusal(absent) == f"{absent}: cannot be read: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"# \xff", "line 1: byte 0xff is not UTF-8"),
        (b"[daemon]\n\nx = '\xc3('", "line 3: byte 0xc3 is not UTF-8"),
        *(
            (
                "[daemon]".encode(coding),
                f"begins with a byte order mark (BOM) of {name}: save it as UTF-8 "
                "without one",
            )
            for coding, name in (("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"))
        ),
        (b"#" * ((1 << 20) + 1), "is longer than 1048576 bytes"),
    ],
    ids=["not UTF-8", "not UTF-8 in line 3", "BOM", "UTF-16", "without end"],
)
def test_bytes_that_are_no_text_are_named(
    tmp_path: Path, data: bytes, why: str
) -> None:
    path = tmp_path / "cthelper.toml"
    path.write_bytes(data)
    assert refusal(path) == f"{path}: {why}"


def test_device_without_end_is_refused() -> None:
    assert refusal(Path("/dev/zero")) == "/dev/zero: is longer than 1048576 bytes"


def test_absent_file_at_the_usual_path_is_all_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cthelper.toml"
    monkeypatch.setattr(config, "DEFAULT_PATH", path)
    assert read_file(None) == ConfigFile(path, "")
    assert parse("", path, HELPERS).daemon == DaemonConfig()
    path.write_text("daemon.queue = 5", encoding="utf-8")
    assert read_file(None) == ConfigFile(path, "daemon.queue = 5")


@pytest.mark.parametrize("kind", ["pipe", "fifo"])
def test_pipe_is_read_whole_and_not_a_second_time(tmp_path: Path, kind: str) -> None:
    text = "daemon.queue = 5\n" + "#" * 200_000
    if kind == "pipe":
        ours, theirs = os.pipe()
        path = Path(f"/dev/fd/{ours}")
    else:
        path = tmp_path / "fifo"
        os.mkfifo(path)

    def write() -> None:
        with open(theirs if kind == "pipe" else path, "w", encoding="utf-8") as end:
            end.write(text)

    writer = threading.Thread(target=write)
    writer.start()
    file = read_file(path)
    writer.join()
    assert file == ConfigFile(path, text, again=False)
    # Both are read off the one text.
    assert plugin_folder(file) is None
    assert parse(file.text, file.path, HELPERS).daemon.queue == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
def test_file_of_another_user_is_refused_to_root(tmp_path: Path) -> None:
    path = tmp_path / "cthelper.toml"
    path.write_text("")
    os.chown(path, 65534, -1)
    assert refusal(path) == (
        f"{path}: belongs to user 65534, who could change what root does: "
        f"chown -h root {path}"
    )
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 65534, -1)
    path = folder / "link"
    path.symlink_to("/dev/null")
    assert refusal(path).startswith(f"{path}: {folder}: belongs to user 65534, ")


# All that is wrong


def problems_of(text: str) -> list[str]:
    """What is wrong with a text, without the file's name."""
    return [
        line.removeprefix("cthelper.toml: ") for line in error_of(text).splitlines()
    ]


def test_all_problems_are_found_in_the_order_of_their_tables() -> None:
    text = """
        dameon.queue = 1
        daemon = { queue = "x", workers = 99, mark = 3 }
        guard.denied_ports = [0, "no such", 5]
        [helpers.plain]
        enabled = "yes"
        ports = []
        interfaces = ["..", "eth0", ""]
        policies.data = { max_expected = 0, timeot = 1 }
        [helpers.plian]
        ports = [1]
    """
    found = [each.partition(":")[0] for each in problems_of(text)]
    assert found == [
        'daemon.queue = "x"',
        "daemon.workers = 99",
        "daemon.mark = 0x3",
        "guard.denied_ports = 0",
        'guard.denied_ports = "no such"',
        'helpers.plain.enabled = "yes"',
        "helpers.plain.ports = []",
        "helpers.plain.policies.data.max_expected = 0",
        "helpers.plain.policies.data.timeot = 1",
        'helpers.plain.interfaces = ".."',
        'helpers.plain.interfaces = ""',
        "[helpers.plian]",
        "[dameon]",
    ]


def test_error_of_one_line_says_how_many_more_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("a = 1\nb = 2\nc = 3", PATH, HELPERS)
    known = "known are daemon, budget, control, events, guard, plugins, helpers"
    assert str(caught.value) == (
        f"cthelper.toml: a = 1: unknown key, {known} "
        "(2 more: `cthelper check` lists them)"
    )


def test_what_is_wrong_of_two_helpers_is_told_beside_the_rest() -> None:
    assert problems_of("helpers.plain.ports = [5353]\ngaurd.in_all = 1") == [
        "[gaurd]: unknown key (did you mean guard?), "
        "known are daemon, budget, control, events, guard, plugins, helpers",
        "helpers.chosen.ports = [5353]: udp 5353 is tagged by plain already: let "
        "their ports, networks or interfaces differ, or set enabled = false for one",
    ]


def test_helper_that_is_wrong_by_itself_is_not_compared_with_others() -> None:
    # Its ports would be the defaults, of which nobody has spoken.
    text = "helpers.plain.ports = [0]\nhelpers.chosen.ports = [7001]"
    assert len(problems_of(text)) == 1
    # Nor are queues judged by numbers that stand nowhere.
    text = "daemon.queue = -1\nhelpers.chosen = {fail_closed = true, queue = 2077}"
    assert len(problems_of(text)) == 1


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("daemon.log-level = 'info'", "did you mean log_level?"),
        ("daemon.Workers = 2", "did you mean workers?"),
        ("[helpers.Plain]", "did you mean plain?"),
        ("[helpers.chose]", "did you mean chosen?"),
        ("[helpers.plain.policies.chain]", "did you mean chained?"),
        ("helpers.plain.destination = []", "did you mean destinations?"),
    ],
)
def test_what_was_meant_is_asked(text: str, question: str) -> None:
    (problem,) = problems_of(text)
    assert f" ({question}), known are " in problem


def test_what_looks_like_nothing_known_leads_to_no_question() -> None:
    (problem,) = problems_of("helpers.zzz = {}")
    assert problem == "[helpers.zzz]: unknown helper, known are plain, chosen"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("True", "true"),
        ("FALSE", "false"),
        ("yes", "true"),
        ("Off", "false"),
        ("debug # comment", '"debug"'),
        ("None", '"None"'),
    ],
)
def test_value_in_another_languages_spelling_is_given_in_tomls(
    value: str, hint: str
) -> None:
    line = f"fail_closed = {value}"
    assert problems_of(f"[helpers.plain]\n{line}\n[daemon]\n") == [
        f"line 2, {line!r}: not TOML: Invalid value; in TOML it is {hint}"
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("helpers.plain.fail_closed = 1.5", "helpers.plain.fail_closed = 1.5:"),
        ("daemon.queue = 1979-05-27", "daemon.queue = 1979-05-27:"),
        ("daemon.queue = [true, 'x', {a.b = 1}]", '[true, "x", {a = {b = 1}}]:'),
        ('daemon.queue = "a\\u2028\\u0001\\U000e0001"', '"a\\u2028\\u0001\\U000e0001"'),
    ],
)
def test_values_are_shown_as_toml_has_them(text: str, shown: str) -> None:
    (problem,) = problems_of(text)
    assert shown in problem


def test_long_values_and_lines_are_cut() -> None:
    ports = list(range(1, 2000))
    (value,) = problems_of(f"daemon.queue = {ports}")
    assert "…: must be a number from 0 to 65535" in value
    (line,) = problems_of(f"daemon.queue = {ports} x")
    assert "…': not TOML: " in line
    assert max(len(value), len(line)) < 250

# SPDX-License-Identifier: GPL-2.0-or-later
"""What one process has asked the kernel, another one reads."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cthelper.core.daemon import answers
from cthelper.core.daemon.answers import read_answers, write_answers
from cthelper.core.daemon.probe import UNKNOWN, CannotAsk, Kernel
from cthelper.core.errors import CthelperError

KERNEL = replace(UNKNOWN, hands_down=True, adjusts_twice=False)


def asked(monkeypatch: pytest.MonkeyPatch, answer: Kernel | CannotAsk) -> None:
    """Have the kernel answer so."""

    def ask(*, keep: bool) -> Kernel:
        assert keep
        if isinstance(answer, CannotAsk):
            raise answer
        return answer

    monkeypatch.setattr(answers, "ask", ask)


def test_what_is_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, KERNEL)
    file = tmp_path / "kernel"
    assert write_answers(file) == KERNEL
    assert read_answers(file) == KERNEL


def test_kernel_that_cannot_be_asked_is_so_for_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, CannotAsk("no namespace"))
    for action in (write_answers, read_answers):
        with pytest.raises(CannotAsk, match="no namespace"):
            action(tmp_path / "kernel")


def test_what_is_there_is_replaced_and_what_it_links_to_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, KERNEL)
    other, file = tmp_path / "other", tmp_path / "kernel"
    other.write_text("x")
    file.symlink_to(other)
    write_answers(file)
    assert other.read_text() == "x"
    assert read_answers(file) == KERNEL


def test_what_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, KERNEL)
    with pytest.raises(
        CthelperError, match="absent/kernel: cannot be written: No such"
    ):
        write_answers(tmp_path / "absent" / "kernel")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"renews": true}', '{"renews": 1}', '{"kernel": 1}', "\xff"],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kernel"
    file.write_text(text, "latin-1")
    with pytest.raises(CannotAsk, match="kernel: is not what `cthelper ask` writes"):
        read_answers(file)


def test_answers_of_another_kernel_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(monkeypatch, KERNEL)
    file = tmp_path / "kernel"
    write_answers(file)
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "kernel": "6.12.95 #1"}))
    with pytest.raises(CannotAsk, match=r"kernel: is of another kernel, 6\.12\.95 #1"):
        read_answers(file)


def test_absent_answers_and_those_of_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    with pytest.raises(CannotAsk, match="kernel: cannot be read: No such file"):
        read_answers(file)
    if os.geteuid() == 0:
        file.write_text("{}")
        os.chown(file, 65534, 65534)
        with pytest.raises(CannotAsk, match="belongs to user 65534"):
            read_answers(file)

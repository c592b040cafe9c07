# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel does (probe.py), asked by one process and read by another.

Asking needs a network namespace and packets of its own. A service that is to have
neither reads what was asked before it started.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path

from cthelper.core.daemon.probe import CannotAsk, Kernel, ask
from cthelper.core.errors import CthelperError
from cthelper.core.trusted import Untrusted, open_trusted

_LIMIT = 4096
# Which kernel was asked. A minor release may answer otherwise.
_ASKED = "kernel"


def _running() -> str:
    system = os.uname()
    return f"{system.release} {system.version}"


def write_answers(path: Path) -> Kernel:
    """Ask the kernel, and write what it says, or why it says nothing.

    Raises CannotAsk, once that is written, and CthelperError where it cannot be.
    """
    try:
        kernel = ask(keep=True)
    except CannotAsk as error:
        _write(path, str(error))
        raise
    _write(path, {_ASKED: _running(), **asdict(kernel)})
    return kernel


def _write(path: Path, told: object) -> None:
    try:
        # Never into a file that is there, which others may have open.
        with suppress(FileNotFoundError):
            path.unlink()
        with path.open("x", encoding="utf-8") as file:
            json.dump(told, file)
    except OSError as error:
        raise CthelperError(f"{path}: cannot be written: {error.strerror}") from None


def read_answers(path: Path) -> Kernel:
    """What was written.

    Raises CannotAsk, also where the kernel could not be asked, or was another one.
    """
    try:
        with open_trusted(path) as file:
            told = json.loads(file.read(_LIMIT))
    except Untrusted as error:
        raise CannotAsk(str(error)) from None
    except OSError as error:
        raise CannotAsk(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise CannotAsk(f"{path}: is not what `cthelper ask` writes") from None
    if isinstance(told, str):
        raise CannotAsk(told)
    asked = told.pop(_ASKED, None) if isinstance(told, dict) else None
    names = {each.name for each in fields(Kernel)}
    if (
        not isinstance(asked, str)
        or told.keys() != names
        or not all(isinstance(each, bool) for each in told.values())
    ):
        raise CannotAsk(f"{path}: is not what `cthelper ask` writes")
    if asked != _running():
        raise CannotAsk(f"{path}: is of another kernel, {asked}: `cthelper ask {path}`")
    return Kernel(**told)

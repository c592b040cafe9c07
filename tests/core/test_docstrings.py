# SPDX-License-Identifier: GPL-2.0-or-later
"""Docstrings of classes and modules, compiled or not."""

import sys
from pathlib import Path

import pytest

from cthelper.core.docstrings import of_class, of_module
from cthelper.helpers.sunrpc import SunRpc

TEXT = '''"""The module.

    More of it.
"""


class Outer:
    """The class.

    More of it.
    """


class Inner(Outer):
    pass
'''


@pytest.fixture(params=["with docstrings", "without"])
def kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[type, type]:
    """The classes, with docstrings or with none but in the source, as if compiled."""
    (tmp_path / "documented.py").write_text(TEXT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "documented", raising=False)
    module = __import__("documented")
    if request.param == "without":
        module.__doc__ = None
        module.Outer.__doc__ = None
        module.__file__ = str(tmp_path / "documented.cpython-311-x86_64-linux-gnu.so")
    return module.Outer, module.Inner


def test_docstrings_are_those_of_the_source(kinds: tuple[type, type]) -> None:
    outer, inner = kinds
    assert of_class(outer) == "The class.\n\nMore of it."
    assert of_class(inner) == ""
    assert of_module(inner) == "The module.\n\nMore of it."


def test_no_source_is_no_docstring() -> None:
    made = type("Made", (), {})
    assert of_class(made) == ""
    made.__module__ = "no.such.module"
    assert (of_class(made), of_module(made)) == ("", "")


def test_helper_has_them() -> None:
    assert of_class(SunRpc).startswith("SunRPC portmapper and rpcbind: ")
    assert "RFC 1833" in of_module(SunRpc)

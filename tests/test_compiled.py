# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml has mypyc compile, and what that asks of the code."""

import ast
import importlib
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.compiled import COMPILED

ROOT: Final = Path(__file__).parents[1]


_FOLDERS: Final[dict[str, list[str]]] = tomllib.loads(
    (ROOT / "pyproject.toml").read_text("utf-8")
)["tool"]["cthelper"]["compiled"]
MODULES: Final = [
    f"{folder.replace('/', '.')}.{name}"
    for folder, names in _FOLDERS.items()
    for name in names
]


def test_modules_are_there() -> None:
    files = {f"{ROOT}/{name.replace('.', '/')}.py" for name in MODULES}
    assert len(files) == len(MODULES) > 50
    assert [file for file in files if not Path(file).is_file()] == []


@pytest.mark.parametrize("name", MODULES)
def test_all_are_compiled_or_none(name: str) -> None:
    file = importlib.import_module(f"cthelper.{name}").__file__
    assert file is not None
    assert file.endswith(tuple(EXTENSION_SUFFIXES)) is COMPILED


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """All functions of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node


@pytest.mark.parametrize("name", MODULES)
def test_name_of_a_caught_exception_stands_for_one_type(name: str) -> None:
    # mypyc gives a name of a function one type, and casts what does not have it: a
    # TypeError where another exception was caught.
    tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_bytes())
    for function in functions(tree):
        types = {
            (node.name, ast.unparse(node.type))
            for node in ast.walk(function)
            if isinstance(node, ast.ExceptHandler) and node.name and node.type
        }
        twice = [
            each for each, many in Counter(n for n, _ in types).items() if many > 1
        ]
        assert twice == [], f"{function.name}: give each a name of its own"

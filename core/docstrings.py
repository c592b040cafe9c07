# SPDX-License-Identifier: GPL-2.0-or-later
"""Docstrings, also of compiled code: it has none, but its source lies beside it."""

import ast
import inspect
from pathlib import Path


def of_class(kind: type) -> str:
    """The class's own docstring, without indentation; empty: it has none."""
    # Not what it inherits, which is about others.
    text = vars(kind).get("__doc__")
    if not text:
        for node in ast.walk(_source(kind)):
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                text = ast.get_docstring(node)
    return inspect.cleandoc(text or "")


def of_module(kind: type) -> str:
    """The docstring of the module that has a class; empty: it has none."""
    module = inspect.getmodule(kind)
    text = module.__doc__ if module else None
    return inspect.cleandoc(text or ast.get_docstring(_source(kind)) or "")


def _source(kind: type) -> ast.Module:
    """The source of a class's module; nothing where it is not there."""
    try:
        file = Path(inspect.getfile(kind))
        return ast.parse(
            file.with_name(f"{file.name.partition('.')[0]}.py").read_bytes()
        )
    except (TypeError, OSError, ValueError, SyntaxError):
        return ast.Module([], [])

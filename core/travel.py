# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of compiled classes that go from one process to another."""

from collections.abc import Callable
from dataclasses import Field, fields
from functools import partial
from typing import Any, ClassVar, Protocol


class Dataclass(Protocol):
    """What `fields` takes."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def reduced(value: Dataclass) -> tuple[Callable[[], object], tuple[()]]:
    """What `__reduce__` of a dataclass returns: it is made again of its fields.

    pickle's own way makes an empty one and sets its attributes: compiled, a class makes
    none without the arguments of its `__init__`, and a frozen one lets nothing be set.
    """
    named = {
        each.name: getattr(value, each.name) for each in fields(value) if each.init
    }
    return partial(type(value), **named), ()

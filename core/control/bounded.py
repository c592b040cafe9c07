# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of many, of which the latest are so many."""

from collections import OrderedDict
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def keep(known: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Remember a value as the latest; beyond so many the earliest is forgotten."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)

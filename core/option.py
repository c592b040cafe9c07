# SPDX-License-Identifier: GPL-2.0-or-later
"""What a helper adds to its table of the configuration.

By itself, since mypyc cannot compile a generic dataclass without slots.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from cthelper.core.api import Message

OptionValue = bool | int | str | tuple[object, ...]
_V = TypeVar("_V", bound=OptionValue)


# Without slots: Python 3.11 cannot make a frozen Option[T](...) that has them.
@dataclass(frozen=True)
class Option(Generic[_V]):
    """A key that the helper adds to its table of the configuration.

    The value's type is the default's: bool, int, str or a tuple. `choices` lists the
    values that are allowed, where not every value of the type is. A tuple is a list in
    TOML: `element` makes each of its values out of what stands there, and raises
    ValueError with what is allowed; without it each is one of `choices`. Of an option
    that is no list `element` makes the value, such as a port or a word.
    """

    name: str
    default: _V
    meaning: str
    choices: tuple[object, ...] = ()
    element: Callable[[object], object] | None = None

    def of(self, message: "Message") -> _V:
        """The value that is configured for the flow of `message`."""
        return message.options[self.name]  # type: ignore[return-value]

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a helper says of itself, as a value: all that is asked of one that is not run.

The code of plugins is run by confined processes alone (docs/security.md). To all others
a helper of a plugin is a `stand_in`: a class with the same values, which the
configuration is read against and the ruleset is made of, and none of the code.

A declaration travels as JSON from a process that nobody trusts. Whatever comes,
`Declaration.unpacked` gives a value of the right types or raises ValueError, and
`stand_in` holds it to what a class is held to (contract.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from math import isfinite
from typing import Any, ClassVar, Final, TypeVar, cast

from mypy_extensions import mypyc_attr

from cthelper.core.api import (
    BROADCAST,
    Helper,
    Hook,
    Match,
    Matches,
    Option,
    OptionValue,
    Policy,
    Prefilter,
    Transport,
)
from cthelper.core.contract import check_prefilter, check_values, place
from cthelper.core.tables import Table, as_toml, printable
from cthelper.core.tuples import Destination

_T = TypeVar("_T")
_Json = dict[str, object]


@mypyc_attr(allow_interpreted_subclasses=True)
class StandIn(Helper):
    """A helper that was declared elsewhere: it is abstract still, with nothing to run.

    What it made of the options is for those that it was asked with.
    """

    declared_prefilter: ClassVar[Prefilter]
    declared_tags_expected: ClassVar[bool]

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        """As it was declared."""
        return cls.declared_tags_expected

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """As it was declared."""
        return cls.declared_prefilter


class Elements:
    """What a helper makes of the elements that are configured for an option.

    `read` is the helper's own function, which is asked once for each; without it what
    was asked before is all that is known: an element comes to a plain value, the same
    one for equal elements, or to a ValueError with what is allowed.
    """

    def __init__(
        self,
        answers: Mapping[str, tuple[bool, object]],
        read: Callable[[object], object] | None = None,
    ) -> None:
        self.answers = dict(answers)
        self._read = read
        self._made: list[object] = []

    def __call__(self, value: object) -> object:
        """What an element comes to. Raises ValueError."""
        key = as_toml(value)
        if self._read is not None:
            return self._asked(key, value, self._read)
        right, made = self.answers.get(key, (False, "was not there when it was read"))
        if not right:
            raise ValueError(made)
        return made

    def _asked(
        self, key: str, value: object, read: Callable[[object], object]
    ) -> object:
        try:
            made = read(value)
        except ValueError as error:
            self.answers[key] = (False, str(error))
            raise
        if made in self._made:
            made = self._made[self._made.index(made)]
        else:
            self._made.append(made)
        self.answers[key] = (True, _scalar(made))
        return made


@dataclass(frozen=True, slots=True)
class Declaration:
    """A helper's values, those of `Helper`, and what it made of its configuration.

    `title` is its own documentation, `about` its module's, `name_at` where its name is
    written. The element functions of `options` are `Elements`. `prefilter` and
    `tags_expected` are for the options that are configured, if these are right.
    """

    class_name: str
    name: str
    transports: frozenset[Transport]
    ports: tuple[int, ...]
    policies: tuple[Policy, ...]
    options: tuple[Option[Any], ...]
    hooks: frozenset[Hook]
    destinations: tuple[Destination, ...]
    enabled: bool
    lowest_port: int
    message_limit: int
    nat: bool
    api: tuple[int, int]
    title: str
    about: str
    name_at: str
    prefilter: Prefilter
    tags_expected: bool

    def packed(self) -> _Json:
        """It, for JSON."""
        return {
            "class": self.class_name,
            "name": self.name,
            "transports": [str(each) for each in sorted(self.transports)],
            "ports": list(self.ports),
            "policies": [
                [each.name, each.max_expected, each.timeout] for each in self.policies
            ],
            "options": [_packed_option(each) for each in self.options],
            "hooks": sorted(each.value for each in self.hooks),
            "destinations": [str(each) for each in self.destinations],
            "enabled": self.enabled,
            "lowest_port": self.lowest_port,
            "message_limit": self.message_limit,
            "nat": self.nat,
            "api": list(self.api),
            "title": self.title,
            "about": self.about,
            "name_at": self.name_at,
            "request": _packed_matches(self.prefilter.request),
            "reply": _packed_matches(self.prefilter.reply),
            "answers": self.prefilter.answers,
            "tags_expected": self.tags_expected,
        }

    @classmethod
    def unpacked(cls, value: object) -> "Declaration":
        """What a process has packed that is not trusted. Raises ValueError."""
        read = _Reader(value)
        return Declaration(
            class_name=read.text("class"),
            name=read.text("name"),
            transports=frozenset(read.each("transports", _transport)),
            ports=read.each("ports", _whole),
            policies=read.each("policies", _policy),
            options=read.each("options", _option),
            hooks=frozenset(Hook(each) for each in read.each("hooks", _text)),
            destinations=read.each("destinations", _destination),
            enabled=_flag(read.value("enabled")),
            lowest_port=_whole(read.value("lowest_port")),
            message_limit=_whole(read.value("message_limit")),
            nat=_flag(read.value("nat")),
            api=_two(read.each("api", _whole)),
            title=read.text("title"),
            about=read.text("about"),
            name_at=read.text("name_at"),
            prefilter=Prefilter(
                _matches(read.value("request")),
                _matches(read.value("reply")),
                _flag(read.value("answers")),
            ),
            tags_expected=_flag(read.value("tags_expected")),
        )


def declare(helper: type[Helper], about: str, configured: object) -> Declaration:
    """What a helper declares. Runs code of it, and raises what that raises.

    It must be right (`check`). `configured` is its table of the configuration; what is
    wrong there is not told: whoever reads the declaration finds it again.
    """
    given = dict(configured) if isinstance(configured, dict) else {}
    problems: list[str] = []
    table = Table(f"helpers.{helper.name}", given, problems)
    options: list[Option[Any]] = []
    values: dict[str, OptionValue] = {}
    for option in helper.options:
        declared = option
        if option.element is not None:
            # Once for each element, and what it comes to is what is declared.
            elements = Elements({}, option.element)
            declared = Option(
                option.name, option.default, option.meaning, element=elements
            )
        values[option.name] = table.option(declared)
        options.append(declared)
    prefilter, tags_expected = Prefilter(), False
    # Of what is turned off nothing more is asked.
    if not problems and given.get("enabled", helper.enabled) is not False:
        prefilter = check_prefilter(helper, helper.prefilter(values))
        tags_expected = bool(helper.tags_expected(values))
    return Declaration(
        class_name=helper.__qualname__,
        name=helper.name,
        transports=helper.transports,
        ports=helper.ports,
        policies=helper.policies,
        options=tuple(options),
        hooks=helper.hooks,
        destinations=helper.destinations,
        enabled=helper.enabled,
        lowest_port=helper.lowest_port,
        message_limit=helper.message_limit,
        nat=helper.nat,
        api=helper.api,
        title=helper.__doc__ or "",
        about=about,
        name_at=place(helper, "name"),
        prefilter=prefilter,
        tags_expected=tags_expected,
    )


def stand_in(declared: Declaration) -> type[Helper]:
    """A class with what was declared. Raises RegistryError where that is not right."""
    fields: dict[str, object] = {
        each: getattr(declared, each)
        for each in (
            *("name", "transports", "ports", "policies", "options", "hooks"),
            *("destinations", "enabled", "lowest_port", "message_limit", "nat", "api"),
        )
    }
    fields |= {
        "__doc__": declared.title,
        # Not ours: errors would seem to be about this file.
        "__module__": "(declared)",
        "__qualname__": declared.class_name,
        "declared_prefilter": declared.prefilter,
        "declared_tags_expected": declared.tags_expected,
    }
    made = cast("type[Helper]", type(declared.class_name, (StandIn,), fields))
    check_values(made)
    check_prefilter(made, declared.prefilter)
    return made


def is_stand_in(helper: type[Helper]) -> bool:
    """Whether a class was declared elsewhere, and cannot be run."""
    return issubclass(helper, StandIn)


def facts(helper: type[Helper], options: Mapping[str, OptionValue]) -> str:
    """All that another process must agree to: the same of a class and its stand-in."""
    return repr(
        (
            helper.name,
            sorted(str(each) for each in helper.transports),
            helper.ports,
            [(each.name, each.max_expected, each.timeout) for each in helper.policies],
            sorted(each.value for each in helper.hooks),
            [str(each) for each in helper.destinations],
            (helper.lowest_port, helper.message_limit, helper.nat, helper.api),
            [(name, plain(value)) for name, value in sorted(options.items())],
            _packed_matches(helper.prefilter(options).request),
            _packed_matches(helper.prefilter(options).reply),
            helper.prefilter(options).answers,
            bool(helper.tags_expected(options)),
        )
    )


def plain(value: object) -> object:
    """An option's value, or an element of one, as it is declared."""
    if isinstance(value, tuple):
        return [_scalar(each) for each in value]
    return _scalar(value)


def _scalar(value: object) -> object:
    if type(value) in (bool, int, str):
        return value
    if type(value) is float and isfinite(value):
        return value
    return str(value)


# Packing


def _packed_option(option: Option[Any]) -> _Json:
    packed: _Json = {
        "name": option.name,
        "default": plain(option.default),
        "meaning": str(option.meaning),
        "choices": plain(option.choices),
    }
    if isinstance(option.element, Elements):
        packed["elements"] = {
            key: list(answer) for key, answer in option.element.answers.items()
        }
    return packed


def _packed_matches(matches: Matches | None) -> object:
    if matches is None:
        return None
    return [
        [[each.offset, each.length, each.value] for each in alternative]
        for alternative in matches
    ]


# Unpacking: each raises ValueError


class _Reader:
    """An object of JSON; methods raise ValueError."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise ValueError("is no object")
        self._values = value

    def has(self, key: str) -> bool:
        """Whether it has a key."""
        return key in self._values

    def value(self, key: str) -> object:
        """What it has under a key."""
        if key not in self._values:
            raise ValueError(f"has no {key}")
        found: object = self._values[key]
        return found

    def text(self, key: str) -> str:
        """The same, which is a string."""
        return _text(self.value(key))

    def each(self, key: str, read: Callable[[object], _T]) -> tuple[_T, ...]:
        """The same, which is a list."""
        return _each(self.value(key), read)


_MEANS: Final = {bool: "a truth value", int: "a number", str: "a string"}


def _of(value: object, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise ValueError(f"has a {type(value).__name__} that is not {_MEANS[kind]}")
    return value


def _text(value: object) -> str:
    """A text that can be shown: of more lines than one, if it has them."""
    return "\n".join(map(printable, _of(value, str).split("\n")))


def _whole(value: object) -> int:
    return _of(value, int)


def _flag(value: object) -> bool:
    return _of(value, bool)


def _each(value: object, read: Callable[[object], _T]) -> tuple[_T, ...]:
    if not isinstance(value, list):
        raise ValueError(f"has a {type(value).__name__} that is not a list")
    return tuple(map(read, value))


def _two(values: tuple[int, ...]) -> tuple[int, int]:
    if len(values) != 2:
        raise ValueError("has an api that is not two numbers")
    return values[0], values[1]


def _transport(value: object) -> Transport:
    for each in Transport:
        if value == str(each):
            return each
    raise ValueError("has a transport that is none")


def _destination(value: object) -> Destination:
    text = _of(value, str)
    return BROADCAST if text == str(BROADCAST) else ip_network(text)


def _policy(value: object) -> Policy:
    match value:
        case [name, most, timeout]:
            return Policy(_of(name, str), _whole(most), _whole(timeout))
    raise ValueError("has a policy that is none")


def _option(value: object) -> Option[Any]:
    read = _Reader(value)
    given = read.value("default")
    default: OptionValue
    default = _each(given, _one) if isinstance(given, list) else _one(given)
    return Option(
        name=read.text("name"),
        default=default,
        meaning=read.text("meaning"),
        choices=read.each("choices", _one),
        element=_elements(read.value("elements")) if read.has("elements") else None,
    )


def _one(value: object) -> bool | int | str:
    """A value that is no list. Numbers with a point stand in choices alone."""
    match value:
        case bool() | int():
            return value
        case float() if isfinite(value):
            # Of no other type than the elements of a list of choices.
            return cast("int", value)
        case str():
            return value
    raise ValueError("has a value of an option that is none")


def _elements(value: object) -> Elements:
    if not isinstance(value, dict):
        raise ValueError("has elements that are none")
    return Elements({key: _element(each) for key, each in value.items()})


def _element(value: object) -> tuple[bool, object]:
    match value:
        case [True, made]:
            return True, _one(made)
        case [False, text]:
            return False, _text(text)
    raise ValueError("has an element that is none")


def _matches(value: object) -> Matches | None:
    if value is None:
        return None
    return _each(value, lambda alternative: _each(alternative, _match))


def _match(value: object) -> Match:
    match value:
        case [offset, length, bits]:
            return Match(_whole(offset), _whole(length), _whole(bits))
    raise ValueError("has a match that is none")

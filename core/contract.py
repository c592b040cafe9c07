# SPDX-License-Identifier: GPL-2.0-or-later
"""What a class must be so that it can be installed as a helper.

Where the class comes from is registry.py's business.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from ipaddress import IPv4Network, IPv6Network
from types import ClassMethodDescriptorType, FunctionType, MethodDescriptorType
from typing import Any, Final

from cthelper.core.api import (
    API,
    Helper,
    Hook,
    Match,
    Option,
    Policy,
    Prefilter,
    Transport,
)
from cthelper.core.errors import RegistryError
from cthelper.core.tuples import Cast

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,14}")
NAME_ALLOWED: Final = "must be 1 to 15 characters of a-z, 0-9, - and _, a letter first"
_OPTION: Final = re.compile(r"[a-z][a-z0-9_-]*")
_POLICY_LIMIT: Final = 4
# Of a datagram's payload, what a prefilter may look at, in bits.
_MATCHED: Final = 512
_MATCH_LIMIT: Final = 32
_KEYS: Final = frozenset(
    {
        "enabled",
        "ports",
        "interfaces",
        "sources",
        "destinations",
        "queue",
        "queueing",
        "fail_closed",
        "known_as",
        "type",
        "window",
        "policies",
        "hooks",
        "guard",
        "nat",
    }
)


def check(helper: type[Helper]) -> None:
    """Raise RegistryError, naming class and field, where the kernel or we refuse it."""
    _check_api(helper)
    _check_fields(helper)
    if (
        Transport.TCP in helper.transports
        and helper.frame is Helper.frame
        and helper.frame_of is Helper.frame_of
    ):
        raise refusal(helper, "frame", "must be written for a helper that serves TCP")
    if is_abstract(helper):
        raise refusal(helper, "on_message", "must be written")
    for method, *arguments in (
        ("frame", "data"),
        ("frame_of", "direction", "data"),
        ("on_message", "message"),
        ("describe", "message"),
    ):
        _check_method(helper, method, arguments)
    if not isinstance(
        inspect.getattr_static(helper, "tags_expected"),
        classmethod | ClassMethodDescriptorType,
    ):
        raise refusal(
            helper,
            "tags_expected",
            "must be a class method: def tags_expected(cls, options)",
        )
    _check_instances(helper)
    _check_policies(helper, helper.policies)
    _check_options(helper, helper.options)


def is_abstract(helper: type[Helper]) -> bool:
    """Whether something of it is left to be written by a class that builds upon it."""
    # Where Helper is compiled nothing says that its `on_message` is abstract.
    return inspect.isabstract(helper) or helper.on_message is Helper.on_message


def check_values(helper: type[Helper]) -> None:
    """The same for the class's values alone, where none of its code is there."""
    _check_api(helper)
    _check_fields(helper)
    _check_policies(helper, helper.policies)
    _check_options(helper, helper.options)


def check_prefilter(helper: type[Helper], prefilter: object) -> Prefilter:
    """What `Helper.prefilter` has returned, if it is a prefilter.

    Raises RegistryError.
    """
    if not isinstance(prefilter, Prefilter):
        raise refusal(helper, "prefilter", "must return a Prefilter")
    if not isinstance(prefilter.answers, bool):
        raise refusal(helper, "prefilter", "must have answers True or False")
    for side in (prefilter.request, prefilter.reply):
        if side is not None and not _are_matches(side):
            raise refusal(
                helper,
                "prefilter",
                "must have tuples of tuples of Match, each of 1 to 32 bits of the "
                "first 64 bytes",
            )
    return prefilter


def _check_api(helper: type[Helper]) -> None:
    """First, for what else there is depends on it."""
    match helper.api:
        case (int(first), int(second)) if isinstance(helper.api, tuple):
            pass
        case _:
            raise refusal(helper, "api", "must be two numbers such as (1, 0)")
    here = f"this cthelper has API {API[0]}.{API[1]}"
    if first < API[0]:
        raise refusal(helper, "api", f"{here}: the plugin must be changed for it")
    if (first, second) > API:
        raise refusal(helper, "api", f"{here}: install a newer one")


def _check_fields(helper: type[Helper]) -> None:
    for field in ("name", "transports", "ports", "policies"):
        if not hasattr(helper, field):
            raise refusal(helper, field, "is missing")
    for field, (is_right, allowed) in _FIELDS.items():
        if field == "ports" and helper.template is True and helper.ports == ():
            continue
        if not is_right(getattr(helper, field)):
            raise refusal(helper, field, allowed)


def _is_number(value: object, high: int, low: int = 1) -> bool:
    """Whether a value is a number, and no bool, from `low` to `high`."""
    return type(value) is int and low <= value <= high


def _are_matches(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(alternative, tuple) and all(map(_is_match, alternative))
        for alternative in value
    )


def _is_match(value: object) -> bool:
    return (
        isinstance(value, Match)
        and _is_number(value.length, _MATCH_LIMIT)
        and _is_number(value.offset, _MATCHED - value.length, 0)
        and _is_number(value.value, (1 << value.length) - 1, 0)
    )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_port(value: object) -> bool:
    return _is_number(value, 0xFFFF)


def is_name(value: object) -> bool:
    """Whether the kernel and nft take a value as the name of a helper or a policy."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_option(value: object) -> bool:
    return isinstance(value, str) and _OPTION.fullmatch(value) is not None


def _are_ports(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and all(map(_is_port, value))
        and len(set(value)) == len(value)
    )


def _some_of(kind: type) -> Callable[[object], bool]:
    """Whether a value is a frozenset of one or more of a kind."""
    return lambda value: (
        isinstance(value, frozenset)
        and len(value) > 0
        and all(isinstance(each, kind) for each in value)
    )


def _tuple_of(*kinds: type) -> Callable[[object], bool]:
    """Whether a value is a tuple of things of these kinds."""
    return lambda value: (
        isinstance(value, tuple) and all(isinstance(each, kinds) for each in value)
    )


_FIELDS: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "name": (
        is_name,
        NAME_ALLOWED,
    ),
    "transports": (
        _some_of(Transport),
        "must name TCP, UDP or both, in a frozenset",
    ),
    "ports": (
        _are_ports,
        "must be one or more of 1 to 65535, each once, in a tuple",
    ),
    "policies": (_tuple_of(Policy), "must be a tuple of Policy"),
    "options": (_tuple_of(Option), "must be a tuple of Option"),
    "hooks": (_some_of(Hook), "must name one Hook or more, in a frozenset"),
    "destinations": (
        _tuple_of(IPv4Network, IPv6Network, Cast),
        "must be a tuple of IPv4Network, IPv6Network and BROADCAST",
    ),
    "lowest_port": (_is_port, "must be one of 1 to 65535"),
    "nat": (_is_bool, "must be True or False"),
    "enabled": (_is_bool, "must be True or False"),
    "template": (_is_bool, "must be True or False"),
    "message_limit": (
        lambda value: _is_number(value, sys.maxsize),
        "must be at least 1 byte",
    ),
}


def _check_method(helper: type[Helper], name: str, arguments: list[str]) -> None:
    method = inspect.getattr_static(helper, name)
    right = f"must be a method: def {name}({', '.join(['self', *arguments])})"
    if not isinstance(method, FunctionType | MethodDescriptorType):
        raise refusal(helper, name, right)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise refusal(helper, name, f"{right}, and not async")
    try:
        inspect.signature(method).bind(None, *arguments)
    except TypeError:
        raise refusal(helper, name, right) from None


def _check_instances(helper: type[Helper]) -> None:
    """The host makes an instance for each flow, without arguments."""
    try:
        inspect.signature(helper).bind()
    except (TypeError, ValueError) as error:
        raise refusal(
            helper, "__init__", f"must take no argument but self: {error}"
        ) from None


def _check_policies(helper: type[Helper], policies: tuple[Policy, ...]) -> None:
    if not 1 <= len(policies) <= _POLICY_LIMIT:
        raise refusal(helper, "policies", "must be one to four")
    for policy in policies:
        if not is_name(policy.name):
            raise refusal(helper, "policies", f"has no usable name {policy.name!r}")
        if not _is_number(policy.max_expected, 255):
            raise refusal(helper, "policies", "must have max_expected 1 to 255")
        if not _is_number(policy.timeout, 86400):
            raise refusal(helper, "policies", "must have a timeout of 1 to 86400 s")
    names = [policy.name for policy in policies]
    if len(set(names)) != len(names):
        raise refusal(helper, "policies", "must have different names")


def _check_options(helper: type[Helper], options: tuple[Option[Any], ...]) -> None:
    names = []
    for option in options:
        if not _is_option(option.name):
            raise refusal(helper, "options", f"has no usable name {option.name!r}")
        names.append(option.name)
        if not _is_usable(option):
            raise refusal(helper, "options", f"has no usable default of {option.name}")
    if len(set(names)) != len(names) or not _KEYS.isdisjoint(names):
        raise refusal(helper, "options", "must have names of their own")


def _is_usable(option: Option[Any]) -> bool:
    """Whether the default is of a kind that we read, and among the choices."""
    default, choices = option.default, option.choices
    if not _tuple_of(object)(choices):
        return False
    if isinstance(default, tuple):
        if option.element is not None:
            return not choices
        return len(choices) > 0 and all(each in choices for each in default)
    return (
        type(default) in (bool, int, str)
        and (option.element is None or not choices)
        and all(type(each) is type(default) for each in choices)
        and (not choices or default in choices)
    )


def refusal(
    helper: type[Helper], field: str, why: str, at: str | None = None
) -> RegistryError:
    """The error, in one line: where the field is written, its value, `why` not that.

    `at` is its `place`, where that is known already.
    """
    shown = ""
    if hasattr(helper, field) and not callable(getattr(helper, field)):
        shown = f" = {getattr(helper, field)!r}"
    text = f"{at or place(helper, field)}{shown}: {why}"
    return RegistryError(" ".join(text.split()))


def place(helper: type[Helper], field: str) -> str:
    """Where the field is written, by file and line where they are known."""
    name = f"{helper.__qualname__}.{field}"
    try:
        file = inspect.getfile(helper)
        tree = ast.parse(_source(helper, file))
    except (TypeError, OSError, ValueError, SyntaxError):
        return f"{helper.__module__}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == helper.__name__:
            lines = [each.lineno for each in node.body if field in _names(each)]
            return f"{file}:{lines[-1] if lines else node.lineno}: {name}"
    return f"{file}: {name}"


def _source(helper: type[Helper], file: str) -> bytes:
    """What the class was made of: this process may not be able to read the file.

    Raises OSError.
    """
    loader = getattr(sys.modules.get(helper.__module__), "__loader__", None)
    if not isinstance(loader, SourceFileLoader):
        raise FileNotFoundError(file)
    return loader.get_data(file)


def _names(statement: ast.stmt) -> list[str]:
    """The names that a statement of a class's body binds."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            return [each.id for each in targets if isinstance(each, ast.Name)]
    return []

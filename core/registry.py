# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the helpers and refuses, in one line, what cannot be installed.

They come from cthelper.helpers, from installed distributions (entry points of the group
``cthelper.helpers``, each a class of Helper), and from single files, such as those of
the folder of drop-in plugins. A module's helpers are the subclasses of Helper that it
defines, but those whose names begin with an underscore.
"""

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_loader
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from cthelper.core.api import Helper, Hook, Option, Policy, Transport
from cthelper.core.errors import RegistryError

GROUP: Final = "cthelper.helpers"
"""The group of entry points, and the package of the built-in helpers."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,14}")
_OPTION: Final = re.compile(r"[a-z][a-z0-9_-]*")
_POLICY_LIMIT: Final = 4
_KEYS: Final = frozenset(
    {
        "enabled",
        "ports",
        "interfaces",
        "sources",
        "destinations",
        "queue",
        "policies",
        "hooks",
        "guard",
        "nat",
    }
)
_WRITABLE_BY_OTHERS: Final = 0o022
# An import runs what it likes; only Ctrl-C is not its own fault.
_ANY: Final = (Exception, SystemExit)


@dataclass(frozen=True, slots=True)
class Found:
    """A helper and where it comes from: a module, a file, or `distribution`."""

    helper: type[Helper]
    source: str
    distribution: str | None = None

    @property
    def builtin(self) -> bool:
        """Whether it ships with cthelper."""
        return self.helper.__module__.startswith(f"{GROUP}.")


def find_helpers(
    folder: Path | None = None, plugins: Iterable[Path] = ()
) -> dict[str, Found]:
    """All helpers by name: built in, installed, those in `folder` and in `plugins`.

    Files are read anew each time, so that a file that has changed gives new classes,
    and classes that are in use stay as they are. Raises RegistryError.
    """
    return _register(
        [
            *_builtin(),
            *_installed(),
            *([] if folder is None else _in_folder(folder)),
            *(found for file in plugins for found in _in_file(file)),
        ]
    )


def builtin_helpers() -> dict[str, type[Helper]]:
    """The helpers of cthelper.helpers by name, in order of their names."""
    return classes(_register(_builtin()))


def register(helpers: Iterable[type[Helper]]) -> dict[str, type[Helper]]:
    """Helpers by name, each checked. Raises RegistryError."""
    return classes(_register(Found(each, each.__module__) for each in helpers))


def classes(found: dict[str, Found]) -> dict[str, type[Helper]]:
    """The helpers alone, by name."""
    return {name: each.helper for name, each in found.items()}


def _register(found: Iterable[Found]) -> dict[str, Found]:
    helpers: dict[str, Found] = {}
    for each in found:
        try:
            check(each.helper)
            other = helpers.get(each.helper.name)
            if other is not None:
                raise _refusal(each.helper, "name", f"is taken by {other.source}")
        except RegistryError as error:
            if each.distribution is None:
                raise
            raise RegistryError(f"{each.distribution}: {error}") from None
        helpers[each.helper.name] = each
    return dict(sorted(helpers.items()))


# Where helpers are


def _builtin() -> Iterator[Found]:
    for entry in sorted(files(GROUP).iterdir(), key=lambda each: each.name):
        if entry.name.endswith(".py") and not entry.name.startswith("_"):
            name = f"{GROUP}.{entry.name[:-3]}"
            try:
                module = import_module(name)
            except _ANY as error:  # a file of an upgrade that is half done
                raise RegistryError(_line(f"{name}: {_text(error)}")) from None
            for helper in _defined(module):
                yield Found(helper, module.__name__)


def _installed() -> Iterator[Found]:
    points = entry_points(group=GROUP)
    for point in sorted(points, key=lambda each: (each.name, each.value)):
        name = "a distribution without a name"
        if point.dist is not None:
            name = f"{point.dist.name} {point.dist.version}"
        helper = _load(point, name)
        yield Found(helper, f"{name} ({point.value})", name)


def _load(point: EntryPoint, distribution: str) -> type[Helper]:
    where = f"{distribution}: entry point {point.name} = {point.value!r}"
    try:
        value = point.load()
    except _ANY as error:
        raise RegistryError(_line(f"{where}: {_text(error)}")) from None
    if not isinstance(value, type) or not issubclass(value, Helper):
        raise RegistryError(f"{where}: must be a class of cthelper.core.api.Helper")
    return value


def _in_folder(folder: Path) -> Iterator[Found]:
    _distrust(folder)
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise RegistryError(f"{folder}: cannot be read: {error.strerror}") from None
    for file in inside:
        if file.suffix == ".py" and not file.name.startswith(("_", ".")):
            _distrust(file.resolve().parent)
            _distrust(file)
            yield from _in_file(file)


def _distrust(path: Path) -> None:
    """Refuse what others could have root run. Raises RegistryError."""
    if os.geteuid() != 0:
        return
    try:
        status = path.stat()
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read: {error.strerror}") from None
    if status.st_uid != 0:
        raise RegistryError(
            f"{path}: belongs to user {status.st_uid}, and root would run what is in "
            f"it: chown root {path}"
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise RegistryError(
            f"{path}: others may write what root would run "
            f"(mode {status.st_mode & 0o7777:04o}): chmod go-w {path}"
        )


def _in_file(file: Path) -> list[Found]:
    """The helpers that a file defines, one at least. Raises RegistryError."""
    file = file.absolute()
    helpers = _defined(_import_file(file))
    if not helpers:
        raise RegistryError(
            f"{file}: defines no helper, which is a class of cthelper.core.api.Helper"
        )
    return [Found(helper, str(file)) for helper in helpers]


class _Loader(SourceFileLoader):
    """Reads the source each time.

    A .pyc is valid as long as the source's time, in seconds, and size stay, and an edit
    may be quicker than that. It would also have to be written beside the source.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The source, compiled."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _import_file(file: Path) -> ModuleType:
    """A fresh module out of the file, whatever it was imported as before.

    It stands in sys.modules, where dataclasses and `inspect` look it up, by a name that
    nothing else can have. No dot, for then it would seem to be in a package.
    """
    name = f"cthelper plugin {file}".replace(".", "%")
    loader = _Loader(name, str(file))
    spec = spec_from_loader(name, loader)
    assert spec is not None  # noqa: S101 - it is None for finders only
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except _ANY as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        where, line = str(file), _line_in(error, str(file))
        if line is not None:
            where += f":{line}"
        elif isinstance(error, OSError):
            why = error.strerror or str(error)
            raise RegistryError(f"{where}: cannot be read: {why}") from None
        raise RegistryError(_line(f"{where}: {_text(error)}")) from None
    return module


def _line_in(error: BaseException, file: str) -> int | None:
    """The innermost line of `file` that led to the error, if any did."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else None


def _text(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _defined(module: ModuleType) -> list[type[Helper]]:
    """The helpers that a module defines, each once."""
    return [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Helper)
        and value.__module__ == module.__name__
        and value.__name__ == name
        and not name.startswith("_")
    ]


# What a helper must be


def check(helper: type[Helper]) -> None:
    """Raise RegistryError, naming class and field, where the kernel or we refuse it."""
    for field in ("name", "transports", "ports", "policies"):
        if not hasattr(helper, field):
            raise _refusal(helper, field, "is missing")
    for field, (is_right, allowed) in _FIELDS.items():
        if not is_right(getattr(helper, field)):
            raise _refusal(helper, field, allowed)
    if Transport.TCP in helper.transports and helper.frame is Helper.frame:
        raise _refusal(helper, "frame", "must be written for a helper that serves TCP")
    if inspect.isabstract(helper):
        raise _refusal(helper, "on_message", "must be written")
    for method, argument in (
        ("frame", "data"),
        ("on_message", "message"),
        ("describe", "message"),
    ):
        _check_method(helper, method, argument)
    if not isinstance(inspect.getattr_static(helper, "tags_expected"), classmethod):
        raise _refusal(
            helper,
            "tags_expected",
            "must be a class method: def tags_expected(cls, options)",
        )
    _check_instances(helper)
    _check_policies(helper, helper.policies)
    _check_options(helper, helper.options)


def _is_number(value: object, high: int) -> bool:
    """Whether a value is a number, and no bool, from 1 to `high`."""
    return type(value) is int and 1 <= value <= high


def _is_port(value: object) -> bool:
    return _is_number(value, 0xFFFF)


def _is_name(value: object) -> bool:
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
        _is_name,
        "must be 1 to 15 characters of a-z, 0-9, - and _, a letter first",
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
        _tuple_of(IPv4Network, IPv6Network),
        "must be a tuple of IPv4Network and IPv6Network",
    ),
    "lowest_port": (_is_port, "must be one of 1 to 65535"),
    "nat": (lambda value: isinstance(value, bool), "must be True or False"),
    "message_limit": (
        lambda value: _is_number(value, sys.maxsize),
        "must be at least 1 byte",
    ),
}


def _check_method(helper: type[Helper], name: str, argument: str) -> None:
    method = inspect.getattr_static(helper, name)
    right = f"must be a method: def {name}(self, {argument})"
    if not inspect.isfunction(method):
        raise _refusal(helper, name, right)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise _refusal(helper, name, f"{right}, and not async")
    try:
        inspect.signature(method).bind(None, None)
    except TypeError:
        raise _refusal(helper, name, right) from None


def _check_instances(helper: type[Helper]) -> None:
    """The host makes an instance for each flow, without arguments."""
    try:
        inspect.signature(helper).bind()
    except (TypeError, ValueError) as error:
        raise _refusal(
            helper, "__init__", f"must take no argument but self: {error}"
        ) from None


def _check_policies(helper: type[Helper], policies: tuple[Policy, ...]) -> None:
    if not 1 <= len(policies) <= _POLICY_LIMIT:
        raise _refusal(helper, "policies", "must be one to four")
    for policy in policies:
        if not _is_name(policy.name):
            raise _refusal(helper, "policies", f"has no usable name {policy.name!r}")
        if not _is_number(policy.max_expected, 255):
            raise _refusal(helper, "policies", "must have max_expected 1 to 255")
        if not _is_number(policy.timeout, 86400):
            raise _refusal(helper, "policies", "must have a timeout of 1 to 86400 s")
    names = [policy.name for policy in policies]
    if len(set(names)) != len(names):
        raise _refusal(helper, "policies", "must have different names")


def _check_options(helper: type[Helper], options: tuple[Option[Any], ...]) -> None:
    names = []
    for option in options:
        if not _is_option(option.name):
            raise _refusal(helper, "options", f"has no usable name {option.name!r}")
        names.append(option.name)
        if not _is_usable(option):
            raise _refusal(helper, "options", f"has no usable default of {option.name}")
    if len(set(names)) != len(names) or not _KEYS.isdisjoint(names):
        raise _refusal(helper, "options", "must have names of their own")


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
        and option.element is None
        and all(type(each) is type(default) for each in choices)
        and (not choices or default in choices)
    )


def _refusal(helper: type[Helper], field: str, why: str) -> RegistryError:
    shown = ""
    if hasattr(helper, field) and not callable(getattr(helper, field)):
        shown = f" = {getattr(helper, field)!r}"
    return RegistryError(_line(f"{_place(helper, field)}{shown}: {why}"))


def _place(helper: type[Helper], field: str) -> str:
    """Where the field is written, by file and line where they are known."""
    name = f"{helper.__qualname__}.{field}"
    try:
        file = inspect.getfile(helper)
        tree = ast.parse(Path(file).read_bytes())
    except (TypeError, OSError, ValueError, SyntaxError):
        return f"{helper.__module__}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == helper.__name__:
            lines = [each.lineno for each in node.body if field in _names(each)]
            return f"{file}:{lines[-1] if lines else node.lineno}: {name}"
    return f"{file}: {name}"


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


def _line(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())

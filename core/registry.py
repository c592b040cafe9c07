# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the helpers and refuses, in one line, what cannot be loaded or installed.

They come from cthelper.helpers, from installed distributions (entry points of the group
``cthelper.helpers``, each a class of Helper), and from single files, such as those of
the folder of drop-in plugins. A module's helpers are the subclasses of Helper that it
defines, but those whose names begin with an underscore.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from pkgutil import iter_modules
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, Protocol

from cthelper.core import api
from cthelper.core.api import Helper
from cthelper.core.contract import check, refusal
from cthelper.core.errors import RegistryError
from cthelper.core.trusted import Untrusted, judge_folder, open_trusted

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "cthelper.helpers"
"""The group of entry points, and the package of the built-in helpers."""

# An import runs what it likes; only Ctrl-C is not its own fault.
_ANY: Final = (Exception, SystemExit)

Refuse = Callable[[RegistryError], None]
"""What is told of a helper that cannot be taken; it may raise."""
Open = Callable[[Path], BinaryIO]


@dataclass(frozen=True, slots=True)
class Found:
    """A helper and where it comes from: a module, a file, or `distribution`.

    `checked` is whether it is known to be one. One that was examined elsewhere
    (examination.py) has `about`, its module's documentation, and `name_at`, which is
    where its name is written.
    """

    helper: type[Helper]
    source: str
    distribution: str | None = None
    about: str = ""
    name_at: str | None = None
    checked: bool = False

    @property
    def builtin(self) -> bool:
        """Whether it ships with cthelper."""
        return self.helper.__module__.startswith(f"{GROUP}.")


class Broken(NamedTuple):
    """An entry point that is left out: its name, and why in one line."""

    name: str
    reason: str


class Point(NamedTuple):
    """An entry point, and the distribution that has it."""

    name: str
    value: str
    distribution: str


class Given(NamedTuple):
    """What there is beside the built-in helpers, read already.

    The files of `read_folder`, and `installed_points`.
    """

    plugins: Mapping[Path, bytes]
    points: Sequence[Point]
    broken: Sequence[Broken] = ()


class Taking(Protocol):
    """How the helpers of a file, and of an entry point, are got at."""

    def of_file(self, file: Path, data: bytes, refuse: Refuse) -> list[Found]:
        """Those that a file of these bytes defines; each that is not right is refused.

        Raises RegistryError where it cannot be imported.
        """

    def of_point(self, point: Point) -> Found:
        """What an entry point leads to. Raises RegistryError."""


def _raise(error: RegistryError) -> None:
    raise error


def find_helpers(
    folder: Path | None = None,
    plugins: Iterable[Path] = (),
    refuse: Refuse = _raise,
    broken: list[Broken] | None = None,
    *,
    given: Given | None = None,
    taking: Taking | None = None,
) -> dict[str, Found]:
    """All helpers by name: built in, installed, those in `folder` and in `plugins`.

    With `given` nothing else is looked for on the disc. What is not built in is
    imported, unless `taking` gets at it in another way. Files are read anew each time,
    so that a file that has changed gives new classes, and classes that are in use stay
    as they are. Each helper or file that cannot be taken is given to `refuse`, and left
    out if that does not raise; by default it raises the RegistryError. An entry point
    that cannot be loaded or installed, be it since its name is taken, is left out and
    put into `broken`.
    """
    broken = [] if broken is None else broken
    taking = taking or IMPORTING
    if given is None:
        given = Given({}, *installed_points())
    broken += given.broken
    helpers = _register(
        [
            *_builtin(),
            *_in_files(
                () if folder is None else read_folder(folder, refuse), taking, refuse
            ),
            *_in_files(
                _read(plugins, lambda path: path.open("rb"), refuse), taking, refuse
            ),
            *_in_files(given.plugins.items(), taking, refuse),
        ],
        refuse,
    )
    for point in given.points:
        try:
            _add(helpers, taking.of_point(point))
        except RegistryError as error:
            broken.append(Broken(point.name, str(error)))
    return dict(sorted(helpers.items()))


def builtin_helpers() -> dict[str, type[Helper]]:
    """The helpers of cthelper.helpers by name, in order of their names."""
    return classes(_register(_builtin()))


def register(helpers: Iterable[type[Helper]]) -> dict[str, type[Helper]]:
    """Helpers by name, each checked. Raises RegistryError."""
    return classes(_register(Found(each, each.__module__) for each in helpers))


def classes(found: dict[str, Found]) -> dict[str, type[Helper]]:
    """The helpers alone, by name."""
    return {name: each.helper for name, each in found.items()}


def _register(found: Iterable[Found], refuse: Refuse = _raise) -> dict[str, Found]:
    helpers: dict[str, Found] = {}
    for each in found:
        try:
            _add(helpers, each)
        except RegistryError as error:
            refuse(error)
    return dict(sorted(helpers.items()))


def _add(helpers: dict[str, Found], found: Found) -> None:
    """Take one that can be installed beside the others. Raises RegistryError."""
    try:
        if not found.checked:
            check(found.helper)
        other = helpers.get(found.helper.name)
        if other is not None:
            raise refusal(
                found.helper, "name", f"is taken by {other.source}", found.name_at
            )
    except RegistryError as error:
        if found.distribution is None:
            raise
        raise RegistryError(f"{found.distribution}: {error}") from None
    helpers[found.helper.name] = found


# Where helpers are


def _builtin() -> Iterator[Found]:
    for name in _modules():
        try:
            module = import_module(name)
        except _ANY as error:  # a file of an upgrade that is half done
            raise RegistryError(_line(f"{name}: {_text(error)}")) from None
        for helper in _defined(module):
            # What several of them have in common has no name.
            if hasattr(helper, "name"):
                # The tests have checked ours.
                yield Found(helper, module.__name__, checked=True)


@cache
def _modules() -> tuple[str, ...]:
    """The modules of built-in helpers, which are imported once."""
    return tuple(
        f"{GROUP}.{name}"
        for name in sorted(
            each.name for each in iter_modules(import_module(GROUP).__path__)
        )
        if not name.startswith("_")
    )


class Importing:
    """Imports them into this process."""

    def of_file(self, file: Path, data: bytes, _refuse: Refuse) -> list[Found]:
        """The helpers that a file defines, one at least. Raises RegistryError."""
        module = _import_source(file, data)
        helpers = _defined(module)
        if not helpers:
            raise RegistryError(
                f"{file}: defines no helper, which is a class of "
                "cthelper.core.api.Helper"
            )
        return [Found(_no_template(each), str(file)) for each in helpers]

    def of_point(self, point: Point) -> Found:
        """What an entry point leads to. Raises RegistryError."""
        helper = _load(point)
        return Found(_no_template(helper), source_of(point), point.distribution)


def _no_template(helper: type[Helper]) -> type[Helper]:
    """A plugin's helper. Raises RegistryError for a template.

    What it is asked for its table is asked of a process that ends (declaration.py),
    before there are tables of what the configuration makes of it.
    """
    if helper.template is True:
        raise refusal(helper, "template", "must be False in a plugin")
    return helper


IMPORTING: Final = Importing()


def source_of(point: Point) -> str:
    """Where a helper comes from that an entry point leads to."""
    return f"{point.distribution} ({point.value})"


def installed_points() -> tuple[list[Point], list[Broken]]:
    """The entry points of the group, in the order of their names.

    One distribution whose metadata is damaged, whatever it has to do with us, spoils
    them all: then they are read one by one, and those that cannot be are broken.
    """
    if not _some_point():
        return [], []
    from importlib.metadata import distributions, entry_points

    broken: list[Broken] = []
    found: dict[tuple[str, str], EntryPoint] = {}
    try:
        found = {(each.name, each.value): each for each in entry_points(group=GROUP)}
    except Exception:
        for distribution in distributions():
            try:
                points = distribution.entry_points.select(group=GROUP)
            except Exception as error:
                why = _line(f"{distribution.name}: {_text(error)}")
                broken.append(Broken(distribution.name, why))
            else:
                found |= {(each.name, each.value): each for each in points}
    return [Point(*key, _named(found[key])) for key in sorted(found)], broken


def _some_point() -> bool:
    """Whether there can be an entry point of the group: on most hosts there is none.

    What reads metadata takes longer to be imported than all the helpers.
    """
    finders = (each for each in sys.meta_path if hasattr(each, "find_distributions"))
    if any(each is not PathFinder for each in finders):
        return True
    try:
        return any(_mentions_group(each or ".") for each in sys.path)
    except OSError:  # one in an archive, or that cannot be read
        return True


def _mentions_group(folder: str) -> bool:
    """Whether metadata of a distribution that is in a folder may have the group.

    Raises OSError.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as inside:
        for each in inside:
            if not each.name.lower().endswith((".dist-info", "egg-info")):
                continue
            file = Path(each, "entry_points.txt")
            with suppress(FileNotFoundError, NotADirectoryError):
                if GROUP.encode() in file.read_bytes():
                    return True
    return False


def _named(point: "EntryPoint") -> str:
    if point.dist is None:
        return "a distribution without a name"
    return f"{point.dist.name} {point.dist.version}"


def _load(point: Point) -> type[Helper]:
    from importlib.metadata import EntryPoint

    where = f"{point.distribution}: entry point {point.name} = {point.value!r}"
    try:
        value = EntryPoint(point.name, point.value, GROUP).load()
    except _ANY as error:
        raise RegistryError(_line(f"{where}: {_text(error)}")) from None
    if not isinstance(value, type) or not issubclass(value, Helper):
        raise RegistryError(f"{where}: must be a class of cthelper.core.api.Helper")
    return value


def read_folder(folder: Path, refuse: Refuse = _raise) -> Iterator[tuple[Path, bytes]]:
    """The files of a folder of plugins, which root must be able to trust.

    Each that cannot be read is given to `refuse`, see `find_helpers`.
    """
    try:
        judge_folder(folder)
        inside = sorted(folder.iterdir())
    except Untrusted as error:
        refuse(RegistryError(str(error)))
        return
    except OSError as error:
        refuse(RegistryError(f"{folder}: cannot be read: {error.strerror}"))
        return
    chosen = (
        each
        for each in inside
        if each.suffix == ".py" and not each.name.startswith(("_", "."))
    )
    yield from _read(chosen, open_trusted, refuse)


def _read(
    files: Iterable[Path], opened: Open, refuse: Refuse
) -> Iterator[tuple[Path, bytes]]:
    for file in files:
        try:
            with opened(file) as source:
                yield file.absolute(), source.read()
        except Untrusted as error:
            refuse(RegistryError(str(error)))
        except OSError as error:
            refuse(RegistryError(f"{file}: cannot be read: {error.strerror}"))


def _in_files(
    sources: Iterable[tuple[Path, bytes]], taking: Taking, refuse: Refuse
) -> Iterator[Found]:
    """The helpers that files define; a file that is wrong is refused."""
    for file, data in sources:
        try:
            yield from taking.of_file(file, data, refuse)
        except RegistryError as error:
            refuse(error)


class _Loader(SourceFileLoader):
    """Compiles the source that was read, each time.

    A .pyc is valid as long as the source's time, in seconds, and size stay, and an edit
    may be quicker than that. It would also have to be written beside the source.
    """

    def __init__(self, fullname: str, path: str, data: bytes) -> None:
        super().__init__(fullname, path)
        self._data = data

    def get_code(self, fullname: str) -> CodeType:
        """The source, compiled."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self._data, path)
        return code

    def get_data(self, path: str) -> bytes:
        """A file's bytes, of the source those that were read."""
        return self._data if path == self.path else super().get_data(path)


def module_name(file: Path) -> str:
    """What the module of a plugin's file is called in sys.modules."""
    return f"cthelper plugin {file}".replace(".", "%")


def _import_source(file: Path, data: bytes) -> ModuleType:
    """A fresh module out of a file's bytes, whatever it was imported as before.

    It stands in sys.modules, where dataclasses and `inspect` look it up, by a name that
    nothing else can have. No dot, for then it would seem to be in a package.
    """
    name = module_name(file)
    loader = _Loader(name, str(file), data)
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
        raise _located(error, str(file), str(file)) from None
    return module


def error_at(error: BaseException, module: str, source: str) -> RegistryError:
    """What code of a module has raised that is from `source`, in one line."""
    file = getattr(sys.modules.get(module), "__file__", None) or source
    return _located(error, file, source)


def _located(error: BaseException, file: str, source: str) -> RegistryError:
    line = _line_in(error, file)
    where = source
    if line is not None:
        where = f"{file}:{line}" if source == file else f"{source}: {file}:{line}"
    return RegistryError(_line(f"{where}: {_text(error)}"))


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
    if isinstance(error, ImportError) and error.name == api.__name__:
        text += f": this cthelper has API {api.API[0]}.{api.API[1]}"
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


def _line(text: str) -> str:
    """The text in one line."""
    return " ".join(text.split())

# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper new``: the skeleton of a plugin, which works as it stands."""

import argparse
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from cthelper.core.cli.options import Commands
from cthelper.core.errors import CthelperError, UsageError, replay_extra
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import Transport

# As the registry wants it, and such that it can end the name of a distribution.
_NAME = re.compile(r"[a-z]([a-z0-9_-]{0,13}[a-z0-9])?")


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "new",
        help="a plugin to start from, with its test and a capture",
        description="Writes a plugin: a helper for an example protocol, its test, a "
        "capture, and packaging with an entry point. The test passes as it stands. "
        "Needs neither root nor a configuration.",
    )
    parser.add_argument(
        "name",
        type=_name,
        metavar="NAME",
        help="the helper's name, as nft and the kernel will know it",
    )
    parser.add_argument(
        "--transport",
        choices=[str(each) for each in Transport],
        default=str(Transport.TCP),
        help="what the protocol runs over (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=7000,
        metavar="N",
        help="its control port (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="the folder to make (default: NAME)",
    )
    parser.set_defaults(command=_new)


def _new(options: argparse.Namespace) -> int:
    name: str = options.name
    transport = Transport[options.transport.upper()]
    _refuse_what_is_taken(name, transport, options.port)
    with replay_extra():
        from cthelper.core.offline.specimen import draw
    identifier = name.replace("-", "_")
    module = f"cthelper_{identifier}"
    values = {
        "name": name,
        "module": module,
        "test": f"test_{identifier}",
        # With this ending it is no keyword and hides nothing that the file imports.
        "class_name": "".join(map(str.capitalize, re.split("[-_]+", name))) + "Helper",
        "transport": options.transport,
        "port": options.port,
    }
    folder: Path = options.folder or Path(name)
    capture = folder / "captures" / f"{name}.pcap"
    try:
        folder.mkdir(parents=True)
        for template, file in (
            ("pyproject.toml", "pyproject.toml"),
            ("README.md", "README.md"),
            (f"{transport}.py", f"src/{module}.py"),
            (f"test_{transport}.py", f"tests/test_{identifier}.py"),
        ):
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(_filled(template, values), encoding="utf-8")
        capture.parent.mkdir()
        draw(capture, transport, options.port)
    except FileExistsError:
        raise CthelperError(
            f"{folder} is there already: name another --folder"
        ) from None
    except OSError as error:
        raise CthelperError(f"{error.filename or folder}: {error.strerror}") from None
    print(
        f"{folder}: the helper {name}, its test and a capture. It works as it stands:"
    )
    print(f"  cd {folder} && pytest")
    print(f"  cthelper replay --plugin {folder}/src/{module}.py {capture}")
    return 0


def _refuse_what_is_taken(name: str, transport: Transport, port: int) -> None:
    for helper in builtin_helpers().values():
        if name == helper.name:
            raise UsageError(f"{name} is a helper that cthelper has")
        if transport in helper.transports and port in helper.ports:
            raise UsageError(f"{transport} {port} is the port of {helper.name}")


def _filled(template: str, values: dict[str, object]) -> str:
    source = files("cthelper.core.cli").joinpath("templates", f"{template}.in")
    return Template(source.read_text("utf-8")).substitute(values)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be 1 to 15 characters of a-z, 0-9, - and _, "
            "a letter first, and no - or _ last"
        )
    return text


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 1 to 65535")
    return int(text)

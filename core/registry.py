# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the helpers and refuses, by name, what cannot be installed."""

import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files

from cthelper.core.api import Helper, Option, Policy, Transport
from cthelper.core.errors import RegistryError

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,14}")
_POLICY_LIMIT = 4
_KEYS = frozenset(
    {
        "enabled",
        "ports",
        "interfaces",
        "sources",
        "destinations",
        "queue",
        "policies",
    }
)


def builtin_helpers() -> dict[str, type[Helper]]:
    """The helpers of cthelper.helpers by name, in order of their names."""
    package = "cthelper.helpers"
    classes = [
        value
        for entry in sorted(files(package).iterdir(), key=lambda each: each.name)
        if entry.name.endswith(".py") and not entry.name.startswith("_")
        for value in vars(import_module(f"{package}.{entry.name[:-3]}")).values()
        if isinstance(value, type)
        and issubclass(value, Helper)
        and value.__module__ == f"{package}.{entry.name[:-3]}"
    ]
    return register(classes)


def register(classes: Iterable[type[Helper]]) -> dict[str, type[Helper]]:
    """Helpers by name, each checked. Raises RegistryError."""
    helpers: dict[str, type[Helper]] = {}
    for helper in classes:
        check(helper)
        if helper.name in helpers:
            raise _refusal(helper, "name", "is taken by another helper")
        helpers[helper.name] = helper
    return dict(sorted(helpers.items()))


def check(helper: type[Helper]) -> None:
    """Raise RegistryError, naming class and field, where the kernel or we refuse it."""
    for field in ("name", "transports", "ports", "policies"):
        if not hasattr(helper, field):
            raise _refusal(helper, field, "is missing")
    if not _NAME.fullmatch(helper.name):
        raise _refusal(
            helper,
            "name",
            "must be 1 to 15 characters of a-z, 0-9, - and _, a letter first",
        )
    if not helper.transports or not helper.transports <= set(Transport):
        raise _refusal(helper, "transports", "must name TCP, UDP or both")
    if Transport.TCP in helper.transports and helper.frame is Helper.frame:
        raise _refusal(helper, "frame", "must be written for a helper that serves TCP")
    if inspect.isabstract(helper):
        raise _refusal(helper, "on_message", "must be written")
    ports = helper.ports
    if not ports or len(set(ports)) != len(ports) or not all(map(_is_port, ports)):
        raise _refusal(helper, "ports", "must be one or more of 1 to 65535, each once")
    if not _is_port(helper.lowest_port):
        raise _refusal(helper, "lowest_port", "must be one of 1 to 65535")
    if helper.message_limit < 1:
        raise _refusal(helper, "message_limit", "must be at least 1 byte")
    _check_policies(helper, helper.policies)
    _check_options(helper, helper.options)


def _check_policies(helper: type[Helper], policies: tuple[Policy, ...]) -> None:
    if not 1 <= len(policies) <= _POLICY_LIMIT:
        raise _refusal(helper, "policies", "must be one to four")
    names = [policy.name for policy in policies]
    if len(set(names)) != len(names):
        raise _refusal(helper, "policies", "must have different names")
    for policy in policies:
        if not _NAME.fullmatch(policy.name):
            raise _refusal(helper, "policies", f"has no usable name {policy.name!r}")
        if not 1 <= policy.max_expected <= 255:
            raise _refusal(helper, "policies", "must have max_expected 1 to 255")
        if not 1 <= policy.timeout <= 86400:
            raise _refusal(helper, "policies", "must have a timeout of 1 to 86400 s")


def _check_options(helper: type[Helper], options: tuple[Option, ...]) -> None:
    names = [option.name for option in options]
    if len(set(names)) != len(names) or not _KEYS.isdisjoint(names):
        raise _refusal(helper, "options", "must have names of their own")

    for option in options:
        if type(option.default) not in (bool, int, str) or (
            option.choices and option.default not in option.choices
        ):
            raise _refusal(helper, "options", f"has no usable default of {option.name}")


def _is_port(value: int) -> bool:
    return 0 < value <= 0xFFFF


def _refusal(helper: type[Helper], field: str, why: str) -> RegistryError:
    place = f"{helper.__module__}.{helper.__qualname__}.{field}"
    value = getattr(helper, field, None)
    shown = "" if value is None or callable(value) else f" = {value!r}"
    return RegistryError(f"{place}{shown}: {why}")

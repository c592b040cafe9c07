# SPDX-License-Identifier: GPL-2.0-or-later
"""Helper classes that can be installed, and those that cannot."""

from typing import ClassVar

import pytest

from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Option, Policy
from cthelper.core.errors import RegistryError
from cthelper.core.registry import builtin_helpers, check, register


class Good(Helper):
    """Can be installed."""

    name = "good"
    transports = frozenset({UDP})
    ports = (7000,)
    policies: ClassVar[tuple[Policy, ...]] = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


class Nameless(Helper):
    """Sets nothing."""

    def on_message(self, message: Message) -> Effects:
        yield from ()


def variant(**fields: object) -> type[Helper]:
    """`Good` with other fields."""
    return type("Variant", (Good,), {"__module__": "plugin", **fields})


def refusal(helper: type[Helper]) -> str:
    with pytest.raises(RegistryError) as caught:
        check(helper)
    return str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a"},
        {"name": "a-2_x"},
        {"name": "a23456789012345"},
        {"transports": frozenset({TCP, UDP}), "frame": lambda self, data: len(data)},
        {"ports": (1, 65535)},
        {"policies": tuple(Policy(f"p{number}") for number in range(4))},
        {"policies": (Policy("data", 1, 1),)},
        {"policies": (Policy("data", 255, 86400),)},
        {"options": (Option("strict", True, "a switch"),)},
    ],
    ids=str,
)
def test_sound_helper_is_taken(fields: dict[str, object]) -> None:
    helper = variant(**fields)
    assert register([helper]) == {helper.name: helper}


NAME = "must be 1 to 15 characters of a-z, 0-9, - and _, a letter first"
LIMIT = "must have max_expected 1 to 255"
TIMEOUT = "must have a timeout of 1 to 86400 s"


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("name", "", NAME),
        ("name", "a234567890123456", NAME),
        ("name", "Upper", NAME),
        ("name", "9p", NAME),
        ("name", "white space", NAME),
        ("name", "line\n", NAME),
        ("transports", frozenset(), "must name TCP, UDP or both"),
        ("transports", frozenset({132}), "must name TCP, UDP or both"),
        ("ports", (), "must be one or more of 1 to 65535"),
        ("ports", (7000, 0), "must be one or more of 1 to 65535"),
        ("ports", (65536,), "must be one or more of 1 to 65535"),
        ("ports", (7000, 7000), "must be one or more of 1 to 65535, each once"),
        ("lowest_port", 0, "must be one of 1 to 65535"),
        ("lowest_port", 65536, "must be one of 1 to 65535"),
        ("message_limit", 0, "must be at least 1 byte"),
        ("policies", (), "must be"),
        ("policies", tuple(Policy(f"p{number}") for number in range(5)), "must be"),
        ("policies", (Policy("a"), Policy("a")), "must have different names"),
        ("policies", (Policy("A b"),), "has no usable name 'A b'"),
        ("policies", (Policy("a", 0),), LIMIT),
        ("policies", (Policy("a", 256),), LIMIT),
        ("policies", (Policy("a"), Policy("b", 1, 0)), TIMEOUT),
        ("policies", (Policy("a", 1, 86401),), TIMEOUT),
        (
            "options",
            (Option("x", 1, "one"), Option("x", 2, "two")),
            "must have names of their own",
        ),
        (
            "options",
            (Option("x", "c", "one", choices=("a", "b")),),
            "has no usable default of x",
        ),
        *(
            ("options", (Option(key, 1, "taken"),), "must have names of their own")
            for key in (
                "enabled",
                "ports",
                "interfaces",
                "sources",
                "destinations",
                "queue",
                "policies",
            )
        ),
    ],
)
def test_refusal_names_class_field_and_value(
    field: str, value: object, why: str
) -> None:
    assert refusal(variant(**{field: value})).startswith(
        f"plugin.Variant.{field} = {value!r}: {why}"
    )


def test_helper_without_on_message_is_refused() -> None:
    class Silent(Helper):
        name = "silent"
        transports = frozenset({UDP})
        ports = (7000,)
        policies = (Policy("data"),)

    with pytest.raises(RegistryError, match=r"Silent\.on_message: must be written$"):
        register([Silent])  # type: ignore[type-abstract]  # what is refused


def test_helper_for_tcp_without_frame_is_refused() -> None:
    helper = variant(transports=frozenset({TCP}))
    assert refusal(helper) == (
        "plugin.Variant.frame: must be written for a helper that serves TCP"
    )


@pytest.mark.parametrize("field", ["name", "transports", "ports", "policies"])
def test_refusal_names_the_field_that_is_missing(field: str) -> None:
    fields: dict[str, object] = {
        key: vars(Good)[key]
        for key in ("name", "transports", "ports", "policies")
        if key != field
    }
    helper = type("Partial", (Nameless,), {"__module__": "plugin", **fields})
    assert refusal(helper) == f"plugin.Partial.{field}: is missing"


def test_name_that_is_taken_is_refused() -> None:
    with pytest.raises(RegistryError) as caught:
        register([Good, variant(ports=(7001,))])
    assert str(caught.value) == (
        "plugin.Variant.name = 'good': is taken by another helper"
    )


def test_unsound_helper_is_not_registered() -> None:
    with pytest.raises(RegistryError, match="ports"):
        register([Good, variant(name="other", ports=())])


def test_helpers_come_in_order_of_their_names() -> None:
    classes = [variant(name=name) for name in ("c", "a", "b")]
    assert list(register(classes)) == ["a", "b", "c"]


def test_builtin_helpers_are_sound_and_of_this_project() -> None:
    helpers = builtin_helpers()
    assert list(helpers) == sorted(helpers)
    for name, helper in helpers.items():
        check(helper)
        assert helper.name == name
        assert helper.__module__.startswith("cthelper.helpers.")

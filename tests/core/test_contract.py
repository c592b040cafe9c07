# SPDX-License-Identifier: GPL-2.0-or-later
"""Helper classes that can be installed, and those that cannot."""

from typing import ClassVar

import pytest

from cthelper.core.api import (
    API,
    BROADCAST,
    TCP,
    UDP,
    Effects,
    Helper,
    Message,
    Option,
    Policy,
)
from cthelper.core.contract import check
from cthelper.core.errors import RegistryError
from cthelper.core.registry import register


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
        {"options": (Option("words", (), "a list", element=str),)},
        {"options": (Option("word", "", "a text", element=str),)},
        {"destinations": (BROADCAST,)},
        {"enabled": False},
        {"template": True, "ports": ()},
        {"options": (Option("words", ("a",), "some of", ("a", "b")),)},
        {"nat": False},
        {"api": API},
        {"tags_expected": classmethod(lambda cls, options: True)},
    ],
    ids=" ".join,
)
def test_sound_helper_is_taken(fields: dict[str, object]) -> None:
    helper = variant(**fields)
    assert register([helper]) == {helper.name: helper}


API_FORM = "must be two numbers such as (1, 0)"
HERE = f"this cthelper has API {API[0]}.{API[1]}"
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
        ("name", 7, NAME),
        ("name", None, NAME),
        ("transports", {UDP}, "must name TCP, UDP or both, in a frozenset"),
        ("transports", UDP, "must name TCP, UDP or both, in a frozenset"),
        ("transports", frozenset(), "must name TCP, UDP or both"),
        ("transports", frozenset({132}), "must name TCP, UDP or both"),
        ("ports", (), "must be one or more of 1 to 65535"),
        ("ports", (7000, 0), "must be one or more of 1 to 65535"),
        ("ports", (65536,), "must be one or more of 1 to 65535"),
        ("ports", (7000, 7000), "must be one or more of 1 to 65535, each once"),
        ("ports", 7000, "must be one or more of 1 to 65535"),
        ("ports", [7000], "must be one or more of 1 to 65535, each once, in a tuple"),
        ("ports", ("7000",), "must be one or more of 1 to 65535"),
        ("ports", (True,), "must be one or more of 1 to 65535"),
        ("hooks", frozenset(), "must name one Hook or more, in a frozenset"),
        ("hooks", ("output",), "must name one Hook or more, in a frozenset"),
        (
            "destinations",
            ("::/0",),
            "must be a tuple of IPv4Network, IPv6Network and BROADCAST",
        ),
        ("enabled", 1, "must be True or False"),
        ("template", None, "must be True or False"),
        ("ports", (), "must be one or more of 1 to 65535, each once, in a tuple"),
        ("lowest_port", "512", "must be one of 1 to 65535"),
        ("nat", 1, "must be True or False"),
        *(("api", value, API_FORM) for value in (1, "1.0", (1,), (1, "0"), [1, 0, 0])),
        ("api", (API[0], API[1] + 1), f"{HERE}: install a newer one"),
        ("api", (API[0] + 1, 0), f"{HERE}: install a newer one"),
        ("api", (API[0] - 1, 9), f"{HERE}: the plugin must be changed for it"),
        ("message_limit", 1.5, "must be at least 1 byte"),
        ("policies", Policy("data"), "must be a tuple of Policy"),
        ("policies", ("data",), "must be a tuple of Policy"),
        ("options", (("x", 1),), "must be a tuple of Option"),
        ("options", (Option("x y", 1, "a blank"),), "has no usable name 'x y'"),
        ("options", (Option("x", 1, "", (1, True)),), "has no usable default of x"),
        ("options", (Option("x", 1, "", None),), "has no usable default of x"),  # type: ignore[arg-type]  # what is refused
        ("options", (Option("x", (), "a list"),), "has no usable default of x"),
        (
            "options",
            (Option("x", ("c",), "a list", ("a", "b")),),
            "has no usable default of x",
        ),
        (
            "options",
            (Option("x", (), "a list", ("a",), element=str),),
            "has no usable default of x",
        ),
        (
            "options",
            (Option("x", 1, "", (1,), element=lambda value: value),),
            "has no usable default of x",
        ),
        ("tags_expected", True, "must be a class method"),
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
                "queueing",
                "fail_closed",
                "policies",
                "hooks",
                "guard",
                "nat",
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


def test_version_is_looked_at_before_anything_else() -> None:
    """What a newer API allows may be wrong here, and is not the point."""
    newer = variant(api=(API[0], API[1] + 1), ports="any")
    assert refusal(newer).endswith(f"{HERE}: install a newer one")


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


def test_either_way_to_frame_is_enough() -> None:
    for way in ("frame", "frame_of"):
        method = {way: lambda self, *data: None}
        check(variant(transports=frozenset({TCP}), **method))


async def coroutine(self: Helper, message: Message) -> None:
    pass


def initialised(self: Helper, depth: int) -> None:
    pass


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        (
            "on_message",
            lambda self: iter(()),
            "a method: def on_message(self, message)",
        ),
        (
            "on_message",
            lambda self, message, now: iter(()),
            "a method: def on_message(self, message)",
        ),
        (
            "on_message",
            staticmethod(lambda message: iter(())),
            "a method: def on_message(self, message)",
        ),
        (
            "on_message",
            coroutine,
            "a method: def on_message(self, message), and not async",
        ),
        ("frame", lambda data: None, "a method: def frame(self, data)"),
        (
            "frame_of",
            lambda self, data: None,
            "a method: def frame_of(self, direction, data)",
        ),
        ("describe", lambda self: {}, "a method: def describe(self, message)"),
    ],
)
def test_method_with_another_signature_is_refused(
    field: str, value: object, why: str
) -> None:
    assert (
        refusal(variant(**{field: value})) == f"plugin.Variant.{field}: must be {why}"
    )


def test_method_that_is_none_is_refused() -> None:
    assert refusal(variant(describe="what")) == (
        "plugin.Variant.describe = 'what': "
        "must be a method: def describe(self, message)"
    )


def test_helper_that_wants_arguments_is_refused() -> None:
    assert refusal(variant(__init__=initialised)) == (
        "plugin.Variant.__init__: must take no argument but self: "
        "missing a required argument: 'depth'"
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

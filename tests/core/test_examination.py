# SPDX-License-Identifier: GPL-2.0-or-later
"""Any answer of an examined process is a helper, or an error that names its source."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper import nft
from cthelper.core.config import parse
from cthelper.core.contract import check_values
from cthelper.core.declaration import declare, facts
from cthelper.core.errors import ConfigError, RegistryError
from cthelper.core.examination import Ended, Examining, refused
from cthelper.core.reference import table
from cthelper.core.registry import Found, Point, classes, find_helpers
from cthelper.plugins.iperf import Iperf
from tests.core.test_registry import good

FILE = Path("/etc/plugins/x.py")
POINT = Point("x", "some.where:X", "cthelper-x 1.2")
SETTINGS = "[helpers.x]\nports = [7001]\n"
SOUND: dict[str, Any] = declare(Iperf, "about", None).packed()


def here(work: Callable[[], bytes], _module: str, *_readable: Path) -> bytes:
    """Does it in this process."""
    return work()


def answering(data: bytes) -> Examining:
    """Examines in a process that answers this."""
    return Examining(lambda *_: data, "")


def taken(data: bytes) -> tuple[list[Found], list[str]]:
    """What an answer about a file comes to: helpers, and what was refused."""
    wrong: list[RegistryError] = []
    found: list[Found] = []
    try:
        found = answering(data).of_file(FILE, b"", wrong.append)
    except RegistryError as error:
        wrong.append(error)
    return found, list(map(str, wrong))


def test_helper_of_a_file_is_known_by_what_it_declares() -> None:
    refusals: list[RegistryError] = []
    text = good("x", 7000, "X") + good("y", 0, "Y") + good("z", 7002, "Z")
    found = Examining(here, SETTINGS).of_file(FILE, text.encode(), refusals.append)
    assert [each.helper.name for each in found] == ["x", "z"]
    assert {each.source for each in found} == {str(FILE)}
    (wrong,) = map(str, refusals)
    assert wrong == (
        f"{FILE}:20: Y.ports = (0,): must be one or more of 1 to 65535, each once, "
        "in a tuple"
    )
    assert not any(each.builtin for each in found)


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("\n1 / 0\n", ":2", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", ":1", "SystemExit: 3"),
        ("x = (", ":1", "SyntaxError: '(' was never closed"),
        (
            "x = 1",
            "",
            "defines no helper, which is a class of cthelper.core.api.Helper",
        ),
        (
            good("x", 7000, "X")
            + "    @classmethod\n    def prefilter(cls, _):\n        return 1 / 0\n",
            ":15",
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_error_is_that_of_an_import(text: str, line: str, error: str) -> None:
    refusals: list[RegistryError] = []
    found = Examining(here, "").of_file(FILE, text.encode(), refusals.append)
    assert found == []
    assert list(map(str, refusals)) == [f"{FILE}{line}: {error}"]


def test_name_that_is_taken_is_refused_with_its_line(tmp_path: Path) -> None:
    files = [tmp_path / "one.py", tmp_path / "two.py"]
    for file in files:
        file.write_text(good("x", 7000, "X"))
    with pytest.raises(RegistryError) as caught:
        find_helpers(None, files, taking=Examining(here, ""))
    one, two = files
    assert str(caught.value) == f"{two}:6: X.name = 'x': is taken by {one}"


def test_entry_point_is_examined_and_left_out_where_it_is_broken() -> None:
    taking = Examining(here, "")
    found = taking.of_point(Point("iperf", "cthelper.plugins.iperf:Iperf", "ours 1.2"))
    assert (found.helper.name, found.distribution) == ("iperf", "ours 1.2")
    assert found.source == "ours 1.2 (cthelper.plugins.iperf:Iperf)"
    assert "payloads.h" in found.about
    for value, error in (
        ("absent_x:X", "ModuleNotFoundError: No module named 'absent_x'"),
        ("os:path", "must be a class of cthelper.core.api.Helper"),
    ):
        with pytest.raises(RegistryError) as caught:
            taking.of_point(Point("x", value, "ours 1.2"))
        assert str(caught.value) == f"ours 1.2: entry point x = {value!r}: {error}"


@pytest.mark.parametrize(("line", "at"), [(None, ""), (7, ":7")])
def test_end_without_an_answer_is_said_with_its_line(line: int | None, at: str) -> None:
    def ends(_work: object, _module: str, *_readable: Path) -> bytes:
        raise Ended("ends its process (exit code 3)", line)

    taking = Examining(ends, "")
    with pytest.raises(RegistryError) as caught:
        taking.of_file(FILE, b"", lambda _: None)
    assert str(caught.value) == f"{FILE}{at}: ends its process (exit code 3)"
    with pytest.raises(RegistryError) as caught:
        taking.of_point(POINT)
    where = "" if line is None else " at line 7 of some.where"
    assert str(caught.value) == (
        "cthelper-x 1.2: entry point x = 'some.where:X': ends its process "
        f"(exit code 3){where}"
    )


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff\xfe\0", b"{}", b"[]", b"[1]", b"[{}]", b"1", b"null"),
        *(b"[" * 100_000, b"9" * 10_000, b'[{"error": 1}]', b'[{"error": "x"}'),
        json.dumps([{**SOUND, "nat": "x"}]).encode(),
        json.dumps([{**SOUND, "ports": [1e999]}]).encode(),
    ],
    ids=lambda data: repr(data[:16]),
)
def test_answer_that_is_none_is_refused(data: bytes) -> None:
    found, wrong = taken(data)
    assert found == []
    (error,) = wrong
    assert error.startswith(f"{FILE}: what it declares ")


def test_error_names_its_source_whatever_it_says() -> None:
    for text in ("it was /etc/passwd", f"{FILE}:7: x", "a\nb\x1b[2J" + "x" * 5000):
        _, (error,) = taken(refused(text))
        assert error.startswith(f"{FILE}:")
        assert error.isprintable()
        assert len(error) < 1100


def test_entry_point_declares_one_helper() -> None:
    for count in (0, 2):
        data = json.dumps([SOUND] * count).encode()
        with pytest.raises(RegistryError, match=r"^cthelper-x 1\.2: "):
            answering(data).of_point(POINT)


def test_helper_cannot_take_the_place_of_one_that_is_built_in() -> None:
    forged = answering(json.dumps([{**SOUND, "name": "tns"}]).encode())
    refusals: list[RegistryError] = []
    file = Path(__file__)
    found = find_helpers(None, [file], refusals.append, taking=forged)
    assert found["tns"].builtin
    assert "is taken by cthelper.helpers.tns" in str(refusals[0])


PARTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**33)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["tcp", "udp", "prerouting", "10.0.0.0/8", "data", [0, 8, 1]]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "default", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.binary() | st.binary().map(lambda data: b"[{" + data + b"}]"))
def test_any_bytes_are_helpers_or_an_error(data: bytes) -> None:
    found, wrong = taken(data)
    assert found or wrong
    assert all(each.startswith(str(FILE)) for each in wrong)


@given(
    st.dictionaries(st.sampled_from(sorted(SOUND)), PARTS, min_size=1, max_size=3),
    st.dictionaries(
        st.sampled_from(["name", "default", "meaning", "choices", "elements"]),
        PARTS,
        max_size=3,
    ),
)
def test_any_declaration_is_one_that_can_be_used_or_an_error(
    changes: dict[str, object], option: dict[str, object]
) -> None:
    plain = {"name": "depth", "default": 1, "meaning": "x", "choices": []}
    changed = {**SOUND, "options": [{**plain, **option}], **changes}
    found, wrong = taken(json.dumps([changed]).encode())
    assert bool(found) != bool(wrong)
    for each in found:
        check_values(each.helper)
        assert table(each.helper).encode()
        text = f"[helpers.{each.helper.name}]\ndepth = 2\n"
        try:
            config = parse(text, FILE, classes({each.helper.name: each}))
        except ConfigError:
            continue
        assert nft.render(config)
        for helper in config.helpers.values():
            assert facts(helper.helper, helper.options)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of cases that have names."""

from collections.abc import Mapping

import pytest


def cases(arguments: str, table: Mapping[str, object]) -> pytest.MarkDecorator:
    """The mark that gives a test these cases: its arguments, by the case's name.

    `arguments` are their names, with commas; of several, a case has as many values.
    """
    return pytest.mark.parametrize(arguments, list(table.values()), ids=list(table))

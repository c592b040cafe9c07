# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what packets pass through is compiled here, or interpreted (setup.py)."""

from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

from cthelper.core import tuples

COMPILED: Final = tuples.__file__.endswith(tuple(EXTENSION_SUFFIXES))
"""Whether mypyc compiled it; all or nothing of what setup.py names is."""

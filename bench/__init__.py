# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: ratios within one run, medians of several rounds."""

from typing import Final

UNLIMITED: Final = """
[guard]
in_all = 0
[helpers.sunrpc.guard]
per_source = 0
per_helper = 0
"""
"""A configuration in which the guard counts and refuses nothing for being too much."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: ratios within one run, medians of several rounds."""

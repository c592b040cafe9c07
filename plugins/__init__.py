# SPDX-License-Identifier: GPL-2.0-or-later
"""Helpers that ship as examples for authors of plugins."""

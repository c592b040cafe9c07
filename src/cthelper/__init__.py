# SPDX-License-Identifier: GPL-2.0-or-later
"""Userspace connection-tracking helpers for Linux. The API is cthelper.core.api."""

__version__ = "0.1.0"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: its processes, and what they hold of the kernel."""

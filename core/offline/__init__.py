# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures in place of the kernel: reading them, a model of conntrack, replay."""

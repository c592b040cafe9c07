# SPDX-License-Identifier: GPL-2.0-or-later
"""NFQUEUE: packets in, verdicts out, by one of two backends."""

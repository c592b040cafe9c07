# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: what a running daemon tells of itself and can be told to do."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Built-in helpers, one module a protocol, and the wire code that they share."""

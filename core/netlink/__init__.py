# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's netlink protocols: values in and out, no policy."""

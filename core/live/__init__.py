# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel side: queues, netlink, registration, the daemon."""

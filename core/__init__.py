# SPDX-License-Identifier: GPL-2.0-or-later
"""The host: runs helpers on packets, in the daemon and in tests alike."""

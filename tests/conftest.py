# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles of hypothesis: `dev` by default, `ci` where the environment has CI."""

import os

from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=500, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

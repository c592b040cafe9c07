# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m cthelper``: the command line, where no script is installed."""

import sys

from cthelper.core.cli import main

sys.exit(main())

# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension in C with the sanitizers (script/sanitize), in the other's place."""

import importlib.util
import os
import sys


def use_native() -> None:
    """Load the one that CTHELPER_NATIVE names, if it does; before any other is."""
    file = os.environ.get("CTHELPER_NATIVE")
    if not file:
        return
    spec = importlib.util.spec_from_file_location("cthelper.core.queue._native", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a start costs: imports, configuration and ruleset text.

usage: python -m bench.start [--rounds N]

CPU seconds (user and system) of ``cthelper ruleset show`` with every default. The last
line of the output is JSON.
"""

import argparse
import json
import statistics
import sys

from bench import cpu_seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    command = (sys.executable, "-m", "cthelper", "ruleset", "show")
    seconds = [cpu_seconds("ruleset show", command) for _ in range(options.rounds)]
    print(f"start: {statistics.median(seconds):.2f} s of CPU, {options.rounds} rounds")
    print(json.dumps({"seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

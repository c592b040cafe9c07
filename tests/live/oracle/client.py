# SPDX-License-Identifier: GPL-2.0-or-later
"""Connect to databases with python-oracledb, and print what it says.

For each line ``NAME CONNECT-STRING`` of standard input it connects, and prints
``{"name": NAME, "error": what the client says}``. Several lines run at a time.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import oracledb

# The client puts more than 230 bytes of connect data into a packet of their own, and
# its program's name is part of them.
PROGRAM = "-".join(("a", *("very",) * 20, "long", "name"))


def connect(line: str) -> None:
    """Connect once."""
    name, connect_string = line.split()
    error = ""
    try:
        oracledb.connect(f"scott/tiger@{connect_string}", program=PROGRAM).close()
    except oracledb.Error as reason:
        error = str(reason)
    print(json.dumps({"name": name, "error": error}), flush=True)


def main() -> None:
    """Serve standard input to its end."""
    with ThreadPoolExecutor() as threads:
        for line in sys.stdin:
            threads.submit(connect, line)


if __name__ == "__main__":
    main()

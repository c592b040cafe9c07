# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that has settled frees what it used, and collects what a plugin left."""

import json
import subprocess
import sys

# In a process of its own, since it is for good.
SCRIPT = """
import gc, json, weakref
from cthelper.core.daemon.memory_settings import settle

class Node:
    pass

settle()
node = Node()
node.itself = node
gone = weakref.ref(node)
del node
kept = [[] for _ in range(50_000)]
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1])
for _ in range(3):
    tables = [dict.fromkeys(range(count)) for count in (300_000, 600_000)]
    tables.clear()
with open("/proc/self/statm") as file:
    after = int(file.read().split()[1])
print(json.dumps([gone() is None, gc.get_freeze_count() > 1000, after - before]))
"""


def test_cycles_are_collected_and_large_tables_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    collected, frozen, pages = json.loads(done.stdout)
    assert collected
    assert frozen
    assert pages < 3000  # 12 MiB of the 60 that both tables took

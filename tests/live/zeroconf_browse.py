# SPDX-License-Identifier: GPL-2.0-or-later
"""Looks for HTTP services with python-zeroconf, and prints the name of each.

usage: zeroconf_browse.py ADDRESS QM|QU    (own address, and the questions to ask)
"""

import sys
import time

from zeroconf import DNSQuestionType, ServiceBrowser, ServiceStateChange, Zeroconf

# A browser asks three times within the first five seconds.
_SECONDS = 5.0


def on_change(
    zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
) -> None:
    """Print what was found."""
    if state_change is ServiceStateChange.Added:
        print(name, flush=True)


if __name__ == "__main__":
    with Zeroconf(interfaces=[sys.argv[1]]) as zeroconf:
        ServiceBrowser(
            zeroconf,
            "_http._tcp.local.",
            handlers=[on_change],
            question_type=DNSQuestionType[sys.argv[2]],
        )
        time.sleep(_SECONDS)

# SPDX-License-Identifier: GPL-2.0-or-later
"""usage: server.py FOLDER PORT - pyftpdlib for anonymous readers, IPv4 and IPv6."""

import socket
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

folder, port = sys.argv[1:]
authorizer = DummyAuthorizer()
authorizer.add_anonymous(folder)
FTPHandler.authorizer = authorizer
with socket.create_server(
    ("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True
) as listener:
    FTPServer(listener, FTPHandler).serve_forever()

# SPDX-License-Identifier: GPL-2.0-or-later
"""usage: client.py HOST PORT [active] [ccc] - prints a server's file, by ftplib.

With ccc it logs in by TLS, which then ends.
"""

import ftplib
import ssl
import sys

host, port, *how = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
ftp = ftplib.FTP_TLS(context=context) if "ccc" in how else ftplib.FTP()
ftp.connect(host, int(port), timeout=20)
ftp.login()
if isinstance(ftp, ftplib.FTP_TLS):
    ftp.ccc()
ftp.set_pasv("active" not in how)
ftp.retrlines("RETR file")
ftp.quit()

"""Asks the service of this container whether it lives: exit status 0 or 1.

The certificate, where there is one, is made for the name by which others know the service, and is
not looked at. A service that asks its clients for certificates (mutual TLS) cannot be asked this
way: leave the check out there.
"""

import os
import ssl
import sys
import urllib.request

URL = os.environ.get("MARROW_NODE_HEALTH_URL", "http://127.0.0.1:8080/healthz")

try:
    with urllib.request.urlopen(URL, timeout=5, context=ssl._create_unverified_context()):  # noqa: S310, S323
        pass
except OSError as error:
    sys.exit(f"{URL}: {error}")

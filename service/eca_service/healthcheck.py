"""Health check for containers without curl: exits with 0 for a response of 200, with 1 for anything else.

    python -m eca_service.healthcheck http://127.0.0.1:8000/readyz

Imports only the standard library, because it runs every few seconds.
"""

import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 2.5


def main(argv: list[str]) -> int:
    """Request the one URL that is given."""
    if len(argv) != 1 or not argv[0].startswith("http://"):
        return 2
    # No proxy: the service runs on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(argv[0], timeout=_TIMEOUT_S) as response:
            return 0 if response.status == 200 else 1
    except (urllib.error.URLError, OSError):
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

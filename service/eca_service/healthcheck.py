"""Ask an address whether all is well: ends with 0 for a 200, with 1 for anything else. For containers without curl.

    python -m eca_service.healthcheck http://127.0.0.1:8000/readyz

Knows nothing of the service; costs no import of it.
"""

import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 2.5


def main(argv: list[str]) -> int:
    """Ask the one address that is given."""
    if len(argv) != 1 or not argv[0].startswith("http://"):
        return 2
    # No proxy: what is asked for stands on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(argv[0], timeout=_TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError):
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How a program of this folder runs: its exit code, and one sentence for a mistake."""

import signal
import sys
from collections.abc import Callable

from eca_hub.errors import EcaHubError


def run_program(main: Callable[[list[str]], int]) -> None:
    """Run `main` with the arguments of the command line, then end the process."""
    # So that `finally` ends the processes that a bench has started when this one is terminated.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        code = main(sys.argv[1:])
    except EcaHubError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)

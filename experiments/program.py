"""How a program of this folder runs: its exit code, and one sentence for a mistake."""

import sys
from collections.abc import Callable

from eca_hub.errors import EcaHubError


def run_program(main: Callable[[list[str]], int]) -> None:
    """Run `main` with the arguments of the command line, then end the process."""
    try:
        code = main(sys.argv[1:])
    except EcaHubError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)

"""Named moments at which a test may kill the hub, make a step fail, or fill the disk.

Knows nothing about what happens at those moments. Outside of tests every call is a no-op: a fault needs both
`ECA_TESTING=1` and `ECA_FAULT="name:kill|raise|enospc[:nth]"` in the environment of the process.
"""

import errno
import os
import signal
from itertools import count

FAULTPOINTS = (
    "blob.before_write",
    "blob.half_written",
    "blob.before_rename",
    "blob.after_rename",
    "xorb.before_rename",
    "shard.before_rebuild",
    "shard.after_rebuild",
    "part.after_write",
    "commit.before_write",
    "commit.before_rename",
    "commit.after_rename",
    "refs.before_write",
    "refs.before_rename",
    "refs.after_rename",
    "identity.before_write",
    "identity.before_rename",
    "identity.after_rename",
    "repo.before_names",
    "names.before_write",
    "names.before_rename",
    "names.after_rename",
)
"""Every point there is, so that a test can walk them all."""

_hits = {name: count(1) for name in FAULTPOINTS}


def faultpoint(name: str) -> None:
    """Fail here if the environment asks for it; otherwise do nothing."""
    assert name in _hits, f"{name} is not in FAULTPOINTS"
    if os.environ.get("ECA_TESTING") != "1":
        return
    wanted, _, rest = os.environ.get("ECA_FAULT", "").partition(":")
    if wanted != name:
        return
    action, _, nth = rest.partition(":")
    if next(_hits[name]) != int(nth or 1):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "enospc":
        raise OSError(errno.ENOSPC, "No space left on device (a test asked for this)")
    raise RuntimeError(f"a test asked for a failure at {name}")

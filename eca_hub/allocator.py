"""Keep freed memory instead of returning it to the system after every layer, which costs up to a third of the speed.

It concerns the whole process, so that only commands and launchers call it. Elsewhere than with glibc it does nothing.
"""

import ctypes
import logging
import sys

# From malloc.h. The threshold for separate mappings may be 32 MiB at most.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_TUNING = {_M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 16 * 2**20}


def keep_freed_memory() -> bool:
    """Tune glibc's allocator; return whether that worked. Costs some resident memory."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    is_tuned = all(mallopt(parameter, value) for parameter, value in _TUNING.items())
    logging.getLogger(__name__).debug("allocator tuned: %s", is_tuned)
    return is_tuned

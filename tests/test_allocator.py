"""Freed memory stays with a process that asks for it, and is returned to the system when the service trims it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is tuned")

_PROBE = """
import sys
from eca_hub.allocator import keep_freed_memory
from eca_service.optimize.optimize import trim_heap

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def mib_kept_of_30():
    before_mib = resident_mib()
    memory = bytearray(30 * 2**20)
    del memory
    return round(resident_mib() - before_mib)

default_mib = mib_kept_of_30()
if not keep_freed_memory():
    raise SystemExit("not glibc")
kept_mib = mib_kept_of_30()
before_mib = resident_mib()
trim_heap()
print(default_mib, kept_mib, round(before_mib - resident_mib()))
"""


def test_freed_memory_is_kept_on_request_until_it_is_trimmed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROBE], check=True, capture_output=True, text=True)
    default_mib, kept_mib, trimmed_mib = map(int, done.stdout.split())
    assert default_mib < 5
    assert kept_mib > 25
    assert trimmed_mib > 25

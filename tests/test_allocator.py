"""Freed memory stays with a process that asks for it, and is returned to the system when the service trims it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is tuned")

_KEEP = """
import sys
from eca_hub.allocator import keep_freed_memory

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
print(default_mib, kept_mib)
"""
_IMPORT = "from eca_service.optimize.optimize import trim_heap"
_TRIM = """
before_mib = resident_mib()
trim_heap()
print(round(before_mib - resident_mib()))
"""


def printed_by(program: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()]


def test_freed_memory_is_kept_on_request() -> None:
    default_mib, kept_mib = printed_by(_KEEP)
    assert default_mib < 5
    assert kept_mib > 25


@pytest.mark.slow
def test_freed_memory_is_kept_until_the_service_trims_it() -> None:
    *_, trimmed_mib = printed_by(_IMPORT + _KEEP + _TRIM)
    assert trimmed_mib > 25

"""Freed memory stays with a process that asks for it, and goes back when it says so."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is tuned")

_PROBE = """
import sys
from eca_hub.allocator import give_memory_back, keep_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "kept" and not keep_freed_memory():
    raise SystemExit("not glibc")
before_mib = resident_mib()
memory = bytearray(30 * 2**20)
del memory
after_mib = resident_mib()
give_memory_back()
print(round(after_mib - before_mib), round(resident_mib() - before_mib))
"""


def resident_after_30_mib_were_freed(how: str) -> list[int]:
    """MiB more than before: right after, and after `give_memory_back`."""
    done = subprocess.run([sys.executable, "-c", _PROBE, how], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def test_freed_memory_goes_back_to_the_system_unless_somebody_asks_to_keep_it() -> None:
    assert resident_after_30_mib_were_freed("default")[0] < 5


def test_kept_memory_stays_until_it_is_given_back() -> None:
    kept_mib, returned_mib = resident_after_30_mib_were_freed("kept")
    assert kept_mib > 25
    assert returned_mib < 5

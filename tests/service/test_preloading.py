"""torch's machine code, loaded before torch is."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys
from pathlib import Path
from eca_service.preloading import preload_torch
preload_torch().join()
assert "torch" not in sys.modules
assert "libtorch_cpu" in Path("/proc/self/maps").read_text()
import torch
assert torch.ones(2).sum() == 2
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is loaded")
def test_the_library_is_loaded_before_torch_is_imported_and_torch_works() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_torch_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from eca_service import preloading

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    preloading.preload_torch().join()

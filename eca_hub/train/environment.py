"""The environment of a run: machine, packages and state of the source."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from eca_hub.attention.cpu_kernel import fused
from eca_hub.processor import num_usable_cores

_IMPORTS_VARIABLE = "ECA_TRAIN_IMPORTS"
_PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "numpy", "pillow", "eca-hub")


def describe_environment(num_devices: int, device: torch.device) -> dict[str, Any]:
    """Return machine, packages and source as a JSON object."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device_name(device),
        "num_devices": num_devices,
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        # The last bits of its sums differ from those of torch's own operations.
        "eca_kernel": fused.is_built,
        "command": ["eca-hub", *sys.argv[1:]],
        "git": git_state(Path(__file__).parent),
    }


def imports_of_the_user() -> list[str]:
    """Return the modules in ECA_TRAIN_IMPORTS, whose classes the configuration may name."""
    return [name for name in os.environ.get(_IMPORTS_VARIABLE, "").split(",") if name]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and changed files of a source tree; None without git or outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = (_git(folder, "status", "--porcelain", "--untracked-files=no") or "").splitlines()
    return {"commit": commit, "changed_files": [line[3:] for line in changed]}


def device_name(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({num_usable_cores()} cores, {platform.machine()})"


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the peak memory of the device, or on a CPU of this process, in MiB; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _git(folder: Path, *args: str) -> str | None:
    try:
        completed = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.rstrip() if completed.returncode == 0 else None

"""Load torch's machine code in a thread, while Python imports what else the service needs.

Python holds its lock while it loads a library, so that imports in two threads take as long as one after the other. The
C library, when it is called as here, does not: a fifth of what `import torch` takes is over when that begins.

Knows where torch keeps its libraries; imports nothing of it.
"""

import ctypes
import importlib.util
import os
import threading
from pathlib import Path


def preload_torch() -> threading.Thread:
    """Begin to load; whatever goes wrong is left for `import torch` to say."""
    loading = threading.Thread(target=_load, name="preload", daemon=True)
    loading.start()
    return loading


def _load() -> None:
    torch = importlib.util.find_spec("torch")
    libraries = Path(torch.origin).parent / "lib" if torch and torch.origin else None
    if libraries is None or not hasattr(os, "RTLD_NOW"):
        return
    # Not libtorch_python, which must not be loaded without Python's lock.
    for name in ("libtorch.so", "libtorch.dylib"):
        if (libraries / name).exists():
            ctypes.CDLL(None).dlopen(os.fsencode(libraries / name), os.RTLD_NOW)

"""timm and torchvision, where the networks come from, imported without torch's compiler.

torchvision imports the compiler for one function that it calls when it pools boxes, and timm to mark one method that
shall not be compiled. That takes more than a second, a third of the time before the first answer of a command that
never compiles. So while the two are imported, a function of the compiler is one that imports it when it is called.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch._compile import _disable_dynamo

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


class _Later(ModuleType):
    """Stands in for a module until one of its functions is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            _remove_stand_ins()
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return call

    def disable(self, fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        """Mark what shall not be compiled, as torch itself does where it must not import the compiler."""
        return _disable_dynamo(fn, recursive)


@contextmanager
def _without_compiler() -> Iterator[None]:
    if _COMPILER[0] not in sys.modules:
        sys.modules.update({name: _Later(name) for name in _COMPILER})
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    for name in _COMPILER:
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


with _without_compiler():
    import timm
    import torchvision

__all__ = ["timm", "torchvision"]

"""Stands in for SGLang's kernels, which are built for GPUs only: every import succeeds, every call raises.

SGLang's plain PyTorch paths run without them on a CPU. `sgl_kernel.scalar_type` stays absent: SGLang has its own
stand-in for it.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any


def _absent(name: str) -> Any:
    def call(*_arguments: Any, **_options: Any) -> Any:
        raise NotImplementedError(f"{name} is a GPU kernel of SGLang; this environment stands in for them")

    call.__name__ = call.__qualname__ = name
    return call


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _absent(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("sgl_kernel.") or fullname == "sgl_kernel.scalar_type":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _absent(f"sgl_kernel.{name}")


sys.meta_path.append(_Finder())

"""Before torchvision is imported: two of its operators, so that it loads beside a torch that it was not built for.

Nothing here calls them; their definitions must exist, because torchvision registers their shapes at import. They are
defined on the import of torchvision, so that other programs of this interpreter do not load torch for nothing.
"""

import importlib.abc
import importlib.machinery
import sys
from typing import Any

_kept: list[Any] = []  # a torch library's operators last as long as it does


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _define_operators()
        return None


def _define_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())

"""Makes ``import torchvision`` work beside a CPU-only torch. Import this module before torchvision.

The torchvision wheel on the Python index is linked against CUDA. Beside a CPU-only torch its compiled operators do not
load, and the import then fails with ``operator torchvision::nms does not exist``, because torchvision registers the
shape functions of operators that nobody declared. Declaring the two schemas is enough; box operators themselves stay
unavailable, and nothing here uses them. Where the compiled operators do load, this module does nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_fragment: torch.library.Library | None = None


def _compiled_ops_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return hasattr(torch.ops.torchvision, "nms")
    return False


if not _compiled_ops_load():
    # Kept alive at module level: the schemas vanish with the Library object.
    _fragment = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _fragment.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""Makes torchvision's published build importable beside a CPU build of torch; import this before a peer.

Its compiled operators need CUDA's libraries there. Training needs none of them, only that their names exist.
"""

from __future__ import annotations

import torch

_KEPT: list[torch.library.Library] = []  # a library's definitions go when it does
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

if not torch.backends.cuda.is_built():
    for schema in _SCHEMAS:
        try:
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _KEPT.append(library)
        except RuntimeError:  # it is there already
            pass

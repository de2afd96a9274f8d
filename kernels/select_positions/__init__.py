"""Where to roll out: one position in each chunk of a row (arXiv 2602.16704, section 3.1)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Rule = Literal["sample", "uniform", "argmax", "argmin"]


def smooth(scores: Tensor, kernel: int) -> Tensor:
    """Average scores [R, T] over ``kernel`` neighbours: [R, T].

    The pool has stride 1 and zero padding; an even kernel is widened by one.
    """
    kernel += 1 - kernel % 2
    return F.avg_pool1d(scores[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]

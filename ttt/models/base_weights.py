"""What identifies a model's base weights: a hash of all bits, and sums that are fast to compare."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types by the bytes of an element."""


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash weights (SHA-256): names, shapes, types and every bit of their values.

    They are copied to the host and hashed by one thread, which takes seconds for a large model.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(named):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        flat = weight.detach().contiguous().view(-1).view(torch.uint8)
        digest.update(flat.cpu().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def checksums(weights: Iterable[Tensor]) -> Tensor:
    """Sum the bits of each weight as integers, modulo 2^64, on its device: [number of weights].

    A change of one value, whatever its size, changes a sum. Weights are read once and nothing is
    copied, so it takes the time of one decoded token.
    """
    sums = [w.view(INTEGERS[w.element_size()]).sum(dtype=torch.int64) for w in weights]
    return torch.stack(sums)

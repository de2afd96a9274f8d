"""Sums of the base weights' bits notice what the hash notices, without leaving the device."""

import pytest
import torch

from refine_server.ttt.models.base_weights import checksums, fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_bit_of_any_weight_changes_the_sums(dtype: torch.dtype) -> None:
    weights = [torch.randn(5, 7).to(dtype), torch.randn(6, 4).to(dtype).T]  # one is transposed
    before = checksums(weights)
    assert torch.equal(checksums([w.clone() for w in weights]), before)
    for index, place in ((0, (4, 6)), (1, (3, 5))):
        changed = [w.clone() for w in weights]
        bits = changed[index].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
        bits[place] ^= 1
        sums = checksums(changed)
        assert (sums != before).tolist() == [index == 0, index == 1]
        names = ("a", "b")
        hashes = {fingerprint(zip(names, own, strict=True)) for own in (weights, changed)}
        assert len(hashes) == 2


def test_a_minus_zero_is_a_change() -> None:
    assert not torch.equal(checksums([torch.zeros(3)]), checksums([-torch.zeros(3)]))

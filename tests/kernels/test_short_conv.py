"""The short convolution as shifted multiply-adds equals torch's conv1d."""

from collections.abc import Callable

import pytest
import torch

from refine_server.kernels.short_conv import eager, naive

pytestmark = pytest.mark.usefixtures("nan_scratch")


@pytest.mark.parametrize("T", [1, 3, 7])
@pytest.mark.parametrize("own_taps", [False, True])
def test_outputs_and_gradients(
    T: int, own_taps: bool, eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    B, C, W = 3, 5, 4
    taps = torch.randn(*((B, C, W) if own_taps else (C, W)), dtype=eager_dtype)
    padded = torch.randn(B, W - 1 + T, C, dtype=eager_dtype)
    eager_matches(naive.short_conv, eager.short_conv, [padded, taps])

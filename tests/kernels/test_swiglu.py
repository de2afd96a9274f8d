"""The gate of SwiGLU layers equals its definition, with and without a gradient."""

from collections.abc import Callable

import torch

from refine_server.kernels.swiglu import eager, naive


def test_outputs_and_gradients(
    eager_dtype: torch.dtype, eager_matches: Callable[..., None]
) -> None:
    gate, up = torch.randn(2, 3, 5, 7, dtype=eager_dtype)
    eager_matches(naive.swiglu, eager.swiglu, [gate, up])


def test_inputs_stay_as_they_are() -> None:
    gate, up = torch.randn(2, 3, 5)
    before = gate.clone(), up.clone()
    assert torch.equal(eager.swiglu(gate, up), naive.swiglu(gate, up))
    assert torch.equal(gate, before[0])
    assert torch.equal(up, before[1])

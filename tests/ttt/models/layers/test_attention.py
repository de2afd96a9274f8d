"""The rotary embedding rotates pairs of channels, with and without a graph."""

import pytest
import torch

from refine_server.ttt.models.layers.attention import rotary_tables, rotate


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("size", [8, 6, 2])
def test_pairs_of_channels_are_turned_by_their_angles(
    dtype: torch.dtype, tolerance: float, size: int
) -> None:
    """The last 8 - size channels, beyond the tables, are unchanged."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 8, generator=generator, dtype=dtype)
    position = torch.tensor([0, 37])
    tables = rotary_tables(position, 5, size, 10000.0, dtype)
    before, expected = x.clone(), x.clone()
    for b in range(2):
        for t in range(5):
            for i in range(size // 2):
                turn = (position[b] + t).double() / 10000.0 ** (2 * i / size)
                pair = torch.complex(*(x[b, :, t, j].double() for j in (i, i + size // 2)))
                turned = pair * torch.polar(torch.ones(()).double(), turn)
                expected[b, :, t, i] = turned.real.to(dtype)
                expected[b, :, t, i + size // 2] = turned.imag.to(dtype)
    torch.testing.assert_close(rotate(x, *tables), expected, atol=tolerance, rtol=0)
    in_graph = rotate(x.clone().requires_grad_(), *tables)
    torch.testing.assert_close(in_graph.detach(), expected, atol=tolerance, rtol=0)
    assert torch.equal(x, before)

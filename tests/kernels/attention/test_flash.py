"""Attention in parts, merged by log-sum-exp: equal to the definition, and no score is kept.

The GPU's kernel is replaced by the CPU's, which has the same arguments and results; the shapes of
the GPU's are checked on meta tensors.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from refine_server.kernels import dispatch
from refine_server.kernels.attention import flash, naive

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Any:
    return _forward(q, k, v, 0.0, causal, scale=scale)


def _back_on_cpu(*args: Any) -> Any:
    *tensors, causal, scale = args
    return _backward(*tensors, 0.0, causal, scale=scale)


CPU = flash.Flash(_on_cpu, _back_on_cpu)


def sizes(**own: Any) -> dict[str, Any]:
    """Name the sizes of a case: rows, prefixes, heads, tokens, and what a row sees of a prefix."""
    return own


CASES = {
    "one token behind a prefix": sizes(B=1, R=1, Hq=2, H=2, T=1, S=1, P=7),
    "branches of one prefix": sizes(B=4, R=1, Hq=4, H=2, T=5, S=5, P=9, lengths=[3, 9, 9, 0]),
    "tokens behind a tail": sizes(B=4, R=2, Hq=4, H=2, T=3, S=6, P=9, lengths=[3, 9, 5, 5]),
    "decoding behind a tail": sizes(B=2, R=2, Hq=6, H=2, T=1, S=4, P=9, lengths=[9, 9]),
    "lengths in any order": sizes(B=3, R=1, Hq=4, H=1, T=4, S=4, P=8, lengths=[8, 2, 5]),
    "a tail alone": sizes(B=2, R=0, Hq=4, H=2, T=2, S=5, P=0),
}


def inputs(case: dict[str, Any], dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    B, H, D = case["B"], case["H"], 8
    shapes = {"q": (B, case["Hq"], case["T"]), "k": (B, H, case["S"]), "v": (B, H, case["S"])}
    if case["R"]:
        shapes |= dict.fromkeys(("prefix_k", "prefix_v"), (case["R"], H, case["P"]))
    leaves = {
        name: torch.randn(*shape, D).to(dtype).to(device).requires_grad_()
        for name, shape in shapes.items()
    }
    lengths = case.get("lengths", [case["P"]] * B)
    return leaves | ({"prefix_length": torch.tensor(lengths)} if case["R"] else {})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients(case: dict[str, Any]) -> None:
    own = inputs(case, torch.float64)
    leaves = [x for x in own.values() if x.requires_grad]
    results = []
    for op in (naive.attention, partial(flash.attention, flash=CPU)):
        o = op(**own)
        torch.manual_seed(1)
        results.append((o, *torch.autograd.grad((o * torch.randn_like(o)).sum(), leaves)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_bf16_is_as_precise_as_one_fused_call() -> None:
    """The parts are merged in fp32; scores are never rounded to bf16."""
    case = sizes(B=2, R=1, Hq=8, H=2, T=4, S=4, P=700, lengths=[700, 650])
    own = {n: x.detach() for n, x in inputs(case, torch.bfloat16).items()}
    wide = {n: x.double() if x.is_floating_point() else x for n, x in own.items()}
    expected = naive.attention(**wide)
    error = (flash.attention(**own, flash=CPU).double() - expected).norm() / expected.norm()
    assert error < 4e-3


def test_nothing_of_the_size_of_the_scores_is_kept() -> None:
    T, P, D = 256, 4096, 256
    q, k, prefix = (
        torch.empty(*shape, D, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for shape in ((8, 16, T), (8, 4, T), (1, 4, P))
    )
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        o = flash.attention(q, k, k, prefix, prefix, None)
    o.sum().backward()
    assert kept
    assert max(tensor.numel() for tensor in kept) == q.numel()
    assert q.grad is not None


def test_a_gpu_takes_it_for_what_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_is_on_gpu", lambda tensor: True)
    q, prefix = torch.zeros(1, 2, 3, 8).bfloat16(), torch.zeros(1, 2, 9, 8).bfloat16()
    assert dispatch._flash_serves(q, q, q, prefix, prefix)
    assert dispatch._flash_serves(q, prefix, prefix)  # tokens behind a tail
    assert not dispatch._flash_serves(q, q, q)  # one call, torch's own choice
    assert not dispatch._flash_serves(q, q, q, prefix, prefix, window=4)
    assert not dispatch._flash_serves(q, q, q[..., :4], prefix, prefix[..., :4])
    assert not dispatch._flash_serves(q.float(), q, q, prefix, prefix)

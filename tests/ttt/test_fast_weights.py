"""Fast weights of several requests, and the LoRAs of modules with one input joined into one."""

import pytest
import torch

from refine_server.ttt.fast_weights import BASE, FastWeights

MODULES, SIZES = ("q", "k", "v"), (4, 3, 5)


def lora_weights(requests: int = 2) -> FastWeights:
    """Rank 2 on q and rank 3 on v, nothing on k."""
    torch.manual_seed(0)
    shapes = {
        "q.lora_a": (6, 2),
        "q.lora_b": (2, 4),
        "v.lora_a": (6, 3),
        "v.lora_b": (3, 5),
    }
    return FastWeights({n: torch.randn(requests, *shape) for n, shape in shapes.items()})


def test_a_joint_lora_equals_the_loras_of_the_modules() -> None:
    fast, x = lora_weights(), torch.randn(2, 7, 6)
    joint = fast.joint_lora(MODULES, SIZES)
    assert joint is not None
    a, b = joint
    of_q = x @ fast["q.lora_a"] @ fast["q.lora_b"]
    of_v = x @ fast["v.lora_a"] @ fast["v.lora_b"]
    expected = torch.cat([of_q, torch.zeros(2, 7, 3), of_v], dim=2)
    torch.testing.assert_close(x @ a @ b, expected)


def test_modules_without_lora_have_no_joint_one() -> None:
    assert lora_weights().joint_lora(("k",), (3,)) is None
    assert BASE.joint_lora(MODULES, SIZES) is None


def test_a_joint_lora_is_made_once() -> None:
    fast = lora_weights()
    assert fast.joint_lora(MODULES, SIZES) is fast.joint_lora(MODULES, SIZES)


def test_a_joint_lora_follows_loras_that_are_learned() -> None:
    fast = lora_weights().requires_grad_()
    with torch.no_grad():
        first = fast.joint_lora(MODULES, SIZES)
        fast["q.lora_b"].add_(1.0)
        second = fast.joint_lora(MODULES, SIZES)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(second[1][:, :2, :4], first[1][:, :2, :4] + 1.0)


def test_a_copy_has_its_own_joint_lora() -> None:
    fast = lora_weights()
    copy = fast.detach()
    assert copy.joint_lora(MODULES, SIZES) is not fast.joint_lora(MODULES, SIZES)


def test_fast_weights_are_cloned_stacked_and_selected() -> None:
    a = FastWeights({"m.layers.2.x.lora_a": torch.randn(1, 3), "m.layers.5.y": torch.randn(1, 2)})
    b = a.clone()
    b["m.layers.5.y"].add_(1)
    assert not torch.equal(a["m.layers.5.y"], b["m.layers.5.y"])
    both = FastWeights.stack([a, b])
    assert (both.requests, both.nbytes, a.first_layer) == (2, 40, 2)
    assert torch.equal(both.select(1)["m.layers.5.y"], b["m.layers.5.y"])


def test_only_empty_fast_weights_are_the_base() -> None:
    assert BASE.is_base
    assert not lora_weights().is_base


def test_mismatched_fast_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="number of requests"):
        FastWeights({"a": torch.zeros(1, 2), "b": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="same names"):
        FastWeights.stack([FastWeights({"a": torch.zeros(1)}), FastWeights({"b": torch.zeros(1)})])

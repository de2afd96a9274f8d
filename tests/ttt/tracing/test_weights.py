"""How far adapted weights are from the base weights."""

import pytest
import torch

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.tracing.weights import WeightChanges
from support.small_models import Families


@pytest.mark.parametrize("family", ["delta_net", "lact", "overlay"])
@pytest.mark.parametrize("targets", ["fast_weights", "low_rank", "queries", "all"])
def test_fresh_weights_have_not_changed(families: Families, family: str, targets: str) -> None:
    model = families[family](torch.float64)
    fast = model.new_fast_weights(targets, 4, 0)
    found = WeightChanges(model, fast).measure(fast)
    assert found
    assert all(change.change == 0.0 for change in found)
    layers = [change.layer for change in found if change.layer is not None]
    assert layers == sorted(set(layers))
    outside = [change.layer for change in found if change.layer is None]
    assert len(outside) == (1 if targets == "all" else 0)


def test_a_low_rank_change_is_that_of_its_product(families: Families) -> None:
    model = families["overlay"](torch.float64)
    fast = model.new_fast_weights("queries", 4, 0)
    changes = WeightChanges(model, fast)
    name = "model.layers.1.self_attn.q_proj"
    a, b = fast[f"{name}.lora_a"], fast[f"{name}.lora_b"]
    b.copy_(torch.randn(b.shape, generator=torch.Generator().manual_seed(0)))
    found = {change.layer: change for change in changes.measure(fast)}
    norm = float((a[0] @ b[0]).norm())
    base = float(model.get_parameter(f"{name}.weight").norm())
    assert found[0].change == 0.0
    assert found[1].change == pytest.approx(norm, rel=1e-3)
    assert found[1].relative == pytest.approx(norm / base, rel=1e-3)


def test_a_change_of_weights_in_place_is_measured(families: Families) -> None:
    model = families["delta_net"](torch.float64)
    fast = FastWeights(model.new_fast_weights("all", 4, 0).clone().tensors)
    changes = WeightChanges(model, fast)
    name = next(name for name in fast if ".layers.1." in name)
    fast[name].add_(1.0)
    found = {change.layer: change.change for change in changes.measure(fast)}
    assert found.pop(1) == pytest.approx(fast[name].numel() ** 0.5, rel=1e-3)
    assert set(found.values()) == {0.0}

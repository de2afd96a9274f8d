"""Models of transformers: our forward equals theirs; settings where it would not are refused."""

from typing import Any

import pytest
import torch

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import ModelError
from refine_server.ttt.models.loading.loader import wrap
from support.small_models import MakeTransformers, Tokens


def test_the_forward_equals_that_of_transformers(transformers_model: Any, tokens: Tokens) -> None:
    ids = tokens(2, 75)
    with torch.no_grad():
        expected = transformers_model(ids, use_cache=False).logits
    torch.testing.assert_close(wrap(transformers_model)(ids).logits, expected, atol=2e-5, rtol=1e-4)


def test_half_precision_is_as_good_as_theirs(transformers_model: Any, tokens: Tokens) -> None:
    ids = tokens(1, 75)
    with torch.no_grad():
        exact = transformers_model(ids, use_cache=False).logits
        model = transformers_model.to(torch.bfloat16)
        theirs = model(ids, use_cache=False).logits
        ours = wrap(model)(ids).logits
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("gemma2", {"head_dim": 16}, "attn_logit_softcapping"),
        ("granite", {"embedding_multiplier": 2.0}, "embedding_multiplier"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
         "rope_type='dynamic'"),
        ("phi3", {}, "q_proj"),
        ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32}, "mlp.gate_proj"),
        ("cohere", {}, "post_attention_layernorm"),
        ("olmo", {}, "is not an RMS norm"),
        ("stablelm", {}, "LayerNorm"),
        ("exaone4", {"sliding_window": 8}, "its logits differ"),
        ("gpt2", {"n_head": 2, "n_layer": 1}, "embed_tokens"),
    ],
)  # fmt: skip
def test_unsupported_settings_are_refused(
    make_transformers: MakeTransformers, model_type: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        wrap(make_transformers(model_type, **settings))


@pytest.mark.parametrize("model_type", ["qwen3_next", "kimi_linear"])
def test_experts_may_belong_to_requests(
    make_transformers: MakeTransformers,
    model_type: str,
    tokens: Tokens,
    experts: dict[str, dict[str, Any]],
) -> None:
    """Two requests that own all weights, experts and routers among them, do not mix."""
    model = wrap(make_transformers(model_type, **experts[model_type]))
    generator = torch.Generator().manual_seed(3)
    requests = []
    for _ in range(2):
        fast = model.full_copy()
        noise = {n: 0.05 * torch.randn(fast[n].shape, generator=generator) for n in fast}
        requests.append(FastWeights({n: fast[n] + noise[n] for n in fast}))
    ids = tokens(4, 20)
    together = model(ids, None, FastWeights.stack(requests)).logits
    for r, fast in enumerate(requests):
        rows = slice(2 * r, 2 * r + 2)
        alone = model(ids[rows], None, fast).logits
        assert (alone - model(ids[rows]).logits).abs().max() > 1e-2
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-4)


def test_biases_may_belong_to_requests(make_transformers: MakeTransformers, tokens: Tokens) -> None:
    model = wrap(make_transformers("llama", attention_bias=True, mlp_bias=True))
    fast, ids = model.full_copy(), tokens(1, 12)
    fast.tensors["model.layers.3.mlp.down_proj.bias"] += 1.0
    assert (model(ids, None, fast).logits - model(ids).logits).abs().max() > 1e-2

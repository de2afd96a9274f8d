"""Prefill against transformers, and the delta rule against simpler implementations."""

import copy
from typing import Any

import torch
from torch import Tensor

from refine_server.benchmarks.common.timing import medians
from refine_server.kernels.delta_rule import eager as chunked
from refine_server.kernels.delta_rule import naive as recurrence
from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.loading.loader import find, from_transformers, wrap

STAND_IN = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 2560,
    "pad_token_id": None,
}
"""A random Llama of tiny's shape, because transformers does not implement tiny's architecture."""


class PrefillBench:
    """Loads a model by transformers and by this package, with the same weights, in fp32."""

    def __init__(self, model: str, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.name = model
        self.theirs, self.ours = load_both(model)

    @torch.no_grad()
    def run(self, tokens: int, repeats: int) -> dict[str, Any]:
        """Time the prefill of a prompt: the state after it and the logits of its last token."""
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.ours.config.vocab_size
        ids = torch.randint(0, vocabulary, (1, tokens), generator=generator)

        def ours() -> None:
            output = self.ours(ids)
            self.ours.head_logits(output.hidden[:, -1], BASE)

        def theirs() -> None:
            self.theirs(ids, use_cache=True, logits_to_keep=1)

        at = medians({"ours": ours, "theirs": theirs}, repeats)
        return {
            "model": self.name,
            "against": f"transformers {type(self.theirs).__name__}",
            "threads": torch.get_num_threads(),
            "tokens": tokens,
            "ours_tokens_per_second": tokens / at["ours"],
            "transformers_tokens_per_second": tokens / at["theirs"],
            "speedup_vs_transformers": at["theirs"] / at["ours"],
        }


@torch.no_grad()
def delta_rule_prefill(tokens: int, repeats: int) -> dict[str, float]:
    """Time one delta-rule layer of tiny's shape over a document, against two simpler forms."""
    H, K = 2, 64
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, H, tokens, K, generator=generator) for _ in "qkv")
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    beta = torch.rand(1, H, tokens, generator=generator)
    forms = {
        "ours": chunked.delta_rule,
        "row_by_row": row_by_row_chunks,
        "recurrence": recurrence.delta_rule,
    }
    at = medians({n: lambda f=f: f(q, k, v, beta) for n, f in forms.items()}, repeats)  # type: ignore[misc]
    o, _ = chunked.delta_rule(q, k, v, beta)
    apart = (o - row_by_row_chunks(q, k, v, beta)).abs().max()
    return {
        "delta_rule_tokens": tokens,
        "delta_rule_seconds": at["ours"],
        "speedup_vs_naive_chunks": at["row_by_row"] / at["ours"],
        "speedup_vs_recurrence": at["recurrence"] / at["ours"],
        "largest_difference": float(apart),
    }


def row_by_row_chunks(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, size: int = 32) -> Tensor:
    """Compute the chunked delta rule as reference implementations do (arXiv 2406.06484, eq. 10-11).

    M = (I + tril(beta K K^T, -1))^-1 is made by forward substitution, row by row; then the chunks
    read and write the memory one after the other. q, k, v: [B, H, T, K], T a multiple of ``size``.
    """
    B, H, T, K = q.shape
    q, kc, vc = (x.reshape(B, H, T // size, size, -1) for x in (q * K**-0.5, k, v))
    bc = beta.view(B, H, T // size, size, 1)
    kb = kc * bc
    M = -(kb @ kc.mT).tril(-1)  # [B, H, N, C, C]
    for i in range(1, size):
        M[..., i, :i] = M[..., i, :i] + (M[..., i, :, None] * M[..., :, :i]).sum(-2)
    M = M + torch.eye(size, dtype=M.dtype, device=M.device)
    U, W = M @ (vc * bc), M @ kb
    S, o = q.new_zeros(B, H, K, v.shape[-1]), torch.empty_like(vc)
    for n in range(T // size):
        D = U[:, :, n] - W[:, :, n] @ S
        o[:, :, n] = q[:, :, n] @ S + (q[:, :, n] @ kc[:, :, n].mT).tril() @ D
        S = S + kc[:, :, n].mT @ D
    return o.view(B, H, T, -1)


def load_both(name: str) -> tuple[Any, CausalLM]:
    """Load a model by transformers and by this package, with separate weights, both in fp32."""
    theirs = _transformers_model(name)
    return theirs, wrap(copy.deepcopy(theirs))


def _transformers_model(name: str) -> Any:
    if name != "tiny":
        return from_transformers(find(name), torch.float32, "cpu").eval()
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **STAND_IN)
    return AutoModelForCausalLM.from_config(config).eval()

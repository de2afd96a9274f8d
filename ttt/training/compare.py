"""Compares no adaptation, next-token adaptation and REFINE on fresh documents."""

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import BASE
from refine_server.ttt.interface.config import AdaptConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.training.nested import Episode, adapt_copies, ask, make_episode

REGIMES = ("memory", "context")
RESAMPLES = 2000


def compare(
    model: CausalLM,
    config: AdaptConfig,
    *,
    ntp: AdaptConfig | None = None,
    tokens: int,
    facts: int,
    documents: int,
    questions: int = 8,
    seed: int,
    together: int = 8,
) -> dict[str, Any]:
    """Measure greedy answers' exact match (0-100) with each objective, from memory and in context.

    From memory, the state after the document is dropped, so only the adapted weights can help. In
    context, the question follows the document, which is read with the adapted weights. The
    documents depend on seed, tokens and facts only, so every objective gets the same. ``ntp`` are
    the settings of next-token adaptation if they differ from ``config``, e.g. its own best learning
    rate.

    Returns:
        ``score`` and ``interval`` (95 %, over documents) for each regime and objective, and
        likewise the paired differences ``refine - none``, ``refine - ntp`` and ``ntp - none``.
    """
    rng = random.Random(f"compare:{seed}:{tokens}:{facts}")
    right: dict[tuple[str, str], list[Tensor]] = {}
    lengths: list[int] = []
    while sum(lengths) < documents:
        R = min(together, documents - sum(lengths))
        episode = make_episode(rng, model.tokenizer, tokens, facts, R, questions)
        lengths.append(R)
        for objective in ("none", "ntp", "refine"):
            chosen = ntp if ntp is not None and objective == "ntp" else config
            own = chosen.updated(objective=objective, seed=rng.getrandbits(62))
            for regime, rows in _answers(model, episode, own).items():
                right.setdefault((regime, objective), []).append(rows.view(R, questions))
    results = {key: torch.cat(rows).double().mean(1) * 100 for key, rows in right.items()}
    return {"n": documents * questions, "tokens": tokens, "facts": facts} | {
        regime: _summary({o: results[regime, o] for o in ("none", "ntp", "refine")})
        for regime in REGIMES
    }


def _answers(model: CausalLM, episode: Episode, config: AdaptConfig) -> dict[str, Tensor]:
    """Return which questions are answered correctly in each regime: [R Q]."""
    fast = BASE if config.objective == "none" else adapt_copies(model, episode.ids, config)
    questions = episode.queries.shape[0] // episode.ids.shape[0]
    with torch.no_grad():
        read = model(episode.ids, None, fast).state.repeat(questions)
        _, memory = ask(model, episode, None, fast)
        _, context = ask(model, episode, read, fast)
    return {"memory": memory, "context": context}


def _summary(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Summarise documents' scores [documents] and their paired differences."""
    named = dict(scores)
    for other in ("none", "ntp"):
        named[f"refine - {other}"] = scores["refine"] - scores[other]
    named["ntp - none"] = scores["ntp"] - scores["none"]
    return {name: _interval(values) for name, values in named.items()}


def _interval(values: Tensor) -> dict[str, Any]:
    """Return the mean and the bootstrap 95 % interval over documents."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values[drawn].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return {"score": round(values.mean().item(), 1), "interval": [round(low, 1), round(high, 1)]}

"""Time of one REFINE step: trunk and branches, the naive loop, and next-token prediction alone."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, RolloutConfig
from refine_server.ttt.models import CausalLM, build, load
from refine_server.ttt.models.families.lact.model import LaCT, LaCTConfig
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import step_losses
from refine_server.ttt.refine.naive import naive_gradient
from refine_server.ttt.refine.optimizer import FastWeightOptimizer
from refine_server.ttt.refine.rollouts import Rollouts
from refine_server.ttt.refine.step import AdaptationRun, AdaptStep


class StepBench:
    """Times one step in three ways, on the same model, document, positions and rollouts.

    A step is loss, gradient, clipping and optimiser update. The document is random tokens, because
    the cost does not depend on the content. Work that is done once a document (the frozen layers)
    is not part of our step; the naive loop does not separate it.
    """

    def __init__(
        self,
        model: str,
        document_tokens: int,
        positions: int,
        rollouts: int,
        rollout_tokens: int,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = small_lact() if model == "lact" else load(model)
        self.config = AdaptConfig(
            rollouts=RolloutConfig(
                positions=positions, per_position=rollouts, tokens=rollout_tokens, reward="hybrid"
            ),
            guard="none",
        )
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.lm_head.weight.shape[0]
        self.ids = torch.randint(0, vocabulary, (1, document_tokens), generator=generator)

    def run(self, repeats: int, naive_repeats: int | None = None) -> dict[str, Any]:
        """Return medians over ``repeats`` rounds; each round runs all three sides in turn.

        The naive side, which may take an hour, runs in the first ``naive_repeats`` rounds only; if
        that is 0, the figures that need it are None.
        """
        naive_repeats = repeats if naive_repeats is None else min(naive_repeats, repeats)
        ours, ntp = self._step("refine"), self._step("ntp")
        [loss] = step_losses([ours.run.inputs])  # also warms up
        loss.total.backward()
        gradient = {name: _grad(ours.run.fast[name]) for name in ours.run.fast}
        naive = _Naive(self, loss.rollouts)
        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: AdaptStep.run_batch([ours]),
            "naive": naive.step,
            "ntp": lambda: AdaptStep.run_batch([ntp]),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(repeats):
            for name, side in sides.items():
                if name == "naive" and turn >= naive_repeats:
                    continue
                started = time.perf_counter(), time.process_time()
                side()
                ended = time.perf_counter(), time.process_time()
                seconds[name].append((ended[0] - started[0], ended[1] - started[1]))
        wall, cpu = (
            {name: _median(pair[i] for pair in seconds[name]) for name in sides} for i in range(2)
        )
        return {
            "model": self.model.name,
            "document_tokens": self.ids.shape[1],
            "positions": self.config.rollouts.positions,
            "rollouts": self.config.rollouts.per_position,
            "rollout_tokens": self.config.rollouts.tokens,
            "repeats": repeats,
            "naive_repeats": naive_repeats,
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            **{f"{name}_seconds": wall[name] for name in sides},
            "speedup_vs_naive": _ratio(wall["naive"], wall["ours"]),
            "ratio_to_ntp": _ratio(wall["ours"], wall["ntp"]),
            "cpu_seconds": cpu,
            "gradient_relative_error": _distance(gradient, naive.first_gradient),
        }

    def fresh(self) -> FastWeights:
        """Make fast weights slightly off their initial values, so that no gradient is zero."""
        fast = self.model.new_fast_weights(
            self.config.fast_weights.targets, self.config.fast_weights.rank, self.config.seed
        )
        generator = torch.Generator().manual_seed(1)
        for tensor in fast.parameters():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator).to(tensor)
        return fast

    def document(self, fast: FastWeights) -> Rows:
        """Return the document as rows for ``fast``."""
        return Rows(self.model, self.ids, fast, positions=self.config.rollouts.positions)

    def _step(self, objective: str) -> AdaptStep:
        fast = self.fresh()
        config = self.config.updated(objective=objective)
        return AdaptStep(AdaptationRun.of(self.document(fast), fast, config), 1)


class _Naive:
    """The naive side's steps; the first one uses the positions and rollouts of our side."""

    def __init__(self, bench: StepBench, rollouts: Rollouts | None) -> None:
        self.bench, self.rollouts = bench, rollouts
        fast = bench.fresh()
        self.inputs = StepInputs.of(bench.document(fast), fast, bench.config)
        self.optimizer = FastWeightOptimizer(bench.config, fast)
        self.first_gradient: dict[str, Tensor] = {}

    def step(self) -> None:
        """Compute the gradient by re-reading every prefix, and update."""
        gradient, _ = naive_gradient(self.inputs, self.rollouts)
        self.first_gradient = self.first_gradient or gradient
        self.rollouts = None
        self.optimizer.step(torch.ones((), dtype=torch.bool, device=self.bench.ids.device))


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _distance(gradient: dict[str, Tensor], expected: dict[str, Tensor]) -> float | None:
    """Return the relative distance of one gradient from another, None if there is none."""
    if not expected:
        return None
    apart = torch.stack([(gradient[n] - expected[n]).square().sum() for n in expected]).sum()
    length = torch.stack([expected[n].square().sum() for n in expected]).sum()
    return float((apart / length).sqrt())


def small_lact() -> CausalLM:
    """Make a random LaCT with the published 760M model's settings, except for chunk and window."""
    config = {
        "model_type": "lact_swiglu",
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "vocab_size": 2560,
        "num_attn_heads": 4,
        "num_lact_heads": 2,
        "window_size": 256,
        "lact_chunk_size": 256,
        "w0_w2_low_rank": 32,
        "rope_theta": 1e6,
    }
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, parameter in LaCT(LaCTConfig.from_dict(config)).named_parameters():
        if parameter.ndim > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            weights[name] = noise * parameter.shape[-1] ** -0.5
        else:
            weights[name] = torch.full(parameter.shape, 1.0 if "norm" in name else 0.0)
    model = build(config, weights)
    model.name = "lact"
    return model


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()

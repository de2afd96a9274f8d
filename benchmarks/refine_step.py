"""What one REFINE step costs: trunk and branch, the naive loop, and next-token prediction alone."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from refine_server.ttt.config import AdaptConfig
from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.models import CausalLM, build, load
from refine_server.ttt.models.lact import LaCT, LaCTConfig
from refine_server.ttt.naive import naive_gradient
from refine_server.ttt.optimizers import FastWeightOptimizer
from refine_server.ttt.reading import Reading
from refine_server.ttt.refine import Loop


class StepBench:
    """Three ways through one step, on the same model, document, positions and rollouts.

    A step is loss, gradient, clipping and optimiser update. The document is random tokens: cost
    does not depend on what it says. Work that is done once a document (the frozen layers) is
    outside the step for our side and does not exist on the naive side.
    """

    def __init__(
        self,
        model: str,
        document_tokens: int,
        chunks: int,
        rollouts: int,
        rollout_tokens: int,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.model = small_lact() if model == "lact" else load(model)
        self.config = AdaptConfig(
            prefix="full",
            chunks=chunks,
            rollouts=rollouts,
            rollout_tokens=rollout_tokens,
            reward="hybrid",
            guard="none",
        )
        generator = torch.Generator().manual_seed(0)
        vocabulary = self.model.lm_head.weight.shape[0]
        self.ids = torch.randint(0, vocabulary, (1, document_tokens), generator=generator)

    def run(self, repeats: int) -> dict[str, Any]:
        """Medians over ``repeats`` rounds; in each round all three sides run in turn."""
        sides: dict[str, Callable[[], None]] = {
            "ours": self._step("refine"),
            "naive": self._naive_step(),
            "ntp": self._step("ntp"),
        }
        error = self._gradient_error()  # also warms every path up
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - started)
        ours, naive, ntp = (statistics.median(seconds[name]) for name in ("ours", "naive", "ntp"))
        return {
            "model": self.model.name,
            "document_tokens": self.ids.shape[1],
            "chunks": self.config.chunks,
            "rollouts": self.config.rollouts,
            "rollout_tokens": self.config.rollout_tokens,
            "repeats": repeats,
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "ours_seconds": ours,
            "naive_seconds": naive,
            "ntp_seconds": ntp,
            "speedup_vs_naive": naive / ours,
            "ratio_to_ntp": ours / ntp,
            "gradient_relative_error": error,
        }

    def _fresh(self) -> FastWeights:
        return self.model.new_fast_weights(self.config.targets, self.config.rank, self.config.seed)

    def _document(self, fast: FastWeights) -> Reading:
        return Reading(self.model, self.ids, fast, positions=self.config.chunks)

    def _step(self, objective: str) -> Callable[[], None]:
        fast = self._fresh()
        config = self.config.model_copy(update={"objective": objective})
        loop = Loop(self.model, self._document(fast), fast, config)

        def step() -> None:
            loop.step(1)

        return step

    def _naive_step(self) -> Callable[[], None]:
        fast = self._fresh().requires_grad_()
        rows, optimizer = self._document(fast), FastWeightOptimizer(self.config, fast)
        generator = torch.Generator().manual_seed(self.config.seed)

        def step() -> None:
            naive_gradient(self.model, rows, fast, self.config, generator)
            optimizer.step(torch.ones((), dtype=torch.bool, device=self.ids.device))

        return step

    def _gradient_error(self) -> float:
        """Relative distance of our gradient from the naive one, where neither is trivially zero."""
        fast = self._fresh()
        generator = torch.Generator().manual_seed(1)
        for tensor in fast.parameters():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator).to(tensor)
        loop = Loop(self.model, self._document(fast), fast, self.config)
        loop.loss().total.backward()
        ours = {name: _grad(fast[name]) for name in fast}
        seeded = torch.Generator().manual_seed(self.config.seed)
        naive, _ = naive_gradient(self.model, self._document(fast), fast, self.config, seeded)
        apart = torch.stack([(ours[n] - naive[n]).square().sum() for n in fast]).sum()
        length = torch.stack([naive[n].square().sum() for n in fast]).sum()
        return float((apart / length).sqrt())


def small_lact() -> CausalLM:
    """A random LaCT with the settings of the published 760M model, chunk and window aside."""
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

"""What all training runs share: the loop over steps, checkpoints, and resuming."""

import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor, nn

from refine_server.ttt.models import CausalLM
from refine_server.ttt.models.loading.loader import CONFIGURATION_FILES
from refine_server.ttt.training.errors import TrainingError

CHECKPOINT = "checkpoint.pt"


class Recipe(Protocol):
    """Everything that a run's result depends on; a frozen dataclass."""

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""

    @property
    def max_grad_norm(self) -> float:
        """Gradient clipping threshold."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""


@dataclass(frozen=True)
class StepLoss:
    """A step's loss, in the graph, figures to report, and the number of tokens that it read."""

    total: Tensor
    figures: Mapping[str, float]
    tokens: int


@dataclass(frozen=True)
class Progress:
    """The figures of one step, for display."""

    step: int
    steps: int
    loss: float
    figures: Mapping[str, float]
    tokens: int
    seconds: float


class Run(ABC):
    """A training run that can be killed at any time and resumed with the same result.

    A step's texts and random numbers depend only on the recipe's seed and the step's number, so a
    checkpoint needs only weights, optimiser state and step.
    """

    def __init__(self, recipe: Any, out: Path, weights: Mapping[str, Tensor]) -> None:
        """``weights``: the parameters to train, by name."""
        self.recipe, self.out = recipe, out
        self.weights = dict(weights)
        decayed = [w for w in self.weights.values() if w.ndim == 2]
        others = [w for w in self.weights.values() if w.ndim != 2]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate(0), betas=(0.9, 0.98))
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        out.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def loss(self) -> StepLoss:
        """Return the loss of step ``self.step``."""

    def run(
        self,
        report: Callable[[Progress], None] = lambda progress: None,
        *,
        until: int | None = None,
        save_every: int = 50,
    ) -> None:
        """Train to the last step (or to step ``until``), with a checkpoint every ``save_every``."""
        last = self.recipe.steps if until is None else min(until, self.recipe.steps)
        while self.step < last:
            report(self.train_step())
            if self.step % save_every == 0 or self.step == last:
                self.save()

    def train_step(self) -> Progress:
        """Make one optimiser step."""
        began = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        self.tokens += loss.tokens
        self.seconds += time.monotonic() - began
        return Progress(
            self.step,
            self.recipe.steps,
            float(loss.total.detach()),
            loss.figures,
            self.tokens,
            self.seconds,
        )

    def save(self) -> None:
        """Write a checkpoint atomically."""
        partial = self.out / f".{CHECKPOINT}.{os.getpid()}"
        torch.save(
            {
                "recipe": recorded(self.recipe),
                "weights": self.weights,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "tokens": self.tokens,
                "seconds": self.seconds,
            },
            partial,
        )
        partial.replace(self.out / CHECKPOINT)

    def restore(self) -> None:
        """Continue from the checkpoint in ``out``.

        Raises:
            TrainingError: there is none, or it belongs to another recipe.
        """
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise TrainingError(f"--resume: {path} does not exist; start the run without --resume")
        saved = torch.load(path, weights_only=True)
        if saved["recipe"] != recorded(self.recipe):
            raise TrainingError(f"--resume: {path} was made by another recipe: {saved['recipe']}")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(saved["weights"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]

    def summary(self) -> dict[str, Any]:
        """Return what ``training.json`` records of any run."""
        return {
            "recipe": recorded(self.recipe),
            "torch": torch.__version__,
            "steps": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
        }

    def hand_over(
        self, model: CausalLM, source: Path, command: str, **measured: Any
    ) -> dict[str, Any]:
        """Write the model, with the configuration and tokenizer of its ``source``.

        Returns:
            What ``training.json`` records: the run, what was ``measured``, and the source's record.
        """
        write_trained(model.requires_grad_(False), source, self.out)
        before = source / "training.json"
        summary = {"command": command, **self.summary(), **measured}
        if before.is_file():
            summary["started_from"] = json.loads(before.read_text())
        (self.out / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
        (self.out / CHECKPOINT).unlink(missing_ok=True)
        return summary


def warm_cosine(step: int, steps: int, warmup: int, highest: float, final: float) -> float:
    """Return the learning rate: linear warm-up, times a cosine from ``highest`` to ``final``."""
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return min(1.0, (step + 1) / warmup) * (final + (highest - final) * cosine)


def write_trained(model: CausalLM, source: Path, out: Path) -> None:
    """Write new weights, with the configuration and tokenizer of ``source``."""
    out.mkdir(parents=True, exist_ok=True)
    for file in (file for kind in CONFIGURATION_FILES for file in source.glob(kind)):
        if file.name not in ("training.json", "model.safetensors.index.json"):
            shutil.copy(file, out / file.name)
    weights = {name: w.detach().contiguous() for name, w in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # it may be packaged; save_file makes it private


def recorded(recipe: Any) -> dict[str, Any]:
    """Return a recipe as JSON and checkpoints store it."""
    values = {f.name: getattr(recipe, f.name) for f in fields(recipe)}
    return {
        name: value.model_dump() if isinstance(value, BaseModel) else value
        for name, value in values.items()
    }

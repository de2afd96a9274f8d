"""Mid-training: REFINE's loss on a corpus (``refine-server train mid``).

The fast weights are the base weights themselves, owned by one request whose rows are a batch of
texts: mid-training in the paper (arXiv 2602.16704), with REFINE or with next-token loss only.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from refine_server.ttt.fast_weights import FastWeights
from refine_server.ttt.interface.config import AdaptConfig, FastWeightConfig, RolloutConfig
from refine_server.ttt.models import CausalLM
from refine_server.ttt.refine.inputs.rows import Rows
from refine_server.ttt.refine.inputs.step_inputs import StepInputs
from refine_server.ttt.refine.loss import step_losses
from refine_server.ttt.training.errors import TrainingError
from refine_server.ttt.training.run import Run, StepLoss, warm_cosine


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on, except for the initial weights and the corpus.

    ``adapt`` has the settings of the loss: objective, c, n, k, reward, coefficients. Its steps,
    optimiser and learning rate are ignored: the run has its own.
    """

    seed: int = 0
    steps: int = 200
    rows: int = 8
    tokens: int = 256
    learning_rate: float = 3e-4
    final_learning_rate: float = 3e-5
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    adapt: AdaptConfig = field(
        default_factory=lambda: AdaptConfig(
            rollouts=RolloutConfig(per_position=4),
            fast_weights=FastWeightConfig(targets="all"),
            guard="none",
        )
    )

    def rate(self, step: int) -> float:
        """Return the learning rate: linear warm-up, then cosine decay."""
        return warm_cosine(
            step, self.steps, self.warmup_steps, self.learning_rate, self.final_learning_rate
        )


def read_corpus(model: CausalLM, files: Sequence[Path]) -> Tensor:
    """Return the tokens of text files, concatenated: [N].

    Raises:
        TrainingError: a file cannot be read, or is not UTF-8.
    """
    ids: list[int] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"--corpus: cannot read {file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise TrainingError(f"--corpus: {file} is not UTF-8 text: {error.reason}") from None
        ids += model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)


class Trainer(Run):
    """A mid-training run over one stream of tokens [N]."""

    def __init__(
        self, recipe: Recipe, model: CausalLM, corpus: Tensor, out: Path, *, resume: bool = False
    ) -> None:
        """
        Raises:
            TrainingError: the corpus is shorter than one row, or the run cannot be resumed.
        """
        if len(corpus) < recipe.tokens:
            raise TrainingError(
                f"--corpus: the corpus has {len(corpus)} tokens, but a row takes {recipe.tokens}"
            )
        self.model, self.corpus = model.requires_grad_(True), corpus
        super().__init__(recipe, out, dict(model.named_parameters()))
        if resume:
            self.restore()

    @override
    def loss(self) -> StepLoss:
        recipe = self.recipe
        rng = random.Random(f"mid:{recipe.seed}:{self.step}")
        last = len(self.corpus) - recipe.tokens
        starts = torch.tensor([rng.randint(0, last) for _ in range(recipe.rows)])
        ids = self.corpus[starts[:, None] + torch.arange(recipe.tokens)]  # [B, T]
        own = FastWeights({name: weight[None] for name, weight in self.weights.items()})
        config = recipe.adapt.updated(seed=rng.getrandbits(62))
        rows = Rows(self.model, ids, own, positions=config.rollouts.positions)
        [loss] = step_losses([StepInputs.of(rows, own, config)])
        figures = {"next_token": loss.ntp.item(), "reward": loss.rewards.mean().item()}
        return StepLoss(loss.total, figures, ids.numel())

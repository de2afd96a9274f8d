"""What one adaptation does: every knob of the REFINE loop, with its bounds.

The same model is the ``adapt`` object of the HTTP contract, so a field that is unknown or out
of range is refused by name before anything is paid.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Objective = Literal["refine", "ntp", "none"]
Prefix = Literal["full", "local"]
Selection = Literal["entropy", "surprise", "uniform", "argmax", "argmin", "query"]
Reward = Literal["exact", "cosine", "hybrid"]
Targets = Literal["fast_weights", "low_rank", "all"]


MAX_BRANCHES = 512
"""Most rollouts in one step: they are one batch, and memory is for all requests."""


class AdaptConfig(BaseModel):
    """Settings of one adaptation (arXiv 2602.16704, section 3; names as in the paper).

    The loop's defaults (c, n, k, temperature, reward, coefficients) are the paper's test-time
    setting; targets, rank, steps and learning rate were chosen by trying them on the embedded
    model (benchmarks/README.md). On held-out questions they were not shown to answer better than
    the unadapted model, nor, with the guard, worse. What gains on it (needles in context from 57
    to 91 of 100, 24 documents) needs the query and is no default: spans chosen by it and learned
    as its answer (benchmarks/results/adaptation.md).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    objective: Objective = Field(
        "refine",
        description="refine: GRPO on rollouts + next-token loss; ntp: next-token loss alone; "
        "none: answer from the base weights.",
    )
    prefix: Prefix = Field(
        "full",
        description="full: rollouts branch from the whole document (the paper); local: the most "
        "informative spans are adapted on as short sequences of their own.",
    )
    ntp_on: Literal["document", "spans"] | None = Field(
        None,
        description="What the next-token loss reads. Default: the document when prefix is full, "
        "the spans when it is local.",
    )
    spans_as: Literal["text", "answer", "answer_in_context"] = Field(
        "text",
        description="text: each span is a sequence of its own; answer (with selection query): the "
        "spans, as whole sentences and in the document's order, are the answer to the query, asked "
        "without the document; answer_in_context: the same, asked after the document, so that a "
        "step reads all of it.",
    )
    span_tokens: int = Field(32, ge=8, le=512, description="Length of a local span, in tokens.")
    steps: int = Field(8, ge=0, le=256, description="Optimiser steps.")
    chunks: int = Field(
        8, ge=1, le=128, description="c: rollout positions, one in each equal chunk (or span)."
    )
    rollouts: int = Field(1, ge=1, le=32, description="n: rollouts for each position.")
    rollout_tokens: int = Field(5, ge=1, le=64, description="k: tokens in each rollout.")
    rollout_temperature: float = Field(1.0, gt=0.0, le=4.0)
    demonstration: bool = Field(
        False,
        description="Whether the document's own continuation joins the rollouts of each position "
        "(not in the paper): it earns the full reward, so a group says something even where no "
        "rollout is right.",
    )
    selection: Selection = Field(
        "entropy",
        description="How rollout positions are chosen, or local spans. query: the spans most "
        "similar to the query (BM25), at most ``chunks``, and in them positions by entropy; only "
        "where the query is known when the document is adapted to.",
    )
    reward: Reward = Field("exact", description="exact match, cosine of hidden states, or both.")
    grpo_coef: float = Field(0.4, ge=0.0, le=10.0)
    ntp_coef: float = Field(1.0, ge=0.0, le=10.0)
    kl_coef: float = Field(0.0, ge=0.0, le=10.0, description="KL to the unadapted policy.")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(6e-3, gt=0.0, le=10.0)
    max_grad_norm: float = Field(1.0, gt=0.0, le=1e4, description="Gradient clipping threshold.")
    targets: Targets = Field("low_rank", description="Which weights the request owns a copy of.")
    rank: int = Field(8, ge=1, le=256, description="Rank of low-rank fast weights.")
    max_seconds: float | None = Field(
        None,
        gt=0.0,
        le=3600.0,
        description="Stop at the first step boundary past this many seconds.",
    )
    guard: Literal["held_out", "none"] = Field(
        "held_out",
        description="held_out: spans of the document are kept out of the loss; the answer comes "
        "from the step that did best on them, from the base weights if none did better than they, "
        "and steps end early when several in a row bring no better copy; none: all steps are made "
        "and the answer comes from the last. Non-finite values always fall back to the base "
        "weights.",
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _spans_hold_rollouts(self) -> "AdaptConfig":
        if self.prefix == "full" and self.ntp_on == "spans":
            raise ValueError("ntp_on='spans' needs prefix='local'")
        if self.selection == "query" and self.prefix != "local":
            raise ValueError("selection='query' needs prefix='local'")
        if self.spans_as != "text" and self.selection != "query":
            raise ValueError(f"spans_as={self.spans_as!r} needs selection='query'")
        if self.prefix == "local" and self.span_tokens < 2 * self.rollout_tokens:
            raise ValueError("span_tokens must be at least twice rollout_tokens")
        if self.chunks * self.group > MAX_BRANCHES:
            group = "(rollouts + 1)" if self.demonstration else "rollouts"
            raise ValueError(f"chunks * {group} must be at most {MAX_BRANCHES}")
        return self

    @property
    def group(self) -> int:
        """Branches of one position: n rollouts, and the demonstration if there is one."""
        return self.rollouts + self.demonstration


class SamplingConfig(BaseModel):
    """How an answer is decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_tokens: int = Field(64, ge=0, le=4096, description="0 only reads.")
    temperature: float = Field(0.0, ge=0.0, le=4.0, description="0 decodes greedily.")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    stop: tuple[str, ...] = Field((), max_length=16)
    ignore_eos: bool = Field(False, description="Go on after a token that ends answers.")
    seed: int = Field(0, ge=0, lt=2**63)

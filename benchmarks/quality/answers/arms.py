"""The arms of the measurement: each is a way to ask the server the same question."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from refine_server.benchmarks.common.rows import DataError
from refine_server.benchmarks.quality.regimes.items import Item, Question
from refine_server.ttt.evidence.chunks import Offsets, cut
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.evidence import DocumentSpan, EvidenceByWords, EvidenceSpans
from refine_server.ttt.interface.requests import (
    DEFAULT_ADAPTATION,
    DEFAULT_CONTEXT,
    AnswerRequest,
)

NO_ADAPTATION = AdaptConfig(objective="none")
Locate = Callable[[str], Offsets]
"""Finds the characters of each of a text's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way to answer: what is read, what it is aimed at, and how it is adapted to."""

    name: str
    options: dict[str, Any]
    """Fields of ``AnswerRequest``."""
    count: int = 4
    """The most chunks of evidence."""
    is_random: bool = False
    """Whether the evidence is as many chunks at random: the control."""

    def request(self, item: Item, question: Question, locate: Locate) -> AnswerRequest:
        """Make the request for one question."""
        evidence = EvidenceByWords(words=question.about, count=self.count)
        request = AnswerRequest(
            item.context,
            question.query,
            sampling=SamplingConfig(max_tokens=question.max_tokens),
            **{"evidence": evidence, **self.options},
        )
        if not self.is_random:
            return request
        chunks = cut(item.context, locate(item.context), evidence.tokens)
        drawn = random.Random(item.id).sample(chunks, min(self.count, len(chunks)))
        spans = tuple(DocumentSpan(start=chunk.first, end=chunk.last) for chunk in drawn)
        return replace(request, evidence=EvidenceSpans(spans=spans))


def on_evidence(objective: str, steps: int, learning_rate: float, attention: float) -> AdaptConfig:
    """Return the settings of an adaptation on the evidence over the document's frozen state."""
    return AdaptConfig().updated(
        objective=objective,
        on={"kind": "evidence"},
        loss={"attention": attention},
        optimizer={"steps": steps, "learning_rate": learning_rate},
        guard="none",
    )


ATTENTION = on_evidence("attention", 15, 3e-4, 1.0)
NEXT_TOKEN = on_evidence("ntp", 8, 1e-3, 0.0)
REFINE = on_evidence("refine", 8, 1e-3, 0.0)
REFINE_ATTENTION = on_evidence("refine", 8, 3e-4, 1.0)

PASSAGES = {"context": "passages", "adapt": NO_ADAPTATION}
BOTH = {"context": "document+passages", "adapt": NO_ADAPTATION}
BEST = {"context": "best", "adapt": NO_ADAPTATION}

ARMS = {
    arm.name: arm
    for arm in (
        Arm(name="none", options={"context": "document", "adapt": NO_ADAPTATION}),
        Arm(name="passages", options=PASSAGES),
        Arm(name="passages-8", options=PASSAGES, count=8),
        Arm(name="document+passages", options=BOTH),
        Arm(name="document+passages-8", options=BOTH, count=8),
        Arm(name="best", options=BEST),
        Arm(name="random-passages", options=PASSAGES, is_random=True),
        Arm(name="random-document+passages", options=BOTH, is_random=True),
        Arm(name="random-best", options=BEST, is_random=True),
        Arm(name="attention", options={"context": "document", "adapt": ATTENTION}),
        Arm(name="ntp", options={"context": "document", "adapt": NEXT_TOKEN}),
        Arm(name="refine", options={"context": "document", "adapt": REFINE}),
        Arm(name="refine+attention", options={"context": "document", "adapt": REFINE_ATTENTION}),
        Arm(
            name="attention-random",
            options={"context": "document", "adapt": ATTENTION},
            is_random=True,
        ),
        Arm(name="passages+attention", options={"context": "passages", "adapt": ATTENTION}),
        Arm(name="passages+ntp", options={"context": "passages", "adapt": NEXT_TOKEN}),
        Arm(name="passages+refine", options={"context": "passages", "adapt": REFINE}),
        Arm(name="document+passages+attention", options=BOTH | {"adapt": ATTENTION}),
        Arm(name="document+passages+ntp", options=BOTH | {"adapt": NEXT_TOKEN}),
        Arm(name="document+passages+refine", options=BOTH | {"adapt": REFINE}),
        Arm(name="document-refine", options={"context": "document", "adapt": AdaptConfig()}),
        Arm(name="default", options={"context": DEFAULT_CONTEXT, "adapt": DEFAULT_ADAPTATION}),
    )
}
"""By name. ``none`` is the unadapted model with the whole document, ``default`` what /v1/answers
does where a request says nothing, ``document-refine`` the adaptation to the whole document."""


def arms_of(names: list[str]) -> list[Arm]:
    """Return arms by their names.

    Raises:
        DataError: one is unknown, or there is none.
    """
    for name in names or [""]:
        if name not in ARMS:
            raise DataError(f"--arms: {name!r} is not one of {', '.join(ARMS)}")
    return [ARMS[name] for name in names]

"""The tracer of one request's run, where the request asks for a trace."""

from collections.abc import Sequence

import torch

from refine_server.ttt.decoding.prompts.prompt import DocumentPrompt
from refine_server.ttt.interface.events import DocumentTraced, Emit
from refine_server.ttt.models.base import CausalLM
from refine_server.ttt.refine.inputs.rows import Span
from refine_server.ttt.tracing.characters import Characters
from refine_server.ttt.tracing.document import TracedDocument
from refine_server.ttt.tracing.run import RunTracer


def trace_run(
    model: CausalLM,
    prompt: DocumentPrompt,
    characters: Characters | None,
    emit: Emit,
    *,
    questions: Sequence[Sequence[int]],
    evidence: Sequence[Span],
) -> RunTracer | None:
    """Return what traces a run; None where no trace is asked for.

    Args:
        model: the base model.
        prompt: what is read first.
        characters: of the document's tokens, which only a request for a trace has.
        emit: receives the traces of the document.
        questions: what follows the document; empty where none is known.
        evidence: for the questions, in tokens of the prompt.
    """
    if characters is None:
        return None
    document = TracedDocument(
        model=model,
        input_ids=torch.tensor([prompt.header + prompt.document], device=model.device),  # [1, T]
        context_tokens=len(prompt.header),
        characters=characters,
        questions=[question for question in questions if question],
        evidence=sorted(set(evidence)),
    )
    return RunTracer(document, lambda trace: emit(DocumentTraced(trace)))

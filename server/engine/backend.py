"""What the engine serves: a model's facts, and how it checks and does a piece of work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refine_server.server.settings import Settings
from refine_server.ttt.batching import Program, stream
from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted, Event
from refine_server.ttt.interface.requests import AnswerRequest, Work

if TYPE_CHECKING:  # they import torch
    from refine_server.ttt.decoding.prompt import PromptTemplate
    from refine_server.ttt.document import AdaptedDocument
    from refine_server.ttt.programs.encode import EncodedWork

SMALL_MODEL = 10_000_000
"""Parameters below which an op is so short that a second CPU thread costs more than it gives."""

Emit = Callable[[Event], None]
ShouldStop = Callable[[], str | None]


@dataclass(frozen=True)
class Backend:
    """A model that does work.

    ``encode`` turns the texts of a request into token ids and raises RequestError for what cannot
    be served; it may run in another thread than ``start``, whose programs are those of
    ``ttt.programs``. Closing a program cancels its work. ``fingerprint`` is the hash of the base
    weights as they were loaded, ``measure`` takes it anew. ``template`` and its tokenizer are the
    encoding thread's. ``dump`` and ``restore`` turn adapted documents into bytes and back; they
    may run in a third thread.
    """

    name: str
    family: str
    parameters: int
    dtype: str
    device: str
    fingerprint: str
    measure: Callable[[], str]
    template: "PromptTemplate"
    encode: Callable[[Work], "EncodedWork"]
    start: Callable[["EncodedWork", Emit, ShouldStop], Program[None]]
    dump: Callable[["AdaptedDocument"], tuple[bytes, dict[str, Any]]]
    restore: Callable[[bytes, dict[str, Any]], "AdaptedDocument"]


def open_backend(settings: Settings) -> Backend:
    """Load the model. Call it in the thread that will run the model.

    Raises:
        ModelError: the model does not exist or cannot be loaded, or the device cannot be used.
    """
    # Torch takes seconds to import, and `--help` must not.
    import copy
    from functools import partial

    import torch

    from refine_server.ttt.decoding.prompt import PromptTemplate
    from refine_server.ttt.document import dump, restore
    from refine_server.ttt.models import ModelError, load
    from refine_server.ttt.programs.encode import encode
    from refine_server.ttt.programs.start import start

    try:
        torch.empty(0, device=settings.device)
    except (RuntimeError, AssertionError) as error:  # torch says it with either
        raise ModelError(f"device {settings.device!r} cannot be used: {error}") from None
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model = load(settings.model, dtype=dtype, device=settings.device, window=settings.window)
    model.activation_budget = settings.activation_memory_bytes
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    elif model.device.type == "cpu" and model.num_parameters < SMALL_MODEL:
        model.threads = torch.get_num_threads()
        torch.set_num_threads(1)
    try:
        template = PromptTemplate(model.tokenizer, settings.prompt, settings.chat)
    except ValueError as error:
        raise ModelError(f"the options --prompt and --chat do not fit: {error}") from None
    # A tokenizer is not for two threads at once, and programs spell tokens with the model's own.
    template.tokenizer = copy.deepcopy(model.tokenizer)
    vocabulary = model.embedding.num_embeddings
    return Backend(
        name=model.name,
        family=model.family,
        parameters=model.num_parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        fingerprint=model.fingerprint(),
        measure=model.fingerprint,
        template=template,
        encode=lambda work: encode(work, template, settings.limits, vocabulary),
        start=partial(start, model),
        dump=dump,
        restore=lambda data, description: restore(data, description, model.device),
    )


SELF_CHECK = AnswerRequest(
    document="The lighthouse keeper writes the weather into a blue book every evening at eight, "
    "and the harbour master reads it in the morning before the first boat leaves.",
    query="When does the keeper write?",
    adapt=AdaptConfig(steps=1, chunks=1, rollouts=2, guard="none"),
    sampling=SamplingConfig(max_tokens=1),
)


def self_check(backend: Backend) -> None:
    """One small adaptation step and one decoded token, before any request is let in.

    Raises:
        RuntimeError: the model adapts to something that is not finite, or changes its base weights.
    """
    encoded = backend.encode(SELF_CHECK)
    events: Iterator[Event] = stream(lambda emit: backend.start(encoded, emit, lambda: None))
    for event in events:
        if isinstance(event, AnswerCompleted) and event.adaptation.guard is not None:
            raise RuntimeError(f"self-check failed: {event.adaptation.guard}")
    if backend.measure() != backend.fingerprint:
        raise RuntimeError("self-check failed: it changed the base weights")

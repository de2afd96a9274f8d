"""The backend of a real model."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override

from refine_server.server.engine.backend.protocol import Backend
from refine_server.server.engine.encoder import TemplatePool
from refine_server.server.memory.budget import MemoryBudget
from refine_server.server.settings import Settings
from refine_server.ttt.batching import Program
from refine_server.ttt.decoding.grammar import GrammarCompiler
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.footprint.estimate import PeakEstimator
from refine_server.ttt.interface.events import Emit, ShouldStop
from refine_server.ttt.interface.requests import Work
from refine_server.ttt.kept import Kept, dump, restore
from refine_server.ttt.models import CausalLM, ModelError, load
from refine_server.ttt.models.base_weights import checksums
from refine_server.ttt.models.device import synchronize
from refine_server.ttt.programs.encode import EncodedWork, encode
from refine_server.ttt.programs.start import start
from refine_server.ttt.query_side.document_cache import DocumentCache

SMALL_MODEL = 10_000_000
"""Parameters below which an op is so short that a second CPU thread costs more than it gains."""


class ModelBackend(Backend):
    """A loaded model, with the options of the settings.

    Raises:
        ModelError: the model does not exist or cannot be loaded, or the device cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.model = model = _load(settings)
        self.name = model.name
        self.family = model.family
        self.parameters = model.num_parameters
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = str(model.device)
        self.vocabulary = model.embedding.num_embeddings
        self.fingerprint = model.fingerprint()
        self._checksums = checksums(model.parameters())
        self.limits = settings.limits.within(model.context_length)
        try:
            template = PromptTemplate(model.tokenizer, settings.prompt, settings.chat)
        except ValueError as error:
            raise ModelError(f"--prompt and --chat: {error}") from None
        self.prompt_form = template.form
        self.templates = TemplatePool(template)
        self._grammars = GrammarCompiler(model)
        self._document_room: Callable[[], int] = lambda: sys.maxsize
        self._documents = DocumentCache(
            lambda: self._document_room(),
            settings.adaptation_ttl_seconds,
            dtype=None if settings.state_dtype == "auto" else getattr(torch, settings.state_dtype),
        )
        self._peaks = PeakEstimator(model)

    @property
    @override
    def cached_document_bytes(self) -> int:
        return self._documents.nbytes

    @override
    def forget_document(self, owner: str, key: str) -> None:
        self._documents.forget(owner, key)

    @override
    def drop_expired_documents(self) -> None:
        self._documents.drop_expired()

    @override
    def drop_excess_documents(self) -> None:
        self._documents.shrink()

    @override
    def limit_memory(self, budget: MemoryBudget) -> None:
        self._document_room = lambda: budget.document_bytes
        self.model.activation_budget = budget.activation_bytes

    @override
    def request_bytes(self, work: EncodedWork) -> int:
        return self._peaks.estimate(work)

    @override
    def encode(self, work: Work) -> EncodedWork:
        with self.templates.take() as template:
            return encode(
                work,
                template,
                self.limits,
                self.vocabulary,
                has_attention=bool(self.model.attention_layers),
                grammars=self._grammars,
            )

    @override
    def start(self, work: EncodedWork, emit: Emit, should_stop: ShouldStop) -> Program[None]:
        return start(self.model, work, emit, should_stop, self._documents)

    @override
    def share(self, has_company: Callable[[], bool]) -> None:
        self.model.pace.is_shared = has_company

    @override
    def verify(self) -> bool:
        return self.model.fingerprint() == self.fingerprint

    @override
    def is_unchanged(self) -> bool:
        return torch.equal(checksums(self.model.parameters()), self._checksums)

    @override
    def synchronize(self) -> None:
        synchronize(self.model.device)

    @override
    def dump(self, document: Kept) -> tuple[bytes, dict[str, Any]]:
        return dump(document)

    @override
    def restore(self, data: bytes, description: dict[str, Any]) -> Kept:
        return restore(data, description, self.model.device)


def use_device(name: str) -> None:
    """Let this thread use a device; raise ModelError if it cannot be used."""
    try:
        device = torch.empty(0, device=name).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels are launched on the thread's current device
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ModelError(f"--device {name!r} cannot be used: {error}") from None


def _load(settings: Settings) -> CausalLM:
    use_device(settings.device)
    dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
    model = load(settings.model, dtype=dtype, device=settings.device, window=settings.window)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    elif model.device.type == "cpu" and model.num_parameters < SMALL_MODEL:
        model.threads = torch.get_num_threads()
        torch.set_num_threads(1)
    return model

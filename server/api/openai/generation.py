"""What requests to all OpenAI-compatible routes for text have in common.

Every field of OpenAI's is known; ``compatibility`` says what becomes of those that this server does
not act on. An unknown field is refused by name.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from pydantic import Field

from refine_server.server.api.documents import Document
from refine_server.server.api.fields import StopStrings, answer_tokens
from refine_server.server.api.openai.compatibility import Ignored, Unsupported
from refine_server.server.api.openai.documents import FileFields, NamedDocument, find_document
from refine_server.server.api.openai.structured_outputs import StructuredOutputs
from refine_server.server.api.response_format import GuidedChoice, choice_forms, only_form
from refine_server.ttt.interface.config import (
    DocumentAdaptConfig,
    SamplingConfig,
    Temperature,
    TopP,
)
from refine_server.ttt.interface.evidence import Evidence, OnOverflow, ReadContext
from refine_server.ttt.interface.output_format import OutputFormat
from refine_server.ttt.interface.requests import DEFAULT_CONTEXT, DEFAULT_OVERFLOW
from refine_server.ttt.interface.strict import StrictModel


class TttOptions(StrictModel):
    """This server's extension: answer from a document, adapted to it or not."""

    document: Document | None = Field(
        None,
        description="The text to answer from, or a file that has it; the request's prompts or "
        "messages follow it.",
    )
    context: ReadContext | None = Field(
        None,
        description="What the model reads before the prompt or the messages: the `document`, its "
        "`passages` (the evidence instead of the document), or `document+passages` (the evidence "
        f"again behind the document). Default: {DEFAULT_CONTEXT} in a chat and where `evidence` is "
        "given, as in /v1/answers; the document alone in other completions, which continue it as "
        "it is.",
    )
    evidence: Evidence | None = Field(
        None,
        description="How evidence is found in the document, for the user's last message or for "
        "each prompt. Default: by words (`bm25`), where the context needs evidence.",
    )
    on_overflow: OnOverflow | None = Field(
        None,
        description="What is done with a document that is too long to be read as a whole, as in "
        f"/v1/answers. Default: {DEFAULT_OVERFLOW}, and truncate_middle with `adapt`, which has no "
        "query.",
    )
    adapt: DocumentAdaptConfig = Field(
        DocumentAdaptConfig(objective="none"),
        description="Settings of an adaptation to the document, as in /v1/adaptations, which is "
        "kept. Without them the model is not adapted; `{}` adapts with REFINE.",
    )


class GenerationBody(StrictModel, ABC):
    """What requests for text have in common."""

    default_context: ClassVar[ReadContext]
    """What is read of a document where a request says nothing of context and evidence."""
    prompt_field: ClassVar[str]
    """The field with what follows the document."""

    model: str | None = Field(
        None, description="The served model's id, or that of an adaptation to continue from."
    )
    ttt: TttOptions | None = None
    temperature: Temperature | None = Field(
        None, description="Default: 1, as at OpenAI; 0 decodes greedily."
    )
    top_p: TopP | None = None
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Random seed of the first choice; each further choice adds 1.",
    )
    stop: StopStrings | None = Field(None, description="Strings before which a choice ends.")
    ignore_eos: bool = Field(False, description="Continue after the end-of-text token (as vLLM).")
    guided_choice: GuidedChoice | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = None
    allowed_token_ids: Unsupported = None
    bad_words: Unsupported = None
    frequency_penalty: Unsupported = None
    guided_grammar: Unsupported = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    include_stop_str_in_output: Unsupported = None
    length_penalty: Unsupported = None
    logit_bias: Unsupported = None
    min_p: Unsupported = None
    min_tokens: Unsupported = None
    no_repeat_ngram_size: Unsupported = None
    presence_penalty: Unsupported = None
    prompt_logprobs: Unsupported = None
    repetition_penalty: Unsupported = None
    skip_special_tokens: Unsupported = None
    spaces_between_special_tokens: Unsupported = None
    stop_token_ids: Unsupported = None
    top_k: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    typical_p: Unsupported = None
    use_beam_search: Unsupported = None
    metadata: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None

    def document(self) -> NamedDocument | None:
        """Return the document that the request is about, None if there is none.

        Raises:
            RequestError: it names several, or none where it should.
        """
        return find_document(self.ttt.document if self.ttt else None, self.attached())

    def attached(self) -> Iterable[tuple[str, FileFields]]:
        """Return the files in the messages, each with the path of its fields."""
        return ()

    @abstractmethod
    def expected_queries(self) -> tuple[str, ...]:
        """Return the questions that an adaptation on evidence is aimed at.

        Raises:
            RequestError: they are not there as text.
        """

    def sampling(
        self,
        max_tokens: int | None,
        default: int,
        longest: int,
        *,
        field: str,
        forms: Sequence[OutputFormat],
    ) -> SamplingConfig:
        """Return how to decode.

        Args:
            max_tokens: what the request says.
            default: what holds if it says nothing.
            longest: the server's limit.
            field: the field that says it.
            forms: the forms that fields of the request's own kind ask for.

        Raises:
            RequestError: more tokens are asked for than the server allows, or two forms.
        """
        further = [*forms, *choice_forms(self.guided_choice)]
        if self.structured_outputs is not None:
            further += self.structured_outputs.forms("structured_outputs")
        seed = secrets.randbelow(2**63) if self.seed is None else self.seed % 2**63
        return SamplingConfig(
            max_tokens=answer_tokens(max_tokens, default, longest, field),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(self.stop or ()),
            ignore_eos=self.ignore_eos,
            form=only_form(further),
            seed=seed,
        )

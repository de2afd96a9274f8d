"""Fields of OpenAI's API, and of servers like it, that this server does not act on.

A field that changes nothing is taken and left alone. One that would change the answer is refused by
name, with the reason, unless it has its neutral value. docs/openai.md has the table.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

Ignored = Annotated[Any, WithJsonSchema({"description": "Accepted and ignored."})]
"""A field that changes nothing."""


@dataclass(frozen=True)
class Neutral:
    """What may be said of a field that is not supported, and why nothing else may."""

    values: tuple[Any, ...]
    reason: str


NO_PENALTY = "tokens are sampled from the model's own probabilities"
NO_FILTER = "tokens are sampled by temperature and top_p alone"
NO_TOOLS = "the model answers with text and calls no tools"
NO_SEARCH = "each choice is sampled once; ask for more with n"
ONLY_TEXT = "the model reads and writes text"
END_BY_STOP = "an answer ends at a stop string or at the model's own end token"
OWN_TEMPLATE = "prompts are written by the model's own chat template"
ONE_FORM = "send it as structured_outputs"
NEXT_TURN = "the assistant answers with a turn of its own"

NO_EMBEDDINGS = "the model answers from texts and has no embeddings of them"
NOT_KEPT = "responses are not kept; send the earlier turns as input"
NEUTRAL: dict[str | None, Neutral] = {
    "add_generation_prompt": Neutral((True,), NEXT_TURN),
    "allowed_token_ids": Neutral(([],), NO_FILTER),
    "annotations": Neutral(([],), ONLY_TEXT),
    "audio": Neutral((), ONLY_TEXT),
    "background": Neutral((False,), "a request is answered while its connection is open"),
    "bad_words": Neutral(([],), NO_FILTER),
    "best_of": Neutral((1,), NO_SEARCH),
    "chat_template": Neutral((), OWN_TEMPLATE),
    "chat_template_kwargs": Neutral(({},), OWN_TEMPLATE),
    "context_management": Neutral(([],), "the input is read as it is sent"),
    "conversation": Neutral((), NOT_KEPT),
    "continue_final_message": Neutral((False,), NEXT_TURN),
    "disable_additional_properties": Neutral((False,), "the schema says it itself"),
    "disable_any_whitespace": Neutral((False,), "at most one space stands between parts"),
    "echo": Neutral((False,), "only completions return their prompt"),
    "file_url": Neutral((), "this server opens no connections for a request; send the text"),
    "frequency_penalty": Neutral((0,), NO_PENALTY),
    "function_call": Neutral(("none", "auto"), NO_TOOLS),
    "functions": Neutral(([],), NO_TOOLS),
    "guided_grammar": Neutral((), ONE_FORM),
    "guided_json": Neutral((), ONE_FORM),
    "guided_regex": Neutral((), ONE_FORM),
    "include_stop_str_in_output": Neutral((False,), "an answer ends before the stop string"),
    "length_penalty": Neutral((1,), NO_SEARCH),
    "logit_bias": Neutral(({},), NO_PENALTY),
    "min_p": Neutral((0,), NO_FILTER),
    "min_tokens": Neutral((0,), "a lower limit on tokens is not kept; see ignore_eos"),
    "modalities": Neutral((["text"],), ONLY_TEXT),
    "moderation": Neutral((), "this server does not judge what is said"),
    "no_repeat_ngram_size": Neutral((0,), NO_PENALTY),
    "prediction": Neutral((), "drafts are found in the prompt by the server itself"),
    "prefix": Neutral((False,), NEXT_TURN),
    "presence_penalty": Neutral((0,), NO_PENALTY),
    "previous_response_id": Neutral((), NOT_KEPT),
    "prompt": Neutral((), "this server keeps no prompt templates; send the text as input"),
    "prompt_logprobs": Neutral((), "log-probabilities of a prompt come with echo and logprobs"),
    "repetition_penalty": Neutral((1,), NO_PENALTY),
    "skip_special_tokens": Neutral((True,), "an answer has no control tokens"),
    "spaces_between_special_tokens": Neutral((True,), "an answer has no control tokens"),
    "stop_token_ids": Neutral(([],), END_BY_STOP),
    "structural_tag": Neutral((), NO_TOOLS),
    "suffix": Neutral(("",), "a text is continued at its end"),
    "tool_calls": Neutral(([],), NO_TOOLS),
    "tool_choice": Neutral(("none", "auto"), NO_TOOLS),
    "tools": Neutral(([],), NO_TOOLS),
    "top_k": Neutral((-1, 0), NO_FILTER),
    "truncate_prompt_tokens": Neutral((), "only documents are shortened; see on_overflow"),
    "truncation": Neutral(("disabled",), "only documents are shortened; see on_overflow"),
    "typical_p": Neutral((1,), NO_FILTER),
    "use_beam_search": Neutral((False,), NO_SEARCH),
    "web_search_options": Neutral((), NO_TOOLS),
    "whitespace_pattern": Neutral((), "at most one space stands between parts"),
}
"""Fields that are not supported, with what they may say beside null."""


def _changes_nothing(value: object, info: ValidationInfo) -> object:
    neutral = NEUTRAL[info.field_name]
    # In Python true is 1, and false is 0.
    kinds = [isinstance(one, bool) for one in neutral.values if one == value]
    if value is not None and isinstance(value, bool) not in kinds:
        message = "is not supported by this server: {reason}"
        raise PydanticCustomError("unsupported", message, {"reason": neutral.reason})
    return value


Unsupported = Annotated[
    Any,
    AfterValidator(_changes_nothing),
    WithJsonSchema({"description": "Not supported; only null and the neutral value are accepted."}),
]
"""A field that would change the answer; ``NEUTRAL`` has its name."""

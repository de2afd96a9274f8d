"""Fields that several requests share: their types, bounds and checks."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from refine_server.server.http.errors import ApiError
from refine_server.ttt.interface.config import MAX_ANSWER_TOKENS
from refine_server.ttt.interface.errors import RequestError
from refine_server.ttt.interface.reports import AnsweredBy


def _holds_text(value: str) -> str:
    if value.isspace():  # stops at the first other character
        raise ValueError("must contain more than white space")
    return value


Text = Annotated[str, Field(min_length=1), AfterValidator(_holds_text)]
"""A text of more than white space."""

Priority = Annotated[
    int,
    Field(
        ge=-10,
        le=10,
        description="Scheduling priority: a lower value runs first and gets a larger share of the "
        "model's time.",
    ),
]
Timeout = Annotated[
    float | None,
    Field(
        gt=0.0,
        le=86_400.0,
        description="Time limit in seconds; the server's own limit also applies.",
    ),
]

OnDocumentOverflow = Annotated[
    Literal["error", "truncate_middle"],
    Field(
        description="What is done with a document that is too long to be read as a whole, by the "
        "server's limit or because the model was trained for shorter sequences: `error` refuses "
        "it, `truncate_middle` cuts its middle out. A quarter of the model's length, at most the "
        "longest query, is kept for queries and their answers."
    ),
]

AnsweredByField = Annotated[
    AnsweredBy,
    Field(
        description="Which weights answer: `base`, as no adaptation was asked for; `adapted`; or "
        "`kept_base`: the base weights although an adaptation was asked for, for the reason in "
        "`kept_base_reason`."
    ),
]
KeptBaseReason = Annotated[
    str | None,
    Field(
        description="Why the base weights answer although an adaptation was asked for: "
        "`no_better_step` (no step did better on what was held out), `nothing_similar` (no word of "
        "the query occurs in the document), `document_too_short` (the held-out guard needs a "
        "document of 52 tokens; without it, and on evidence, 12 are enough), `non_finite_loss`, "
        "`non_finite_gradient`, `non_finite_weights`, or why it was stopped before its first step. "
        "Null unless `answered_by` is `kept_base`."
    ),
]

StopString = Annotated[str, Field(min_length=1, max_length=256)]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[StopString],
    Field(max_length=16),
    BeforeValidator(_listed, json_schema_input_type=StopString | list[StopString]),
]

AnswerTokens = Annotated[int, Field(ge=0, le=MAX_ANSWER_TOKENS)]
"""A limit on an answer's tokens; 0 only reads."""


def answer_tokens(asked: int | None, default: int, longest: int, field: str = "max_tokens") -> int:
    """Return how many tokens an answer may have.

    Args:
        asked: what the request says; None: the default, or the server's limit if that is lower.
        longest: the server's limit.
        field: the field that says it.

    Raises:
        RequestError: the request asks for more than the server allows.
    """
    if asked is None:
        return min(default, longest)
    if asked > longest:
        message = f"{field}: this server allows at most {longest}"
        raise RequestError(message, field, "invalid_value")
    return asked


def require_model(asked: str | None, served: str) -> None:
    """Raise 404 when a request names a model that is not the served one."""
    if asked is not None and asked != served:
        message = f"This server serves the model {served!r}, not {asked!r}."
        raise ApiError(404, message, "model_not_found", param="model")

"""Prompts that were cut before they were sent: what the server can see of it, and says."""

import pytest
from fastapi.testclient import TestClient

from refine_server.server.api.openai.cut_prompt import warning_of

LONGEST = 9_000
CHAT = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


def ids(tokens: int) -> list[int]:
    return [5] * tokens


@pytest.mark.parametrize(
    ("tokens", "max_tokens"),
    [(2_047 - 256, 256), (2_047 - 32, 32), (2_047, 1)],  # answers, and log-likelihoods
)
def test_lengths_to_which_the_harness_cuts_are_told(tokens: int, max_tokens: int) -> None:
    warning = warning_of([ids(tokens)], max_tokens, LONGEST)
    assert warning is not None
    assert "prompt 0 may be cut at its beginning" in warning
    assert "max_length" in warning
    assert warning_of([ids(tokens - 2)], max_tokens, LONGEST) is None


def test_a_prompt_that_fills_the_model_exactly_is_told() -> None:
    warning = warning_of([ids(3), ids(LONGEST - 1 - 64)], 64, LONGEST)
    assert warning is not None
    assert "prompt 1" in warning
    assert "8999" in warning


@pytest.mark.parametrize(
    "text",
    [
        CHAT.removeprefix("<|im_start|>"),
        "the end of it.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>",
        "so.<|eot_id|><|start_header_id|>user<|end_header_id|>",
        "Who? [/INST]",
    ],
)
def test_a_text_that_begins_inside_a_turn_is_told(text: str) -> None:
    assert "before any" in (warning_of([text], 8, LONGEST) or "")


@pytest.mark.parametrize("text", [CHAT, CHAT * 2, "plain text", "", "x" * 2_047])
def test_whole_texts_are_not(text: str) -> None:
    assert warning_of([text], 8, LONGEST) is None


@pytest.mark.parametrize("stream", [False, True])
def test_the_warning_is_a_header_of_the_response(client: TestClient, stream: bool) -> None:
    body = {"prompt": "Who? [/INST]", "max_tokens": 2, "stream": stream}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200
    assert response.headers["x-refine-warning"] == (
        "prompt 0 may be cut at its beginning: it has [/INST] before any [INST]"
    )
    whole = client.post("/v1/completions", json={**body, "prompt": "Who?"})
    assert "x-refine-warning" not in whole.headers

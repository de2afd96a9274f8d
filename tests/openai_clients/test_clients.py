"""langchain-openai, litellm and LlamaIndex, unmodified, against a server with the tiny model.

They run in the environment of ``make openai-clients``, and nowhere else.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

if Path(sys.prefix).name != ".venv-openai-clients":
    pytest.skip("runs in the environment of `make openai-clients`", allow_module_level=True)

import litellm
import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

DOCUMENT = "The harbour code is amber. The castle animal is falcon. The market spice is saffron."
QUERY = "What is the castle animal?"
PROMPT = f"{DOCUMENT}\n\nQuestion: {QUERY}\nAnswer:"
ASKED: list[Any] = [{"role": "user", "content": f"{DOCUMENT}\n\n{QUERY}"}]


@pytest.fixture(scope="module")
def expected(url: str) -> str:
    """What OpenAI's own client gets."""
    with openai.OpenAI(base_url=url, api_key="none") as client:
        chat = client.chat.completions.create(
            model="tiny", messages=ASKED, temperature=0, max_tokens=6
        )
    return chat.choices[0].message.content or ""


# -- OpenAI's own client, of an earlier version ---------------------------------------------------


def test_openais_client_answers_from_a_file(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="none") as client:
        file = client.files.create(file=("log.txt", DOCUMENT.encode()), purpose="user_data")
        parts: list[Any] = [
            {"type": "input_file", "file_id": file.id},
            {"type": "input_text", "text": QUERY},
        ]
        asked: Any = [{"role": "user", "content": parts}]
        options: dict[str, Any] = {"model": "tiny", "input": asked, "temperature": 0}
        whole = client.responses.create(**options, max_output_tokens=8)
        assert whole.output_text == " falcon"
        events = client.responses.create(**options, max_output_tokens=8, stream=True)
        texts = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(texts) == " falcon"
        assert client.files.delete(file.id).deleted


# -- langchain-openai -----------------------------------------------------------------------------


@pytest.fixture
def langchain(url: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=url, api_key="none", model="tiny", temperature=0, max_tokens=6)


def test_langchain_answers_and_streams(langchain: ChatOpenAI, expected: str) -> None:
    message = ASKED[0]["content"]
    assert langchain.invoke(message).content == expected
    assert "".join(str(chunk.content) for chunk in langchain.stream(message)) == expected


def test_langchain_continues_a_conversation(langchain: ChatOpenAI) -> None:
    turns = [SystemMessage("Be brief."), HumanMessage("Hello", name="bob"), AIMessage("")]
    parts = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]
    answer = langchain.invoke([*turns, HumanMessage(parts)])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] > 8
    again = langchain.invoke([*turns, HumanMessage("Hi"), answer, HumanMessage("Again?")])
    assert again.response_metadata["finish_reason"] in ("stop", "length")


def test_langchain_reads_log_probabilities(langchain: ChatOpenAI, expected: str) -> None:
    bound = langchain.bind(logprobs=True, top_logprobs=2, n=1, stop=["~"])
    scored = bound.invoke(ASKED).response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in scored) == expected


def test_langchain_asks_about_a_document(url: str) -> None:
    ttt = {"document": DOCUMENT, "adapt": {"optimizer": {"steps": 1}}}
    chat = ChatOpenAI(base_url=url, api_key="none", model="tiny", extra_body={"ttt": ttt})
    assert chat.invoke(QUERY).content


def test_langchain_completes_texts(url: str) -> None:
    model = OpenAI(base_url=url, api_key="none", model="tiny", temperature=0, max_tokens=4)
    first, second = model.generate([PROMPT, "The harbour"]).generations
    assert first[0].text == model.invoke(PROMPT) == "".join(model.stream(PROMPT))
    assert second[0].text


def test_langchain_is_told_that_there_are_no_tools(langchain: ChatOpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(openai.UnprocessableEntityError, match="calls no tools"):
        langchain.bind_tools([tool]).invoke("hello")


# -- litellm --------------------------------------------------------------------------------------


def test_litellm_answers_and_streams(url: str, expected: str) -> None:
    options = {"api_base": url, "api_key": "none", "temperature": 0, "max_tokens": 6}
    whole = litellm.completion(model="openai/tiny", messages=ASKED, **options)
    assert whole.choices[0].message.content == expected
    usage = {"include_usage": True}
    chunks = litellm.completion(
        model="openai/tiny", messages=ASKED, stream=True, stream_options=usage, **options
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected


def test_litellm_sends_options_of_vllm(url: str, expected: str) -> None:
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "skip_special_tokens": True}
    whole = litellm.completion(
        model="hosted_vllm/tiny", messages=ASKED, api_base=url, temperature=0, max_tokens=6,
        **neutral,
    )  # fmt: skip
    assert whole.choices[0].message.content == expected


def test_litellm_continues_a_conversation(url: str) -> None:
    options: dict[str, Any] = {"model": "openai/tiny", "api_base": url, "api_key": "none"}
    said = litellm.completion(messages=ASKED, max_tokens=4, **options).choices[0].message
    silent = {"role": "assistant", "content": None, "reasoning_content": "thoughts"}
    turns = [*ASKED, said, {"role": "user", "content": "a", "name": "bob"}, silent, *ASKED]
    text = {"type": "text"}
    answer = litellm.completion(
        messages=turns, max_tokens=4, user="u", seed=1, response_format=text, **options
    )
    assert answer.usage.completion_tokens >= 1


def test_litellm_completes_texts(url: str) -> None:
    completed = litellm.text_completion(
        model="text-completion-openai/tiny",
        prompt=PROMPT,
        api_base=url,
        api_key="none",
        max_tokens=4,
    )
    assert completed.choices[0].text


def test_litellm_knows_what_a_prompt_that_is_too_long_is(url: str) -> None:
    long = [{"role": "user", "content": "word " * 60_000}]
    with pytest.raises(litellm.BadRequestError, match="at most"):
        litellm.completion(
            model="openai/tiny", messages=long, api_base=url, api_key="none", num_retries=0
        )


# -- LlamaIndex -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_chat", "prompt"), [(True, ASKED[0]["content"]), (False, PROMPT)])
def test_llama_index_completes_and_streams(url: str, is_chat: bool, prompt: str) -> None:
    model = OpenAILike(
        api_base=url, api_key="none", model="tiny", is_chat_model=is_chat, temperature=0,
        max_tokens=6,
    )  # fmt: skip
    whole = model.complete(prompt).text
    assert whole
    assert "".join(chunk.delta or "" for chunk in model.stream_complete(prompt)) == whole


def test_llama_index_chats_with_log_probabilities(url: str, expected: str) -> None:
    model = OpenAILike(
        api_base=url, api_key="none", model="tiny", is_chat_model=True, temperature=0,
        max_tokens=6, logprobs=True, top_logprobs=2,
    )  # fmt: skip
    answer = model.chat([ChatMessage(role="user", content=ASKED[0]["content"])])
    assert answer.message.content == expected
    assert answer.logprobs

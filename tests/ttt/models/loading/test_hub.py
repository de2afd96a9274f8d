"""A checkpoint by its hub id is the checkpoint in its directory, chat template included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from support.fake_hub import serve_hub
from support.tokenizers import gpt2_like

CHAT = "{% for m in messages %}<|start|>{{ m.content | trim }}{% endfor %}<|end|>"
ID = "someone/a-model"
LOAD = f"""
import json
from refine_server.ttt.decoding.prompts.prompt import PromptTemplate
from refine_server.ttt.interface.requests import Limits
from refine_server.ttt.models import load
from refine_server.ttt.footprint.figures import measure

template = PromptTemplate(load({ID!r}).tokenizer)
print(json.dumps({{
    "form": template.form,
    "ids": template.encode_query("Who isn't there?", Limits()),
    "has_chat_template": measure({ID!r}).has_chat_template,
}}))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as transformers saves it, with its chat template in a file of its own."""
    directory = tmp_path / "saved"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=512, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer = gpt2_like()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(directory)
    assert (directory / "chat_template.jinja").is_file()
    return directory


def load_by_id(checkpoint: Path, cache: Path) -> dict[str, object]:
    """Load a checkpoint from a hub, in a process that knows no other."""
    with serve_hub({ID: checkpoint}) as url:
        environment = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    loaded: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_a_chat_template_of_its_own_file_is_loaded_by_id(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_by_id(checkpoint, tmp_path / "cache")
    rendered = "\n\nWho isn't there?<|end|>"
    ids = gpt2_like()(rendered, add_special_tokens=False)["input_ids"]
    assert loaded == {"form": "chat", "ids": ids, "has_chat_template": True}


def test_without_a_chat_template_prompts_are_plain(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    loaded = load_by_id(checkpoint, tmp_path / "cache")
    assert (loaded["form"], loaded["has_chat_template"]) == ("plain", False)


def test_a_tokenizer_of_merges_and_vocabulary_is_loaded_by_id(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Older checkpoints have no tokenizer.json."""
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (checkpoint / file).unlink()
    gpt2_like().backend_tokenizer.model.save(str(checkpoint))
    form = {"tokenizer_class": "GPT2Tokenizer"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(form))
    assert (checkpoint / "merges.txt").is_file()
    loaded = load_by_id(checkpoint, tmp_path / "cache")
    text = "\n\nQuestion: Who isn't there?\nAnswer:"
    assert loaded["ids"] == gpt2_like()(text, add_special_tokens=False)["input_ids"]

